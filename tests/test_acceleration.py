"""How a device computes. No GPU is needed: what only a GPU does is chosen and switched here, on the CPU."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from flows.service import gpu_workers
from flows.settings import load_settings
from nst_engine.acceleration import Acceleration, choose_acceleration
from nst_engine.config import Precision, TransferConfig
from nst_engine.engine import Engine
from nst_engine.evaluation import Evaluation
from nst_engine.hardware import Device, choose_precision
from nst_engine.images import preprocess
from nst_engine.objective import Form, Targets, TracedObjective
from nst_engine.pictures import Pictures
from nst_engine.samples import content_sample, style_sample
from nst_engine.transfer import Budget, advance, start
from nst_engine.vgg19 import Network
from nst_engine.weights import Weights

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = Device("cpu", "/CPU:0", "a CPU")
AMPERE = Device("gpu:0", "/GPU:0", "a GPU", (8, 0))
TURING = Device("gpu:1", "/GPU:1", "a GPU", (7, 5))
TOLERANCE = 1e-4
CONFIG = TransferConfig().with_overrides(
    {"content_layers": "block2_conv1", "style_layers": "block1_conv2", "weights": "random", "precision": "float32"}
)
PICTURES = Pictures(content_sample(20, 30), (style_sample(24, 24),))


@pytest.mark.parametrize(
    ("device", "precision", "options", "chosen"),
    [
        pytest.param(CPU, "float32", {}, Acceleration(on_cpu=True), id="CPU"),
        pytest.param(CPU, "bfloat16", {"xla": True}, Acceleration(on_cpu=True, xla=True), id="CPU with XLA"),
        pytest.param(AMPERE, "float32", {}, Acceleration(on_cpu=False, deterministic=True), id="GPU in float32"),
        pytest.param(AMPERE, "float32", {"deterministic": False}, Acceleration(on_cpu=False), id="GPU, quicker"),
        pytest.param(AMPERE, "tf32", {}, Acceleration(on_cpu=False, tensor_float_32=True), id="GPU in tf32"),
        pytest.param(AMPERE, "bfloat16", {}, Acceleration(on_cpu=False), id="GPU in bfloat16"),
    ],
)
def test_how_a_device_computes(device: Device, precision: str, options: dict[str, bool], chosen: Acceleration) -> None:
    assert choose_acceleration(device, precision=precision, **{"xla": False, "deterministic": True} | options) == chosen


@pytest.mark.parametrize(
    ("wanted", "device", "means"),
    [
        ("tf32", AMPERE, "tf32"),
        ("tf32", TURING, "float32"),
        ("tf32", CPU, "float32"),
        ("auto", AMPERE, "bfloat16"),
        ("auto", TURING, "float32"),
        ("float32", AMPERE, "float32"),
    ],
)
def test_a_precision_is_what_the_device_can_do(wanted: Precision, device: Device, means: str) -> None:
    assert choose_precision(wanted, device) == means


def evaluated(network: Weights, acceleration: Acceleration, *, dtype: str = "float32") -> list[Evaluation]:
    """The same two pictures, of two sizes, by an objective of that acceleration."""
    form = Form.of(CONFIG, styles=1, dtype=dtype)
    layers = Network(network.kernels, dtype=dtype, on_cpu=acceleration.on_cpu)
    objective = TracedObjective(form, layers, acceleration=acceleration)
    style = preprocess(style_sample(24, 24))
    evaluations = []
    for rows, columns in ((20, 30), (33, 18)):
        content = preprocess(content_sample(rows, columns))
        targets = Targets(objective.content_targets(content), [objective.style_targets(style)])
        evaluations.append(objective.evaluate(content[:, ::-1].copy(), targets, CONFIG))
    return evaluations


def assert_near(found: Evaluation, expected: Evaluation) -> None:
    assert found.gradient.shape == expected.gradient.shape
    assert np.linalg.norm(found.gradient - expected.gradient) < TOLERANCE * np.linalg.norm(expected.gradient)
    assert found.losses.layers == pytest.approx(expected.losses.layers, rel=TOLERANCE)
    assert found.losses.total == pytest.approx(expected.losses.total, rel=TOLERANCE)


@pytest.mark.parametrize("on_cpu", [True, False], ids=["convolutions of a CPU", "convolutions of a GPU"])
def test_xla_gives_the_same_losses_and_gradients(random_network: Weights, on_cpu: bool) -> None:
    plain = evaluated(random_network, Acceleration(on_cpu=True))
    compiled = evaluated(random_network, Acceleration(on_cpu=on_cpu, xla=True))
    for found, expected in zip(compiled, plain, strict=True):
        assert_near(found, expected)
    assert compiled[0].gradient.tobytes() != plain[0].gradient.tobytes()


def test_xla_keeps_programs_of_four_sizes_and_one_trace_each(random_network: Weights) -> None:
    form = Form.of(CONFIG, styles=1, dtype="float32")
    network = Network(random_network.kernels, dtype="float32", on_cpu=True)
    objective = TracedObjective(form, network, acceleration=Acceleration(on_cpu=True, xla=True))
    sizes = [(16, 16 + number) for number in range(4)]
    programs = {size: objective._evaluation(size) for size in sizes}
    content = preprocess(content_sample(*sizes[0]))
    targets = Targets(objective.content_targets(content), [objective.style_targets(content)])
    for _ in range(2):
        objective.evaluate(content, targets, CONFIG)
    assert [objective._evaluation(size) is program for size, program in programs.items()] == [True] * 4
    assert programs[sizes[0]].experimental_get_tracing_count() == 1
    oldest = weakref.ref(programs.pop(sizes[0]))
    objective._evaluation((32, 32))
    gc.collect()
    assert oldest() is None
    assert [objective._evaluation(size) is program for size, program in programs.items()] == [True] * 3


def test_tensor_float_32_is_on_for_those_who_ask_only(engine: Engine) -> None:
    """One engine serves several precisions in turn, each with the switch as it needs it."""
    picture = preprocess(PICTURES.content)
    evaluators = {
        precision: engine.evaluator(CONFIG, PICTURES, precision=precision)
        for precision in ("float32", "tf32", "bfloat16")
    }
    switched = {}
    for precision in ("tf32", "float32", "tf32", "bfloat16"):
        evaluators[precision](picture)
        switched[precision] = tf.config.experimental.tensor_float_32_execution_enabled()
    assert switched == {"tf32": True, "float32": False, "bfloat16": False}


def test_tf32_on_a_cpu_is_float32_and_is_recorded_as_such(engine: Engine) -> None:
    configs = [CONFIG.with_overrides({"precision": precision, "iterations": 1}) for precision in ("tf32", "float32")]
    rounded, plain = (advance(engine, start(engine, config, PICTURES)[0], Budget())[0] for config in configs)
    assert rounded.precision == plain.precision == "float32"
    assert rounded.picture.tobytes() == plain.picture.tobytes()


def test_determinism_computes_the_same() -> None:
    """In a process of its own, which it could not be taken back in."""
    command = [sys.executable, "-c", DETERMINISTIC]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    before, after, again, refused = json.loads(done.stdout.splitlines()[-1])
    assert after == again
    # TensorFlow refuses random numbers without a seed then, which says that the switch is on.
    assert refused
    assert before["total"] == pytest.approx(after["total"], rel=TOLERANCE)


DETERMINISTIC = """
import hashlib, json
from nst_engine.startup import load_tensorflow
load_tensorflow()
import tensorflow as tf
from nst_engine.acceleration import Acceleration
from nst_engine.weights import random_weights
from tests.test_acceleration import evaluated

def facts(evaluation):
    return {"total": evaluation.losses.total, "gradient": hashlib.sha256(evaluation.gradient.tobytes()).hexdigest()}

def refuses():
    try:
        tf.random.normal((2,))
    except RuntimeError:
        return True
    return False

network = random_weights()
assert not refuses()
found = [facts(evaluated(network, Acceleration(on_cpu=False))[0])]
asking = Acceleration(on_cpu=False, deterministic=True)
asking.switch_on()
found += [facts(evaluated(network, asking)[0]) for _ in range(2)]
print(json.dumps([*found, refuses()]))
"""


@pytest.mark.parametrize(
    ("toml", "given"),
    [
        pytest.param("", [], id="by default"),
        pytest.param("xla = true\ndeterministic = false\n", ["--xla", "--not-deterministic"], id="as set"),
    ],
)
def test_a_gpu_worker_is_told(tmp_path: Path, toml: str, given: list[str]) -> None:
    (tmp_path / "nst.toml").write_text(toml)
    (worker,) = gpu_workers(load_settings(home=tmp_path, device="cpu"), "tcp://gpu1:8786")
    assert worker.command[4:] == ["--scheduler", "tcp://gpu1:8786", *given, "--device", "cpu"]
