"""The state of a running job on disk, from which a later attempt goes on. A file is read only if it was written whole
and by this version of nst: everything else counts as none, since a job can always start anew."""

from __future__ import annotations

import hashlib
import logging
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Final

from nst_engine.transfer import TransferState
from storage.disk import write_bytes

logger = logging.getLogger(__name__)

_TAG: Final = b"nst checkpoint"


def save(path: Path, state: TransferState) -> None:
    """Write the state to `path`; at every moment there is the old file, the new one or none. Raises OSError."""
    payload = pickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL)
    write_bytes(path, _header(payload) + payload)


def load(path: Path) -> TransferState | None:
    """The state at `path`; None when there is none, or none that this version can use, which is logged.

    Raises OSError when the file is there and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    payload = content[len(_header(b"")) :]
    # Nothing is unpickled that was not written whole by this version: a pickle can do anything.
    if content == _header(payload) + payload:
        state: TransferState = pickle.loads(payload)  # noqa: S301
        return state
    reason = "it is cut off or damaged" if content.startswith(_tag()) else "another version of nst wrote it"
    logger.warning("The checkpoint %s is not used: %s; the job starts anew.", path, reason)
    return None


def _tag() -> bytes:
    return b"%s %s\n" % (_TAG, version("nst").encode())


def _header(payload: bytes) -> bytes:
    return _tag() + hashlib.sha256(payload).hexdigest().encode() + b"\n"
