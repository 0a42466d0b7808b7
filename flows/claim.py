"""From pictures to a job: check and decode each picture, write the job with its sources and its fingerprint, bring
the files into the job's folder, make the job pending. A claim that a crash has cut off is finished later, not repeated;
what can never work is put into the folder of rejected drops with its reason."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from flows.checked_picture import CheckedPicture
from flows.drop_settings import DropSettings
from flows.errors import PictureGoneError
from flows.fingerprint import fingerprint
from flows.inbox import Drop, is_litter
from flows.plain_text import one_line
from flows.report import RESULTS
from flows.roles import in_order
from flows.sources import sources_of
from nst_engine.config import TransferConfig
from nst_engine.images import require_file
from storage.errors import WorkspaceError
from storage.jobs import JobStore, NewJob, utc_now
from storage.manifest import Manifest
from storage.models import Job
from storage.workspace import Workspace, safe_name, sha256_of

# How long `nst run` may take from its job to the job's first attempt; Prefect's first start is most of it.
_OWN_START: Final = timedelta(minutes=10)

_TAKEN_NAMES: Final = frozenset(
    {
        *("result", "checkpoint", "best.png", "preview.jpg", "snapshots"),
        *(*RESULTS, "loss.png", "job.json", "timelapse.webp"),
    }
)


@dataclass(frozen=True)
class StuckClaim:
    """A claim that the disk does not let finish: its job's name, the files it is about, and why."""

    job_name: str
    files: frozenset[Path]
    reason: str


def claim(
    store: JobStore,
    workspace: Workspace,
    *,
    content: Path,
    styles: Sequence[Path],
    masks: Sequence[Path] = (),
    style_masks: Sequence[Path | None] = (),
    initial: Path | None = None,
    preset: str,
    config: TransferConfig,
    max_pixels: int,
    name: str | None = None,
    snapshot_every: int | None = None,
) -> Job:
    """A pending job made from copies of the pictures, for this process to run; they themselves stay where they are.

    It is called `name`, else CONTENT_STYLE after the files. Raises ImageError or ConfigError when a picture is not
    usable under the config, and then there is no job; WorkspaceError when the copies cannot be made, and then the job
    has failed.
    """
    given = list(in_order(content, styles, masks=masks, style_masks=style_masks, initial=initial))
    for _, path in given:
        require_file(path)
    pictures = [(role, path, CheckedPicture.of(path, max_pixels=max_pixels)) for role, path in given]
    sources = sources_of(pictures, config)
    job = store.create(
        NewJob(
            name=safe_name(name or "_".join(path.stem for path in (content, *styles))),
            preset=preset,
            config=config.model_dump(),
            sources=sources,
            fingerprint=fingerprint(sources, config, snapshot_every=snapshot_every),
            snapshot_every=snapshot_every,
            lease_until=utc_now() + _OWN_START,
        )
    )
    try:
        for (_, path), source in zip(given, sources, strict=True):
            workspace.copy_source(job.id, path, source.file_name)
    except WorkspaceError as error:
        store.fail(job.id, attempt=None, error=str(error))
        workspace.discard(job.id)
        raise
    store.make_pending(job.id)
    return store.get(job.id)


def claim_drop(
    store: JobStore,
    workspace: Workspace,
    drop: Drop,
    *,
    settings: DropSettings,
    pictures: Sequence[CheckedPicture],
    burst_size: int = 1,
) -> Job | None:
    """A pending job of a drop whose `pictures` (one for each of drop.pictures) are checked; its files leave the inbox.

    Returns None, with the files back in the inbox, when one of them was written to meanwhile. Raises ImageError or
    ConfigError when a picture is not usable under the settings, and WorkspaceError when the files cannot be moved: then
    the job stays claimed and `finish_claim` goes on with it.
    """
    paths = [workspace.inbox / path for _, path in drop.pictures]
    roles = [role for role, _ in drop.pictures]
    sources = sources_of(list(zip(roles, paths, pictures, strict=True)), settings.config)
    names = {path: source.file_name for path, source in zip(paths, sources, strict=True)}
    further = [path for path in drop.taken if workspace.inbox / path not in names]
    for path in further:
        names[workspace.inbox / path] = _further_name(path, drop, taken=names.values())
    taken = {workspace.inbox / path for path in drop.taken}
    job = store.create(
        NewJob(
            name=safe_name(settings.name or drop.name),
            preset=settings.preset,
            config=settings.config.model_dump(),
            sources=sources,
            # A job that is to be computed whatever has been done before is like no other.
            fingerprint=None
            if settings.force
            else fingerprint(sources, settings.config, snapshot_every=settings.snapshot_every),
            snapshot_every=settings.snapshot_every,
            priority=settings.priority,
            burst_size=burst_size,
            manifest=Manifest(
                moves={path: name for path, name in names.items() if path in taken},
                folder=workspace.inbox / drop.folder if drop.folder else None,
            ),
        )
    )
    for path, name in names.items():
        if path not in taken:
            # A style folder keeps its style for the next content.
            workspace.copy_source(job.id, path, name)
    return store.get(job.id) if _finish(store, workspace, job) else None


