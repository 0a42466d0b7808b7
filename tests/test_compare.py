"""`nst compare`: what differs between jobs, and whether their losses measure the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.compare import comparison, table_rows
from flows.inline import run_inline
from flows.settings import Settings, load_settings
from nst_engine.config import TransferConfig
from nst_engine.images import decode, encode_png
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, LossPoint
from storage.new import NewJob
from tests.test_cli import NST, environment, refused

# Low layers: their traces are made in a second.
LAYERS = {"content_layers": "block2_conv1", "style_layers": "block1_conv1,block2_conv1"}
SMALL: dict[str, Any] = {"rows": 32, "iterations": 2, "weights": "random", "precision": "float32", **LAYERS}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("compare") / "home", device="cpu")


@pytest.fixture(scope="module")
def jobs(
    settings: Settings, content: NDArray[np.uint8], style: NDArray[np.uint8], prefect_api: None
) -> tuple[Job, Job, Job]:
    """Two jobs of the same pictures, and one of another content, larger and with more weight on the style."""
    folder = settings.home.parent
    for name, picture in (("lake.png", content), ("sea.png", content[::-1]), ("swirls.png", style)):
        encode_png(np.ascontiguousarray(picture), folder / name)

    def made(content: str, overrides: dict[str, Any]) -> Job:
        return run_inline(
            settings,
            content=folder / content,
            styles=[folder / "swirls.png"],
            out=None,
            preset="default",
            overrides=SMALL | overrides,
        )

    return (
        made("lake.png", {}),
        made("lake.png", {"optimizer": "adam", "iterations": 3}),
        made("sea.png", {"rows": 48, "style_weight": 1}),
    )


@pytest.fixture(scope="module")
def losses(settings: Settings, jobs: tuple[Job, ...]) -> dict[str, LossPoint]:
    with open_database(settings.home / "nst.db") as database:
        return JobStore(database).final_losses([job.id for job in jobs])


def test_the_settings_that_differ_and_what_came_of_each(jobs: tuple[Job, ...], losses: dict[str, LossPoint]) -> None:
    document = comparison(jobs[:2], losses)
    assert document["differ"] == {"optimizer": ["lbfgs", "adam"], "iterations": [2, 3]}
    assert document["remark"] is None
    last = losses[jobs[1].id]
    assert document["jobs"][1] == {
        "id": jobs[1].id,
        "name": "lake_swirls",
        "state": "completed",
        "preset": "default",
        "sources": [
            {"role": source.role, "file": name, "sha256": source.sha256}
            for source, name in zip(jobs[1].sources, ["lake.png", "swirls.png"], strict=True)
        ],
        "rows": 32,
        "columns": 42,
        "weights_name": "random",
        "weights_sha256": jobs[1].weights_sha256,
        "precision": "float32",
        "device": jobs[1].device,
        "iterations": 3,
        "losses": {"total": last.total, "content": last.content, "style": last.style, "tv": last.tv},
        "seconds": round(last.seconds, 3),
        "result": str(Path(str(jobs[1].result_folder)) / "result.png"),
    }


def test_losses_of_other_pictures_weights_and_sizes_are_not_to_be_compared(
    jobs: tuple[Job, ...], losses: dict[str, LossPoint]
) -> None:
    document = comparison(jobs, losses)
    assert document["differ"] == {
        "rows": [32, 32, 48],
        "style_weight": [0.001, 0.001, 1.0],
        "optimizer": ["lbfgs", "adam", "lbfgs"],
        "iterations": [2, 3, 2],
    }
    assert document["remark"] == (
        "Their losses do not measure the same (style_weight, the pictures, the size): compare the pictures."
    )


def test_a_job_older_than_a_setting_has_its_default_and_one_that_has_not_run_has_no_losses(
    settings: Settings, jobs: tuple[Job, ...], losses: dict[str, LossPoint]
) -> None:
    old = dict(jobs[0].config)
    del old["patience"]
    with open_database(settings.home / "nst.db") as database:
        waiting = JobStore(database).create(NewJob(name="old", preset="default", config=old, sources=[]))
    document = comparison([jobs[0], waiting], losses)
    assert document["differ"] == {}
    assert TransferConfig.model_fields["patience"].default is not None
    told = document["jobs"][1]
    assert (told["state"], told["losses"], told["seconds"], told["result"]) == ("claimed", None, None, None)
    columns, rows = table_rows(document)
    assert columns == ["", jobs[0].id, waiting.id]
    assert all(len(row) == 3 for row in rows)
    assert {row[0]: row[2] for row in rows} == {
        "name": "old",
        "state": "claimed",
        "preset": "default",
        "content": "",
        "style": "",
        "size": "-",
        "weights_name": "-",
        "precision": "-",
        "device": "-",
        "iterations done": "-",
        "total loss": "-",
        "content loss": "-",
        "style loss": "-",
        "tv loss": "-",
        "seconds": "-",
    }


# The command.


def nst_compare(settings: Settings, *arguments: object) -> subprocess.CompletedProcess[str]:
    folder = settings.home.parent
    return subprocess.run(
        [NST, "compare", *map(str, arguments)],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_prints_a_table_and_draws_the_results_side_by_side(settings: Settings, jobs: tuple[Job, ...]) -> None:
    done = nst_compare(settings, *(job.id for job in jobs), "--out", "beside.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [job.id for job in jobs]
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:] if line}
    assert cells["optimizer"] == ["lbfgs", "adam", "lbfgs"]
    assert cells["style_weight"] == ["0.001", "0.001", "1.0"]
    assert cells["size"] == ["32", "x", "42", "32", "x", "42", "48", "x", "64"]
    assert lines[-3].startswith("Their losses do not measure the same (")
    assert lines[-1] == str(settings.home.parent / "beside.png")
    with Image.open(settings.home.parent / "beside.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    # Four lines of caption; the name that two of them have stands with their ids.
    assert sheet.shape[1] == 2 * 40 + 190 + 3 * 186
    for column, job in enumerate(jobs):
        result = decode(Path(str(job.result_folder)) / "result.png")
        rows, columns = result.shape[:2]
        x = 40 + 190 + 186 * column + 3 + (180 - columns) // 2
        y = sheet.shape[0] - 40 - (186 + 4 * 17 + 6) + 3 + (180 - rows) // 2
        assert np.array_equal(sheet[y : y + rows, x : x + columns], result)


def test_json_is_the_whole_comparison(settings: Settings, jobs: tuple[Job, ...], losses: dict[str, LossPoint]) -> None:
    done = nst_compare(settings, jobs[0].id, jobs[1].id, "--json")
    assert json.loads(done.stdout) == comparison(jobs[:2], losses)


def test_what_cannot_be_compared_is_refused(settings: Settings, jobs: tuple[Job, ...]) -> None:
    (settings.home.parent / "taken.png").write_bytes(b"")
    first = jobs[0].id
    for arguments, sentence in (
        ([first], "Give at least two jobs to compare; `nst jobs` lists them."),
        ([first, first], f"These are all the same job, {first}; give at least two."),
        ([first, "nobody"], "There is no job 'nobody'; `nst jobs` lists the jobs."),
        ([first, jobs[1].id, "--out", "x.jpg"], "--out x.jpg: a PNG file is drawn; give a name that ends in .png."),
        ([first, jobs[1].id, "--out", "taken.png"], "--out taken.png: is there already; choose another name."),
        ([first] * 13 + ["--out", "x.png"], "--out shows at most 12 jobs side by side; give fewer, or leave it out."),
    ):
        assert refused(nst_compare(settings, *arguments), code=2) == sentence
