"""`nst reconstruct`: what a layer knows of a picture is a job like any other, and figure 1 is ten of them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.grid import run_grid
from flows.grid_report import GridReport, result_path
from flows.reconstruction import PRESET, content_only, figure_grid, figure_variants, style_only
from flows.settings import load_settings
from nst_engine.images import decode, encode_png, resize
from nst_engine.presets import find_preset
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import JobState
from tests.test_cli import NST, environment, refused


def test_figure_1_has_five_content_layers_and_five_growing_sets_of_style_layers() -> None:
    first = [f"block{block}_conv1" for block in range(1, 6)]
    base = find_preset(PRESET).config
    told = []
    for variant in figure_variants():
        config = base.with_overrides(variant.overrides)
        told.append(
            (
                variant.row,
                variant.column,
                variant.remark,
                (config.content_weight > 0, list(config.content_layers)),
                (config.style_weight > 0, list(config.style_layers)),
            )
        )
        assert (config.init, config.tv_weight, config.pooling) == ("noise", 0.0, "average")
    assert told == [
        *(
            ("content", "abcde"[index], f"conv{index + 1}_2", (True, [f"block{index + 1}_conv2"]), (False, first[:1]))
            for index in range(5)
        ),
        ("style", "a", "conv1_1", (False, first[:1]), (True, first[:1])),
        *(
            (
                "style",
                "abcde"[index],
                f"conv1_1 to conv{index + 1}_1",
                (False, first[:1]),
                (True, first[: index + 1]),
            )
            for index in range(1, 5)
        ),
    ]


def test_layers_may_have_weights() -> None:
    base = find_preset(PRESET).config
    assert base.with_overrides(content_only("block1_conv1:2,block2_conv1:1")).content_layers == {
        "block1_conv1": 2.0,
        "block2_conv1": 1.0,
    }
    assert base.with_overrides(style_only("block3_conv2:3")).style_layers == {"block3_conv2": 3.0}


# The figure, with weights that see something.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, content: NDArray[np.uint8]) -> Path:
    made = tmp_path_factory.mktemp("reconstruct")
    encode_png(content, made / "lake.png")
    return made


@pytest.fixture(scope="module")
def figure(folder: Path, standin_weights: Path, prefect_api: None) -> GridReport:
    """Those of figure 1 that lie in blocks 1 to 3, whose weights are real; tracing the others takes a minute."""
    fixed = {"rows": 48, "iterations": 25, "weights": str(standin_weights)}
    whole = figure_grid(folder / "lake.png", fixed)
    low = [whole.variants[number] for number in (0, 1, 2, 5, 6, 7)]
    return run_grid(load_settings(home=folder / "home", device="cpu"), replace(whole, variants=low))


def reconstruct(folder: Path, *arguments: str) -> Result:
    picture, home = str(folder / "lake.png"), str(folder / "home")
    return CliRunner().invoke(app, ["reconstruct", picture, *arguments, "--device", "cpu", "--home", home])


def test_the_figure_is_jobs_and_a_sheet(folder: Path, figure: GridReport) -> None:
    made = folder / "home" / "outbox" / "figure1-lake"
    assert (figure.title, figure.folder, figure.preset) == ("lake.png, from noise", made, PRESET)
    assert [(outcome.state, outcome.name) for outcome in figure.outcomes] == [
        *(("completed", f"lake_content_block{block}_conv2") for block in (1, 2, 3)),
        *(("completed", f"lake_style_to_block{block}_conv1") for block in (1, 2, 3)),
    ]
    assert [path.name for path in sorted(made.iterdir())] == [
        *(f"content_block{block}_conv2" for block in (1, 2, 3)),
        "figure1.json",
        "sheet.png",
        *(f"style_to_block{block}_conv1" for block in (1, 2, 3)),
    ]
    with Image.open(made / "sheet.png") as sheet:
        # Two rows of three, with the layers and the loss under each.
        assert sheet.size == (2 * 40 + 190 + 3 * 186, 2 * 40 + 56 + 34 + 2 * (186 + 2 * 17 + 6))


def test_each_matches_what_it_is_made_from_and_nothing_else(folder: Path, figure: GridReport) -> None:
    with open_database(folder / "home" / "nst.db") as database:
        curves = [JobStore(database).losses(outcome.job.id) for outcome in figure.outcomes if outcome.job]
    for number, (first, *_, last) in enumerate(curves):
        assert last.total < 0.3 * first.total, figure.outcomes[number].name
        content, style = (last.total, 0.0) if number < 3 else (0.0, last.total)
        assert (last.content, last.style, last.tv) == (content, style, 0.0)


def test_low_layers_keep_the_picture_and_styles_do_not(figure: GridReport, content: NDArray[np.uint8]) -> None:
    picture = resize(content, rows=48, columns=64).astype(float)
    results = [result_path(outcome.job) for outcome in figure.outcomes if outcome.job]
    errors = [float(np.abs(decode(path) - picture).mean()) for path in results if path]
    assert errors[:3] == sorted(errors[:3])
    assert errors[0] < 0.75 * min(errors[3:])


# One picture.

SMALL = ["--rows", "32", "--iterations", "3", "--weights", "random"]


@pytest.mark.parametrize(
    ("kind", "layers", "name"),
    [
        ("content", "block2_conv2", "lake_content_block2_conv2"),
        ("style", "block1_conv1,block2_conv1", "lake_style_block1_conv1_block2_conv1"),
    ],
)
def test_a_reconstruction_is_a_job_with_its_report(
    folder: Path, prefect_api: None, kind: str, layers: str, name: str
) -> None:
    done = reconstruct(folder, f"--{kind}", layers, "--set", "history=5", *SMALL)
    assert done.exit_code == 0, done.output
    first, *files = done.stdout.splitlines()
    result = folder / "home" / "outbox" / name
    assert first.endswith(f" is done: {result}")
    assert {file.strip() for file in files} == {str(path) for path in result.iterdir()}
    with open_database(folder / "home" / "nst.db") as database:
        job = JobStore(database).recent(limit=1)[0]
    assert (job.name, job.preset, job.state, job.result_rows) == (name, PRESET, JobState.COMPLETED, 32)
    assert list(job.config[f"{kind}_layers"]) == layers.split(",")
    assert (job.config["iterations"], job.config["history"], job.config["init"]) == (3, 5, "noise")
    assert [source.sha256 for source in job.sources] == [job.sources[0].sha256] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Give one of --content, --style and --figure."),
        (["--content", "block1_conv1", "--figure"], "Give one of --content, --style and --figure."),
        (["--figure", "--out", "x"], "--out is for one picture; the figure is in a folder of its own in the outbox."),
        (["--content", "block2_conv3"], "content_layers: VGG19 has no convolution 'block2_conv3'"),
        (["--style", ""], "style_layers: needs at least one layer, such as block1_conv1."),
        (["--figure", "--set", "iterations=none"], "iterations = none: "),
    ],
    ids=["nothing", "two", "figure with out", "no such layer", "no layer", "setting"],
)
def test_what_is_wrong_is_said_in_one_sentence(folder: Path, arguments: list[str], sentence: str) -> None:
    done = subprocess.run(
        [NST, "reconstruct", "lake.png", *arguments],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused(done, code=2).startswith(sentence)
