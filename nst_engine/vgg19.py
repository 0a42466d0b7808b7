"""The network: VGG19 without its classifier (K. Simonyan and A. Zisserman, arXiv:1409.1556), as Keras
builds it, cut off at the deepest layer that is asked for, with max or average pooling, and the table of its
layers with their shapes, receptive fields and parameter counts. A feature map is a layer's output after its
ReLU. Importing this module does not import TensorFlow; building a network does."""

from __future__ import annotations

import os
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

Pooling = Literal["max", "average"]


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


def deepest(layers: Iterable[str]) -> str:
    """The last of `layers` in the network's order."""
    return max(layers, key=CONVOLUTION_NAMES.index)


def feature_extractor(kernels: Kernels, *, layers: Iterable[str], pooling: Pooling, dtype: str, on_cpu: bool) -> Any:
    """A Keras model from a batch of pictures to a dict of feature maps.

    The input is (batch, rows, columns, 3), BGR and mean-centred as `images.preprocess` makes it; each output
    is (batch, rows // stride, columns // stride, channels) in `dtype`. `kernels` gives each convolution's
    kernel (3, 3, in, out) and bias (out,), float32. Layers deeper than the deepest of `layers` are left out.
    `on_cpu` computes the same convolutions in the way that suits a CPU.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    from nst_engine.cpu_convolution import CpuConv2D, mirrored

    def rebuild(layer: Any) -> Any:
        config = {**layer.get_config(), "dtype": dtype}
        if pooling == "average" and isinstance(layer, keras.layers.MaxPooling2D):
            return keras.layers.AveragePooling2D.from_config(config)
        if on_cpu and isinstance(layer, keras.layers.Conv2D):
            return CpuConv2D.from_config(config)
        return type(layer).from_config(config)

    wanted = tuple(layers)
    # Without a dtype of its own the input would round pictures to float32.
    picture = keras.Input((None, None, 3), dtype=dtype)
    whole = keras.applications.VGG19(include_top=False, weights=None, input_tensor=picture)
    cut = keras.Model(picture, whole.get_layer(deepest(wanted)).output)
    model = keras.models.clone_model(cut, clone_function=rebuild)
    for layer in model.layers:
        if layer.name in kernels:
            kernel, bias = kernels[layer.name]
            layer.set_weights([kernel, bias, mirrored(kernel)] if on_cpu else [kernel, bias])
            layer.trainable = False
    return keras.Model(model.inputs[0], {name: model.get_layer(name).output for name in wanted})
