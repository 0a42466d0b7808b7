"""A small disk of its own, for tests of what happens when it is full, read-only or away: a tmpfs, which takes a mount
and so the rights of root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)
_READ_ONLY, _REMOUNT, _DETACH = 1, 32, 2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROOMY = "size=64m,nr_inodes=10000"


class SmallDisk:
    """A tmpfs mounted at a folder, which is made where it is not there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        _mount(place, 0, _ROOMY)

    def leave(self, *, pages: int | None = None, files: int | None = None) -> None:
        """Leave room for so many pages of 4 KB, or so many files and names, and no limit of the other kind.

        A disk with nothing on it has one page.
        """
        status = os.statvfs(self.place)
        size = "64m" if pages is None else str(max(status.f_blocks - status.f_bfree + pages, 1) * _PAGE)
        inodes = 10_000 if files is None else status.f_files - status.f_ffree + files
        _mount(self.place, _REMOUNT, f"size={size},nr_inodes={inodes}")

    def free(self) -> None:
        """Leave room for everything."""
        _mount(self.place, _REMOUNT, _ROOMY)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Refuse all writes for the length of a block; nothing may be open for writing at its start."""
        _mount(self.place, _REMOUNT | _READ_ONLY, _ROOMY)
        try:
            yield
        finally:
            self.free()

    def unmount(self) -> None:
        """Take the disk away, also while files on it are open."""
        unmount(self.place)


def unmount(place: Path) -> None:
    """Take away what is mounted at a folder."""
    if _libc.umount2(os.fsencode(place), _DETACH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))


@contextmanager
def small_disk(place: Path) -> Iterator[SmallDisk]:
    """A small disk at a folder for the length of a block; the test is skipped where this machine allows no mounts."""
    try:
        disk = SmallDisk(place)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here ({error.strerror}); that takes the rights of root")
    try:
        yield disk
    finally:
        while os.path.ismount(place):
            unmount(place)


def _mount(place: Path, flags: int, options: str) -> None:
    if _libc.mount(b"nst-test", os.fsencode(place), b"tmpfs", ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(place))
