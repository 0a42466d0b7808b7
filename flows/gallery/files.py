"""Which file a page may show: what the database names, where it lies in the folder it has to lie in, and nothing else.
Addresses carry ids and roles, never paths."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flows.snapshots import latest_picture
from storage.models import Job, JobState, Night
from storage.retention import GIVEN_UP
from storage.workspace import Workspace

COVER: Final = "cover"
LATEST: Final = "latest"
AT_WORK: Final = frozenset({JobState.RUNNING, JobState.CANCELLING})
# Of any other job the folder of its result, if it has one, is only reserved.
_MOVED: Final = frozenset({JobState.COMPLETED, JobState.REJECTED, *GIVEN_UP})
TYPES: Final = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".json": "application/json",
}
_NOT_IN_BROWSERS: Final = frozenset({".tif", ".tiff"})


def job_files(job: Job, workspace: Workspace) -> dict[str, Path]:
    """The files of a job that are there, by their roles: those of the result and the sources, or only the sources."""
    names = {Path(source.file_name).stem: source.file_name for source in job.sources}
    if job.state is JobState.COMPLETED:
        names |= job.result_files or {}
    folder = _folder(job, workspace)
    top = _top(folder, workspace)
    found = {role: _regular_file(folder, name, top=top) for role, name in names.items()}
    return {role: path for role, path in found.items() if path is not None}


def job_file(job: Job, role: str, workspace: Workspace) -> Path | None:
    """The file of a role; `latest` is the newest picture of a job at work, `cover` stands for the job in a list."""
    if role == LATEST:
        return _latest(job, workspace) if job.state in AT_WORK else None
    files = job_files(job, workspace)
    if role != COVER:
        return files.get(role)
    if job.state is JobState.COMPLETED:
        return files.get("result")
    return (job.state in AT_WORK and _latest(job, workspace)) or files.get("content")


def browsable(path: Path) -> bool:
    """Whether browsers show such a picture; another can only be saved, and looked at as a smaller one."""
    return path.suffix.lower() not in _NOT_IN_BROWSERS


def roles(job: Job) -> frozenset[str]:
    """All roles that a job can have files of, there or not."""
    return frozenset({COVER, LATEST, *(job.result_files or {}), *(Path(one.file_name).stem for one in job.sources)})


def contact_sheet(night: Night, workspace: Workspace) -> Path | None:
    """The contact sheet of a night, where it lies in the outbox."""
    top = workspace.outbox
    return _regular_file(top, night.contact_sheet, top=top) if night.contact_sheet else None


def _folder(job: Job, workspace: Workspace) -> Path:
    if job.state in _MOVED and job.result_folder:
        return Path(job.result_folder)
    return workspace.job_folder(job.id)


def _latest(job: Job, workspace: Workspace) -> Path | None:
    folder = workspace.job_folder(job.id)
    picture = latest_picture(folder)
    return None if picture is None else _regular_file(folder, str(picture), top=workspace.work)


def _top(folder: Path, workspace: Workspace) -> Path:
    """The folder that this one may not leave by a link: one of the home's, or itself where the user chose it."""
    places = (workspace.outbox, workspace.rejected, workspace.work)
    return next((place for place in places if folder.is_relative_to(place)), folder)


def _regular_file(folder: Path, name: str, *, top: Path) -> Path | None:
    """The file `name` of `folder` with all links resolved; None where it is gone, no file, or outside the folder, or
    the folder outside `top`."""
    try:
        path, inner = (folder / name).resolve(strict=True), folder.resolve(strict=True)
        inside = path.is_relative_to(inner) and inner.is_relative_to(top.resolve(strict=True))
        return path if inside and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        # Gone, not to be looked at, a name that no file can have, or links in a circle.
        return None
