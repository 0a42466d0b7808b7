"""What one iteration costs on this machine: the Keras example's scheme and PyTorch doing the same work against nst in
float32 and bfloat16, and how near each comes to the machine's plain matrix product. Every measurement has a process of
its own, so that its peak memory is its own.

    python -m benchmarks.iteration [--rows 400] [--repeats 5] [--weights random|PATH] [--json FILE]
        [--device D] [--xla] [--torch-python PATH]

PyTorch is not among nst's requirements: PATH is a Python that has it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.timing import spread, timed
from nst_engine.startup import load_tensorflow

ROOT = Path(__file__).resolve().parents[1]
PRESET = "keras-2016"
PRODUCT_SIDE = 2048
SCHEMES = {
    "keras": "Keras example: three pictures an iteration",
    "float32": "nst, float32",
    "bfloat16": "nst, bfloat16",
    "torch-float32": "PyTorch, float32",
    "torch-bfloat16": "PyTorch, bfloat16",
}
TORCH_LAYOUTS = ("channels_last", "contiguous")
# How near PyTorch's losses must be to nst's for the work to be the same, at so many first iterations.
LOSSES_COMPARED = 3
LOSS_TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}


def main() -> None:
    """Measure in child processes and print the table, or be one of the children."""
    options = _options()
    if options.child:
        # The example runs as its users run it, with TensorFlow's own settings.
        if options.child != "keras":
            load_tensorflow()
        print(json.dumps(_CHILDREN[options.child](options)))
        return
    torch_python = _torch_python(options.torch_python)
    measured = {name: _measure(name, options) for name in _CHILDREN}
    if torch_python:
        measured |= _measure_torch(torch_python, options, measured)
    report = {
        "rows": options.rows,
        "columns": _columns(options.rows),
        "weights": options.weights,
        "xla": options.xla,
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
    parser.add_argument("--device", default="auto", help="what computes: auto, cpu, gpu or gpu:N")
    parser.add_argument("--xla", action="store_true", help="let nst compile with XLA")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--torch-python", help="a Python that has PyTorch and NumPy; by default this one, if it has")
    parser.add_argument("--child", choices=_CHILDREN, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(child: str, options: argparse.Namespace) -> Any:
    names = ("rows", "repeats", "weights", "device")
    arguments = [f"--{name}={getattr(options, name)}" for name in names] + ["--xla"] * options.xla
    command = [sys.executable, "-m", "benchmarks.iteration", f"--child={child}", *arguments]
    return _child_report(command, dict(os.environ))


def _child_report(command: list[Any], environment: dict[str, str]) -> Any:
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _torch_python(named: str | None) -> str | None:
    """The Python that PyTorch runs in, the one that is named or else this one; None when this one has no PyTorch."""
    python = named or sys.executable
    find = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, ('torch', 'numpy'))))"
    if subprocess.run([python, "-c", find], check=False).returncode == 0:
        return python
    if named:
        raise SystemExit(f"{named}: is no Python with PyTorch and NumPy; name one that can import torch and numpy.")
    return None


def _measure_torch(python: str, options: argparse.Namespace, measured: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's figures by the name of their scheme, each in the quicker of its layouts."""
    device = "cpu" if measured["product"]["name"] == "cpu" else "cuda"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "transfer.npz"
        _write_transfer(file, options)
        for dtype in ("float32", "bfloat16"):
            arguments = [file, f"--dtype={dtype}", f"--device={device}", f"--repeats={options.repeats}"]
            command = [python, "-m", "benchmarks.torch_example", *arguments]
            # Its threads spin while they wait: beside other work, even a little, that costs it many times its own time.
            environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
            layouts = [_child_report([*command, f"--layout={layout}"], environment) for layout in TORCH_LAYOUTS]
            quicker = min(layouts, key=lambda layout: layout["median"])
            _require_equal_losses(dtype, measured[dtype]["losses"], quicker["losses"])
            found[f"torch-{dtype}"] = quicker
    return found


def _write_transfer(file: Path, options: argparse.Namespace) -> None:
    """What PyTorch works on: kernels, preprocessed pictures and the preset's numbers."""
    import numpy as np

    from nst_engine.images import preprocess
    from nst_engine.presets import find_preset
    from nst_engine.vgg19 import CONVOLUTION_NAMES, deepest
    from nst_engine.weights import load

    config, kernels = find_preset(PRESET).config, load(options.weights).kernels
    last = CONVOLUTION_NAMES.index(deepest([*config.content_layers, *config.style_layers]))
    arrays: dict[str, Any] = {}
    for name in CONVOLUTION_NAMES[: last + 1]:
        arrays[f"kernel/{name}"], arrays[f"bias/{name}"] = kernels[name]
    (content_layer,) = config.content_layers
    content, style = map(preprocess, _samples(options.rows))
    settings = config.model_dump(
        include={"content_weight", "style_weight", "tv_weight", "learning_rate", "decay_rate", "decay_steps"}
    )
    np.savez(
        file,
        content=content,
        style=style,
        content_layer=content_layer,
        style_layers=list(config.style_layers),
        **settings,
        **arrays,
    )


