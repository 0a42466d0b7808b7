"""How much memory a device has: a GPU's by the driver's own tool nvidia-smi, since TensorFlow does not tell."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

from nst_engine.hardware import Device
from nst_engine.memory import Memory, machine_memory

_COMMAND: Final = ("nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits", "-i")
_MIB: Final = 1 << 20
_PATIENCE_SECONDS: Final = 10.0


def memory_of(device: Device) -> Memory | None:
    """What a process that computes on `device` may take of its memory, in all; None where nobody tells."""
    return machine_memory() if device.name == "cpu" else gpu_memory(int(device.name.removeprefix("gpu:")))


def gpu_memory(index: int) -> Memory | None:
    """What is free now on the GPU that TensorFlow numbers `index`, and all that it has; None where nobody tells.

    CUDA_VISIBLE_DEVICES says which one that is, by number or UUID. Its numbers are taken as nvidia-smi counts, in the
    order of the bus; CUDA does so too if CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    name = _visible_name(index)
    if name is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603
            [*_COMMAND, name], capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.fullmatch(r"(\d+), *(\d+)", done.stdout.strip())
    if done.returncode != 0 or found is None:
        return None
    free, total = (int(mebibytes) * _MIB for mebibytes in found.groups())
    return Memory(free=free, most=total)


def _visible_name(index: int) -> str | None:
    """The name that nvidia-smi knows the GPU by."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(index)
    names = [name.strip() for name in visible.split(",")]
    # What begins with a dash would be read as an option: -1 stands for no GPU.
    return names[index] if index < len(names) and re.match(r"\w", names[index]) else None