def reject_drop(
    store: JobStore, workspace: Workspace, *, name: str, files: Sequence[Path], folder: Path | None, reason: str
) -> Job:
    """A rejected job of files of the inbox (absolute paths), which move to a folder of their own with the reason."""
    to = workspace.rejected_folder(name)
    moves: dict[Path, str] = {}
    for path in files:
        moves[path] = _unique(safe_name(path.name), taken=moves.values())
    job = store.create(
        NewJob(
            name=safe_name(name),
            preset="-",
            config={},
            sources=[],
            manifest=Manifest(moves=moves, folder=folder, rejected_to=to),
            rejection=reason,
        )
    )
    _finish(store, workspace, job)
    return store.get(job.id)


def finish_claims(store: JobStore, workspace: Workspace) -> list[StuckClaim]:
    """Go on with every claim that a crash or the disk has cut off; returns those that cannot go on now.

    A job whose files are gone, here and there, has failed: somebody took them away. A job whose pictures were
    written to meanwhile is forgotten, its files are back in the inbox.
    """
    stuck = []
    for job in store.claimed():
        manifest = manifest_of(job)
        try:
            _finish(store, workspace, job)
        except WorkspaceError as error:
            folder = manifest.rejected_to or workspace.job_folder(job.id)
            if not all(
                os.path.lexists(path) or os.path.lexists(folder / name) for path, name in manifest.moves.items()
            ):
                store.fail(job.id, attempt=None, error=one_line(str(error)))
            else:
                stuck.append(StuckClaim(job.name, frozenset(manifest.moves), str(error)))
    return stuck


def bring_pictures(workspace: Workspace, job: Job) -> None:
    """Copy the pictures of a collection's job into its folder, unless they are there; any other job has its own.

    Raises PictureGoneError when one is no longer there or no longer what the job was made of, WorkspaceError where
    the disk refuses.
    """
    if job.collection is None:
        return
    for source in job.sources:
        copy, original = workspace.job_folder(job.id) / source.file_name, Path(source.original_path)
        if copy.exists() and sha256_of(copy) == source.sha256:
            continue
        if not original.exists():
            raise PictureGoneError(f"{original} is gone; put it back and try again with `nst retry {job.id}`.")
        workspace.copy_source(job.id, original, source.file_name)
        if sha256_of(copy) != source.sha256:
            copy.unlink()
            raise PictureGoneError(
                f"{original} has changed since its job was made; the next night takes it as it is then."
            )


def copy_dropped_files(job: Job, origin: Path, to: Path) -> None:
    """Copy the job's pictures, and what else was dropped with them, from one folder to another."""
    names = [source.file_name for source in job.sources]
    for name in dict.fromkeys([*names, *manifest_of(job).moves.values()]):
        shutil.copy2(origin / name, to / name)


def manifest_of(job: Job) -> Manifest:
    """What the drop of a job consisted of; of a job made from copies, nothing."""
    return Manifest.from_document(job.manifest) if job.manifest else Manifest(moves={})


def _finish(store: JobStore, workspace: Workspace, job: Job) -> bool:
    """Move what still has to be moved, then say so; each step may be repeated.

    Returns False, with the files back in the inbox and no job, when a picture is not the one that was checked.
    """
    manifest = manifest_of(job)
    if manifest.rejected_to is None:
        workspace.take(job.id, manifest.moves)
        if not _has_its_pictures(workspace, job):
            workspace.put_back(job.id, manifest.moves)
            workspace.discard(job.id)
            store.forget(job.id)
            return False
    else:
        workspace.reject(manifest.moves, to=manifest.rejected_to, reason=str(job.error))
    if manifest.folder is not None:
        workspace.remove_dropped_folder(manifest.folder, is_junk=is_litter)
    if manifest.rejected_to is None:
        store.make_pending(job.id)
    else:
        store.reject(job.id, error=str(job.error), folder=str(manifest.rejected_to))
    return True


def _has_its_pictures(workspace: Workspace, job: Job) -> bool:
    """Whether the job's folder holds the very pictures that were checked, and nothing that is no file."""
    folder = workspace.job_folder(job.id)
    if not all(stat.S_ISREG((folder / name).lstat().st_mode) for name in manifest_of(job).moves.values()):
        return False
    for source in job.sources:
        path, original = folder / source.file_name, Path(source.original_path)
        # The style of a style folder is copied, not moved: after a crash it may have to be copied now.
        if not path.exists() and original.exists():
            workspace.copy_source(job.id, original, source.file_name)
        if not path.exists() or sha256_of(path) != source.sha256:
            return False
    return True


def _further_name(path: Path, drop: Drop, *, taken: Collection[str]) -> str:
    """What a file that is no picture of the job is called in its folder: its way from the dropped folder."""
    if path == drop.settings:
        return "settings.toml"
    inside = path.relative_to(drop.folder) if drop.folder else Path(path.name)
    return _unique(safe_name("_".join(inside.parts)), taken={*taken, *_TAKEN_NAMES, "settings.toml"})


def _unique(name: str, *, taken: Collection[str]) -> str:
    path, number, unique = Path(name), 1, name
    while unique in taken:
        number += 1
        unique = f"{path.stem}-{number}{path.suffix}"
    return unique
