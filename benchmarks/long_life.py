"""Whether a worker that serves for long keeps to its memory: one process with one engine does jobs of many sizes and
several forms in both precisions, chunk by chunk as a GPU worker does them, and tells its resident memory at five stops.

    python -m benchmarks.long_life [--jobs 200] [--sizes 50] [--rows 420] [--weights random|PATH] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import re
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nst_engine.startup import load_tensorflow

if TYPE_CHECKING:
    from nst_engine.engine import Engine

SEED = 19
STOPS = 5
SMALLEST_ROWS = 64
ASPECTS = (0.5, 2.0)
PRESETS = ("default", "yuan-2018", "gatys-2015")
PRECISIONS = ("float32", "bfloat16")
ITERATIONS = (2, 3)
CHUNK_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One transfer of the sequence."""

    rows: int
    columns: int
    preset: str
    precision: str
    iterations: int


def main() -> None:
    """Serve the jobs and print the table."""
    parser = argparse.ArgumentParser(description="Measure the memory of a process that serves many jobs.")
    parser.add_argument("--jobs", type=int, default=200, help="how many; the memory is taken at every fifth of them")
    parser.add_argument("--sizes", type=int, default=50, help="different sizes, each used about equally often")
    parser.add_argument("--rows", type=int, default=420, help=f"most rows of a picture; the least are {SMALLEST_ROWS}")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    load_tensorflow()
    report = _measure(options)
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def jobs(number: int, *, sizes: int, most_rows: int) -> list[Job]:
    """The same jobs every time; the first ones have the largest size, so that what follows needs no more."""
    chance = random.Random(SEED)
    rows = [most_rows, *(chance.randint(SMALLEST_ROWS, most_rows) for _ in range(sizes - 1))]
    areas = [(height, round(height * chance.uniform(*ASPECTS))) for height in rows]
    # A picture is no larger than one of 4:3 with the most rows.
    kept = [(height, max(SMALLEST_ROWS, min(width, most_rows**2 * 4 // 3 // height))) for height, width in areas]
    kept[0] = (most_rows, most_rows * 4 // 3)
    made = []
    for index in range(number):
        height, width = kept[index] if index < sizes else chance.choice(kept)
        preset, precision = chance.choice(PRESETS), chance.choice(PRECISIONS)
        made.append(Job(height, width, preset, precision, chance.choice(ITERATIONS)))
    # Each precision's largest maps first.
    combinations = [Job(*kept[0], preset, precision, 2) for preset in PRESETS for precision in PRECISIONS]
    return [*combinations, *made][:number]


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from nst_engine.engine import Engine

    engine = Engine()
    stop = max(1, options.jobs // STOPS)
    stops = []
    began = time.perf_counter()
    for number, job in enumerate(jobs(options.jobs, sizes=options.sizes, most_rows=options.rows), 1):
        _serve(engine, job, weights=options.weights)
        if number % stop == 0:
            stops.append(
                {
                    "jobs": number,
                    "resident_bytes": _status("VmRSS"),
                    "peak_bytes": _status("VmHWM"),
                    "traces": _traces(),
                    "seconds": time.perf_counter() - began,
                }
            )
    return {
        "device": engine.device.description,
        "cores": os.cpu_count(),
        "versions": {"Python": platform.python_version(), "TensorFlow": version("tensorflow")},
        "jobs": options.jobs,
        "sizes": options.sizes,
        "rows": options.rows,
        "weights": options.weights,
        "presets": PRESETS,
        "stops": stops,
        "ratio": stops[-1]["resident_bytes"] / stops[0]["resident_bytes"],
    }


def _serve(engine: Engine, job: Job, *, weights: str) -> None:
    """One job from its pictures to its result, as `flows.gpu` does it."""
    from flows import chunks
    from nst_engine.pictures import Pictures
    from nst_engine.presets import find_preset
    from nst_engine.samples import content_sample, style_sample

    config = find_preset(job.preset).config.with_overrides(
        {"rows": job.rows, "precision": job.precision, "iterations": job.iterations, "weights": weights}
    )
    content, style = (make(job.rows, job.columns) for make in (content_sample, style_sample))
    chunk = chunks.begin(engine, config, Pictures(content, (style,)), snapshot_every=None)
    while not chunk.stretch.finished:
        chunk = chunks.advance(engine, chunk, seconds=CHUNK_SECONDS, snapshot_every=None)
    chunk.state.result()


def _traces() -> int:
    """The functions that TensorFlow has traced and that are still in memory."""
    return sum(type(found).__name__ == "ConcreteFunction" for found in gc.get_objects())


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _table(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    presets = ", ".join(report["presets"])
    lines = [
        f"{report['device']}, {report['cores']} cores; {versions}; {report['jobs']} jobs of {report['sizes']} sizes "
        f"from {SMALLEST_ROWS} to {report['rows']} rows, presets {presets}, {' and '.join(PRECISIONS)}, "
        f"{' or '.join(map(str, ITERATIONS))} iterations each, weights {report['weights']}; one process, one engine.",
        "",
        "| after jobs | resident memory | peak so far | traces that are kept | seconds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {stop['jobs']} | {stop['resident_bytes'] / 1e9:.3f} GB | {stop['peak_bytes'] / 1e9:.3f} GB "
        f"| {stop['traces']} | {stop['seconds']:.0f} |"
        for stop in report["stops"]
    ]
    first, last = report["stops"][0], report["stops"][-1]
    lines += ["", f"After {last['jobs']} jobs: **{report['ratio']:.2f} times** what it was after {first['jobs']}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
