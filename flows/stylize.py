"""The flow of one job: preprocess -> optimise -> deprocess -> publish. It takes a pending job from the database
to its result folder and leaves the database true whatever happens on the way."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Final

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows import progress
from flows.report import plot_losses, result_document
from flows.settings import Settings, load_settings
from nst_engine.config import TransferConfig
from nst_engine.errors import NotFiniteError
from nst_engine.images import decode, encode_png
from nst_engine.pictures import Pictures, fit_pictures
from nst_engine.startup import load_tensorflow
from nst_engine.transfer import Budget, LossPoint, TransferState, advance, start
from storage.database import open_database
from storage.jobs import JobStore, NewLossPoint
from storage.models import Job
from storage.workspace import Workspace

if TYPE_CHECKING:
    from nst_engine.engine import Engine

CHUNK_SECONDS: Final = 0.5
WRITE_SECONDS: Final = 5.0
LOG_SECONDS: Final = 30.0
_LIBRARIES: Final = ("nst", "tensorflow", "keras", "numpy", "pillow", "prefect")
RESULT: Final = "result.png"
LOSS_PLOT: Final = "loss.png"
RECORD: Final = "job.json"
BEST: Final = "best.png"


@dataclass(frozen=True)
class Attempt:
    """One try at a job and what it works with."""

    job: Job
    number: int
    store: JobStore
    workspace: Workspace
    settings: Settings

    @property
    def config(self) -> TransferConfig:
        """The job's settings."""
        return TransferConfig.model_validate(self.job.config)

    @property
    def folder(self) -> Path:
        """Where the job's files are until it ends."""
        return self.workspace.job_folder(self.job.id)


@functools.cache
def warm_engine(device: str) -> Engine:
    """This process's engine on that device, with whatever earlier jobs have warmed up."""
    load_tensorflow()
    from nst_engine.engine import Engine

    return Engine(device)


def _run_name() -> str:
    parameters = flow_run.parameters
    with open_database(Workspace(Path(parameters["home"])).database_path) as database:
        return JobStore(database).get(parameters["job_id"]).name


@flow(name="stylize", flow_run_name=_run_name, validate_parameters=False)
def stylize(job_id: str, home: str, device: str | None = None, out: str | None = None) -> str:
    """Run the pending job `job_id` of the service at `home`; returns the result folder.

    The result goes to the folder `out`, else to one named after the job in the outbox. When anything fails
    the job is failed with one sentence, and the error is raised.
    """
    settings = load_settings(home=Path(home), device=device)
    workspace = Workspace(settings.home)
    with open_database(workspace.database_path) as database:
        store = JobStore(database)
        number = store.start_attempt(job_id, host=socket.gethostname(), pid=os.getpid(), flow_run_id=flow_run.id)
        attempt = Attempt(store.get(job_id), number, store, workspace, settings)
        try:
            pictures = preprocess(attempt)
            state = optimise(attempt, pictures)
            deprocess(attempt, state)
            folder = publish(attempt, state, Path(out) if out else None)
        # Prefect turns SIGTERM into its own signal while a flow runs.
        except (KeyboardInterrupt, TerminationSignal):
            store.cancel(job_id, attempt=number)
            workspace.discard(job_id)
            raise
        except NotFiniteError as error:
            # The best picture stays in the job's folder, where the error says it is.
            store.fail(job_id, attempt=number, error=str(error))
            raise
        except Exception as error:
            # A fault of the program may have any text; the record keeps one line.
            store.fail(job_id, attempt=number, error=" ".join(str(error).split()) or repr(error))
            workspace.discard(job_id)
            raise
    return str(folder)


@task(task_run_name="preprocess", cache_policy=NO_CACHE)
def preprocess(attempt: Attempt) -> Pictures:
    """Decode the job's pictures and resize them to the size at which its config works."""
    paths = {source: attempt.folder / source.file_name for source in attempt.job.sources}
    decoded = {source: decode(path, max_pixels=attempt.settings.max_pixels) for source, path in paths.items()}
    content = next(picture for source, picture in decoded.items() if source.role == "content")
    styles = [picture for source, picture in decoded.items() if source.role == "style"]
    pictures = fit_pictures(attempt.config, content, styles)
    get_run_logger().info(
        "Content at %s, %s", _size(pictures.content), ", ".join(f"style at {_size(style)}" for style in pictures.styles)
    )
    return pictures


