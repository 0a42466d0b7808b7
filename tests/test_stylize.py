"""The flow of one job on real parts: real pictures, a real database, a real Prefect API, the real engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows import progress
from flows.claim import claim
from flows.inline import run_inline
from flows.settings import load_settings
from nst_engine.engine import Engine
from nst_engine.errors import ImageError, NotFiniteError, WeightsError
from nst_engine.images import MAX_PIXELS, decode
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start
from storage.database import open_database
from storage.errors import JobStateError, WorkspaceError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState
from storage.workspace import Workspace

pytestmark = pytest.mark.usefixtures("prefect_api")

SMALL = {
    "rows": "48",
    "iterations": "6",
    "weights": "random",
    "precision": "float32",
    "content_layers": "block2_conv2",
    "style_layers": "block1_conv1,block2_conv1",
}


def run(
    home: Path, content: Path, *styles: Path, out: Path | None = None, preset: str = "default", **settings: str
) -> Job:
    return run_inline(
        load_settings(home=home, device="cpu"),
        content=content,
        styles=styles,
        out=out,
        preset=preset,
        overrides=SMALL | settings,
    )


def all_jobs(home: Path) -> list[Job]:
    with open_database(Workspace(home).database_path) as database:
        return JobStore(database).recent(limit=100)


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_a_whole_result_and_its_record(
    tmp_path: Path, content_file: Path, style_file: Path, engine: Engine
) -> None:
    home = tmp_path / "home"
    job = run(home, content_file, style_file)

    folder = home / "outbox" / "lake_swirls"
    assert job.result_folder == str(folder)
    assert files_under(folder) == {"result.png", "content.png", "style.png", "loss.png", "job.json"}
    assert files_under(home / "work") == set()
    assert list((home / "work").iterdir()) == []
    assert (folder / "content.png").read_bytes() == content_file.read_bytes()
    assert (folder / "style.png").read_bytes() == style_file.read_bytes()
    with Image.open(folder / "loss.png") as plot:
        assert plot.size == (960, 600)

    config = find_preset("default").config.with_overrides(SMALL)
    pictures = fit_pictures(config, decode(content_file), [decode(style_file)])
    state, first = start(engine, config, pictures)
    state, points = advance(engine, state, Budget())
    assert np.array_equal(decode(folder / "result.png"), state.result())

    with open_database(home / "nst.db") as database:
        losses = JobStore(database).losses(job.id)
    assert [(point.iteration, point.total, point.layers) for point in losses] == [
        (point.iteration, point.losses.total, point.losses.layers) for point in [first, *points]
    ]
    assert [point.seconds for point in losses] == sorted(point.seconds for point in losses)
    assert job.state is JobState.COMPLETED
    assert job.error is None
    assert job.config == config.model_dump()
    assert (job.weights_name, job.weights_sha256) == ("random", state.weights_sha256)
    assert (job.precision, job.preset, job.result_rows, job.result_columns) == ("float32", "default", 48, 64)
    assert [(attempt.number, attempt.outcome) for attempt in job.attempts] == [(1, JobState.COMPLETED)]

    record = json.loads((folder / "job.json").read_text())
    assert record["id"] == job.id
    assert record["config"] == job.config
    assert record["losses"]["total"] == losses[-1].total
    assert record["iterations"] == 6
    assert "random weights" in record["remark"]
    assert [source["sha256"] for source in record["sources"]] == [source.sha256 for source in job.sources]


def test_prefect_shows_the_run_by_its_name_with_its_four_tasks(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterFlowRunId

    job = run(tmp_path / "home", content_file, style_file)
    run_id: Any = job.attempts[0].flow_run_id
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(run_id)
        runs = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        tasks = client.read_task_runs(
            flow_run_filter=runs, task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
        )
    assert flow_run.name == "lake_swirls"
    assert flow_run.state is not None
    assert flow_run.state.is_completed()
    assert set(flow_run.tags) == {"nst", "preset:default"}
    tasks.sort(key=lambda task: task.start_time or task.expected_start_time)
    assert [(task.name, task.state_name) for task in tasks] == [
        (name, "Completed") for name in ("preprocess", "optimise", "deprocess", "publish")
    ]


def test_a_second_run_of_the_same_pair_does_not_touch_the_first(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    home = tmp_path / "home"
    first = run(home, content_file, style_file, iterations="2")
    before = {name: (Path(str(first.result_folder)) / name).read_bytes() for name in ("result.png", "job.json")}
    second = run(home, content_file, style_file, iterations="2")
    assert second.result_folder == str(home / "outbox" / "lake_swirls-2")
    assert before == {name: (Path(str(first.result_folder)) / name).read_bytes() for name in before}


def test_several_styles_are_numbered_and_all_kept(tmp_path: Path, content_file: Path, style_file: Path) -> None:
    job = run(tmp_path / "home", content_file, style_file, content_file, iterations="2")
    assert [(source.role, source.file_name) for source in job.sources] == [
        ("content", "content.png"),
        ("style", "style1.png"),
        ("style", "style2.png"),
    ]
    assert {"style1.png", "style2.png", "content.png"} < files_under(Path(str(job.result_folder)))


def test_the_result_goes_where_the_user_says(tmp_path: Path, content_file: Path, style_file: Path) -> None:
    out = tmp_path / "my pictures" / "first"
    job = run(tmp_path / "home", content_file, style_file, out=out, iterations="2")
    assert job.result_folder == str(out)
    assert "result.png" in files_under(out)
    assert files_under(tmp_path / "home" / "outbox") == set()


def test_a_diverging_job_fails_with_its_best_picture_kept(
    tmp_path: Path, content_file: Path, style_file: Path, engine: Engine
) -> None:
    home = tmp_path / "home"
    with pytest.raises(NotFiniteError) as caught:
        run(home, content_file, style_file, preset="keras-2016", rows="48", learning_rate="1e38")
    job = all_jobs(home)[0]
    best = home / "work" / job.id / "best.png"
    assert job.state is JobState.FAILED
    assert job.error == str(caught.value)
    assert str(best) in job.error
    assert "iteration 1" in job.error
    assert "learning rate of 1e+38" in job.error
    assert decode(best).shape == (48, 64, 3)
    assert list((home / "outbox").iterdir()) == []
    assert content_file.exists()
    assert [(attempt.outcome, attempt.error) for attempt in job.attempts] == [(JobState.FAILED, job.error)]


def test_a_failure_in_the_flow_is_one_sentence_in_the_record_and_leaves_nothing_behind(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    home = tmp_path / "home"
    run(home, content_file, style_file, iterations="2")
    taken = tmp_path / "taken"

    # Somebody fills the result folder while the job runs.
    def fill(_: progress.Progress) -> None:
        taken.mkdir(exist_ok=True)
        (taken / "mine.txt").write_text("mine")

    from flows.stylize import stylize

    with open_database(home / "nst.db") as database:
        job = claim(
            JobStore(database),
            Workspace(home),
            content=content_file,
            styles=[style_file],
            preset="default",
            config=find_preset("default").config.with_overrides(SMALL),
            max_pixels=MAX_PIXELS,
        )
    with progress.watched_by(fill), pytest.raises(WorkspaceError):
        stylize(job.id, str(home), "cpu", str(taken))
    failed = all_jobs(home)[0]
    assert failed.id == job.id
    assert failed.state is JobState.FAILED
    assert failed.error == f"{taken} is already there and not an empty folder; choose another folder with -o."
    assert files_under(taken) == {"mine.txt"}
    assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize(
    "error", [JobStateError("It is not open."), WorkspaceError("Its folder is gone."), FileNotFoundError("checkpoint")]
)
def test_an_attempt_that_was_given_up_ends_crashed_whatever_stops_it(
    tmp_path: Path, claim_pair: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from flows.stylize import stylize

    settings = load_settings(home=tmp_path / "home", device="cpu")
    workspace = Workspace(settings.home)
    workspace.create()
    with open_database(workspace.database_path) as database:
        store = JobStore(database)
        pending = claim_pair(store, workspace, find_preset("default").config.with_overrides(SMALL))

        def overtaken(*_: object) -> None:
            store.release(pending.id, error="It stood still.")
            later = store.start_attempt(pending.id, host="here", pid=1, lease_until=utc_now())
            store.complete(pending.id, attempt=later, result_folder="there", result_files={}, rows=48, columns=64)
            raise error

        monkeypatch.setattr("flows.stylize.bring_pictures", overtaken)
        ended = stylize(pending.id, str(settings.home), "cpu", return_state=True)
        job = store.get(pending.id)
    assert (ended.type.value, ended.message) == (
        "CRASHED",
        "Attempt 1 at lake_swirls stood still past its lease of 60 s and was given up; it leaves the job as it is.",
    )
    assert (job.state, [(each.outcome, each.error) for each in job.attempts]) == (
        JobState.COMPLETED,
        [(JobState.FAILED, "It stood still."), (JobState.COMPLETED, None)],
    )


def test_a_missing_weight_file_makes_no_job(tmp_path: Path, content_file: Path, style_file: Path) -> None:
    with pytest.raises(WeightsError):
        run(tmp_path / "home", content_file, style_file, weights="no-such-file.h5")
    assert not (tmp_path / "home" / "nst.db").exists()


def test_a_picture_that_does_not_decode_makes_no_job(tmp_path: Path, content_file: Path) -> None:
    style = tmp_path / "style.jpg"
    style.write_text("not a picture")
    with pytest.raises(ImageError):
        run(tmp_path / "home", content_file, style)
    assert all_jobs(tmp_path / "home") == []
