"""The command as a user runs it: a process of its own, its output, its exit code, what it leaves on disk."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from nst_engine.vgg19 import CONVOLUTIONS
from nst_engine.weights import cache_path
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import JobState
from tests.service_process import free_port

Nst = Callable[..., subprocess.CompletedProcess[str]]
NST = Path(sys.executable).with_name("nst")
SMALL = ["--rows", "32", "--iterations", "3", "--weights", "random", "--precision", "float32", "--device", "cpu"]
SMALL += ["--set", "content_layers=block2_conv2", "--set", "style_layers=block1_conv1,block2_conv1"]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """A user with an empty home and no settings of ours or of Prefect's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NST_", "PREFECT_"))}
    user = tmp_path / "user"
    user.mkdir(exist_ok=True)
    return {
        **kept,
        "HOME": str(user),
        "KERAS_HOME": str(user / ".keras"),
        "NST_HOME": str(tmp_path / "home"),
        # Shared, since Prefect takes a quarter of a minute to make its database; the README's test makes its own.
        "PREFECT_HOME": str(tmp_path.parent / "prefect"),
        **more,
    }


@pytest.fixture
def nst(tmp_path: Path) -> Nst:
    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [NST, *map(str, arguments)],
            env=environment(tmp_path, **variables),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose home/ holds one completed job, `lake_swirls`, made by `nst run`."""
    from nst_engine.images import encode_png
    from nst_engine.samples import content_sample, style_sample

    folder = tmp_path_factory.mktemp("finished")
    encode_png(content_sample(96, 128), folder / "lake.png")
    encode_png(style_sample(96, 96), folder / "swirls.png")
    subprocess.run(
        [NST, "run", "lake.png", "swirls.png", *SMALL],
        env=environment(folder),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def at_finished(finished: Path) -> Nst:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [NST, *map(str, arguments)], env=environment(finished), capture_output=True, text=True, check=False
        )

    return run


def refused(done: subprocess.CompletedProcess[str], *, code: int) -> str:
    """The one sentence of a refusal: nothing on standard output, no traceback, the right exit code."""
    assert done.stdout == ""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("nst: ")
    return lines[0].removeprefix("nst: ")


def no_job(tmp_path: Path) -> bool:
    database = tmp_path / "home" / "nst.db"
    if not database.exists():
        return True
    with open_database(database) as opened:
        return JobStore(opened).recent(limit=1) == []


# Pictures that cannot work.


def test_a_picture_that_is_not_there(nst: Nst, tmp_path: Path, style_file: Path) -> None:
    sentence = refused(nst("run", "nowhere.jpg", style_file, *SMALL), code=2)
    assert "nowhere.jpg" in sentence
    assert no_job(tmp_path)


def test_a_text_file_named_jpg(nst: Nst, tmp_path: Path, style_file: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear Sir or Madam,\n")
    sentence = refused(nst("run", "letter.jpg", style_file, *SMALL), code=2)
    assert "letter.jpg" in sentence
    assert "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF" in sentence
    assert no_job(tmp_path)


def test_a_truncated_jpeg(nst: Nst, tmp_path: Path, style_file: Path) -> None:
    Image.effect_noise((200, 200), 60).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    sentence = refused(nst("run", "half.jpg", style_file, *SMALL), code=2)
    assert "half.jpg" in sentence
    assert no_job(tmp_path)


def test_a_picture_of_one_pixel(nst: Nst, tmp_path: Path, style_file: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    sentence = refused(nst("run", "dot.png", style_file, *SMALL), code=2)
    assert "dot.png" in sentence
    assert "1 x 1" in sentence
    assert no_job(tmp_path)


def test_a_picture_over_the_size_limit(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    sentence = refused(nst("run", content_file, style_file, *SMALL, NST_MAX_MEGAPIXELS="0.01"), code=2)
    assert str(content_file) in sentence
    assert no_job(tmp_path)


# Settings that cannot work.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(
            ["--set", "style_layers=block9_conv1"],
            "style_layers: VGG19 has no convolution 'block9_conv1'; did you mean 'block5_conv1'?",
            id="layer",
        ),
        pytest.param(
            ["--set", "stile_weight=2"],
            "stile_weight: there is no such setting; did you mean 'style_weight'?",
            id="key",
        ),
        pytest.param(
            ["--preset", "defualt"],
            "There is no preset 'defualt'; did you mean 'default'? 'nst presets' lists them.",
            id="preset",
        ),
        pytest.param(["--set", "rows"], "--set rows: give KEY=VALUE, such as --set style_weight=2.", id="no value"),
        pytest.param(
            ["--iterations", "0"],
            "iterations = 0: input should be greater than or equal to 1 (steps of the optimiser).",
            id="range",
        ),
    ],
)
def test_a_wrong_setting(
    nst: Nst, tmp_path: Path, content_file: Path, style_file: Path, arguments: list[str], sentence: str
) -> None:
    assert refused(nst("run", content_file, style_file, *arguments), code=2) == sentence
    assert no_job(tmp_path)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        pytest.param("devise = 'cpu'\n", "there is no setting 'devise'; did you mean 'device'?", id="key"),
        pytest.param("device = \n", "is not valid TOML", id="not TOML"),
        pytest.param("max_megapixels = -1\n", "max_megapixels = -1: input should be greater than 0", id="range"),
    ],
)
def test_a_wrong_nst_toml(nst: Nst, tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "nst.toml").write_text(text)
    sentence = refused(nst("jobs"), code=2)
    assert part in sentence
    assert str(tmp_path / "home" / "nst.toml") in sentence


def test_nst_toml_counts_and_the_environment_overrides_it(
    nst: Nst, tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "nst.toml").write_text("max_megapixels = 0.01\n")
    assert "lake.png" in refused(nst("run", content_file, style_file, *SMALL), code=2)
    done = nst("run", content_file, style_file, "--preset", "no", NST_MAX_MEGAPIXELS="100")
    assert "There is no preset" in refused(done, code=2)


# A machine on which it cannot work.


def test_a_folder_that_cannot_be_written(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    # /proc refuses new files to everyone, root too.
    sentence = refused(nst("run", content_file, style_file, *SMALL, "-o", "/proc/result"), code=3)
    assert "/proc/result" in sentence
    assert "-o" in sentence
    assert no_job(tmp_path)


def test_a_result_folder_that_is_taken(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    sentence = refused(nst("run", content_file, style_file, *SMALL, "-o", content_file.parent), code=3)
    assert str(content_file.parent) in sentence
    assert no_job(tmp_path)


def test_a_weight_file_of_wrong_shapes(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    with h5py.File(tmp_path / "wrong.h5", "w") as file:
        for layer in CONVOLUTIONS:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            group.create_dataset("kernel:0", data=np.zeros((3, 3, 3, 8), np.float32))
            group.create_dataset("bias:0", data=np.zeros(8, np.float32))
    expected = (
        f"{tmp_path}/wrong.h5: block1_conv1 has an array of shape (3, 3, 3, 8) instead of (3, 3, 3, 64); it must "
        "be Keras' VGG19 weight file without top."
    )
    by_option = nst("run", content_file, style_file, "--rows", "32", "--weights", "wrong.h5")
    assert refused(by_option, code=3) == expected
    by_variable = nst("run", content_file, style_file, "--rows", "32", NST_VGG19_WEIGHTS=str(tmp_path / "wrong.h5"))
    assert refused(by_variable, code=3) == expected
    assert no_job(tmp_path)


def test_a_database_that_is_none(nst: Nst, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "nst.db").write_text("this is no database, and long enough to look like one\n" * 100)
    assert str(tmp_path / "home" / "nst.db") in refused(nst("jobs"), code=3)


def test_a_device_that_is_not_there(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    done = nst("run", content_file, style_file, *SMALL, "--device", "gpu:7")
    sentence = done.stderr.splitlines()[-1]
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert sentence.startswith("nst: There is no device 'gpu:7' here; this machine has ")
    with open_database(tmp_path / "home" / "nst.db") as database:
        job = JobStore(database).recent(limit=1)[0]
    assert (job.state, f"nst: {job.error}") == (JobState.FAILED, sentence)
    assert list((tmp_path / "home" / "work").iterdir()) == []


def test_an_api_of_prefect_that_does_not_answer(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    done = nst("run", content_file, style_file, *SMALL, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("nst: Prefect's API does not answer")
    with open_database(tmp_path / "home" / "nst.db") as database:
        assert JobStore(database).recent(limit=1)[0].state is JobState.CANCELLED
    assert list((tmp_path / "home" / "work").iterdir()) == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_cancelled_and_leaves_nothing_behind(
    tmp_path: Path, content_file: Path, style_file: Path, stop: signal.Signals
) -> None:
    home = tmp_path / "home"
    arguments = ["run", content_file, style_file, *SMALL, "--iterations", "1000000"]
    with subprocess.Popen(
        [NST, *map(str, arguments)],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, which the tests may be, ignore SIGINT and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            wait_until(lambda: losses_written(home) > 0, process)
            process.send_signal(stop)
            _, messages = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, messages
    assert messages.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in messages
    with open_database(home / "nst.db") as database:
        (job,) = JobStore(database).recent(limit=10)
    assert job.state is JobState.CANCELLED
    assert [attempt.outcome for attempt in job.attempts] == [JobState.CANCELLED]
    assert list((home / "work").iterdir()) == []
    assert list((home / "outbox").iterdir()) == []
    assert content_file.exists()


def losses_written(home: Path) -> int:
    if not (home / "nst.db").exists():
        return 0
    with open_database(home / "nst.db") as database:
        store = JobStore(database)
        return sum(len(store.losses(job.id)) for job in store.recent(limit=10))


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Another process's rows in SQLite raise no event, so they are looked for."""
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


