"""`nst sweep`: which jobs a sweep is made of, that they are run once each, and what the sheet and the record say."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.errors import SettingsError
from flows.grid import Grid, run_grid
from flows.grid_report import GridReport
from flows.settings import Settings, load_settings
from flows.sweep import Axis, parse_settings, variants
from nst_engine.errors import ConfigError, ImageError
from nst_engine.images import decode, encode_png
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState
from tests.test_cli import NST, environment, refused

# Low layers: their traces are made in a second.
LAYERS = {"content_layers": "block2_conv1", "style_layers": "block1_conv1,block2_conv1"}
FIXED: dict[str, Any] = {"rows": 32, "iterations": 3, "weights": "random", "precision": "float32", **LAYERS}
MARGIN, NAMES, TITLE, HEADER, LINE, STEP = 40, 190, 56, 34, 17, 186


# Which jobs.


@pytest.mark.parametrize(
    ("given", "axes", "fixed"),
    [
        pytest.param(["rows=64,128"], [Axis("rows", ("64", "128"))], {}, id="one"),
        pytest.param(
            ["a=1,2", " b = x , y ,z", "c=3"],
            [Axis("a", ("1", "2")), Axis("b", ("x", "y", "z"))],
            {"c": "3"},
            id="two and one that is fixed",
        ),
        pytest.param(
            ["style_layers=[block1_conv1],[block1_conv1,block2_conv1:2]", "content_layers=[block1_conv1,block2_conv1]"],
            [Axis("style_layers", ("block1_conv1", "block1_conv1,block2_conv1:2"))],
            {"content_layers": "block1_conv1,block2_conv1"},
            id="values with commas",
        ),
        pytest.param(["w=a=b,c"], [Axis("w", ("a=b", "c"))], {}, id="an equals sign in a value"),
    ],
)
def test_settings_are_read(given: list[str], axes: list[Axis], fixed: dict[str, str]) -> None:
    assert parse_settings(given) == (axes, fixed)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "There is nothing to sweep; give --set KEY=A,B with at least two values."),
        (["rows=64"], "There is nothing to sweep; give --set KEY=A,B with at least two values."),
        (["rows"], "--set rows: give KEY=A,B for values to sweep, or KEY=VALUE."),
        (
            ["a=1,2", "b=1,2", "c=1,2"],
            "A sweep is of one or two settings, but a, b, c have several values; put a value that has commas in "
            "brackets.",
        ),
        (["a=1,,2"], "--set a=1,,2: a value is empty; give KEY=A,B."),
        (["a=1,2,1"], "--set a=1,2,1: 1 is given twice; give each value once."),
        (["a=1,2", "a=3"], "--set a=3: a is given twice; give all its values at once."),
        *(
            ([f"a={text}"], f"--set a={text}: its brackets do not match; write [a,b],[c] for the values a,b and c.")
            for text in ("[x,y", "x],y", "[[x],y]")
        ),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_sentence(given: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_settings(given)
    assert str(refusal.value) == sentence


def places(axes: list[Axis]) -> list[tuple[str, str, dict[str, str]]]:
    return [(variant.row, variant.column, dict(variant.overrides)) for variant in variants(axes)]


def test_two_settings_go_down_and_across() -> None:
    assert places([Axis("a", ("1", "2")), Axis("b", ("x,y", "z"))]) == [
        ("a = 1", "b = x, y", {"a": "1", "b": "x,y"}),
        ("a = 1", "b = z", {"a": "1", "b": "z"}),
        ("a = 2", "b = x, y", {"a": "2", "b": "x,y"}),
        ("a = 2", "b = z", {"a": "2", "b": "z"}),
    ]


def test_one_setting_goes_across_and_down_where_the_sheet_is_too_narrow() -> None:
    assert places([Axis("a", ("1", "2"))]) == [("a", "1", {"a": "1"}), ("a", "2", {"a": "2"})]
    many = tuple(map(str, range(13)))
    assert places([Axis("a", many)]) == [(f"a = {value}", "", {"a": value}) for value in many]


def test_nobody_looks_at_more_than_two_hundred() -> None:
    with pytest.raises(SettingsError, match=r"^These are 210 jobs, and a sweep has at most 200; give fewer values\.$"):
        variants([Axis("a", tuple(map(str, range(14)))), Axis("b", tuple(map(str, range(15))))])


# Running them.


@pytest.fixture(scope="module")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    encode_png(content, folder / "lake.png")
    encode_png(style, folder / "swirls.png")
    return folder / "lake.png", folder / "swirls.png"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("sweep") / "home", device="cpu")


def grid(pictures: tuple[Path, Path], *settings: str) -> Grid:
    axes, fixed = parse_settings(settings)
    return Grid(
        kind="sweep",
        name="lake_swirls",
        title="lake_swirls",
        preset="default",
        content=pictures[0],
        styles=[pictures[1]],
        fixed=FIXED | fixed,
        variants=variants(axes),
    )


SETTINGS = ("style_weight=0.001,1", "optimizer=adam,lbfgs")


@pytest.fixture(scope="module")
def first(home: Settings, pictures: tuple[Path, Path], prefect_api: None) -> GridReport:
    return run_grid(home, grid(pictures, *SETTINGS))


def all_jobs(home: Settings) -> list[Job]:
    with open_database(home.home / "nst.db") as database:
        return JobStore(database).recent(limit=100)[::-1]


def test_each_combination_is_a_job_of_its_own(first: GridReport, home: Settings) -> None:
    folder = home.home / "outbox" / "sweep-lake_swirls"
    assert [path.name for path in (home.home / "outbox").iterdir()] == [folder.name]
    names = ["0.001_adam", "0.001_lbfgs", "1_adam", "1_lbfgs"]
    assert {path.name for path in folder.iterdir()} == {*names, "sheet.png", "sweep.json"}
    jobs = [outcome.job for outcome in first.outcomes]
    assert [
        (job.name, job.state, job.result_folder, job.config["style_weight"], job.config["optimizer"])
        for job in jobs
        if job
    ] == [
        (f"lake_swirls_{name}", JobState.COMPLETED, str(folder / name), weight, optimizer)
        for name, weight, optimizer in zip(names, [0.001, 0.001, 1.0, 1.0], ["adam", "lbfgs"] * 2, strict=True)
    ]
    assert {job.config["rows"] for job in jobs if job} == {32}
    assert list((home.home / "work").iterdir()) == []


def test_the_record_tells_what_came_of_each(first: GridReport) -> None:
    document = json.loads((first.folder / "sweep.json").read_text())
    assert document == first.document()
    with open_database(first.folder.parents[1] / "nst.db") as database:
        for job, outcome in zip(document["jobs"], first.outcomes, strict=True):
            last = JobStore(database).losses(job["job"])[-1]
            assert job == {
                "row": f"style_weight = {outcome.variant.overrides['style_weight']}",
                "column": f"optimizer = {outcome.variant.overrides['optimizer']}",
                "settings": dict(outcome.variant.overrides),
                "name": outcome.name,
                "fingerprint": outcome.fingerprint,
                "state": "completed",
                "error": None,
                "job": outcome.job.id if outcome.job else "",
                "result": str(first.folder / outcome.variant.name / "result.png"),
                "iterations": 3,
                "losses": {"total": last.total, "content": last.content, "style": last.style, "tv": last.tv},
                "seconds": round(last.seconds, 3),
            }


def cell_of(sheet: Image.Image, row: int, column: int) -> Image.Image:
    """The grey square of a cell; three lines of caption stand under each."""
    x = MARGIN + NAMES + STEP * column + 3
    y = MARGIN + TITLE + HEADER + (STEP + 3 * LINE + 6) * row + 3
    return sheet.crop((x, y, x + 180, y + 180))


def test_the_sheet_has_each_result_where_its_settings_meet_and_its_losses_under_it(first: GridReport) -> None:
    with Image.open(first.sheet) as opened:
        sheet = opened.convert("RGB")
    assert sheet.size == (2 * MARGIN + NAMES + 2 * STEP, 2 * MARGIN + TITLE + HEADER + 2 * (STEP + 3 * LINE + 6))
    for number, outcome in enumerate(first.outcomes):
        assert outcome.job is not None
        result = decode(Path(str(outcome.job.result_folder)) / "result.png")
        rows, columns = result.shape[:2]
        left, top = (180 - columns) // 2, (180 - rows) // 2
        row, column = divmod(number, 2)
        shown = np.asarray(cell_of(sheet, row, column).crop((left, top, left + columns, top + rows)))
        assert np.array_equal(shown, result)
        below = MARGIN + TITLE + HEADER + (STEP + 3 * LINE + 6) * row + 3 + 180
        x = MARGIN + NAMES + STEP * column + 3
        for line in range(3):
            strip = sheet.crop((x, below + 6 + LINE * line, x + 180, below + 6 + LINE * (line + 1)))
            assert (np.asarray(strip.convert("L")) < 190).any()


def test_the_same_sweep_again_computes_nothing(first: GridReport, home: Settings, pictures: tuple[Path, Path]) -> None:
    before = [job.id for job in all_jobs(home)]
    assert run_grid(home, grid(pictures, *SETTINGS)).document() == first.document()
    assert [job.id for job in all_jobs(home)] == before


def test_a_larger_sweep_computes_what_is_new_beside_the_other(
    first: GridReport, home: Settings, pictures: tuple[Path, Path]
) -> None:
    before = [job.id for job in all_jobs(home)]
    larger = run_grid(home, grid(pictures, "style_weight=0.001,1,30", "optimizer=adam"))
    assert larger.folder.name == "sweep-lake_swirls-2"
    assert {path.name for path in larger.folder.iterdir()} == {"30", "sheet.png", "sweep.json"}
    made = [job.id for job in all_jobs(home)][len(before) :]
    known = [first.outcomes[0].job, first.outcomes[2].job]
    assert [outcome.job.id for outcome in larger.outcomes if outcome.job] == [
        *(job.id for job in known if job),
        *made,
    ]
    assert len(made) == 1


def test_a_result_that_was_taken_away_is_made_again(home: Settings, pictures: tuple[Path, Path]) -> None:
    asked = grid(pictures, "seed=1,2", "init=noise")
    report = run_grid(home, asked)
    (report.folder / "2" / "result.png").write_bytes(b"torn")
    before = len(all_jobs(home))
    again = run_grid(home, asked)
    assert again.folder == report.folder
    assert again.document()["jobs"][0] == report.document()["jobs"][0]
    assert [job.result_folder for job in all_jobs(home)[before:]] == [str(report.folder / "2-2")]
    assert again.failed == 0


def test_with_force_all_is_computed_again(home: Settings, pictures: tuple[Path, Path]) -> None:
    asked = grid(pictures, "seed=1,3", "init=noise")
    run_grid(home, asked)
    before = len(all_jobs(home))
    forced = run_grid(home, asked, force=True)
    assert [job.name for job in all_jobs(home)[before:]] == ["lake_swirls_1", "lake_swirls_3"]
    assert len({path.name for path in forced.folder.iterdir() if path.is_dir()}) == 3


def test_a_job_that_fails_says_so_in_its_cell_and_the_others_go_on(
    home: Settings, pictures: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_grid(home, grid(pictures, "learning_rate=1e30,1", "optimizer=sgd"))
    assert [outcome.state for outcome in report.outcomes] == ["failed", "completed"]
    assert report.failed == 1
    error = str(report.outcomes[0].error)
    assert error.startswith("The loss is ")
    assert error in " ".join(capsys.readouterr().err.split())
    document = json.loads((report.folder / "sweep.json").read_text())["jobs"][0]
    assert (document["state"], document["error"], document["job"], document["losses"]) == ("failed", error, None, None)
    with Image.open(report.sheet) as sheet:
        red = np.asarray(cell_of(sheet.convert("RGB"), 0, 0)).astype(int)
    assert ((red[..., 0] - red[..., 2]) > 60).sum() > 50


@pytest.mark.parametrize(
    ("settings", "kind", "sentence"),
    [
        pytest.param(
            ["style_weight=1,much"], ConfigError, r"^style_weight = much: input should be a valid number", id="value"
        ),
        pytest.param(["stile_weight=1,2"], ConfigError, "did you mean 'style_weight'", id="key"),
        pytest.param(
            ["clip=true,false"],
            ConfigError,
            r"^clip=true: clip works with sgd and adam",
            id="not together",
        ),
        pytest.param(["long_edge=64,17", "rows=none"], ImageError, r"lake\.png: the picture is too narrow", id="size"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path,
    pictures: tuple[Path, Path],
    settings: list[str],
    kind: type[Exception],
    sentence: str,
) -> None:
    elsewhere = load_settings(home=tmp_path / "home", device="cpu")
    with pytest.raises(kind, match=sentence):
        run_grid(elsewhere, grid(pictures, *settings))
    assert not (tmp_path / "home").exists()


# The command.

SMALL = ["--rows", "32", "--weights", "random", "--precision", "float32", "--device", "cpu"]
SMALL += [part for key, layers in LAYERS.items() for part in ("--set", f"{key}=[{layers}]")]


@pytest.fixture
def folder(tmp_path: Path, content_file: Path, style_file: Path) -> Path:
    return content_file.parent


def test_after_ctrl_c_the_same_command_goes_on_with_what_is_missing(
    tmp_path: Path, folder: Path, prefect_api: None
) -> None:
    home = tmp_path / "home"
    arguments = ["lake.png", "swirls.png", "--set", "iterations=2,600", *SMALL]
    with subprocess.Popen(
        [NST, "sweep", *arguments],
        env=environment(tmp_path),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, which the tests may be, ignore SIGINT and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            wait_until(lambda: states(home) == [JobState.COMPLETED, JobState.RUNNING], process)
            process.send_signal(signal.SIGINT)
            told, messages = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, told) == (130, ""), messages
    assert messages.splitlines()[-1] == "Interrupted; the same command goes on with what is missing."
    outbox = home / "outbox" / "sweep-lake_swirls"
    record = json.loads((outbox / "sweep.json").read_text())
    assert [job["state"] for job in record["jobs"]] == ["completed", "pending"]
    paths = [str(folder / name) for name in arguments[:2]]
    done = CliRunner().invoke(app, ["sweep", *paths, *arguments[2:], "--home", str(home)])
    assert done.exit_code == 0, done.output
    jobs = all_jobs(load_settings(home=home))
    assert [(job.name, job.state) for job in jobs] == [
        ("lake_swirls_2", JobState.COMPLETED),
        ("lake_swirls_600", JobState.CANCELLED),
        ("lake_swirls_600", JobState.COMPLETED),
    ]
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["settings", "job", "loss", "seconds", "result"]
    assert [line.split()[1:3] for line in lines[1:3]] == [["2", jobs[0].id], ["600", jobs[2].id]]
    assert lines[-1] == str(outbox / "sheet.png")
    assert {path.name for path in outbox.iterdir()} == {"2", "600", "sheet.png", "sweep.json"}


def states(home: Path) -> list[JobState]:
    if not (home / "nst.db").exists():
        return []
    return [job.state for job in all_jobs(load_settings(home=home))]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Another process's rows in SQLite raise no event, so they are looked for."""
    deadline = time.monotonic() + 300
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_failed_job_gives_exit_code_1_and_json_tells_of_it(tmp_path: Path, folder: Path, prefect_api: None) -> None:
    paths = [str(folder / "lake.png"), str(folder / "swirls.png")]
    asked = ["--set", "learning_rate=1e30,1e31", "--set", "optimizer=sgd", "--iterations", "2"]
    done = CliRunner().invoke(app, ["sweep", *paths, *asked, *SMALL, "--json", "--home", str(tmp_path / "home")])
    assert done.exit_code == 1, done.output
    assert [job["state"] for job in json.loads(done.stdout)["jobs"]] == ["failed", "failed"]
    assert done.stderr.splitlines()[-1] == "2 of 2 jobs failed."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "rows=32,64"], "--rows and --set rows are both given; leave one of them out."),
        (["--set", "optimizer=adam,sdg"], "optimizer = sdg: input should be "),
        ([], "There is nothing to sweep; give --set KEY=A,B with at least two values."),
    ],
    ids=["twice", "value", "nothing"],
)
def test_the_command_refuses_with_exit_code_2(
    tmp_path: Path, folder: Path, arguments: list[str], sentence: str
) -> None:
    done = subprocess.run(
        [NST, "sweep", "lake.png", "swirls.png", *arguments, *SMALL],
        env=environment(tmp_path),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused(done, code=2).startswith(sentence)
    assert not (tmp_path / "home").exists()
