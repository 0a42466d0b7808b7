"""What is said of a disk that refuses, in one sentence with the place, the reason and what to do; and whether it was a
disk that an error comes from, however many others lie between."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from storage.errors import WorkspaceError

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# The second where the index of the write-ahead log finds no room.
_SQLITE_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
# What may be mended without a change to the job: not that a file is not there.
_MENDABLE: Final = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV}


@contextmanager
def refusal(what: str, advice: str) -> Iterator[None]:
    """Turn the refusal of a disk into a WorkspaceError: `what` cannot be done and why; `advice`, or what helps more."""
    try:
        yield
    except OSError as error:
        raise WorkspaceError(refusal_sentence(what, error, advice)) from error


def refusal_sentence(what: str, error: OSError, advice: str) -> str:
    """The sentence of `refusal`."""
    if error.errno in _FULL:
        return f"{what} (the disk is full); free some space on it."
    if error.errno == errno.EROFS:
        return f"{what} (the disk is read-only); mount it so that it can be written to."
    return f"{what} ({os.strerror(error.errno) if error.errno else error}); {advice}."


def error_line(error: Exception, *, place: Path) -> str:
    """One line about any error, for a record; `place` is named where a disk refused and does not say of what."""
    if isinstance(error, OSError) and is_refusal(error):
        return refusal_sentence(f"The disk refuses {error.filename or place}", error, "check it and its permissions")
    # A fault of the program may have any text.
    return " ".join(str(error).split()) or repr(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is at the root of an error."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _FULL)
        or (isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) in _SQLITE_FULL)
        for cause in _causes(error)
    )


def is_refusal(error: BaseException) -> bool:
    """Whether a disk that is full, read-only, closed to us or failing is at the root of an error."""
    return is_disk_full(error) or any(
        isinstance(cause, OSError) and cause.errno in _MENDABLE for cause in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
