"""What a picture of each size costs on this machine: seconds an evaluation and peak memory, worked on in the way that
the engine chooses by itself, and the Keras example's scheme beside it where that still fits. Every measurement has a
process of its own, so that its peak memory is its own; one that the kernel kills, as it does where memory runs out,
costs its own row only.

    python -m benchmarks.sizes [--rows 200,400,...] [--repeats 5] [--max-memory GB] [--keras-up-to 800]
        [--weights random|PATH] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import spread, timed
from nst_engine.startup import load_tensorflow

ROOT = Path(__file__).resolve().parents[1]
PRESET = "default"
ROWS = (200, 400, 800, 1200, 1600, 2000, 3000, 4000)
# One evaluation an iteration, unlike L-BFGS, whose line search may take more.
OPTIMIZER = "adam"
# From this many rows on there are fewer repeats: as many as take about as long as all those of these rows.
FULL_REPEATS_ROWS = 800


def main() -> None:
    """Measure in child processes and print the table, or be one of the children."""
    options = _options()
    if options.child:
        # The example runs as its users run it, with TensorFlow's own settings.
        if options.child != "keras":
            load_tensorflow()
        print(json.dumps(_CHILDREN[options.child](options)))
        return
    machine = answer(_command("machine", options))
    measured = []
    for rows in options.rows:
        sizes = {"rows": rows, "columns": _columns(rows)}
        row: dict[str, Any] = {**sizes, "precisions": {}}
        for precision in machine["precisions"]:
            row["precisions"][precision] = measurement(_command("nst", options, rows=rows, precision=precision))
        if rows <= options.keras_up_to:
            row["keras"] = measurement(_command("keras", options, rows=rows))
        measured.append(row)
        # Some take minutes.
        print(json.dumps(row), file=sys.stderr, flush=True)
    report = {
        "device": machine["device"],
        "cores": os.cpu_count(),
        "versions": {"Python": platform.python_version(), "TensorFlow": version("tensorflow")},
        "preset": PRESET,
        "optimizer": OPTIMIZER,
        "weights": options.weights,
        "max_memory_gb": options.max_memory,
        "measured": measured,
    }
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one evaluation of pictures of several sizes.")
    parser.add_argument("--rows", type=_numbers, default=ROWS, help=f"by default {','.join(map(str, ROWS))}")
    parser.add_argument("--repeats", type=int, default=5, help="evaluations that are timed, fewer of large pictures")
    parser.add_argument("--max-memory", type=float, help="the most memory that nst may take, in GB; else what is free")
    parser.add_argument("--keras-up-to", type=int, default=800, help="the most rows that the Keras example is given")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _command(child: str, options: argparse.Namespace, *, rows: int = 0, precision: str = "") -> list[str]:
    arguments: dict[str, object] = {
        "child": child,
        "rows": rows,
        "precision": precision,
        "repeats": options.repeats,
        "weights": options.weights,
    }
    if options.max_memory is not None:
        arguments["max-memory"] = options.max_memory
    return [sys.executable, "-m", "benchmarks.sizes", *(f"--{key}={value}" for key, value in arguments.items())]


def answer(command: Sequence[str]) -> Any:
    """The JSON on the last line of what a child prints; CalledProcessError when it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measurement(command: Sequence[str]) -> Any:
    """The `answer` of a child, or {"killed": True} where the kernel has killed it."""
    try:
        return answer(command)
    except subprocess.CalledProcessError as error:
        if error.returncode != -signal.SIGKILL:
            raise
        return {"killed": True}


def _columns(rows: int) -> int:
    return rows * 4 // 3


def _repeats(rows: int, wanted: int) -> int:
    return max(1, min(wanted, round(wanted * (FULL_REPEATS_ROWS / rows) ** 2)))


def _engine(options: argparse.Namespace) -> Any:
    from nst_engine.engine import Engine

    return Engine(max_memory=None if options.max_memory is None else round(options.max_memory * 1e9))


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    """The device, and the precisions that are worth a row: float32, and what "auto" takes here."""
    from nst_engine.presets import find_preset

    engine = _engine(options)
    auto = engine.precision(find_preset(PRESET).config)
    return {"device": engine.device.description, "precisions": list(dict.fromkeys(["float32", auto]))}


