"""One service a home, one sensor an inbox: a lock file that names the process which holds it. The system gives the
lock back however that process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from flows.errors import ServiceError


@contextmanager
def only_one(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock for the length of the block; ServiceError, naming the holder's process, when it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(
                f"{what} already runs for {path.parent} (process {_holder(file)}); stop it first, or name another home "
                "with --home."
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def holder_of(path: Path) -> int | None:
    """The process that holds the lock, None when it is free."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _holder(file)
            return None
    except FileNotFoundError:
        return None


def _holder(file: TextIO) -> int:
    file.seek(0)
    # Between taking the lock and writing its number a process has none yet.
    return int(file.read().strip() or 0)
