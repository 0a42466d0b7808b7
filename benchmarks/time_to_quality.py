"""How soon a picture is as good as the Keras example's after its 4000 iterations, by the example's own loss: the
example's scheme against nst with each optimiser, at one scale and at two. The losses of the example's many iterations
come from nst's preset keras-2016, which has the same ones (tests/test_keras_example.py); its time is that of its own
scheme, measured over a few iterations.

    python -m benchmarks.time_to_quality [--content PATH --style PATH] [--weights random|PATH] [--rows 200]
        [--plot docs/time_to_quality.png] [--json FILE] [--reference FILE] [--quick]

Without pictures it takes drawn samples. `--reference` takes the example's losses from an earlier JSON file of this
benchmark for the same pictures, which saves most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import spread, timed
from nst_engine.startup import load_tensorflow

ROOT = Path(__file__).resolve().parents[1]
PRESET = "keras-2016"
REFERENCE = "the Keras example"
LBFGS = {"optimizer": "lbfgs", "iterations": 60}
ADAM = {"optimizer": "adam", "learning_rate": 5.0, "decay_rate": 1.0, "iterations": 200}
SCHEMES: dict[str, dict[str, Any]] = {
    "SGD, as the example": {"iterations": 200},
    "Adam": ADAM,
    "Adam, 2 scales": {**ADAM, "scales": 2, "scale_iterations": 60},
    "L-BFGS": LBFGS,
    "L-BFGS, 2 scales": {**LBFGS, "scales": 2, "scale_iterations": 15},
}


def main() -> None:
    """Measure in child processes and print the table, or be one of the children."""
    options = _options()
    if options.child:
        # The example runs as its users run it, with TensorFlow's own settings.
        if options.child != "time":
            load_tensorflow()
        print(json.dumps(_child(options)))
        return
    reference = _known_reference(options) if options.reference else _measure("reference", options)
    example = _measure("time", options)
    report = {
        "machine": _measure("machine", options),
        "rows": options.rows,
        "content": options.content.name if options.content else "drawn sample",
        "style": options.style.name if options.style else "drawn sample",
        "weights": "random" if options.weights == "random" else Path(options.weights).name,
        "pictures_sha256": reference["pictures_sha256"],
        "reference": reference,
        "example_seconds": example["seconds"],
        "schemes": {name: [_measure(name, options) for _ in range(options.repeats)] for name in SCHEMES},
    }
    print(_table(report))
    if options.plot:
        _plot(report, options.plot)
    if options.json:
        options.json.write_text(json.dumps(report) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how soon a picture is as good as the Keras example's.")
    parser.add_argument("--content", type=Path, help="a picture; by default a drawn sample")
    parser.add_argument("--style", type=Path, help="a picture; by default a drawn sample")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--rows", type=int, default=200, help="rows of the picture")
    parser.add_argument("--iterations", type=int, default=4000, help="of the example, whose last loss is the goal")
    parser.add_argument("--repeats", type=int, default=3, help="how often each scheme is timed")
    parser.add_argument("--reference", type=Path, help="an earlier JSON file, for the example's losses")
    parser.add_argument("--plot", type=Path, help="draw the curves to this PNG file")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--quick", action="store_true", help="as little as can be: to try it, not to measure")
    parser.add_argument("--child", choices=["machine", "reference", "time", *SCHEMES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.content is None) != (options.style is None):
        parser.error("give both --content and --style, or none")
    if options.quick:
        options.rows, options.iterations, options.repeats = 48, 10, 1
    return options


def _measure(child: str, options: argparse.Namespace) -> Any:
    given = ("content", "style", "weights", "rows", "iterations")
    arguments = [f"--{name}={getattr(options, name)}" for name in given if getattr(options, name) is not None]
    if options.quick:
        arguments.append("--quick")
    command = [sys.executable, "-m", "benchmarks.time_to_quality", f"--child={child}", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _known_reference(options: argparse.Namespace) -> Any:
    known = json.loads(options.reference.read_text())["reference"]
    here = _measure("machine", options)["pictures_sha256"]
    if (known["pictures_sha256"], len(known["losses"])) != (here, options.iterations + 1):
        raise SystemExit(f"{options.reference} is of other pictures, weights or iterations; leave out --reference.")
    return known


def _child(options: argparse.Namespace) -> dict[str, Any]:
    from nst_engine.engine import Engine
    from nst_engine.images import decode
    from nst_engine.pictures import Pictures, fit_pictures
    from nst_engine.presets import find_preset
    from nst_engine.samples import content_sample, style_sample
    from nst_engine.transfer import Budget, advance, start

    columns = options.rows * 4 // 3
    config = find_preset(PRESET).config.with_overrides({"rows": options.rows, "weights": options.weights})
    pictures = fit_pictures(
        config,
        decode(options.content) if options.content else content_sample(options.rows, columns),
        [decode(options.style) if options.style else style_sample(options.rows, columns)],
    )
    # In float32, as the example; the others in what suits the machine.
    chosen = {"reference": {"iterations": options.iterations}, "machine": {}, "time": {}}.get(options.child)
    if chosen is None:
        chosen = {"precision": "auto", **SCHEMES[options.child]}
        if options.quick:
            chosen |= {"iterations": 8} | ({"scale_iterations": 4} if "scales" in chosen else {})
    config = config.with_overrides(chosen)
    if options.child == "time":
        from benchmarks.keras_example import KerasExample
        from nst_engine.weights import load

        example = KerasExample(pictures.content, pictures.styles[0], load(options.weights).kernels)
        return timed(example.iterate, 10)
    engine = Engine()
    identity = hashlib.sha256(f"{pictures.digest()} {engine.weights(options.weights).sha256}".encode()).hexdigest()
    if options.child == "machine":
        return {
            "device": engine.device.description,
            "cores": os.cpu_count(),
            "versions": {"Python": platform.python_version(), "TensorFlow": version("tensorflow")},
            "pictures_sha256": identity,
        }
    if options.child != "reference":
        # A warm engine, as a service has it, which knows other pictures' targets only.
        others = Pictures(pictures.content[:, ::-1].copy(), tuple(style[:, ::-1].copy() for style in pictures.styles))
        advance(engine, start(engine, config, others)[0], Budget(iterations=config.scale_iterations or 1))
    state, first = start(engine, config, pictures)
    state, points = advance(engine, state, Budget())
    # Losses of a coarser scale are of other pictures.
    curve = [point for point in (first, *points) if point.scale == config.scales]
    return {
        "precision": state.precision,
        "pictures_sha256": identity,
        "losses": [point.losses.total for point in curve],
        "seconds": [] if options.child == "reference" else [point.seconds for point in curve],
        "iterations": [] if options.child == "reference" else [point.iteration for point in curve],
    }


def _reached(run: dict[str, Any], goal: float) -> int | None:
    """The place of the first loss that is as low as the goal."""
    return next((place for place, loss in enumerate(run["losses"]) if loss <= goal), None)


def _table(report: dict[str, Any]) -> str:
    machine, losses = report["machine"], report["reference"]["losses"]
    goal, iterations = losses[-1], len(losses) - 1
    example = statistics.median(report["example_seconds"])
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"{machine['device']}, {machine['cores']} cores; {versions}; {report['rows']} rows, content "
        f"{report['content']}, style {report['style']}, weights {report['weights']}; the loss of the Keras example in "
        f"all rows. Its loss after {iterations} iterations is {goal:.5g}, for which its scheme takes {iterations} "
        f"times {example:.3f} s ({min(report['example_seconds']):.3f} to {max(report['example_seconds']):.3f}), "
        f"{iterations * example:.0f} s. nst's engine is warm; its seconds are from the start of the transfer on.",
        "",
        "| | features | as good after: seconds, median (least to most) | iterations | of the example's time |",
        "|---|---|---|---|---|",
        f"| {REFERENCE} | float32 | {iterations * example:.0f} | {iterations} | 1 |",
    ]
    for name, runs in report["schemes"].items():
        reached, precision = [_reached(run, goal) for run in runs], runs[0]["precision"]
        places = [place for place in reached if place is not None]
        if len(places) < len(runs):
            least = min(runs[0]["losses"])
            lines.append(f"| {name} | {precision} | not within {runs[0]['seconds'][-1]:.0f} s: {least:.5g} | | |")
            continue
        seconds = [run["seconds"][place] for run, place in zip(runs, places, strict=True)]
        after = runs[0]["iterations"][places[0]]
        share = iterations * example / statistics.median(seconds)
        lines.append(f"| {name} | {precision} | {spread(seconds)} | {after} | 1/{share:.0f} |")
    return "\n".join(lines)


def _plot(report: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    losses, example = report["reference"]["losses"], statistics.median(report["example_seconds"])
    axes.plot([example * (place + 1) for place in range(len(losses))], losses, label=REFERENCE, color="0.3")
    for name, runs in report["schemes"].items():
        axes.plot(runs[0]["seconds"], runs[0]["losses"], label=f"nst, {name}")
    axes.axhline(losses[-1], color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("loss of the Keras example")
    axes.set_title(f"{report['content']} and {report['style']}, {report['rows']} rows, {report['machine']['device']}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
