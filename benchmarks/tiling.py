"""What tiling costs and saves on this machine: one evaluation of a picture as a whole, and in tiles of several sides
with more or less of the network as a whole. Every measurement has a process of its own, so that its peak memory is
its own; the processor's time counts, since it is not that of the machine's other work.

    python -m benchmarks.tiling [--case 1080x1920:512:4 ...] [--repeats 1] [--precision float32,bfloat16] [--json FILE]

A case is ROWSxCOLUMNS:SIDE:WHOLE_FROM, see `tiling.Tiling`; without WHOLE_FROM all is in tiles, and SIDE 0 means as a
whole. With :disk behind it, the pictures are on disk, and all that is as large. Each 2160x3840:512:5 takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import peak_bytes
from nst_engine.startup import load_tensorflow

ROOT = Path(__file__).resolve().parents[1]
PRESET = "default"
CASES = [
    "1080x1920:0",
    "1080x1920:1024:2",
    "1080x1920:1024:3",
    "1080x1920:512:3",
    "1080x1920:512:4",
    "1080x1920:512",
    "1080x1920:256",
]


def main() -> None:
    """Measure in child processes and print the table, or be one of the children."""
    parser = argparse.ArgumentParser(description="Measure one evaluation as a whole and in tiles.")
    parser.add_argument(
        "--case", action="append", help=f"ROWSxCOLUMNS:SIDE[:WHOLE_FROM][:disk]; by default {', '.join(CASES)}"
    )
    parser.add_argument("--repeats", type=int, default=1, help="evaluations that are timed, after one that is not")
    parser.add_argument("--precision", default="float32,bfloat16", help="float32, bfloat16 or both")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        load_tensorflow()
        print(json.dumps(_child(options.child, precision=options.precision, repeats=options.repeats)))
        return
    measured = []
    for precision in options.precision.split(","):
        for case in options.case or CASES:
            row = _measure(case, precision=precision, repeats=options.repeats)
            measured.append({"case": case, "precision": precision, **row})
            # Some take minutes.
            print(json.dumps(measured[-1]), file=sys.stderr, flush=True)
    report = {
        "cores": os.cpu_count(),
        "versions": {"Python": platform.python_version(), "TensorFlow": version("tensorflow")},
        "preset": PRESET,
        "measured": measured,
    }
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _measure(case: str, *, precision: str, repeats: int) -> Any:
    arguments = {"child": case, "precision": precision, "repeats": repeats}
    command = [sys.executable, "-m", "benchmarks.tiling", *(f"--{key}={value}" for key, value in arguments.items())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _child(case: str, *, precision: str, repeats: int) -> dict[str, Any]:
    from nst_engine.acceleration import Acceleration
    from nst_engine.arrays import empty_like, placed, release
    from nst_engine.images import preprocess, resize
    from nst_engine.objective import Form, Targets, TracedObjective
    from nst_engine.presets import find_preset
    from nst_engine.samples import content_sample, style_sample
    from nst_engine.tiled_objective import TiledObjective
    from nst_engine.tiling import Tiling
    from nst_engine.vgg19 import Network
    from nst_engine.weights import random_weights

    size, *cut = case.removesuffix(":disk").split(":")
    rows, columns = map(int, size.split("x"))
    side, whole_from = int(cut[0]), int(cut[1]) if cut[1:] else None
    tiling = Tiling(side, whole_from) if side else None
    on_disk = case.endswith(":disk")
    config = find_preset(PRESET).config
    form = Form.of(config, styles=1, dtype=precision)
    network = Network(random_weights().kernels, dtype=precision, on_cpu=True)
    # To draw a large sample takes more memory than its tiles.
    content, style = (
        preprocess(placed(resize(draw(270, 480), rows=rows, columns=columns), on_disk=on_disk))
        for draw in (content_sample, style_sample)
    )
    objective: Any = (
        TiledObjective(form, network, tiling=tiling)
        if tiling
        else TracedObjective(form, network, acceleration=Acceleration(on_cpu=True))
    )
    before = peak_bytes()
    targets = Targets(objective.content_targets(content), [objective.style_targets(style)])
    picture = empty_like(content)
    picture[:] = content[:, ::-1]
    release(content, style, picture)
    objective.evaluate(picture, targets, config)
    seconds, processor = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        evaluation = objective.evaluate(picture, targets, config)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return {
        "how": (f"in {tiling}" if tiling else "as a whole") + (", the rest on disk" if on_disk else ""),
        "loss": evaluation.losses.total,
        "seconds": seconds,
        "processor_seconds": processor,
        "before_bytes": before,
        "peak_bytes": peak_bytes(),
    }


def _table(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    wholes = {
        (_size(row), row["precision"]): statistics.median(row["processor_seconds"])
        for row in report["measured"]
        if row["how"] == "as a whole"
    }
    lines = [
        f"{report['cores']} cores; {versions}; preset {report['preset']}, random weights, one evaluation.",
        "",
        "| picture | precision | how | seconds | seconds of both cores | times the whole | resident peak, GB | loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["measured"]:
        processor = statistics.median(row["processor_seconds"])
        whole = wholes.get((_size(row), row["precision"]))
        lines.append(
            f"| {_size(row).replace('x', ' x ')} | {row['precision']} | {row['how']} "
            f"| {statistics.median(row['seconds']):.1f} | {processor:.1f} "
            f"| {f'{processor / whole:.2f}' if whole else ''} | {row['peak_bytes'] / 1e9:.2f} | {row['loss']:.6g} |"
        )
    return "\n".join(lines)


def _size(row: dict[str, Any]) -> str:
    size: str = row["case"].split(":")[0]
    return size


if __name__ == "__main__":
    main()
