"""What lies in the inbox right now, and since when each file has stood still. A listing is never half a folder:
what cannot be read to its end is named and left out, so that no job is made from a part of its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.errors import InboxMissingError
from flows.inbox import Entry, is_junk


@dataclass(frozen=True)
class Listing:
    """All but junk, by path; folders in `unreadable` are listed themselves, but not what is in them."""

    entries: tuple[Entry, ...]
    unreadable: tuple[Path, ...]


def scan(inbox: Path) -> Listing:
    """List the inbox and all folders below it; links are not followed, all paths are relative to the inbox.

    What vanishes meanwhile is left out. Raises InboxMissingError when the inbox itself cannot be read.
    """
    try:
        entries = _entries(inbox, Path())
    except OSError as error:
        raise InboxMissingError(
            f"{inbox}: the inbox cannot be read ({error.strerror}); make that folder, mount its disk or mend its "
            "permissions."
        ) from error
    unreadable: list[Path] = []
    below = [entry.path for entry in entries if entry.kind == "folder"]
    while below:
        folder = below.pop()
        try:
            found = _entries(inbox, folder)
        except (FileNotFoundError, NotADirectoryError):
            # Moved or deleted since its parent was read.
            continue
        except OSError:
            unreadable.append(folder)
            continue
        entries += found
        below += [entry.path for entry in found if entry.kind == "folder"]
    return Listing(tuple(sorted(entries, key=lambda entry: entry.path)), tuple(sorted(unreadable)))


class Settling:
    """Since when each file has stood still, as seen by `observe`. Every clock value is in seconds of one clock."""

    def __init__(self) -> None:
        self._since: dict[Path, tuple[tuple[int, int, int], float]] = {}

    def observe(self, entries: Iterable[Entry], *, now: float) -> None:
        """Remember a listing made at `now`; forget what is no longer in it. Folders don't count."""
        before = self._since
        self._since = {}
        for entry in entries:
            if entry.kind != "folder":
                state = (entry.size, entry.mtime_ns, entry.inode)
                known = before.get(entry.path)
                self._since[entry.path] = known if known is not None and known[0] == state else (state, now)

    def first_seen(self, path: Path) -> float:
        """When the file was first seen as it is now; raises KeyError for one that the last listing had not."""
        return self._since[path][1]


def _entries(inbox: Path, folder: Path) -> list[Entry]:
    found = []
    with os.scandir(inbox / folder) as listed:
        for item in listed:
            if is_junk(item.name):
                continue
            try:
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                # Renamed or deleted since the folder was read.
                continue
            found.append(
                Entry(
                    path=folder / item.name,
                    kind=_kind(status.st_mode),
                    size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    inode=status.st_ino,
                )
            )
    return found


def _kind(mode: int) -> Literal["file", "folder", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"