def _samples(rows: int) -> tuple[Any, Any]:
    from nst_engine.images import resize
    from nst_engine.samples import content_sample, style_sample

    # To draw a large sample takes more memory than to work on it in tiles.
    content, style = (
        resize(draw(270, 360), rows=rows, columns=_columns(rows)) for draw in (content_sample, style_sample)
    )
    return content, style


def _time_nst(options: argparse.Namespace) -> dict[str, Any]:
    from nst_engine.errors import MemoryNeededError
    from nst_engine.pictures import Pictures
    from nst_engine.presets import find_preset
    from nst_engine.transfer import Budget, advance, start

    (rows,) = options.rows
    config = find_preset(PRESET).config.with_overrides(
        {
            "rows": rows,
            "precision": options.precision,
            "weights": options.weights,
            "optimizer": OPTIMIZER,
            "iterations": 1 + options.repeats,
        }
    )
    engine = _engine(options)
    content, style = _samples(rows)
    pictures = Pictures(content, (style,))
    try:
        plan = engine.memory_plan(config, pictures, precision=options.precision)
    except MemoryNeededError as error:
        return {"refused": str(error)}
    state, _ = start(engine, config, pictures)

    def iterate() -> None:
        nonlocal state
        state, _ = advance(engine, state, Budget(iterations=1))

    estimate = f", about {plan.bytes / 1e9:.1f} GB"
    return {
        "how": str(plan).replace(estimate, ""),
        "estimate_bytes": plan.bytes,
        **timed(iterate, _repeats(rows, options.repeats)),
    }


def _time_keras(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.keras_example import KerasExample
    from nst_engine.weights import load

    (rows,) = options.rows
    example = KerasExample(*_samples(rows), load(options.weights).kernels)
    return timed(example.iterate, _repeats(rows, options.repeats))


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    limit = "none given" if report["max_memory_gb"] is None else f"{report['max_memory_gb']:g} GB"
    lines = [
        f"{report['device']}, {report['cores']} cores; {versions}; preset {report['preset']} with "
        f"{report['optimizer']}, weights {report['weights']}; limit of the memory: {limit}. The Keras example computes "
        "its own layers and all three pictures in every iteration.",
        "",
        "| pixels | precision | how | estimate, GB | peak, GB | seconds an evaluation: median (least to most) "
        "| ns a pixel | Keras example, seconds | its peak, GB | times as fast |",
        f"|{'---|' * 10}",
    ]
    for row in report["measured"]:
        for precision, found in row["precisions"].items():
            size = f"{row['rows']} x {row['columns']}"
            own = _cells(found, pixels=row["rows"] * row["columns"])
            lines.append(f"| {' | '.join([size, precision, *own, *_keras_cells(row.get('keras'), found)])} |")
    return "\n".join(lines)


def _cells(found: dict[str, Any], *, pixels: int) -> list[str]:
    if "refused" in found:
        return ["does not fit", "", "", "", ""]
    if "killed" in found:
        return ["killed", "", "", "", ""]
    return [
        found["how"],
        f"{found['estimate_bytes'] / 1e9:.2f}",
        f"{found['peak_bytes'] / 1e9:.2f}",
        spread(found["seconds"]),
        f"{found['median'] / pixels * 1e9:,.0f}",
    ]


def _keras_cells(keras: dict[str, Any] | None, found: dict[str, Any]) -> list[str]:
    if keras is None:
        return ["", "", ""]
    if "killed" in keras:
        return ["killed", "", ""]
    ratio = f"{keras['median'] / found['median']:.1f}" if "median" in found else ""
    return [spread(keras["seconds"]), f"{keras['peak_bytes'] / 1e9:.2f}", ratio]


_CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "machine": _machine,
    "nst": _time_nst,
    "keras": _time_keras,
}


if __name__ == "__main__":
    main()
