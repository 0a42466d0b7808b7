"""What `nst doctor` looks at in the home: its folders, who can read its secrets, the disk, the inbox and how it is
watched, and what crashes have left behind."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from flows.access import exposed_secrets
from flows.doctor.database import opened
from flows.doctor.finding import Finding, of_sentence
from flows.doctor.machine import LEAST_FREE_BYTES
from flows.doctor.running import runs
from flows.errors import InboxMissingError
from flows.listing import scan
from flows.settings import Settings
from flows.watcher import is_blind
from storage.errors import StorageError
from storage.jobs import is_job_id
from storage.leftovers import is_aside
from storage.retention import RetentionStore
from storage.workspace import Workspace, check_writable

INOTIFY_LIMITS: Final = Path("/proc/sys/fs/inotify")
_NEARLY: Final = 0.9
_PART_ENDS: Final = (".nst.part", ".part")
_HOUR: Final = 3600.0
_NAMED: Final = 3


def home(settings: Settings) -> list[Finding]:
    """The home itself: it can be written to."""
    if settings.home.exists() and not settings.home.is_dir():
        return [Finding("home", f"{settings.home} is no folder", "move it away, or name another home with --home")]
    try:
        check_writable(settings.home)
    except StorageError as error:
        return [Finding("home", str(error), "mend its permissions or name another home with --home or NST_HOME")]
    return [Finding("home", f"{settings.home}{'' if settings.home.exists() else ', which the first job makes'}")]


def secrets(settings: Settings) -> list[Finding]:
    """Passwords and keys that others could read."""
    exposed = [of_sentence("secrets", sentence) for sentence in exposed_secrets(settings)]
    return exposed or [Finding("secrets", "no other user of this machine can read any")]


def disk(settings: Settings) -> list[Finding]:
    """What is free on the disk of the home."""
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    remedy = "" if free >= LEAST_FREE_BYTES else f"free some space on the disk of {place}"
    return [Finding("disk", f"{free / 1e9:.1f} GB free for {settings.home}", remedy)]


def inbox(settings: Settings) -> list[Finding]:
    """The inbox: there, readable to its end, and watched in a way that works on its disk."""
    folder = Workspace(settings.home).inbox
    if not folder.exists() and not runs(settings.home):
        return [Finding("inbox", f"none yet; `nst up` makes {folder}")]
    try:
        listing = scan(folder)
    except InboxMissingError as error:
        return [of_sentence("inbox", str(error))]
    if listing.unreadable:
        named = ", ".join(str(path) for path in listing.unreadable[:_NAMED])
        return [Finding("inbox", f"{named} in {folder} cannot be read", "mend the permissions of what is in there")]
    files = sum(entry.kind == "file" for entry in listing.entries)
    if not is_blind(folder):
        return [Finding("inbox", f"{files} files in {folder}")]
    told = f"{files} files in {folder}, on a disk that tells of no changes"
    if settings.watcher == "native":
        return [Finding("inbox", f"{told} while watcher is native", "set watcher to auto or polling")]
    return [Finding("inbox", f"{told}; it is looked at every {settings.settle_seconds:g} s")]


def inotify(settings: Settings, *, limits: Path = INOTIFY_LIMITS) -> list[Finding]:
    """Whether this user may watch more folders: how much of the kernel's limits is used up."""
    folder = Workspace(settings.home).inbox
    if not limits.is_dir() or settings.watcher == "polling" or is_blind(folder):
        return [Finding("inotify", "not needed; the inbox is looked at")]
    instances, watches = _inotify_use()
    used = {"max_user_instances": instances, "max_user_watches": watches}
    most = {name: int((limits / name).read_text()) for name in used}
    full = [name for name, count in used.items() if count >= _NEARLY * most[name]]
    return [
        Finding(
            "inotify",
            f"{used[name]} of the {most[name]} of fs.inotify.{name} are used up, without which changes are seen late",
            f"sysctl fs.inotify.{name}={4 * most[name]}, or end what uses them",
        )
        for name in full
    ] or [Finding("inotify", f"{instances} instances and {watches} watches of this user, of those that it may have")]


def _inotify_use() -> tuple[int, int]:
    """The inotify instances and watches of this user's processes; what may not be looked into counts as none."""
    instances = watches = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if process.stat().st_uid != os.getuid():
                continue
            for descriptor in (process / "fd").iterdir():
                # Through the link itself it would be opened.
                if str(descriptor.readlink()).endswith("inotify"):
                    instances += 1
                    watches += (process / "fdinfo" / descriptor.name).read_text().count("inotify wd:")
        except OSError:
            # It has ended meanwhile.
            continue
    return instances, watches


def leftovers(settings: Settings) -> list[Finding]:
    """What crashes have left: files that never became whole, and folders of no job."""
    workspace = Workspace(settings.home)
    found = []
    parts = [path for path in _parts(workspace) if _age(path) > _HOUR]
    if parts:
        never = "has never" if len(parts) == 1 else "have never"
        remedy = "remove what is left of it while the service does not run"
        found.append(Finding("leftovers", f"{_named(parts)} {never} become whole", remedy))
    strangers = _folders_of_no_job(settings, workspace)
    for lost, remedy in (
        (True, "start the service again, which brings the pictures in there back to the inbox"),
        (False, "nst leaves it alone; move it away"),
    ):
        if group := [path for path in strangers if is_job_id(path.name) is lost]:
            finding = f"{_named(group)} {'is' if len(group) == 1 else 'are'} no job's"
            found.append(Finding("leftovers", finding, remedy))
    return found or [Finding("leftovers", "none")]


def _parts(workspace: Workspace) -> Iterator[Path]:
    """Half files and folders where nst writes, not deeper than a job's own folder."""
    places = [workspace.home, workspace.outbox, workspace.rejected, workspace.work, workspace.home / "backups"]
    jobs = (path for path in _entries(workspace.work) if path.is_dir())
    for place in (*places, *jobs):
        yield from (path for path in _entries(place) if path.name.startswith(".") and path.name.endswith(_PART_ENDS))


def _folders_of_no_job(settings: Settings, workspace: Workspace) -> list[Path]:
    names = [path.name for path in _entries(workspace.work) if path.is_dir() and not path.name.startswith(".")]
    names = [name for name in names if not is_aside(name)]
    if not names or not settings.has_database:
        return [workspace.work / name for name in sorted(names)]
    with opened(settings) as database:
        if database is None:
            return []
        known = {job.id for job in RetentionStore(database).jobs_among(names)}
    return [workspace.work / name for name in sorted(set(names) - known)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        # Not there yet, or the check of the home tells about it.
        return []


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        # It has just become whole.
        return 0.0


def _named(paths: list[Path]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{', '.join(map(str, paths[:_NAMED]))}{more}"