# What the other commands show.


def test_run_prints_the_files_of_the_result(nst: Nst, tmp_path: Path, content_file: Path, style_file: Path) -> None:
    done = nst("run", content_file, style_file, *SMALL)
    assert done.returncode == 0, done.stderr
    first, *files = done.stdout.splitlines()
    folder = tmp_path / "home" / "outbox" / "lake_swirls"
    assert first.endswith(f" is done: {folder}")
    assert {file.strip() for file in files} == {str(path) for path in folder.iterdir()}
    assert "lake_swirls" in done.stderr
    assert "3/3" in done.stderr
    assert "Traceback" not in done.stderr


def test_jobs(at_finished: Nst, finished: Path) -> None:
    (job,) = json.loads(at_finished("jobs", "--json").stdout)
    listed = at_finished("jobs").stdout
    assert (job["name"], job["state"], job["preset"]) == ("lake_swirls", "completed", "default")
    assert job["result"]["folder"] == str(finished / "home" / "outbox" / "lake_swirls")
    assert job["id"] in listed
    assert "completed" in listed
    assert json.loads(at_finished("jobs", "--state", "failed", "--json").stdout) == []
    assert refused(at_finished("jobs", "--state", "complete"), code=2) == (
        "--state complete: there is no such state; did you mean 'completed'?"
    )


