"""The four tasks of a job: preprocess, optimise, deprocess, publish. Each says in the database that it has begun, and
leaves its files so that another attempt can go on after it."""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows import checkpoint, progress, snapshots
from flows.attempt import Attempt, Watch, burst_stop, is_service_run, night_run, watching
from flows.chunks import early_end
from flows.claim import copy_dropped_files
from flows.dashboard import ProgressArtifact, publish_report
from flows.optimisation import LocalOptimisation, Optimisation, RemoteOptimisation, Stretch, Work
from flows.published import record_in
from flows.report import LOSS_PLOT, RECORD, plot_losses, result_document, result_files
from flows.result_file import result_size, write_result
from flows.versions import versions
from nst_engine.errors import NotFiniteError
from nst_engine.images import decode, decode_mask, encode_png
from nst_engine.pictures import Pictures, fit_pictures
from nst_engine.startup import load_tensorflow
from nst_engine.transfer import LossPoint, TransferState
from storage.jobs import NewLossPoint
from storage.models import Job, Role

if TYPE_CHECKING:
    from nst_engine.engine import Engine

WRITE_SECONDS: Final = 5.0
LOG_SECONDS: Final = 30.0
CLUSTER_PATIENCE_SECONDS: Final = 120.0
CHECKPOINT_PAUSE: Final = 20
"""The next checkpoint waits this many times as long as the last one took, if that is longer than it would wait anyway:
of a very large picture one takes several seconds."""
LONGEST_CHECKPOINT_PAUSE_SECONDS: Final = 600.0
"""A checkpoint that took long makes the next one wait no longer than this: one stall of the disk or the network must
not leave what comes after it unsaved. After one that took even longer, the next waits as long again, so that half of
the time is left for the picture."""
BEST: Final = "best.png"


@functools.cache
def warm_engine(device: str, *, max_memory: int | None, xla: bool, deterministic: bool) -> Engine:
    """This process's engine under these settings, with whatever earlier jobs have warmed up."""
    load_tensorflow()
    from nst_engine.engine import Engine

    return Engine(device, max_memory=max_memory, xla=xla, deterministic=deterministic)


@task(task_run_name="preprocess", cache_policy=NO_CACHE)
def preprocess(attempt: Attempt) -> Pictures:
    """Decode the job's pictures and resize them to the size at which its config works."""
    attempt.enter("preprocess")
    decoded: dict[Role, dict[int, np.ndarray]] = {role: {} for role in get_args(Role)}
    for source in attempt.job.sources:
        read = decode_mask if source.role in ("mask", "style_mask") else decode
        picture = read(attempt.folder / source.file_name, max_pixels=attempt.settings.max_pixels)
        decoded[source.role][source.position] = picture
    styles, style_masks = decoded["style"], decoded["style_mask"]
    pictures = fit_pictures(
        attempt.config,
        decoded["content"][0],
        list(styles.values()),
        initial=decoded["initial"].get(0),
        masks=list(decoded["mask"].values()),
        style_masks=[style_masks.get(number) for number in styles] if style_masks else [],
    )
    get_run_logger().info(
        "Content at %s, %s", _size(pictures.content), ", ".join(f"style at {_size(style)}" for style in pictures.styles)
    )
    return pictures


@task(task_run_name="optimise", cache_policy=NO_CACHE)
def optimise(attempt: Attempt, pictures: Pictures) -> TransferState:
    """Run the optimisation stretch by stretch: write its losses in batches, save it, tell its progress."""
    attempt.enter("optimise")
    logger = get_run_logger()
    with attempt.held():
        saved = _saved_state(attempt, pictures)
    if saved is not None:
        logger.info("Going on from iteration %d", saved.iteration)
    attempt.store.note_first_iteration(
        attempt.job.id, attempt=attempt.number, iteration=saved.iteration if saved else 0
    )
    shown = ProgressArtifact.begin(attempt.job.name)
    # A run of `nst run` is watched by nobody else, and ended with Ctrl-C.
    run_id = str(flow_run.id) if is_service_run() else None
    with (
        watching(attempt, run_id=run_id, warn=logger.warning) as watch,
        _optimisation(attempt, pictures, saved) as optimisation,
    ):
        try:
            last = _follow(attempt, optimisation, watch, shown)
        except NotFiniteError as error:
            raise _with_best_picture(error, attempt.folder / BEST) from error
        with attempt.held():
            state = optimisation.state()
    shown.finish()
    if attempt.checkpoint.exists():
        with attempt.held():
            checkpoint.save(attempt.checkpoint, state)
    logger.info(
        "%d iterations in %.1f s, loss %.6g%s",
        state.iteration,
        state.seconds,
        state.losses.total,
        early_end(attempt.config, last),
    )
    return state


