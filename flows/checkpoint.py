"""The state of a running job on disk, from which a later attempt goes on. A file is read only if it was written whole
and by this version of nst: everything else counts as none, since a job can always start anew."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from nst_engine.arrays import blocks, release
from nst_engine.transfer import TransferState
from storage.disk import writing

logger = logging.getLogger(__name__)

_TAG: Final = b"nst checkpoint"
_BLOCK: Final = 1 << 20


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes | memoryview | pickle.PickleBuffer) -> int:
        """Write all of `data`, and let go of the pages of what is on disk as it goes."""
        numbers = np.frombuffer(memoryview(data), np.uint8)
        for block in blocks(numbers):
            self._sha256.update(numbers[block].data)
            self._file.write(numbers[block].data)
            release(numbers)
        return numbers.size

    def digest(self) -> bytes:
        """SHA-256 over all that was written."""
        return self._sha256.digest()


def save(path: Path, state: TransferState) -> None:
    """Write what is portable of the state to `path`; at every moment there is the old file, the new one or none.

    Raises OSError.
    """
    with writing(path) as file:
        file.write(_tag())
        hashed = _Hashed(file)
        # In a stream: the state may be a good part of the memory.
        pickle.dump(state, hashed, protocol=pickle.HIGHEST_PROTOCOL)
        file.write(hashed.digest())


def load(path: Path) -> TransferState | None:
    """The state at `path`; None when there is none, or none that this version can use, which is logged.

    Raises OSError when the file is there and cannot be read, and DiskSpaceError when a state of pictures on disk finds
    no room there.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_tag())) != _tag():
                reason = "another version of nst wrote it"
            elif not _is_whole(file):
                reason = "it is cut off or damaged"
            else:
                file.seek(len(_tag()))
                # Nothing is unpickled that was not written whole by this version: a pickle can do anything.
                state: TransferState = pickle.load(file)  # noqa: S301
                return state.arrived()
    except FileNotFoundError:
        return None
    logger.warning("The checkpoint %s is not used: %s; the job starts anew.", path, reason)
    return None


def _is_whole(file: BinaryIO) -> bool:
    """Whether what follows ends with the SHA-256 of all before it."""
    sha256 = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - file.tell() - sha256.digest_size
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        sha256.update(block)
        left -= len(block)
    return left == 0 and file.read() == sha256.digest()


def _tag() -> bytes:
    return b"%s %s\n" % (_TAG, version("nst").encode())
