"""What a collection saves by the style's targets being kept: jobs of several contents and one style on one warm engine,
each once with the style of the job before and once with one that the engine has not seen; and which settings give two
contents the same style targets.

    python -m benchmarks.style_targets [--rows 400] [--contents 6] [--iterations 5] [--weights random|PATH]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import spread
from nst_engine.startup import load_tensorflow

PRESET = "keras-2016"
KNOWN, UNKNOWN = "the style of the job before", "a style not seen before"
STYLE = (900, 1200)
CONTENTS = {
    "the same size": ((600, 800), (600, 800)),
    "the same shape, another size": ((600, 800), (1200, 1600)),
    "wide and tall": ((600, 800), (800, 600)),
    "another shape": ((600, 800), (600, 900)),
}
SIZES: dict[str, dict[str, int | None]] = {
    "`rows`": {"rows": 400, "long_edge": None},
    "`long_edge`": {"rows": None, "long_edge": 512},
}


def main() -> None:
    """Run the jobs and print the tables."""
    parser = argparse.ArgumentParser(description="Measure what the kept targets of a style save.")
    parser.add_argument("--rows", type=int, default=400, help="rows of the pictures; the columns are 4/3 of them")
    parser.add_argument("--contents", type=int, default=6, help="jobs of each kind, after one that is not timed")
    parser.add_argument("--iterations", type=int, default=5, help="iterations of a job")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    load_tensorflow()
    report = _measure(options)
    print(_tables(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from nst_engine.engine import Engine
    from nst_engine.pictures import Pictures
    from nst_engine.presets import find_preset
    from nst_engine.samples import content_sample, style_sample
    from nst_engine.transfer import Budget, advance, start

    changes = {"rows": options.rows, "weights": options.weights, "iterations": options.iterations}
    config = find_preset(PRESET).config.with_overrides(changes)
    engine = Engine()
    content, style = (make(options.rows, options.rows * 4 // 3) for make in (content_sample, style_sample))

    def seconds(pictures: Pictures) -> tuple[float, float]:
        """Until the first loss, in which the targets are, and of the whole job."""
        began = time.perf_counter()
        state, first = start(engine, config, pictures)
        advance(engine, state, Budget())
        return first.seconds, time.perf_counter() - began

    seconds(Pictures(content, (style,)))
    found: dict[str, list[tuple[float, float]]] = {KNOWN: [], UNKNOWN: []}
    for number in range(1, options.contents + 1):
        new = style.copy()
        new[0, 0] = number
        # One after the other, so that what else the machine does slows down both alike.
        for kind, chosen in ((UNKNOWN, new), (KNOWN, style)):
            # The contents differ between the two: a content that is known would be saved as well.
            shifted = np.roll(content, 2 * number + (kind == KNOWN), axis=1)
            found[kind].append(seconds(Pictures(shifted, (chosen,))))
    return {
        "device": engine.device.description,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {"Python": platform.python_version(), "TensorFlow": version("tensorflow")},
        "rows": options.rows,
        "columns": options.rows * 4 // 3,
        "iterations": options.iterations,
        "weights": options.weights,
        "precision": engine.precision(config),
        "first_loss": {kind: [first for first, _ in pairs] for kind, pairs in found.items()},
        "job": {kind: [whole for _, whole in pairs] for kind, pairs in found.items()},
        "reuse": _reuse(),
    }


def _reuse() -> dict[str, dict[str, bool]]:
    """Whether two contents give one style the same working size, and so the same targets."""
    from nst_engine.config import TransferConfig
    from nst_engine.pictures import content_size, style_size

    found = {}
    for title, size in SIZES.items():
        for fit in ("edge", "area", "stretch"):
            config = TransferConfig().with_overrides({**size, "style_fit": fit})
            found[f"`{fit}`, {title}"] = {
                name: len({style_size(config, STYLE, content=content_size(config, shape)) for shape in shapes}) == 1
                for name, shapes in CONTENTS.items()
            }
    return found


def _tables(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    count = len(report["job"][KNOWN])
    lines = [
        f"{report['device']}, {report['cores']} cores; {versions}; {report['rows']} x {report['columns']} pixels, "
        f"preset {PRESET}, {report['precision']}, weights {report['weights']}; {report['iterations']} iterations a "
        f"job, {count} jobs of each kind in turn on one warm engine. Load of the machine at the end: "
        f"{report['load'][0]:.1f}.",
        "",
        "| | seconds until the first loss: median (least to most) | seconds a job |",
        "|---|---|---|",
    ]
    lines += [
        f"| {kind} | {spread(report['first_loss'][kind])} | {spread(report['job'][kind])} |"
        for kind in (UNKNOWN, KNOWN)
    ]
    saved = [
        statistics.median(report[what][UNKNOWN]) - statistics.median(report[what][KNOWN])
        for what in ("first_loss", "job")
    ]
    lines += [f"| **saved** | **{saved[0]:.2f}** | **{saved[1]:.2f}** |", ""]
    lines += [
        "A style's targets are used again where the style is worked on at the same size. Two contents of a collection "
        "that are of",
        "",
        f"| `style_fit`, size by | {' | '.join(CONTENTS)} |",
        f"|---|{'---|' * len(CONTENTS)}",
    ]
    lines += [
        f"| {setting} | {' | '.join('again' if same else 'anew' for same in found.values())} |"
        for setting, found in report["reuse"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
