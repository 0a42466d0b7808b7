"""What every preset makes of one pair: a content and a style that the project draws itself, with each preset's own
settings but for the size and, where it has more, the number of iterations. The results stand on one labelled sheet.

    python -m benchmarks.presets [--rows 200] [--iterations 200] [--weights random|PATH] [--only NAME,NAME]
        [--sheet docs/presets.jpg] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nst_engine.config import TransferConfig
from nst_engine.engine_presets import ENGINE_PRESETS
from nst_engine.presets import PRESETS, Preset
from nst_engine.startup import load_tensorflow

if TYPE_CHECKING:
    import numpy as np

    from nst_engine.engine import Engine

NAMES = {"sgd": "SGD", "adam": "Adam", "lbfgs": "L-BFGS"}
ENGINES = {name for name, _, _ in ENGINE_PRESETS}
PARTS = ("total", "content", "style", "tv")
THUMBNAIL = 200
"""The longer side of a picture on the sheet, in pixels."""


def main() -> None:
    """Run the presets one after another, draw the sheet and print the table."""
    parser = argparse.ArgumentParser(description="Show one pair in all presets.")
    parser.add_argument("--rows", type=int, default=200, help="rows of the pictures; scales are kept")
    parser.add_argument("--iterations", type=int, default=200, help="at the most, of each preset")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--only", type=_presets, default=[*PRESETS.values()], help="some of the presets")
    parser.add_argument("--sheet", type=Path, help="draw the results to this JPEG or PNG file")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    load_tensorflow()
    report = _measure(options)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _presets(text: str) -> list[Preset]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PRESETS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: give some of {','.join(PRESETS)}")
    return [PRESETS[name] for name in names]


def shortened(config: TransferConfig, *, rows: int, iterations: int, weights: str) -> TransferConfig:
    """`config` at that size, with at most that many iterations, shared among its scales as it shares its own.

    Each scale has one at the least.
    """
    fewer: dict[str, Any] = {"iterations": max(min(iterations, config.iterations), config.scales)}
    if config.scale_iterations is not None:
        share = fewer["iterations"] / config.iterations
        fewer["scale_iterations"] = max(1, round(config.scale_iterations * share))
    return config.with_overrides({"rows": rows, "weights": weights, **fewer})


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from nst_engine.engine import Engine
    from nst_engine.samples import content_sample, style_sample

    engine = Engine()
    content, style = content_sample(), style_sample()
    runs: list[dict[str, Any]] = []
    pictures = {"content": content, "style": style}
    for preset in options.only:
        print(preset.name, file=sys.stderr, flush=True)
        config = shortened(preset.config, rows=options.rows, iterations=options.iterations, weights=options.weights)
        run, pictures[preset.name] = _run(engine, config, content, style)
        runs.append({"preset": preset.name, "iterations_of_preset": preset.config.iterations, **run})
    weights = engine.weights(options.weights).name
    if options.sheet:
        title = f"One pair, {options.rows} rows, at most {options.iterations} iterations, weights {weights}"
        draw(options.sheet, pictures, runs, title=title)
    return {
        "device": engine.device.description,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {"Python": platform.python_version(), "TensorFlow": version("tensorflow")},
        "rows": options.rows,
        "most_iterations": options.iterations,
        "weights": weights,
        "runs": runs,
    }


def _run(
    engine: Engine, config: TransferConfig, content: np.ndarray, style: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """The figures and the result of one preset."""
    from nst_engine.pictures import fit_pictures
    from nst_engine.transfer import Budget, advance, start

    state, first = start(engine, config, fit_pictures(config, content, [style]))
    state, points = advance(engine, state, Budget())
    # Losses of a coarser scale are of other pictures.
    curve = [point.losses for point in (first, *points) if point.scale == config.scales]
    result = state.result()
    return {
        "optimizer": config.optimizer,
        "scales": config.scales,
        "precision": state.precision,
        "columns": result.shape[1],
        "iterations": state.iteration,
        "seconds": state.seconds,
        "first": {part: getattr(curve[0], part) for part in PARTS},
        "last": {part: getattr(curve[-1], part) for part in PARTS},
    }, result


def draw(path: Path, pictures: dict[str, np.ndarray], runs: list[dict[str, Any]], *, title: str) -> None:
    """Draw the pair and the results, a row a group of presets, to `path`."""
    from flows.contact_sheet import Cell, draw_contact_sheet
    from nst_engine.images import encode_png

    captions = {run["preset"]: f"{run['iterations']} iterations, {run['seconds']:.0f} s" for run in runs}
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, picture in pictures.items():
            file = Path(folder) / f"{name}.png"
            encode_png(picture, file)
            row = _group(name)
            # Columns need no heads, but names.
            column = " " * sum(cell.content == row for cell in cells)
            cells.append(Cell(row, column, file, "", caption=(name, captions.get(name, "drawn by the project"))))
        draw_contact_sheet(cells, title=title, path=path.absolute(), thumbnail=THUMBNAIL)


def _group(name: str) -> str:
    if name in ("content", "style", "default"):
        return "the pair and the default preset"
    if name.startswith("paper-"):
        return "the figures of the paper"
    if name.startswith("li-2017-"):
        return "Li and others, 2017"
    return "other engines" if name in ENGINES else "papers and examples"


def table(report: dict[str, Any]) -> str:
    """The report as a paragraph on what was measured and a Markdown table."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"{report['device']}, {report['cores']} cores; {versions}; {report['rows']} rows, pictures drawn by the "
        f"project, weights {report['weights']}; one warm engine. At most {report['most_iterations']} iterations: where "
        "a preset has more, its own number stands in brackets. Losses carry their weights, and those of two presets "
        "compare only where the normalisations are the same; with several scales they are those of the finest, from "
        f"its first iteration on. Load of the machine at the end: {report['load'][0]:.1f}.",
        "",
        "| preset | optimiser | iterations | seconds | total loss: first, last | content | style | total variation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        whole = run["iterations_of_preset"]
        iterations = f"{run['iterations']}" + (f" ({whole})" if whole > run["iterations"] else "")
        parts = [f"{run['first'][part]:.4g}, {run['last'][part]:.4g}" for part in PARTS]
        cells = [f"`{run['preset']}`", NAMES[run["optimizer"]], iterations, f"{run['seconds']:.1f}", *parts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