def _require_equal_losses(dtype: str, ours: list[float], theirs: list[float]) -> None:
    pairs = list(zip(ours, theirs, strict=False))[:LOSSES_COMPARED]
    if not all(math.isclose(our, their, rel_tol=LOSS_TOLERANCES[dtype]) for our, their in pairs):
        raise AssertionError(f"In {dtype} nst and PyTorch do not do the same work; their losses: {pairs}")


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
    schemes = {name: title for name, title in SCHEMES.items() if name in report}
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"{product['device']}, {report['cores']} cores; {versions}; {report['rows']} x {report['columns']} pixels, "
        f"preset {PRESET}, weights {report['weights']}{', nst with XLA' if report['xla'] else ''}; "
        f"{report['gflop']:.0f} GFLOP an iteration.",
        "",
        "| | seconds an iteration: median (least to most) | peak memory | times as fast | GFLOP/s | of the product |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in schemes.items():
        found = report[name]
        seconds = spread(found["seconds"])
        memory = f"{found['peak_bytes'] / 1e9:.2f} GB"
        if name == "keras":
            rate = share = ""
        else:
            speed = report["gflop"] / found["median"]
            rate, share = f"{speed:.0f}", f"{speed / product[name.removeprefix('torch-')]:.0%}"
        lines.append(f"| {title} | {seconds} | {memory} | {keras / found['median']:.1f} | {rate} | {share} |")
    lines.extend(
        f"| matrix product, {PRODUCT_SIDE} x {PRODUCT_SIDE}, {name} | | | | {product[name]:.0f} | |"
        for name in ("float32", "bfloat16")
    )
    return "\n".join([*lines, "", _torch_lines(report)])


def _torch_lines(report: dict[str, Any]) -> str:
    """By what PyTorch's rows were measured, or why there are none."""
    if "torch-float32" not in report:
        return "PyTorch is not installed here, so its rows are left out; `--torch-python` names a Python that has it."
    layouts = ", ".join(f"{report[f'torch-{dtype}']['layout']} in {dtype}" for dtype in LOSS_TOLERANCES)
    losses = "; ".join(
        f"{SCHEMES[name]} {', '.join(f'{loss:.6g}' for loss in report[name]['losses'][:LOSSES_COMPARED])}"
        for name in ("float32", "torch-float32", "bfloat16", "torch-bfloat16")
    )
    version = report["torch-float32"]["versions"]["PyTorch"]
    return f"PyTorch {version}, in the quicker of its layouts: {layouts}. The first losses: {losses}."


def _samples(rows: int) -> tuple[Any, Any]:
    from nst_engine.samples import content_sample, style_sample

    return content_sample(rows, _columns(rows)), style_sample(rows, _columns(rows))


def _time_keras(options: argparse.Namespace) -> dict[str, Any]:
    import tensorflow as tf

    from benchmarks.keras_example import KerasExample
    from nst_engine.hardware import choose_device
    from nst_engine.weights import load

    with tf.device(choose_device(options.device).tensorflow_name):
        example = KerasExample(*_samples(options.rows), load(options.weights).kernels)
        return timed(example.iterate, options.repeats)


def _time_nst(options: argparse.Namespace) -> dict[str, Any]:
    from nst_engine.engine import Engine
    from nst_engine.pictures import Pictures
    from nst_engine.presets import find_preset
    from nst_engine.transfer import Budget, advance, start

    config = find_preset(PRESET).config.with_overrides(
        {"rows": options.rows, "precision": options.child, "weights": options.weights}
    )
    content, style = _samples(options.rows)
    engine = Engine(options.device, xla=options.xla)
    state, first = start(engine, config, Pictures(content, (style,)))
    losses = [first.losses.total]

    def iterate() -> None:
        nonlocal state
        state, (point,) = advance(engine, state, Budget(iterations=1))
        losses.append(point.losses.total)

    return {**timed(iterate, options.repeats), "losses": losses}


def _time_product(options: argparse.Namespace) -> dict[str, Any]:
    """The billions of operations a second of a square matrix product: the fastest of some rounds."""
    import tensorflow as tf

    from nst_engine.acceleration import choose_acceleration
    from nst_engine.hardware import choose_device

    device = choose_device(options.device)
    found: dict[str, Any] = {"name": device.name, "device": device.description}
    for dtype in ("float32", "bfloat16"):
        choose_acceleration(device, precision=dtype, xla=False, deterministic=False).switch_on()
        with tf.device(device.tensorflow_name):
            matrix = tf.cast(tf.random.stateless_normal((PRODUCT_SIDE, PRODUCT_SIDE), (1, 2)), dtype)

            def multiply(matrix: Any = matrix) -> None:
                float(tf.matmul(matrix, matrix)[0, 0])

            seconds = min(timed(multiply, 2 * options.repeats)["seconds"])
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
