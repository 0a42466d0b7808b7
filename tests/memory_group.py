"""A control group of Linux that bounds the memory of real processes, so that the kernel kills what takes more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_processes import eventually

_GROUPS = Path("/sys/fs/cgroup")


class MemoryGroup:
    """One group: what is moved into it, and what that starts later, may have `limit` bytes together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, process: int) -> None:
        """Move a process into the group; what it has already does not count in version 1."""
        (self._folder / "cgroup.procs").write_text(str(process))

    def kills(self) -> int:
        """How often the kernel has killed for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(FileNotFoundError):
                lines = (self._folder / name).read_text().splitlines()
                return int(dict(line.split() for line in lines)["oom_kill"])
        raise AssertionError(f"{self._folder} does not say how often the kernel has killed.")


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group of so many bytes, without swap, for the length of the block; skips the test where none can be made."""
    first = (_GROUPS / "memory").is_dir()
    parent = _GROUPS / "memory" if first else _GROUPS
    folder = parent / f"nst-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made in {parent} ({error.strerror})")
    try:
        try:
            (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"{folder} takes no limit ({error.strerror})")
        # Where there is no swap there may be no such file.
        for name, most in (("memory.memsw.limit_in_bytes", limit), ("memory.swap.max", 0)):
            if (folder / name).exists():
                (folder / name).write_text(str(most))
        yield MemoryGroup(folder)
    finally:
        eventually(lambda: _removed(folder, parent))


def _removed(folder: Path, parent: Path) -> bool:
    """Whether the group is gone; what has been killed is in it until it has ended."""
    for process in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (parent / "cgroup.procs").write_text(process)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()
