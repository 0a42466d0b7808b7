"""The network: VGG19 without its classifier (K. Simonyan and A. Zisserman, arXiv:1409.1556), as Keras
builds it, as deep as it is asked for, with max, average or l2 pooling, and the table of its layers with their shapes,
receptive fields and parameter counts. A feature map is a layer's output after its ReLU. Importing this module does
not import TensorFlow; using a network does."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    # The config needs this module's names, and whoever only reads jobs should not wait for NumPy.
    import numpy as np

    Kernels = Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Each convolution's kernel (3, 3, in, out) and bias (out,), float32."""

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""(filters, convolutions) of each block; every block ends in a 2 x 2 pooling of stride 2."""

Pooling = Literal["max", "average", "l2"]
Padding = Literal["zeros", "replicate"]

WINOGRAD_PAIRS = 128 * 256
"""Of channels, from which on a CPU is quicker with Winograd's convolution (by processor time on two cores: 1.0 times as
quick at 128 x 128, 1.4 times at 128 x 256, 2.1 times at 512 x 512)."""


@dataclass(frozen=True)
class Layer:
    """One layer of the network.

    `receptive_field` is the side, in pixels of the picture, of the square that one unit sees; `stride` the
    distance in pixels between two neighbouring units.
    """

    name: str
    kind: Literal["input", "convolution", "pooling"]
    input_channels: int
    channels: int
    receptive_field: int
    stride: int

    @property
    def parameters(self) -> int:
        """The number of weights: 3 x 3 kernels and one bias a filter."""
        return (9 * self.input_channels + 1) * self.channels if self.kind == "convolution" else 0


def _table() -> tuple[Layer, ...]:
    layers = [Layer("input", "input", 3, 3, 1, 1)]
    channels, field, stride = 3, 1, 1
    for block, (filters, convolutions) in enumerate(BLOCKS, 1):
        for convolution in range(1, convolutions + 1):
            field += 2 * stride
            name = f"block{block}_conv{convolution}"
            layers.append(Layer(name, "convolution", channels, filters, field, stride))
            channels = filters
        field += stride
        stride *= 2
        layers.append(Layer(f"block{block}_pool", "pooling", channels, channels, field, stride))
    return tuple(layers)


LAYERS = _table()
CONVOLUTIONS = tuple(layer for layer in LAYERS if layer.kind == "convolution")
CONVOLUTION_NAMES = tuple(layer.name for layer in CONVOLUTIONS)


def names_down_to(last: str) -> tuple[str, ...]:
    """The names of all convolutions and poolings from the first to `last`."""
    names = tuple(layer.name for layer in LAYERS[1:])
    return names[: names.index(last) + 1]


def deepest(layers: Iterable[str]) -> str:
    """The last of `layers` in the network's order."""
    return max(layers, key=CONVOLUTION_NAMES.index)


class Network:
    """The network's layers in one dtype, each convolution built when it is first asked for and in memory once.

    `kernels` is asked for a layer's arrays when that layer is built, and they are not kept; equal ones may take its
    place at any time. `on_cpu` computes the same convolutions in the way that suits a CPU.
    """

    def __init__(self, kernels: Kernels, *, dtype: str, on_cpu: bool) -> None:
        self.dtype = dtype
        self.kernels = kernels
        self._on_cpu = on_cpu
        self._convolutions: dict[str, Any] = {}

    def features(
        self, pictures: Any, layers: Iterable[str], *, pooling: Pooling, padding: Padding = "zeros"
    ) -> dict[str, Any]:
        """The feature maps of `layers`, each (batch, rows // stride, columns // stride, channels) in the dtype.

        `pictures` is (batch, rows, columns, 3), BGR and mean-centred as `images.preprocess` makes it. Layers deeper
        than the deepest of `layers` are left out.
        """
        wanted, found, maps = set(layers), dict[str, Any](), pictures
        for name in names_down_to(deepest(wanted)):
            maps = self.layer(name, pooling=pooling, padding=padding)(maps)
            if name in wanted:
                found[name] = maps
        return found

    def layer(self, name: str, *, pooling: Pooling, padding: Padding = "zeros") -> Any:
        """What computes the layer of that name: a Keras layer, built, or a function of maps.

        `padding` is what is around the picture, for the first convolution; its pixels at the border with "replicate".
        """
        import keras

        if name not in CONVOLUTION_NAMES:
            if pooling == "l2":
                return _root_mean_square
            kind = keras.layers.AveragePooling2D if pooling == "average" else keras.layers.MaxPooling2D
            return kind((2, 2), strides=(2, 2), name=name, dtype=self.dtype)
        if name not in self._convolutions:
            self._convolutions[name] = self._convolution(name)
        if padding == "replicate" and name == CONVOLUTION_NAMES[0]:
            return functools.partial(_with_border, self._convolutions[name])
        return self._convolutions[name]

    def _convolution(self, name: str) -> Any:
        import keras
        import tensorflow as tf

        from nst_engine.cpu_convolution import CpuConv2D, mirrored
        from nst_engine.winograd import WinogradConv2D, transform_kernel

        kernel, bias = self.kernels[name]
        channels, filters = kernel.shape[2:]
        # A trace may be what asks for the layer first; it must not be where the weights are made.
        with tf.init_scope():
            # In bfloat16 it would round too coarsely.
            if self._on_cpu and self.dtype == "float32" and channels * filters >= WINOGRAD_PAIRS:
                convolution = WinogradConv2D(filters, name=name)
                weights = [transform_kernel(kernel), bias]
            else:
                kind = CpuConv2D if self._on_cpu else keras.layers.Conv2D
                convolution = kind(
                    filters,
                    kernel.shape[:2],
                    padding="same",
                    activation="relu",
                    # Random numbers would take their time and, in float32, their memory.
                    kernel_initializer="zeros",
                    name=name,
                    dtype=self.dtype,
                    trainable=False,
                )
                weights = [kernel, bias, mirrored(kernel)] if self._on_cpu else [kernel, bias]
            convolution.build((None, None, None, channels))
            convolution.set_weights(weights)
        return convolution


def _root_mean_square(maps: Any) -> Any:
    """2 x 2 pooling of stride 2: the root of the mean of squares, with a gradient of 0 where that is 0."""
    import tensorflow as tf

    squares = tf.nn.avg_pool2d(tf.square(maps), 2, 2, "VALID")
    some = squares > 0
    return tf.where(some, tf.sqrt(tf.where(some, squares, tf.ones_like(squares))), tf.zeros_like(squares))


def _with_border(convolution: Any, pictures: Any) -> Any:
    """The convolution, with the pixels at the pictures' border instead of zeros beyond it.

    In a tile that is so on all sides; where the picture goes on, its halo is wide enough to have it cut off.
    """
    import tensorflow as tf

    wider = tf.concat([pictures[:, :1], pictures, pictures[:, -1:]], 1)
    wider = tf.concat([wider[:, :, :1], wider, wider[:, :, -1:]], 2)
    shape = tf.shape(pictures)
    maps = convolution(wider)
    # A slice's gradient as x[:, 1:-1] takes longer than a convolution's.
    inner = tf.slice(maps, [0, 1, 1, 0], [shape[0], shape[1], shape[2], maps.shape[-1]])
    return tf.ensure_shape(inner, (*pictures.shape[:3], maps.shape[-1]))
