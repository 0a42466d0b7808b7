"""Snapshots, previews and timelapses on real parts: the real engine on small pictures, a real cluster, real files."""

from __future__ import annotations

import contextvars
import io
import json
import os
import pickle
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cluster_processes import ClusterProcesses
from numpy.typing import NDArray
from PIL import Image

from flows import attempt, chunks, progress
from flows.chunks import Snapshot, Work, take_snapshot
from flows.drop_settings import read_drop_settings
from flows.errors import JobInterruptedError, SettingsError
from flows.fingerprint import fingerprint
from flows.inline import run_inline
from flows.optimisation import LocalOptimisation
from flows.settings import load_settings
from flows.snapshots import draw_timelapse, keep_snapshots, latest_picture, write_preview, write_snapshots
from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError
from nst_engine.images import decode, deprocess
from nst_engine.pictures import Pictures, fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, TransferState, advance, start
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.test_cli import NST, SMALL, environment, no_job, refused

if TYPE_CHECKING:
    from nst_engine.engine import Engine

ONE_CHUNK = 1000.0
# Grey levels that a JPEG of these small, loud pictures is off on average.
JPEG_LOSS = 8
SETTINGS: dict[str, Any] = {"rows": 48, "iterations": 7, "weights": "random", "precision": "float32"}
# A rate at which the loss goes up and down, so that the best picture is not the last.
SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 10.0, "clip": True, "keep": "best"}


def config_of(**settings: Any) -> TransferConfig:
    return find_preset("default").config.with_overrides(SETTINGS | settings)


@pytest.fixture(scope="module")
def pictures(content: NDArray[np.uint8], style: NDArray[np.uint8]) -> Pictures:
    return fit_pictures(config_of(), content, [style])


def run_local(
    engine: Engine, work: Work, *, until: int | None = None
) -> tuple[dict[int, bytes], list[Any], TransferState]:
    """The snapshots by iteration, the loss points and the last state of an optimisation, or until an iteration."""
    taken, points = list[Snapshot](), list[Any]()
    with LocalOptimisation(engine, work) as optimisation:
        for stretch in optimisation.stretches():
            if stretch is not None:
                taken += stretch.snapshots
                points += [replace(point, seconds=0.0) for point in stretch.points]
                if until is not None and stretch.iteration >= until:
                    break
        state = optimisation.state()
    assert len({snapshot.iteration for snapshot in taken}) == len(taken)
    return {snapshot.iteration: snapshot.jpeg for snapshot in taken}, points, state


