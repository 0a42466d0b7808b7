"""How the benchmarks take seconds and memory: repeats after one that is not timed, their median and spread, and the
most memory that a process has had. It needs nothing but Python, so that it also runs beside other frameworks."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

# Less than this has more than two digits behind the point.
FINE_SECONDS = 0.02


def timed(iterate: Callable[[], object], repeats: int) -> dict[str, Any]:
    """The seconds of each of `repeats` calls after one that is not timed, their median and the peak so far in bytes."""
    iterate()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        iterate()
        seconds.append(time.perf_counter() - began)
    return {"median": statistics.median(seconds), "seconds": seconds, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The most memory that this process has had at once, in bytes."""
    # Linux gives KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def spread(seconds: Sequence[float]) -> str:
    """Seconds as "median (least to most)", to the hundredth, or finer where that would be nearly all of it."""
    digits = 2 if min(seconds) >= FINE_SECONDS else 5
    return f"{statistics.median(seconds):.{digits}f} ({min(seconds):.{digits}f} to {max(seconds):.{digits}f})"
