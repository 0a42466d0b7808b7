"""Folders under work/ of jobs that the database does not know, as after an older state of it was restored: what the
user dropped goes back to the inbox, each job in a folder of its own, and becomes a job again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from storage import leftovers
from storage.jobs import is_job_id
from storage.refusal import refusal
from storage.retention import RetentionStore
from storage.workspace import Workspace, sha256_of


def take_back_strays(store: RetentionStore, workspace: Workspace) -> list[Path]:
    """Bring the pictures of unknown jobs back to the inbox; returns their folders there.

    A job is written into the database before its folder is made, so a folder without one has lost it. What nst made in
    it is removed, and so is one that holds nothing but copies of a collection's pictures. Raises WorkspaceError where
    the disk refuses; it may be called again.
    """
    # The folders first: a job that is made meanwhile is known.
    folders = [
        name for name in workspace.jobs_with_folders() if is_job_id(name) and workspace.job_folder(name).is_dir()
    ]
    known = {job.id for job in store.jobs_among(folders)}
    taken = []
    for job_id in folders:
        if job_id in known:
            continue
        folder = workspace.job_folder(job_id)
        names = leftovers.names_in(folder)
        dropped = [name for name in names if not leftovers.is_made(name)]
        copies = dropped and _are_copies(workspace, [folder / name for name in dropped])
        leftovers.set_aside(workspace, job_id, names if copies else sorted(set(names) - set(dropped)))
        if dropped and not copies:
            taken.append(workspace.recover(job_id))
    return taken


def _are_copies(workspace: Workspace, files: Iterable[Path]) -> bool:
    """Whether all of these are pictures of a collection, whose files stay where they are: the next night takes them."""
    originals: dict[int, list[Path]] = {}
    for path in workspace.collections.glob("*/*/**/*"):
        if path.is_file():
            originals.setdefault(path.stat().st_size, []).append(path)

    def is_copy(file: Path) -> bool:
        same_size = originals.get(file.stat().st_size, []) if file.is_file() else []
        return any(sha256_of(original) == sha256_of(file) for original in same_size)

    with refusal(f"{workspace.collections} cannot be looked through", "check its permissions"):
        return all(map(is_copy, files))
