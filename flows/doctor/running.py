"""Whether the service of a home runs, as several checks of `nst doctor` have to know."""

from __future__ import annotations

from pathlib import Path

from flows.locks import holder_of
from flows.service import SENSOR_LOCK, SERVICE_LOCK


def service_process(home: Path) -> int | None:
    """The process of `nst up` for this home, None where none runs."""
    return _holder(home / SERVICE_LOCK)


def sensor_process(home: Path) -> int | None:
    """The process of this home's sensor, which may run without `nst up`; None where none runs."""
    return _holder(home / SENSOR_LOCK)


def runs(home: Path) -> bool:
    """Whether anybody takes what is dropped."""
    return service_process(home) is not None or sensor_process(home) is not None


def _holder(path: Path) -> int | None:
    try:
        return holder_of(path)
    except OSError:
        # A lock that may not be opened is another user's, or of a home that the check of the home tells about.
        return None
