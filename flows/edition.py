"""Which nst a process runs. Jobs go as pickles of our own classes from the service to GPU workers, so both must have
the same; a worker says which it has, and a job goes to none that has another."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).resolve().parents[1]
_SENT: Final = (*sorted(_ROOT.glob("nst_engine/**/*.py")), _ROOT / "flows" / "chunks.py", _ROOT / "flows" / "gpu.py")


@functools.cache
def edition() -> str:
    """The version, and a digest of the code that service and GPU workers share, as "nst 0.1.0 (1a2b3c4d)".

    It is also the name of the Dask resource by which a worker says what it has.
    """
    digest = hashlib.sha256()
    for path in _SENT:
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return f"nst {version('nst')} ({digest.hexdigest()[:8]})"


def edition_of(worker: Mapping[str, Any]) -> str:
    """What a worker says that it has, by what the scheduler knows of it."""
    said = [name for name in worker["resources"] if name.startswith("nst ")]
    return str(said[0]) if said else "an older nst"
