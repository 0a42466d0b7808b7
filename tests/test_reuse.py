"""A job that has been done before is published under its new name at once, on real files and a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.checked_picture import CheckedPicture
from flows.claim import claim, claim_drop
from flows.drop_settings import read_drop_settings
from flows.inbox import assess
from flows.listing import scan
from flows.reuse import reuse_or_fail, reuse_twin
from nst_engine.config import TransferConfig
from nst_engine.images import MAX_PIXELS, decode, encode_png
from storage.database import open_database
from storage.errors import JobStateError, WorkspaceError
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.new import NewLossPoint
from storage.workspace import Workspace

CONFIG = TransferConfig(weights="random")
RESULT_FILES = {"result.png", "loss.png", "job.json", "content.png", "style.png"}
POINTS = [
    NewLossPoint(
        iteration=iteration,
        total=9.0 - iteration,
        content=1.0,
        style=8.0 - iteration,
        tv=0.0,
        layers={"style/block1_conv1": 8.0 - iteration},
        learning_rate=None,
        seconds=float(iteration),
    )
    for iteration in range(3)
]


@pytest.fixture
def store(workspace: Workspace) -> Iterator[JobStore]:
    with open_database(workspace.database_path) as database:
        yield JobStore(database)


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    content, style = tmp_path / "lake.png", tmp_path / "swirls.png"
    encode_png(np.full((20, 24, 3), 200, np.uint8), content)
    encode_png(np.full((20, 20, 3), 90, np.uint8), style)
    return content, style


def pending(
    store: JobStore,
    workspace: Workspace,
    pictures: Sequence[Path],
    *,
    name: str,
    preset: str = "default",
    snapshot_every: int | None = None,
) -> Job:
    content, *styles = pictures
    return claim(
        store,
        workspace,
        content=content,
        styles=styles,
        preset=preset,
        config=CONFIG,
        max_pixels=MAX_PIXELS,
        name=name,
        snapshot_every=snapshot_every,
    )


def completed(store: JobStore, workspace: Workspace, job: Job, *, size: tuple[int, int] = (30, 36)) -> Job:
    """The job with a result of 30 x 36 pixels and three loss points, as its flow leaves it; its record may have another
    size."""
    attempt = store.start_attempt(
        job.id, host="here", pid=1, lease_until=datetime.now(UTC) + timedelta(minutes=1), flow_run_id="run"
    )
    store.record_environment(
        job.id,
        attempt=attempt,
        weights_name="random",
        weights_sha256="0" * 64,
        precision="float32",
        device="cpu",
        versions={"nst": "1"},
    )
    store.add_loss_points(job.id, attempt=attempt, points=POINTS)
    folder = workspace.outbox / job.name
    folder.mkdir()
    encode_png(np.full((30, 36, 3), 17, np.uint8), folder / "result.png")
    rows, columns = size
    store.complete(job.id, attempt=attempt, result_folder=str(folder), result_files={}, rows=rows, columns=columns)
    workspace.discard(job.id)
    return store.get(job.id)


@pytest.fixture
def twin(store: JobStore, workspace: Workspace, pictures: tuple[Path, Path]) -> Job:
    return completed(store, workspace, pending(store, workspace, pictures, name="first"))


@pytest.fixture
def job(store: JobStore, workspace: Workspace, pictures: tuple[Path, Path], twin: Job) -> Job:
    return pending(store, workspace, pictures, name="second", preset="keras-2016")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_result_is_published_under_the_new_name(
    store: JobStore, workspace: Workspace, pictures: tuple[Path, Path], twin: Job, job: Job
) -> None:
    assert reuse_twin(store, workspace, job)
    done, folder = store.get(job.id), workspace.outbox / "second"
    assert (done.state, done.reused_from, done.attempts) == (JobState.COMPLETED, twin.id, [])
    assert (done.result_folder, done.result_rows, done.result_columns) == (str(folder), 30, 36)
    assert done.result_files == {
        "result": "result.png",
        "loss_plot": "loss.png",
        "record": "job.json",
        "content": "content.png",
        "style": "style.png",
    }
    assert (done.weights_name, done.precision, done.device, done.versions) == ("random", "float32", "cpu", {"nst": "1"})
    assert names(folder) == RESULT_FILES
    assert (folder / "result.png").read_bytes() == (workspace.outbox / "first" / "result.png").read_bytes()
    assert (folder / "content.png").read_bytes() == pictures[0].read_bytes()
    assert (folder / "style.png").read_bytes() == pictures[1].read_bytes()
    with Image.open(folder / "loss.png") as plot:
        assert plot.size == (960, 600)
    assert [(point.iteration, point.attempt, point.total) for point in store.losses(job.id)] == [
        (0, 0, 9.0),
        (1, 0, 8.0),
        (2, 0, 7.0),
    ]
    assert not workspace.job_folder(job.id).exists()
    assert names(workspace.outbox / "first") == {"result.png"}


def test_the_record_is_the_jobs_own_and_names_the_job_that_was_computed(
    store: JobStore, workspace: Workspace, twin: Job, job: Job
) -> None:
    reuse_twin(store, workspace, job)
    record: dict[str, Any] = json.loads((workspace.outbox / "second" / "job.json").read_text())
    assert {key: record[key] for key in ("id", "name", "preset", "reused_from", "iterations", "device")} == {
        "id": job.id,
        "name": "second",
        "preset": "keras-2016",
        "reused_from": twin.id,
        "iterations": 2,
        "device": "cpu",
    }
    assert record["losses"] == {"total": 7.0, "content": 1.0, "style": 6.0, "tv": 0.0}
    assert datetime.fromisoformat(record["created_at"]) == job.created_at.replace(
        microsecond=job.created_at.microsecond // 1000 * 1000
    )
    assert [source["file"] for source in record["sources"]] == ["content.png", "style.png"]


def test_what_was_dropped_beside_the_pictures_is_kept_beside_the_result(
    store: JobStore, workspace: Workspace, pictures: tuple[Path, Path], twin: Job
) -> None:
    folder = workspace.inbox / "trip"
    folder.mkdir()
    for picture, name in zip(pictures, ("content.png", "style.png"), strict=True):
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "settings.toml").write_text('weights = "random"\n')
    (folder / "notes.txt").write_text("from the pier")
    (drop,) = assess(scan(workspace.inbox).entries).drops
    checked = [CheckedPicture.of(folder / name, max_pixels=MAX_PIXELS) for name in ("content.png", "style.png")]
    settings = read_drop_settings(folder / "settings.toml", preset="default")
    job = claim_drop(store, workspace, drop, settings=settings, pictures=checked)
    assert job is not None
    assert reuse_twin(store, workspace, job)
    assert names(workspace.outbox / "trip") == RESULT_FILES | {"settings.toml", "notes.txt"}


def test_a_folder_of_the_users_own(store: JobStore, workspace: Workspace, tmp_path: Path, job: Job) -> None:
    assert reuse_twin(store, workspace, job, out=tmp_path / "mine")
    assert store.get(job.id).result_folder == str(tmp_path / "mine")
    assert names(tmp_path / "mine") == RESULT_FILES
    assert names(workspace.outbox) == {"first/result.png"}


def test_a_name_that_is_taken_gets_a_number(store: JobStore, workspace: Workspace, job: Job) -> None:
    (workspace.outbox / "second").mkdir()
    assert reuse_twin(store, workspace, job)
    assert store.get(job.id).result_folder == str(workspace.outbox / "second-2")
    assert names(workspace.outbox / "second-2") == RESULT_FILES


def remove(result: Path) -> None:
    result.unlink()


def remove_folder(result: Path) -> None:
    result.unlink()
    result.parent.rmdir()


def write_text(result: Path) -> None:
    result.write_text("no picture")


def write_another_size(result: Path) -> None:
    encode_png(np.full((30, 35, 3), 17, np.uint8), result)


@pytest.mark.parametrize("spoil", [remove, remove_folder, write_text, write_another_size])
def test_a_result_that_is_no_longer_there_is_computed_again(
    store: JobStore, workspace: Workspace, twin: Job, job: Job, spoil: Any
) -> None:
    spoil(workspace.outbox / "first" / "result.png")
    assert not reuse_twin(store, workspace, job)
    after = store.get(job.id)
    assert (after.state, after.result_folder, after.reused_from) == (JobState.PENDING, None, None)
    assert names(workspace.job_folder(job.id)) == {"content.png", "style.png"}
    assert not (workspace.outbox / "second").exists()


def test_a_result_larger_than_any_picture_that_is_taken_in_is_used_again(
    store: JobStore, workspace: Workspace, pictures: tuple[Path, Path]
) -> None:
    rows, columns = 10_001, 10_000
    assert rows * columns > MAX_PIXELS
    completed(store, workspace, pending(store, workspace, pictures, name="first"), size=(rows, columns))
    Image.new("1", (columns, rows)).save(workspace.outbox / "first" / "result.png")
    job = pending(store, workspace, pictures, name="second")
    assert reuse_twin(store, workspace, job)
    after = store.get(job.id)
    assert (after.state, after.result_rows, after.result_columns) == (JobState.COMPLETED, rows, columns)


@pytest.mark.parametrize("gone", ["timelapse.webp", "snapshots"])
def test_a_result_whose_snapshots_are_no_longer_there_is_computed_again(
    store: JobStore, workspace: Workspace, pictures: tuple[Path, Path], gone: str
) -> None:
    first = completed(store, workspace, pending(store, workspace, pictures, name="first", snapshot_every=2))
    folder = Path(str(first.result_folder))
    (folder / "timelapse.webp").touch()
    (folder / "snapshots").mkdir()
    second, third = (pending(store, workspace, pictures, name=name, snapshot_every=2) for name in ("second", "third"))
    assert reuse_or_fail(store, workspace, second)
    assert store.state_of(second.id) is JobState.COMPLETED
    for reused in (first, store.get(second.id)):
        place = Path(str(reused.result_folder)) / gone
        place.rmdir() if place.is_dir() else place.unlink()
    assert not reuse_or_fail(store, workspace, third)
    assert store.state_of(third.id) is JobState.PENDING


def test_a_job_like_no_other_is_computed(
    store: JobStore, workspace: Workspace, pictures: tuple[Path, Path], twin: Job
) -> None:
    job = pending(store, workspace, pictures[::-1], name="other")
    assert not reuse_twin(store, workspace, job)
    assert store.get(job.id).state is JobState.PENDING


class CrashError(Exception):
    """What ends the process in the middle of its work."""


@pytest.mark.parametrize(
    ("where", "name"),
    [
        pytest.param(JobStore, "reserve_result", id="before the folder is reserved"),
        pytest.param(Workspace, "publish", id="before it is published"),
        pytest.param(JobStore, "reuse", id="between publishing and the database"),
    ],
)
def test_a_crash_is_finished_by_the_next_call(
    store: JobStore, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, twin: Job, job: Job, where: type, name: str
) -> None:
    def crash(*_arguments: object, **_named: object) -> None:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(where, name, crash)
        with pytest.raises(CrashError):
            reuse_twin(store, workspace, job)
    assert reuse_twin(store, workspace, store.get(job.id))
    assert (store.get(job.id).state, store.get(job.id).reused_from) == (JobState.COMPLETED, twin.id)
    assert names(workspace.outbox) == {"first/result.png", *(f"second/{name}" for name in RESULT_FILES)}
    assert {path.name for path in workspace.outbox.iterdir()} == {"first", "second"}
    assert list(workspace.work.iterdir()) == []
    assert decode(workspace.outbox / "second" / "result.png").shape == (30, 36, 3)


def test_a_disk_that_refuses_is_one_sentence(store: JobStore, workspace: Workspace, twin: Job, job: Job) -> None:
    (workspace.job_folder(job.id) / "style.png").unlink()
    with pytest.raises(WorkspaceError) as caught:
        reuse_twin(store, workspace, job)
    assert str(caught.value).startswith(f"The result of job {twin.id} cannot be copied to ")
    assert "\n" not in str(caught.value)
    assert store.get(job.id).state is JobState.PENDING


def test_a_job_that_was_cancelled_meanwhile_stays_so(store: JobStore, workspace: Workspace, job: Job) -> None:
    store.ask_cancel(job.id)
    with pytest.raises(JobStateError):
        reuse_twin(store, workspace, job)
    assert store.get(job.id).state is JobState.CANCELLED
    assert names(workspace.outbox) == {"first/result.png"}
