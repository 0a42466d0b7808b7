"""A job that has been done before, with the same pictures, settings and weights, is not computed again: the result is
published under the new name at once."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

from flows.claim import bring_pictures, copy_dropped_files
from flows.errors import PictureGoneError
from flows.published import complete_published
from flows.report import (
    LOSS_PLOT,
    RECORD,
    SNAPSHOTS,
    TIMELAPSE,
    job_document,
    plot_losses,
    result_document,
    result_files,
    result_name,
)
from flows.snapshots import copy_snapshots
from nst_engine.errors import ImageError
from nst_engine.images import decode
from storage.errors import JobStateError, WorkspaceError
from storage.jobs import JobStore
from storage.models import Job
from storage.refusal import is_refusal
from storage.workspace import Workspace


def reuse_twin(store: JobStore, workspace: Workspace, job: Job, *, out: Path | None = None) -> bool:
    """Complete a pending job with the result of a completed one of the same fingerprint; False where there is none.

    The result goes to the folder `out`, else to one named after the job in the outbox. A twin whose result was
    moved away, or no longer is a picture of its size, does not count. Raises WorkspaceError where the disk refuses,
    PictureGoneError when a collection's picture is not what it was, JobStateError when the job is no longer pending.
    """
    twin = store.completed_twin(job.fingerprint) if job.fingerprint else None
    if twin is None or not _is_whole(twin):
        return False
    folder = workspace.job_folder(job.id) / "result"
    destination = out or store.reserve_result(job.id, workspace.candidates(job.name, job.collection))
    # A crash after publishing leaves only the database to be told.
    if not (destination / RECORD).is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fill(store, workspace, job, twin, folder)
        except OSError as error:
            raise WorkspaceError(
                f"The result of job {twin.id} cannot be copied to {folder} ({error}); drop the pictures again."
            ) from error
        workspace.publish(job.id, destination)
    try:
        store.reuse(
            job.id,
            twin_id=twin.id,
            result_folder=str(destination),
            result_files=result_files(job),
            rows=int(twin.result_rows or 0),
            columns=int(twin.result_columns or 0),
        )
    except JobStateError:
        # Cancelled while it was copied: nobody would know of the copy.
        if out is None and store.get(job.id).result_folder != str(destination):
            workspace.take_back(job.id, destination)
        raise
    workspace.discard(job.id)
    return True


def reuse_or_fail(store: JobStore, workspace: Workspace, job: Job) -> bool:
    """Reuse a twin's result for a job that nobody waits for: what goes wrong fails the job.

    False where the job is still to be run, also since a disk refuses, for which a run can wait.
    """
    try:
        return reuse_twin(store, workspace, job)
    except JobStateError:
        # Somebody has cancelled it meanwhile.
        return True
    except (WorkspaceError, PictureGoneError) as error:
        if is_refusal(error):
            return False
        with contextlib.suppress(JobStateError):
            if not complete_published(store, job.id):
                store.fail(job.id, attempt=None, error=str(error))
        return True


def _is_whole(twin: Job) -> bool:
    try:
        # A result may be larger than any picture that is taken in.
        found = decode(Path(str(twin.result_folder)) / result_name(twin.config), max_pixels=sys.maxsize)
    except ImageError:
        return False
    if twin.snapshot_every is not None:
        folder = Path(str(twin.result_folder))
        if not (folder / TIMELAPSE).is_file() or not (folder / SNAPSHOTS).is_dir():
            return False
    return found.shape[:2] == (twin.result_rows, twin.result_columns)


def _fill(store: JobStore, workspace: Workspace, job: Job, twin: Job, folder: Path) -> None:
    bring_pictures(workspace, job)
    losses = store.losses(twin.id)
    result = result_name(twin.config)
    shutil.copy2(Path(str(twin.result_folder)) / result, folder / result)
    if twin.snapshot_every is not None:
        copy_snapshots(Path(str(twin.result_folder)), folder)
    copy_dropped_files(job, workspace.job_folder(job.id), folder)
    plot_losses(losses, folder / LOSS_PLOT, title=f"{job.name} ({job.preset}, weights {twin.weights_name})")
    own = job_document(job)
    document = result_document(twin, losses) | {
        key: own[key] for key in ("id", "name", "preset", "sources", "created_at")
    }
    document["reused_from"] = twin.id
    (folder / RECORD).write_text(f"{json.dumps(document, indent=2, ensure_ascii=False)}\n", encoding="utf-8")
