"""How a device computes, chosen in one place: the form of its convolutions, XLA, TensorFloat-32 and determinism."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from nst_engine.hardware import Device


@dataclass(frozen=True)
class Acceleration:
    """How an objective is computed.

    `on_cpu` takes the convolutions that suit a CPU; `xla` compiles an evaluation, one program a picture size;
    `tensor_float_32` lets a GPU of compute capability 8 or more round what goes into products of float32 to
    TensorFloat-32; `deterministic` asks for the same bits from the same numbers where TensorFlow does not give them
    anyway.
    """

    on_cpu: bool
    xla: bool = False
    tensor_float_32: bool = False
    deterministic: bool = False

    def switch_on(self) -> None:
        """Set what TensorFlow has one switch for in the whole process; to be called before anything is computed.

        TensorFloat-32 goes on and off with every call, so only one thread may compute at a time. Determinism cannot be
        taken back: once an engine has served a transfer that asks for it, all that follow in this process are
        deterministic too, also those in bfloat16, which it makes slower and to which nothing is promised. What asks
        for it always has it.
        """
        tf.config.experimental.enable_tensor_float_32_execution(self.tensor_float_32)
        if self.deterministic:
            tf.config.experimental.enable_op_determinism()


def choose_acceleration(device: Device, *, precision: str, xla: bool, deterministic: bool) -> Acceleration:
    """How `device` computes feature maps in `precision`, as `hardware.choose_precision` gives it.

    `deterministic` counts on a GPU in float32, where the same picture is promised bit for bit; a CPU is
    deterministic as it is.
    """
    on_cpu = device.name == "cpu"
    return Acceleration(
        on_cpu=on_cpu,
        xla=xla,
        tensor_float_32=precision == "tf32",
        deterministic=deterministic and not on_cpu and precision == "float32",
    )