def _follow(attempt: Attempt, optimisation: Optimisation, watch: Watch, shown: ProgressArtifact) -> Stretch:
    """Take in one stretch after another until the last, which is returned."""
    logger = get_run_logger()
    began = written = logged = saved = time.monotonic()
    checkpoint_pause = attempt.settings.checkpoint_seconds
    last: Stretch | None = None
    first_iteration = 0
    waiting = list[NewLossPoint]()
    try:
        for stretch in optimisation.stretches():
            watch.look()
            now = time.monotonic()
            if stretch is None:
                continue
            if last is None or stretch.scale != last.scale:
                # What there is now is the first picture, or was saved before, or was made in part at a coarser
                # scale, where iterations are quicker.
                first_iteration, began = stretch.iteration, now
            if last is None:
                saved = now
                _record_environment(attempt, stretch)
            if stretch.snapshots:
                snapshots.write_snapshots(attempt.folder, stretch.snapshots)
            waiting += [_loss_point(point) for point in stretch.points]
            if stretch.points:
                done = stretch.iteration - first_iteration
                pace = (now - began) / done if done > 0 else None
                loss = stretch.points[-1].losses.total
                here = progress.Progress(attempt.config, stretch.iteration, stretch.scale, loss, pace)
                progress.publish(here)
                shown.move(here)
                if now - logged >= LOG_SECONDS:
                    logger.info("%s, loss %.6g", here.position.capitalize(), loss)
                    logged = now
            due = now - saved >= checkpoint_pause and not stretch.finished
            # Who goes on from a checkpoint does not compute what was before it again: its losses go first.
            if waiting and (due or now - written >= WRITE_SECONDS):
                _write_losses(attempt, waiting)
                waiting, written = [], now
            if due:
                with attempt.held():
                    state = optimisation.state()
                    checkpoint.save(attempt.checkpoint, state)
                    snapshots.write_preview(attempt.folder, state)
                saved = time.monotonic()
                checkpoint_pause = pause_after(saved - now, least=attempt.settings.checkpoint_seconds)
            last = stretch
    finally:
        _write_losses(attempt, waiting)
    if last is None:
        raise ValueError("An optimisation has at least one stretch.")
    return last


def pause_after(took: float, *, least: float) -> float:
    """The seconds until the next checkpoint is due after one that took so many seconds."""
    return max(least, min(CHECKPOINT_PAUSE * took, max(LONGEST_CHECKPOINT_PAUSE_SECONDS, took)))


