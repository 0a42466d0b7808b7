"""What the network sees in a picture: the feature maps of single layers, at the size and with the pooling of a
transfer. The paper's section "Content representation" is about them. Importing this module imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import tensorflow as tf

from nst_engine.acceleration import choose_acceleration
from nst_engine.config import TransferConfig, did_you_mean
from nst_engine.errors import ConfigError, MemoryNeededError
from nst_engine.gpu_memory import memory_of
from nst_engine.hardware import Device
from nst_engine.images import preprocess
from nst_engine.memory import PROCESS_BYTES
from nst_engine.pictures import content_size, fit_pictures
from nst_engine.vgg19 import BLOCKS, CONVOLUTION_NAMES, CONVOLUTIONS, Layer, Network
from nst_engine.weights import Weights

_NUMBER_BYTES: Final = 4
_LIVE: Final = 4
"""How many times the first layer's maps, the largest of all, are in memory at once: what a convolution takes, gives and
works in, and one more to be safe."""


@dataclass(frozen=True)
class FeatureMaps:
    """The maps of one layer, float32 (rows, columns, channels), none below 0: they come after the layer's ReLU."""

    layer: Layer
    maps: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """Of each channel, float64 (channels,)."""
        means: np.ndarray = self.maps.mean(axis=(0, 1), dtype=np.float64)
        return means

    def strongest(self, count: int) -> list[int]:
        """The numbers, from 0, of at most `count` channels, that of the greatest mean first."""
        order: np.ndarray = np.argsort(-self.means, kind="stable")
        return [int(channel) for channel in order[:count]]


def feature_maps(
    config: TransferConfig, picture: np.ndarray, layers: Sequence[str], *, weights: Weights, device: Device
) -> list[FeatureMaps]:
    """The maps, in float32, that `layers` have of a decoded content, uint8 RGB, as a transfer would work on it.

    Raises ConfigError for a layer that VGG19 does not have, ImageError when the picture is too narrow at that size,
    MemoryNeededError when there is too little memory.
    """
    known = {layer.name: layer for layer in CONVOLUTIONS}
    for name in layers:
        if name not in known:
            raise ConfigError(f"VGG19 has no convolution '{name}'{did_you_mean(name, CONVOLUTION_NAMES)}")
    _require_memory(content_size(config, picture.shape), [known[name] for name in layers], device)
    content = fit_pictures(config, picture, []).content
    choose_acceleration(device, precision="float32", xla=False, deterministic=False).switch_on()
    network = Network(weights.kernels, dtype="float32", on_cpu=device.name == "cpu")
    with tf.device(device.tensorflow_name):
        found: dict[str, Any] = network.features(
            tf.convert_to_tensor(preprocess(content))[tf.newaxis],
            layers,
            pooling=config.pooling,
            padding=config.padding,
        )
        return [FeatureMaps(known[name], found[name][0].numpy()) for name in layers]


def _require_memory(size: tuple[int, ...], layers: Sequence[Layer], device: Device) -> None:
    rows, columns = size
    first_channels = BLOCKS[0][0]
    numbers = _LIVE * first_channels + sum(layer.channels / layer.stride**2 for layer in layers)
    needed = PROCESS_BYTES + round(rows * columns * numbers * _NUMBER_BYTES)
    memory = memory_of(device)
    if memory is not None and needed > memory.free:
        raise MemoryNeededError(
            f"The feature maps of {rows} x {columns} pixels need about {needed / 1e9:.1f} GB of memory, and "
            f"{memory.free / 1e9:.1f} GB are free; ask for fewer rows."
        )