def opened(jpeg: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG"
        return np.asarray(image)


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


# On the worker.


@pytest.mark.parametrize("chunk_seconds", [1e-9, ONE_CHUNK], ids=["a chunk an iteration", "one chunk"])
@pytest.mark.parametrize("settings", [SGD, {"optimizer": "lbfgs"}], ids=["sgd", "lbfgs"])
def test_a_snapshot_is_the_picture_at_exactly_its_iteration(
    engine: Engine, pictures: Pictures, settings: dict[str, Any], chunk_seconds: float
) -> None:
    config = config_of(**settings)
    state, _ = start(engine, config, pictures)
    shown = {0: deprocess(state.picture)}
    while not state.finished:
        state, _ = advance(engine, state, Budget(iterations=1))
        shown[state.iteration] = deprocess(state.picture)
    taken, _, _ = run_local(engine, Work(config, pictures, None, chunk_seconds, 3))
    assert list(taken) == [0, 3, 6]
    for iteration, jpeg in taken.items():
        differences = {other: difference(opened(jpeg), picture) for other, picture in shown.items()}
        assert min(differences, key=differences.__getitem__) == iteration
        assert differences[iteration] < JPEG_LOSS


@pytest.mark.parametrize("settings", [SGD, {"optimizer": "lbfgs"}, {"optimizer": "adam"}], ids=["sgd", "lbfgs", "adam"])
def test_the_optimisation_is_the_same_bit_for_bit_with_snapshots(
    engine: Engine, pictures: Pictures, settings: dict[str, Any]
) -> None:
    work = Work(config_of(**settings), pictures, None, ONE_CHUNK, None)
    none, points, state = run_local(engine, work)
    some, same_points, same_state = run_local(engine, replace(work, snapshot_every=2))
    assert (list(none), list(some)) == ([], [0, 2, 4, 6])
    assert same_points == points
    assert pickle.dumps(replace(same_state, seconds=0.0)) == pickle.dumps(replace(state, seconds=0.0))


def test_snapshots_go_on_after_a_stop_in_the_middle(engine: Engine, pictures: Pictures) -> None:
    work = Work(config_of(), pictures, None, 1e-9, 2)
    whole, _, last = run_local(engine, work)
    first, _, state = run_local(engine, work, until=3)
    rest, _, resumed = run_local(engine, replace(work, resume=pickle.loads(pickle.dumps(state))))
    assert (list(first), list(rest)) == ([0, 2], [4, 6])
    assert first | rest == whole
    assert np.array_equal(resumed.picture, last.picture)


def test_a_chunk_holds_a_bounded_number_of_snapshots(engine: Engine, pictures: Pictures) -> None:
    config = config_of(optimizer="sgd", iterations=40)
    chunk = chunks.begin(engine, config, pictures, snapshot_every=1)
    counts = []
    while not chunk.stretch.finished:
        chunk = chunks.advance(engine, chunk, seconds=ONE_CHUNK, snapshot_every=1)
        counts.append((chunk.stretch.iteration, len(chunk.stretch.snapshots), len(chunk.stretch.points)))
    assert counts == [(32, 32, 32), (40, 8, 8)]


@pytest.mark.parametrize(
    ("shape", "size"),
    [((40, 3200, 3), (1600, 20)), ((2000, 1000, 3), (800, 1600)), ((48, 64, 3), (64, 48))],
    ids=["wide", "tall", "small"],
)
def test_a_snapshot_has_a_longer_side_of_at_most_1600(
    engine: Engine, pictures: Pictures, shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    state, _ = start(engine, config_of(), pictures)
    snapshot = take_snapshot(replace(state, picture=np.zeros(shape, np.float32)))
    with Image.open(io.BytesIO(snapshot.jpeg)) as image:
        assert (image.size, image.mode) == (size, "RGB")
        # Every channel at full resolution: 4:4:4.
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


# In the folder of a running job.


def test_the_newest_of_snapshots_and_preview(engine: Engine, pictures: Pictures, tmp_path: Path) -> None:
    state, _ = start(engine, config_of(), pictures)

    def aged(name: str, nanoseconds: int) -> Path:
        os.utime(tmp_path / name, ns=(nanoseconds, nanoseconds))
        return tmp_path / name

    assert latest_picture(tmp_path / "gone") is None
    assert latest_picture(tmp_path) is None
    write_snapshots(tmp_path, [Snapshot(0, b"zero"), Snapshot(10, b"ten")])
    aged("snapshots/000000.jpg", 1)
    assert latest_picture(tmp_path) == aged("snapshots/000010.jpg", 2)
    write_preview(tmp_path, state)
    assert latest_picture(tmp_path) == aged("preview.jpg", 3)
    assert difference(opened((tmp_path / "preview.jpg").read_bytes()), deprocess(state.picture)) < JPEG_LOSS
    # After a loss of the cluster an earlier one comes again.
    write_snapshots(tmp_path, [Snapshot(0, b"again")])
    assert latest_picture(tmp_path) == tmp_path / "snapshots" / "000000.jpg"
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {name: data for name, data in files.items() if name != "preview.jpg"} == {
        "snapshots/000000.jpg": b"again",
        "snapshots/000010.jpg": b"ten",
    }


# The timelapse.


def frame(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture of coarse squares that is like no other."""
    squares = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(squares).resize(size, Image.Resampling.NEAREST)


def nearest(image: Image.Image, frames: int) -> int:
    """Which of the frames it is."""
    shown = np.asarray(image.convert("RGB"))
    return min(range(frames), key=lambda number: difference(shown, np.asarray(frame(number, image.size))))


@pytest.mark.parametrize(
    ("number", "frames", "each"),
    [
        pytest.param(1, 2, {2000}, id="one"),
        pytest.param(7, 8, {285, 286}, id="few"),
        pytest.param(40, 41, {100}, id="some"),
        pytest.param(119, 120, {50, 51}, id="as many as there may be"),
        pytest.param(500, 120, {50, 51}, id="more"),
    ],
)
def test_a_timelapse_goes_through_the_snapshots_to_the_result(
    tmp_path: Path, number: int, frames: int, each: set[int]
) -> None:
    size = (64, 48)
    paths = [tmp_path / f"{index:06d}.jpg" for index in range(number)]
    for index, path in enumerate(paths):
        frame(index, size).save(path, quality=90)
    frame(number, size).save(tmp_path / "result.png")
    draw_timelapse(paths, tmp_path / "result.png", tmp_path / "timelapse.webp")
    with Image.open(tmp_path / "timelapse.webp") as film:
        assert (film.format, film.size, film.info["loop"], film.n_frames) == ("WEBP", size, 0, frames)  # type: ignore[attr-defined]
        durations, shown = [], []
        for index in range(frames):
            film.seek(index)
            film.load()
            durations.append(film.info["duration"])
            shown.append(nearest(film, number + 1))
    assert (set(durations[:-1]), durations[-1]) == (each, 2000)
    assert 4000 <= sum(durations) <= 8000
    assert (shown[0], shown[-2:]) == (0, [number - 1, number])
    steps = {after - before for before, after in pairwise(shown[:-1])}
    assert max(steps, default=1) - min(steps, default=1) <= 1
    assert len(set(shown)) == frames


def test_a_timelapse_is_at_most_800_long(tmp_path: Path) -> None:
    frame(1, (1600, 1001)).save(tmp_path / "0.jpg")
    frame(2, (2000, 1251)).save(tmp_path / "result.png")
    draw_timelapse([tmp_path / "0.jpg"], tmp_path / "result.png", tmp_path / "timelapse.webp")
    with Image.open(tmp_path / "timelapse.webp") as film:
        assert film.size == (800, 500)


def test_a_snapshot_beyond_the_result_is_not_kept(tmp_path: Path) -> None:
    work, result = tmp_path / "work", tmp_path / "result"
    (work / "snapshots").mkdir(parents=True)
    (result / "snapshots").mkdir(parents=True)
    for index in (0, 5, 10, 15):
        frame(16 * index, (64, 48)).save(work / "snapshots" / f"{index:06d}.jpg")
    (result / "snapshots" / "000012.jpg").write_bytes(b"left by an attempt that was cut off")
    frame(200, (64, 48)).save(result / "result.png")
    keep_snapshots(work, result / "result.png", iteration=10)
    assert sorted(path.name for path in (result / "snapshots").iterdir()) == ["000000.jpg", "000005.jpg", "000010.jpg"]
    with Image.open(result / "timelapse.webp") as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]


# What may be asked for.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("0", "0: is not a whole number of iterations from 1 on.", id="zero"),
        pytest.param("true", "True: is not a whole number of iterations from 1 on.", id="no number"),
        pytest.param("2.5", "2.5: is not a whole number of iterations from 1 on.", id="broken"),
        pytest.param('"5"', "'5': is not a whole number of iterations from 1 on.", id="text"),
        pytest.param(
            "3",
            "3: makes 1001 snapshots of 3000 iterations, and a job keeps at most 1000; give 4 or more.",
            id="too many",
        ),
    ],
)
def test_a_wrong_wish_of_a_drop_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "lake.toml"
    path.write_text(f"iterations = 3000\nsnapshot_every = {text}\n")
    with pytest.raises(ConfigError) as caught:
        read_drop_settings(path, preset="default")
    assert str(caught.value) == f"{path}, line 2: snapshot_every = {sentence}"


def test_a_drop_may_ask_for_them(tmp_path: Path) -> None:
    path = tmp_path / "lake.toml"
    path.write_text("snapshot_every = 4\niterations = 3999\n")
    settings = read_drop_settings(path, preset="default")
    assert (settings.snapshot_every, settings.config) == (
        4,
        find_preset("default").config.with_overrides({"iterations": 3999}),
    )


def test_a_result_without_them_does_not_do() -> None:
    made = {fingerprint([], config_of(), snapshot_every=every) for every in (None, 1, 2)}
    assert len(made) == 3
    assert fingerprint([], config_of()) in made


# The whole of a job.


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


RESULT_FILES = {"result.png", "content.png", "style.png", "loss.png", "job.json", "timelapse.webp"}
SNAPSHOT_FILES = {f"snapshots/{iteration:06d}.jpg" for iteration in (0, 3, 6)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


Run = Callable[..., Job]


@pytest.fixture
def run(home: Path, content_file: Path, style_file: Path, prefect_api: None) -> Run:
    def run_job(*, snapshot_every: int | None, out: Path | None = None) -> Job:
        return run_inline(
            load_settings(home=home, device="cpu"),
            content=content_file,
            styles=[style_file],
            out=out,
            preset="default",
            overrides=SETTINGS,
            snapshot_every=snapshot_every,
        )

    return run_job


def test_the_result_s_folder(run: Run, home: Path) -> None:
    job = run(snapshot_every=3)
    folder = home / "outbox" / "lake_swirls"
    assert files_under(folder) == RESULT_FILES | SNAPSHOT_FILES
    assert (job.snapshot_every, (job.result_files or {})["timelapse"]) == (3, "timelapse.webp")
    assert json.loads((folder / "job.json").read_text())["snapshot_every"] == 3
    with Image.open(folder / "timelapse.webp") as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]
        film.seek(3)
        last = np.asarray(film.convert("RGB"))
    differences = [difference(last, decode(path)) for path in sorted(folder.glob("snapshots/*.jpg"))]
    assert difference(last, decode(folder / "result.png")) < min(differences)
    assert list((home / "work").iterdir()) == []


def test_a_folder_of_the_users_own_gets_the_snapshots_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    run(snapshot_every=3, out=tmp_path / "mine")
    assert files_under(tmp_path / "mine") == RESULT_FILES | SNAPSHOT_FILES


def test_what_was_done_before_comes_with_its_snapshots(run: Run) -> None:
    without, first, second = run(snapshot_every=None), run(snapshot_every=3), run(snapshot_every=3)
    assert (first.reused_from, second.reused_from) == (None, first.id)
    one, other = Path(str(first.result_folder)), Path(str(second.result_folder))
    assert files_under(other) == RESULT_FILES | SNAPSHOT_FILES
    for name in ("result.png", "timelapse.webp", *SNAPSHOT_FILES):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    assert second.result_files == first.result_files
    assert json.loads((other / "job.json").read_text())["snapshot_every"] == 3
    # Those who asked for none get none.
    assert "timelapse" not in (without.result_files or {})
    assert files_under(Path(str(without.result_folder))) == RESULT_FILES - {"timelapse.webp"}
    (one / "timelapse.webp").unlink()
    (other / "timelapse.webp").unlink()
    assert run(snapshot_every=3).reused_from is None


def test_too_many_make_no_job(run: Run, home: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--snapshot-every 0: is not a whole number of iterations from 1 on\.$"):
        run(snapshot_every=0)
    assert not (home / "nst.db").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with ClusterProcesses(tmp_path_factory.mktemp("cluster")) as processes:
        processes.start_scheduler()
        processes.start_worker()
        processes.wait_for_workers()
        yield processes


def test_a_job_on_a_cluster_that_is_stopped_in_the_middle_goes_on(
    cluster: ClusterProcesses,
    run: Run,
    home: Path,
    content_file: Path,
    style_file: Path,
    claim_pair: Callable[..., Job],
    engine: Engine,
) -> None:
    from flows.stylize import stylize

    home.mkdir()
    (home / "nst.toml").write_text(
        f'scheduler = "{cluster.address}"\nchunk_seconds = 0.1\ncheckpoint_seconds = 0.1\ndevice = "cpu"\n'
    )
    workspace, config = Workspace(home), config_of(iterations=60)
    workspace.create()
    with open_database(workspace.database_path) as database:
        store = JobStore(database)
        job = claim_pair(store, workspace, config, snapshot_every=7)
        folder, stop, seen = workspace.job_folder(job.id), threading.Event(), list[Path | None]()

        def stop_when_saved(_: progress.Progress) -> None:
            if (folder / "preview.jpg").exists():
                seen.append(latest_picture(folder))
                stop.set()

        def as_part_of_a_burst() -> None:
            attempt.burst_stop.set(stop)
            with progress.watched_by(stop_when_saved):
                stylize(job.id, str(home), "cpu", None)

        with pytest.raises(JobInterruptedError):
            contextvars.copy_context().run(as_part_of_a_burst)
        stopped = files_under(folder)
        assert {"checkpoint", "preview.jpg", "snapshots/000000.jpg"} <= stopped
        assert seen[0] is not None
        stylize(job.id, str(home), "cpu", None)
        done = store.get(job.id)
        first, second = (int(each.first_iteration or 0) for each in done.attempts)
        assert (done.state, first, 0 < second < 60) == (JobState.COMPLETED, 0, True)
    pictures = fit_pictures(config, decode(content_file), [decode(style_file)])
    expected, _, state = run_local(engine, Work(config, pictures, None, ONE_CHUNK, 7))
    result = home / "outbox" / "lake_swirls"
    kept = {int(path.stem): path.read_bytes() for path in sorted((result / "snapshots").iterdir())}
    assert list(kept) == list(range(0, 61, 7))
    assert kept == expected
    assert np.array_equal(decode(result / "result.png"), state.result())


# The command.


def nst(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NST, *map(str, arguments)],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nst_run_keeps_snapshots(tmp_path: Path, content_file: Path, style_file: Path) -> None:
    done = nst(tmp_path, "run", content_file, style_file, *SMALL, "--snapshot-every", 2)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "home" / "outbox" / "lake_swirls"
    assert f"  {folder / 'timelapse.webp'}" in done.stdout.splitlines()
    assert files_under(folder) == RESULT_FILES | {"snapshots/000000.jpg", "snapshots/000002.jpg"}


def test_nst_run_refuses_too_many(tmp_path: Path, content_file: Path, style_file: Path) -> None:
    done = nst(tmp_path, "run", content_file, style_file, *SMALL, "--iterations", 1000, "--snapshot-every", 1)
    assert refused(done, code=2) == (
        "--snapshot-every 1: makes 1001 snapshots of 1000 iterations, and a job keeps at most 1000; give 2 or more."
    )
    assert no_job(tmp_path)
