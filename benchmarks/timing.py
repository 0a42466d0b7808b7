"""How the benchmarks take seconds and memory: repeats after one that is not timed, their median and spread, and the
most memory that a process has had. It needs nothing but Python, so that it also runs beside other frameworks."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


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
    """Seconds as "median (least to most)"."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
