"""What one iteration costs on this machine: the Keras example's scheme against nst in float32 and bfloat16, and how
near each of nst's comes to the machine's plain matrix product. Every measurement has a process of its own, so that
its peak memory is its own.

    python -m benchmarks.iteration [--rows 400] [--repeats 5] [--weights random|PATH] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nst_engine.startup import load_tensorflow

ROOT = Path(__file__).resolve().parents[1]
PRESET = "keras-2016"
PRODUCT_SIDE = 2048
SCHEMES = {
    "keras": "Keras example: three pictures an iteration",
    "float32": "nst, float32",
    "bfloat16": "nst, bfloat16",
}


def main() -> None:
    """Measure in child processes and print the table, or be one of the children."""
    options = _options()
    if options.child:
        # The example runs as its users run it, with TensorFlow's own settings.
        if options.child != "keras":
            load_tensorflow()
        print(json.dumps(_CHILDREN[options.child](options)))
        return
    measured = {name: _measure(name, options) for name in _CHILDREN}
    report = {
        "rows": options.rows,
        "columns": _columns(options.rows),
        "weights": options.weights,
        "cores": os.cpu_count(),
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name.lower()) for name in ("TensorFlow", "Keras")},
        },
        "gflop": _gflop(options.rows, _columns(options.rows)),
        **measured,
    }
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure one iteration of style transfer on this machine.")
    parser.add_argument("--rows", type=int, default=400, help="rows of the picture; the columns are 4/3 of them")
    parser.add_argument("--repeats", type=int, default=5, help="iterations that are timed, after one that is not")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(child: str, options: argparse.Namespace) -> Any:
    arguments = {"child": child, "rows": options.rows, "repeats": options.repeats, "weights": options.weights}
    command = [sys.executable, "-m", "benchmarks.iteration", *(f"--{key}={value}" for key, value in arguments.items())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _columns(rows: int) -> int:
    return rows * 4 // 3


def _gflop(rows: int, columns: int) -> float:
    """The billions of operations of one iteration by the table of layers: convolutions and Gram matrices.

    A convolution costs as much again on the way back to the picture, a Gram matrix twice as much.
    """
    from nst_engine.presets import find_preset
    from nst_engine.vgg19 import CONVOLUTION_NAMES, CONVOLUTIONS, deepest

    config = find_preset(PRESET).config
    used = CONVOLUTION_NAMES.index(deepest([*config.content_layers, *config.style_layers])) + 1
    operations = 0
    for layer in CONVOLUTIONS[:used]:
        positions = (rows // layer.stride) * (columns // layer.stride)
        operations += 2 * 2 * 9 * layer.input_channels * layer.channels * positions
        if layer.name in config.style_layers:
            operations += 3 * 2 * layer.channels**2 * positions
    return operations / 1e9


def _table(report: dict[str, Any]) -> str:
    product, keras = report["product"], report["keras"]["median"]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"{product['device']}, {report['cores']} cores; {versions}; {report['rows']} x {report['columns']} pixels, "
        f"preset {PRESET}, weights {report['weights']}; {report['gflop']:.0f} GFLOP an iteration.",
        "",
        "| | seconds an iteration: median (least to most) | peak memory | times as fast | GFLOP/s | of the product |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in SCHEMES.items():
        found = report[name]
        seconds = f"{found['median']:.2f} ({min(found['seconds']):.2f} to {max(found['seconds']):.2f})"
        memory = f"{found['peak_bytes'] / 1e9:.2f} GB"
        if name == "keras":
            rate = share = ""
        else:
            speed = report["gflop"] / found["median"]
            rate, share = f"{speed:.0f}", f"{speed / product[name]:.0%}"
        lines.append(f"| {title} | {seconds} | {memory} | {keras / found['median']:.1f} | {rate} | {share} |")
    lines.extend(
        f"| matrix product, {PRODUCT_SIDE} x {PRODUCT_SIDE}, {name} | | | | {product[name]:.0f} | |"
        for name in ("float32", "bfloat16")
    )
    return "\n".join(lines)


def _timed(iterate: Callable[[], object], repeats: int) -> dict[str, Any]:
    iterate()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        iterate()
        seconds.append(time.perf_counter() - began)
    # Linux gives KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"median": statistics.median(seconds), "seconds": seconds, "peak_bytes": peak}


def _samples(rows: int) -> tuple[Any, Any]:
    from nst_engine.samples import content_sample, style_sample

    return content_sample(rows, _columns(rows)), style_sample(rows, _columns(rows))


def _time_keras(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.keras_example import KerasExample
    from nst_engine.weights import load

    example = KerasExample(*_samples(options.rows), load(options.weights).kernels)
    return _timed(example.iterate, options.repeats)


def _time_nst(options: argparse.Namespace) -> dict[str, Any]:
    from nst_engine.engine import Engine
    from nst_engine.pictures import Pictures
    from nst_engine.presets import find_preset
    from nst_engine.transfer import Budget, advance, start

    config = find_preset(PRESET).config.with_overrides(
        {"rows": options.rows, "precision": options.child, "weights": options.weights}
    )
    content, style = _samples(options.rows)
    engine = Engine()
    state, _ = start(engine, config, Pictures(content, (style,)))

    def iterate() -> None:
        nonlocal state
        state, _ = advance(engine, state, Budget(iterations=1))

    return _timed(iterate, options.repeats)


def _time_product(options: argparse.Namespace) -> dict[str, Any]:
    """The billions of operations a second of a square matrix product: the fastest of some rounds."""
    import tensorflow as tf

    from nst_engine.hardware import choose_device

    device = choose_device("auto")
    found: dict[str, Any] = {"device": device.description}
    for dtype in ("float32", "bfloat16"):
        with tf.device(device.tensorflow_name):
            matrix = tf.cast(tf.random.stateless_normal((PRODUCT_SIDE, PRODUCT_SIDE), (1, 2)), dtype)

            def multiply(matrix: Any = matrix) -> None:
                float(tf.matmul(matrix, matrix)[0, 0])

            seconds = min(_timed(multiply, 2 * options.repeats)["seconds"])
        found[dtype] = 2 * PRODUCT_SIDE**3 / seconds / 1e9
    return found


_CHILDREN: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "product": _time_product,
    "keras": _time_keras,
    "float32": _time_nst,
    "bfloat16": _time_nst,
}


if __name__ == "__main__":
    main()
