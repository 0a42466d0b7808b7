"""Which device computes and in which precision. A device is named "cpu", "gpu" or "gpu:1"; "auto" takes the
first GPU, else the CPU. The precision "auto" takes bfloat16 where it is faster: on a GPU of compute capability
8 or more, and on a CPU that has the instructions and proves it in a short trial, since some have them and are
slower with them."""

from __future__ import annotations

import functools
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import tensorflow as tf

from nst_engine.config import Precision
from nst_engine.errors import DeviceError

_COARSER_NUMBERS: Final = (8, 0)
"""The compute capability from which on a GPU is quicker with bfloat16 and TensorFloat-32."""
_BFLOAT16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}
_TRIAL_SIDE: Final = 1024
_TRIAL_ROUNDS: Final = 4
_WORTH_IT: Final = 1.5
"""How many times as fast bfloat16 must be: below it its coarser numbers buy too little."""


@dataclass(frozen=True)
class Device:
    """A device of this machine: its name here, TensorFlow's name for it and what it is."""

    name: str
    tensorflow_name: str
    description: str
    compute_capability: tuple[int, int] | None = None


def devices() -> list[Device]:
    """The GPUs that TensorFlow sees, then the CPU."""
    found = []
    for index, gpu in enumerate(tf.config.list_physical_devices("GPU")):
        details = tf.config.experimental.get_device_details(gpu)
        description = str(details.get("device_name", "GPU"))
        found.append(Device(f"gpu:{index}", f"/GPU:{index}", description, details.get("compute_capability")))
    return [*found, Device("cpu", "/CPU:0", cpu_model())]


def choose_device(wanted: str) -> Device:
    """The device that "auto", "cpu", "gpu" or "gpu:N" means here; DeviceError when there is none such.

    A GPU is set to take memory as it needs it, not all of it.
    """
    found = devices()
    name = {"auto": found[0].name, "gpu": "gpu:0"}.get(wanted, wanted)
    for device in found:
        if device.name == name:
            _grow_memory()
            return device
    names = ", ".join(device.name for device in found)
    raise DeviceError(f"There is no device '{wanted}' here; this machine has {names} ('nst doctor' tells more).")


@functools.cache
def _grow_memory() -> None:
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, enable=True)


def choose_precision(wanted: Precision, device: Device) -> Literal["float32", "tf32", "bfloat16"]:
    """The precision of the feature maps that `wanted` means on `device`.

    tf32 is float32 on a CPU and on a GPU of a compute capability under 8.
    """
    has_coarser = device.compute_capability is not None and device.compute_capability >= _COARSER_NUMBERS
    if wanted == "tf32":
        return "tf32" if has_coarser else "float32"
    if wanted != "auto":
        return wanted
    if device.compute_capability is not None:
        return "bfloat16" if has_coarser else "float32"
    return "bfloat16" if cpu_bfloat16_speedup() > _WORTH_IT else "float32"


@functools.cache
def cpu_bfloat16_speedup() -> float:
    """How many times as fast a bfloat16 matrix product is as a float32 one on this CPU; 0 without the means.

    The trial takes a few hundredths of a second, once a process; the fastest of its rounds counts, so that
    other work on the machine does not decide.
    """
    if not _BFLOAT16_FLAGS & cpu_flags():
        return 0.0
    with tf.device("/CPU:0"):
        full = tf.fill((_TRIAL_SIDE, _TRIAL_SIDE), 0.5)
        half = tf.cast(full, tf.bfloat16)
        rounds = [(_product_seconds(full), _product_seconds(half)) for _ in range(_TRIAL_ROUNDS)]
    return min(seconds for seconds, _ in rounds) / min(seconds for _, seconds in rounds)


def _product_seconds(matrix: Any) -> float:
    start = time.perf_counter()
    tf.matmul(matrix, matrix).numpy()
    return time.perf_counter() - start


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def cpu_flags() -> set[str]:
    """The CPU's instruction-set flags as Linux names them; empty on other systems."""
    for line in _cpu_info().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def cpu_model() -> str:
    """The CPU's name."""
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