@task(task_run_name="deprocess", cache_policy=NO_CACHE)
def deprocess(attempt: Attempt, state: TransferState) -> None:
    """Write the result, its report and the sources into the job's folder, ready to be published."""
    attempt.enter("deprocess")
    folder = attempt.folder / "result"
    folder.mkdir(exist_ok=True)
    job, losses = attempt.store.get(attempt.job.id), attempt.store.losses(attempt.job.id)
    with attempt.held():
        result = write_result(job, state, sources=attempt.folder, folder=folder)
        copy_dropped_files(job, attempt.folder, folder)
        if job.snapshot_every is not None:
            snapshots.keep_snapshots(attempt.folder, result, iteration=state.iteration)
    plot_losses(losses, folder / LOSS_PLOT, title=f"{job.name} ({job.preset}, weights {job.weights_name})")
    document = json.dumps(result_document(job, losses), indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(f"{document}\n", encoding="utf-8")


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish(attempt: Attempt, out: Path | None) -> Path:
    """Move the finished files to their place whole; only then is the job completed."""
    attempt.enter("publish")
    destination = put_in_place(attempt, out)
    get_run_logger().info("The result is in %s", destination)
    job = attempt.store.get(attempt.job.id)
    publish_report(job, attempt.store.losses(job.id), folder=destination)
    return destination


def put_in_place(attempt: Attempt, out: Path | None) -> Path:
    """Move the finished files to `out`, else to a folder of their own in the outbox, and complete the job."""
    candidates = attempt.workspace.candidates(attempt.job.name, attempt.job.collection)
    destination = out or attempt.store.reserve_result(attempt.job.id, candidates)
    ours = functools.partial(attempt.store.holding, attempt.job.id, attempt=attempt.number)
    with attempt.held():
        attempt.workspace.publish(attempt.job.id, destination, guard=ours)
    complete(attempt, destination)
    return destination


def published_before(attempt: Attempt) -> Path | None:
    """Where an earlier attempt that died before it could say so has put the result; completes the job."""
    for folder in _possible_results(attempt):
        if record_in(folder, attempt.job) is not None:
            complete(attempt, folder)
            return folder
    return None


def _possible_results(attempt: Attempt) -> Iterable[Path]:
    """Where a result of the job may be: of one without files also where a database restored since did not see it go."""
    job = attempt.job
    if job.result_folder is not None:
        return [Path(job.result_folder)]
    if attempt.folder.exists():
        return []
    return itertools.takewhile(Path.exists, attempt.workspace.candidates(job.name, job.collection))


def complete(attempt: Attempt, folder: Path) -> None:
    """Complete the job whose result lies in `folder`, and remove what is left of it elsewhere."""
    job = attempt.job
    rows, columns = result_size(job, folder)
    attempt.store.complete(
        job.id,
        attempt=attempt.number,
        result_folder=str(folder),
        result_files=result_files(job),
        rows=rows,
        columns=columns,
    )
    attempt.workspace.discard(job.id)


def _optimisation(
    attempt: Attempt, pictures: Pictures, saved: TransferState | None
) -> LocalOptimisation | RemoteOptimisation:
    settings = attempt.settings
    work = Work(
        attempt.config,
        pictures,
        resume=saved,
        chunk_seconds=settings.chunk_seconds,
        snapshot_every=attempt.job.snapshot_every,
    )
    if settings.scheduler is None:
        engine = warm_engine(
            settings.device,
            max_memory=settings.max_memory,
            xla=settings.xla,
            deterministic=settings.deterministic,
        )
        return LocalOptimisation(engine, work)
    return RemoteOptimisation(
        settings.scheduler,
        work,
        priority=_gpu_priority(attempt.job, rank=_rank()),
        patience_seconds=CLUSTER_PATIENCE_SECONDS,
        certificates=settings.certificates,
    )


def _rank() -> int:
    """A single job goes before those of a burst, and these before those of a night."""
    if burst_stop.get() is None:
        return 2
    return 1 if night_run.get() is None else 0


def _gpu_priority(job: Job, *, rank: int) -> float:
    """Whose chunk is next: by the job's own priority, then by the rank of its run, then the oldest job."""
    return (3 * job.priority + rank) * 1e10 - job.created_at.timestamp()


def _saved_state(attempt: Attempt, pictures: Pictures) -> TransferState | None:
    state = checkpoint.load(attempt.checkpoint)
    if state is None or state.config != attempt.config or state.pictures.digest() != pictures.digest():
        return None
    return state


def _size(picture: object) -> str:
    rows, columns = picture.shape[:2]  # type: ignore[attr-defined]
    return f"{rows} x {columns}"


def _record_environment(attempt: Attempt, stretch: Stretch) -> None:
    environment = stretch.environment
    attempt.store.record_environment(
        attempt.job.id,
        attempt=attempt.number,
        weights_name=environment.weights_name,
        weights_sha256=environment.weights_sha256,
        precision=environment.precision,
        device=environment.device,
        versions=versions(),
    )
    get_run_logger().info(
        "Optimising on %s in %s with the weights %s",
        environment.device,
        environment.precision,
        environment.weights_name,
    )
    get_run_logger().info("%s", environment.memory)


def _loss_point(point: LossPoint) -> NewLossPoint:
    return NewLossPoint(
        iteration=point.iteration,
        total=point.losses.total,
        content=point.losses.content,
        style=point.losses.style,
        tv=point.losses.tv,
        layers=point.losses.layers,
        learning_rate=point.rate,
        seconds=point.seconds,
        scale=point.scale,
    )


def _write_losses(attempt: Attempt, points: list[NewLossPoint]) -> None:
    attempt.store.add_loss_points(attempt.job.id, attempt=attempt.number, points=points)


def _with_best_picture(error: NotFiniteError, path: Path) -> NotFiniteError:
    if error.best is None:
        return error
    encode_png(error.best, path)
    return NotFiniteError(f"{error} The best picture until then is {path}.", best=error.best)