@task(task_run_name="optimise", cache_policy=NO_CACHE)
def optimise(attempt: Attempt, pictures: Pictures) -> TransferState:
    """Run the optimisation stretch by stretch; write its losses in batches and tell its progress."""
    logger = get_run_logger()
    engine = warm_engine(attempt.settings.device)
    config = attempt.config
    state, point = start(engine, config, pictures)
    attempt.store.record_environment(
        attempt.job.id,
        attempt=attempt.number,
        weights_name=state.weights_name,
        weights_sha256=state.weights_sha256,
        precision=state.precision,
        device=f"{engine.device.name} {engine.device.description}",
        versions={"python": python_version()} | {library: version(library) for library in _LIBRARIES},
    )
    logger.info(
        "Optimising on %s in %s with the weights %s", engine.device.description, state.precision, state.weights_name
    )
    began = written = logged = time.monotonic()
    waiting = [point]
    _publish_progress(config, point, began=began)
    try:
        while not state.finished:
            state, points = advance(engine, state, Budget(seconds=CHUNK_SECONDS))
            waiting += points
            _publish_progress(config, points[-1], began=began)
            now = time.monotonic()
            if len(waiting) > 1 and now - written >= WRITE_SECONDS:
                _write_losses(attempt, waiting)
                waiting, written = [], now
            if now - logged >= LOG_SECONDS:
                logger.info(
                    "Iteration %d of %d, loss %.6g", state.iteration, config.iterations, points[-1].losses.total
                )
                logged = now
    except NotFiniteError as error:
        raise _with_best_picture(error, attempt.folder / BEST) from error
    finally:
        _write_losses(attempt, waiting)
    logger.info(
        "%d iterations in %.1f s, loss %.6g%s",
        state.iteration,
        state.seconds,
        state.evaluation.losses.total,
        "; no further step lowers it" if state.converged else "",
    )
    return state


@task(task_run_name="deprocess", cache_policy=NO_CACHE)
def deprocess(attempt: Attempt, state: TransferState) -> None:
    """Write the result, its report and the sources into the job's folder, ready to be published."""
    folder = attempt.folder / "result"
    folder.mkdir(exist_ok=True)
    encode_png(state.result(), folder / RESULT)
    for source in attempt.job.sources:
        shutil.copy2(attempt.folder / source.file_name, folder / source.file_name)
    job, losses = attempt.store.get(attempt.job.id), attempt.store.losses(attempt.job.id)
    plot_losses(losses, folder / LOSS_PLOT, title=f"{job.name} ({job.preset}, weights {job.weights_name})")
    document = json.dumps(result_document(job, losses), indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(f"{document}\n", encoding="utf-8")


@task(task_run_name="publish", cache_policy=NO_CACHE)
def publish(attempt: Attempt, state: TransferState, out: Path | None) -> Path:
    """Move the finished files to their place whole; only then is the job completed."""
    destination = out or attempt.workspace.free_name(attempt.job.name)
    attempt.workspace.publish(attempt.job.id, destination)
    rows, columns = state.picture.shape[:2]
    attempt.store.complete(
        attempt.job.id,
        attempt=attempt.number,
        result_folder=str(destination),
        result_files={"result": RESULT, "loss_plot": LOSS_PLOT, "record": RECORD}
        | {Path(source.file_name).stem: source.file_name for source in attempt.job.sources},
        rows=rows,
        columns=columns,
    )
    attempt.workspace.discard(attempt.job.id)
    get_run_logger().info("The result is in %s", destination)
    return destination


def _size(picture: object) -> str:
    rows, columns = picture.shape[:2]  # type: ignore[attr-defined]
    return f"{rows} x {columns}"


def _publish_progress(config: TransferConfig, point: LossPoint, *, began: float) -> None:
    progress.publish(
        progress.Progress(
            iteration=point.iteration,
            iterations=config.iterations,
            loss=point.losses.total,
            seconds_an_iteration=(time.monotonic() - began) / point.iteration if point.iteration else None,
        )
    )


def _write_losses(attempt: Attempt, points: list[LossPoint]) -> None:
    attempt.store.add_loss_points(
        attempt.job.id,
        attempt=attempt.number,
        points=[
            NewLossPoint(
                iteration=point.iteration,
                total=point.losses.total,
                content=point.losses.content,
                style=point.losses.style,
                tv=point.losses.tv,
                layers=point.losses.layers,
                learning_rate=point.rate,
                seconds=point.seconds,
            )
            for point in points
        ],
    )


def _with_best_picture(error: NotFiniteError, path: Path) -> NotFiniteError:
    if error.best is None:
        return error
    encode_png(error.best, path)
    return NotFiniteError(f"{error} The best picture until then is {path}.", best=error.best)
