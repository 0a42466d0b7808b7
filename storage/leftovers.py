"""The files that nst made and can make again: what a job that was given up has left under work/, and the thumbnails of
the gallery. What is the user's is told apart here and never removed."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from storage.errors import WorkspaceError
from storage.refusal import is_disk_full, refusal_sentence
from storage.workspace import Workspace

# What a job makes in its folder while it runs.
_MADE: Final = frozenset({"result", "checkpoint", "best.png", "preview.jpg", "snapshots"})
_PART: Final = ".nst.part"
_ASIDE: Final = ".aside"


def is_made(name: str) -> bool:
    """Whether a job makes an entry of this name in its folder."""
    return name in _MADE or (name.startswith(".") and name.endswith(_PART))


def names_in(folder: Path) -> list[str]:
    """The entries of a folder by name; one that is not there has none."""
    with _refusal(folder):
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    with _refusal(path):
        return sum(status.st_size for _, status in _files(path))


def set_aside(workspace: Workspace, job_id: str, names: Collection[str]) -> None:
    """Take entries out of a job's folder in one moment each, for remove_aside(); an empty folder goes too."""
    folder = workspace.job_folder(job_id)
    aside = _aside(workspace, job_id)
    places = {name: aside / name for name in names}
    with _refusal(folder):
        try:
            aside.mkdir(exist_ok=True)
        except OSError as error:
            if not is_disk_full(error):
                raise
            # There is no room for a folder until this has made some.
            places = {name: aside.with_name(f".{job_id}.{name}{_ASIDE}") for name in names}
        for name, place in places.items():
            (folder / name).rename(place)
        if not names_in(folder):
            folder.rmdir()


def remove_aside(workspace: Workspace) -> int:
    """Remove what has been set aside, also by a process that died since; returns how many bytes."""
    removed = 0
    for entry in workspace.work.glob(f".*{_ASIDE}"):
        removed += size_of(entry)
        with _refusal(entry):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    return removed


def is_aside(name: str) -> bool:
    """Whether an entry of work/ is what has been set aside."""
    return name.startswith(".") and name.endswith(_ASIDE)


def trim(folder: Path, *, limit: int) -> int:
    """Remove the files of a folder that were used least recently, until the rest takes `limit` bytes.

    Returns how many bytes were removed; a folder that is not there has none.
    """
    removed = 0
    with _refusal(folder):
        # Many disks note no reading, or only the first of a day.
        files = sorted((max(status.st_atime, status.st_mtime), path, status.st_size) for path, status in _files(folder))
        excess = sum(size for _, _, size in files) - limit
        for _, path, size in files:
            if removed >= excess:
                break
            path.unlink(missing_ok=True)
            removed += size
    return removed


def _files(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files under a folder, or the file itself; what goes away meanwhile, or may not be looked at, is left out."""
    inside = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    for file in inside if path.is_dir() else [path]:
        with suppress(FileNotFoundError, PermissionError):
            yield file, file.lstat()


def _aside(workspace: Workspace, job_id: str) -> Path:
    return workspace.work / f".{job_id}{_ASIDE}"


@contextmanager
def _refusal(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename or folder} cannot be cleaned up"
        raise WorkspaceError(refusal_sentence(what, error, "check its permissions")) from error