def test_jobs_of_an_empty_home_makes_nothing(nst: Nst, tmp_path: Path) -> None:
    done = nst("jobs")
    assert (done.returncode, done.stdout) == (0, "No jobs yet; `nst run CONTENT STYLE` makes one.\n")
    assert json.loads(nst("jobs", "--json").stdout) == []
    assert not (tmp_path / "home").exists()


def test_show(at_finished: Nst) -> None:
    document = json.loads(at_finished("show", "lake_swirls", "--json").stdout)
    page = at_finished("show", document["id"][:6]).stdout
    assert [row["iteration"] for row in document["losses"]] == [0, 1, 2, 3]
    assert document["weights"]["name"] == "random"
    assert "random weights" in document["remark"]
    for shown in (
        document["id"],
        "lake_swirls",
        "completed",
        document["weights"]["sha256"],
        document["sources"][0]["sha256"],
        document["sources"][1]["original_path"],
        document["device"],
        document["result"]["folder"],
        "block2_conv2:1",
        "loss after 3 iterations",
        "└────",
    ):
        assert shown in page


def test_losses(at_finished: Nst) -> None:
    text = at_finished("losses", "lake_swirls", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0].startswith("iteration,total,content,style,tv,seconds,")
    assert [row["iteration"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[3]["total"]) < float(rows[0]["total"])
    documents = json.loads(at_finished("losses", "lake_swirls", "--json").stdout)
    assert [document["total"] for document in documents] == [float(row["total"]) for row in rows]
    assert "•" in at_finished("losses", "lake_swirls", "--plot").stdout
    assert at_finished("losses", "lake_swirls").stdout.splitlines()[0].split() == [
        "iteration",
        "total",
        "content",
        "style",
        "tv",
        "seconds",
    ]
    assert refused(at_finished("losses", "lake_swirls", "--csv", "--plot"), code=2) == (
        "Give one of --csv, --plot and --json."
    )


def test_a_job_that_is_not_there(nst: Nst, at_finished: Nst) -> None:
    assert refused(at_finished("show", "nobody"), code=2) == "There is no job 'nobody'; `nst jobs` lists the jobs."
    assert "has no database yet" in refused(nst("losses", "nobody"), code=2)


def test_presets(nst: Nst) -> None:
    presets = json.loads(nst("presets", "--json").stdout)
    listed = nst("presets").stdout
    assert len(presets) == 23
    for preset in presets:
        assert preset["name"] in listed
        assert preset["source"]


def test_the_paper_s_table_of_layers(nst: Nst) -> None:
    rows = json.loads(nst("weights", "--layers", "--json").stdout)
    listed = nst("weights", "--layers").stdout
    assert len(rows) == 22
    assert sum(row["parameters"] for row in rows) == 20_024_384
    assert rows[1] == {
        "layer": "block1_conv1",
        "shape": "(None, None, None, 64)",
        "parameters": 1792,
        "receptive_field": 3,
        "stride": 1,
    }
    assert listed.splitlines()[-1] == "Total parameters: 20,024,384"
    assert "block5_pool" in listed


def test_weights_that_are_not_there_are_said_so(nst: Nst) -> None:
    done = nst("weights", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert document["verified"] is False
    assert document["path"].endswith(f"/user/.keras/models/{cache_path().name}")
    assert "nst weights --fetch" in document["problem"]


def test_weights_in_the_variable_are_verified(nst: Nst, weight_file: Path) -> None:
    done = nst("weights", "--json", NST_VGG19_WEIGHTS=str(weight_file))
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["verified"] is True
    assert (document["name"], document["found_by"]) == (weight_file.name, "NST_VGG19_WEIGHTS")


def test_doctor_names_what_is_wrong_and_how_to_mend_it(nst: Nst, weight_file: Path) -> None:
    # Another service may have the usual ones.
    ports = {f"NST_{part}_PORT": str(free_port()) for part in ("PREFECT", "GALLERY", "SCHEDULER")}
    sick = nst("doctor", "--json", **ports)
    findings = {finding["check"]: finding for finding in json.loads(sick.stdout)}
    assert sick.returncode == 1
    assert [check for check, finding in findings.items() if not finding["healthy"]] == ["weights"]
    assert "nst weights --fetch" in findings["weights"]["remedy"]
    assert findings["gpu"]["finding"] == "without XLA; the same float32 picture bit for bit"
    more = {"NST_VGG19_WEIGHTS": str(weight_file), "NST_XLA": "1", "NST_DETERMINISTIC": "0"}
    well = nst("doctor", "--device", "cpu", **ports, **more)
    assert "with XLA; not always the same float32 picture bit for bit" in well.stdout
    assert well.returncode == 0, well.stdout
    assert all(line.startswith("ok ") for line in well.stdout.splitlines())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        pytest.param("flows.cli", {"tensorflow", "prefect", "sqlalchemy", "numpy", "rich"}, id="the command"),
        pytest.param("flows.inline", {"tensorflow", "prefect"}, id="checks before a run"),
        pytest.param("flows.stylize", {"tensorflow"}, id="the flow"),
        pytest.param("nst_engine.transfer", {"tensorflow"}, id="the state of a transfer"),
    ],
)
def test_what_costs_seconds_is_imported_only_where_it_is_needed(module: str, absent: set[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert absent & set(json.loads(done.stdout)) == set()


def test_help_names_every_command_and_the_exit_codes(nst: Nst) -> None:
    shown = nst("--help").stdout
    for command in ("run", "demo", "presets", "jobs", "show", "losses", "weights", "doctor"):
        assert f" {command} " in shown
    assert "Exit codes: 0 done" in shown
