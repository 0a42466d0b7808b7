"""From pictures to a pending job: check and decode each picture, write the job with its sources, copy the
pictures into the job's folder. A picture that cannot work never becomes a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nst_engine.config import TransferConfig
from nst_engine.images import decode
from nst_engine.pictures import fit_pictures
from storage.errors import WorkspaceError
from storage.jobs import JobStore, NewJob, NewSource
from storage.models import Job, Role
from storage.workspace import Workspace, safe_name, sha256_of


def claim(
    store: JobStore,
    workspace: Workspace,
    *,
    content: Path,
    styles: Sequence[Path],
    preset: str,
    config: TransferConfig,
    max_pixels: int,
    name: str | None = None,
) -> Job:
    """A pending job made from copies of the pictures; they themselves stay where they are.

    It is called `name`, else CONTENT_STYLE after the files. Raises ImageError when a picture is not usable
    under the config, and then there is no job; WorkspaceError when the copies cannot be made, and then the job has
    failed.
    """
    pictures = {path: decode(path, max_pixels=max_pixels) for path in (content, *styles)}
    fit_pictures(config, pictures[content], [pictures[path] for path in styles])

    def source(role: Role, path: Path, file_name: str) -> NewSource:
        rows, columns = pictures[path].shape[:2]
        return NewSource(
            role=role,
            original_path=str(path.absolute()),
            file_name=file_name,
            sha256=sha256_of(path),
            bytes=path.stat().st_size,
            rows=rows,
            columns=columns,
        )

    numbers = [""] if len(styles) == 1 else [str(number) for number in range(1, len(styles) + 1)]
    sources = [
        source("content", content, f"content{_suffix(content)}"),
        *(source("style", path, f"style{number}{_suffix(path)}") for path, number in zip(styles, numbers, strict=True)),
    ]
    job = store.create(
        NewJob(
            name=safe_name(name or "_".join(path.stem for path in (content, *styles))),
            preset=preset,
            config=config.model_dump(),
            sources=sources,
        )
    )
    try:
        for path, made in zip((content, *styles), sources, strict=True):
            workspace.copy_source(job.id, path, made.file_name)
    except WorkspaceError as error:
        store.fail(job.id, attempt=None, error=str(error))
        workspace.discard(job.id)
        raise
    store.make_pending(job.id)
    return store.get(job.id)


def _suffix(path: Path) -> str:
    return f".{safe_name(path.suffix[1:].lower())}" if path.suffix else ""
