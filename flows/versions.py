"""Which versions compute here: noted with every job, and shown by `nst doctor`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Final

_LIBRARIES: Final = ("nst", "tensorflow", "keras", "numpy", "pillow", "prefect", "distributed", "sqlalchemy")


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that have a part in a job, by name."""
    return {"python": platform.python_version()} | {library: version(library) for library in _LIBRARIES}
