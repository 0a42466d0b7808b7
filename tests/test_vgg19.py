"""The network against keras.applications' own: its table, its feature maps, what each unit sees."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from nst_engine.vgg19 import CONVOLUTION_NAMES, CONVOLUTIONS, LAYERS, Layer, Network, deepest, names_down_to
from nst_engine.weights import Weights, load

if TYPE_CHECKING:
    from nst_engine.vgg19 import Kernels


@pytest.fixture(scope="module")
def keras_network() -> Any:
    return keras.applications.VGG19(include_top=False, weights=None, input_shape=(None, None, 3))


@pytest.fixture(scope="module")
def noise() -> NDArray[np.float32]:
    """A batch of one picture whose sides no pooling divides, as preprocessed."""
    return np.random.default_rng(5).uniform(-120, 130, (1, 37, 45, 3)).astype(np.float32)


def test_the_table_is_that_of_keras(keras_network: Any) -> None:
    ours = [(layer.name, layer.channels, layer.parameters) for layer in LAYERS[1:]]
    theirs = [(layer.name, layer.output.shape[-1], layer.count_params()) for layer in keras_network.layers[1:]]
    assert ours == theirs
    assert sum(layer.parameters for layer in LAYERS) == keras_network.count_params() == 20_024_384
    assert [layer.name for layer in CONVOLUTIONS] == [
        layer.name for layer in keras_network.layers if isinstance(layer, keras.layers.Conv2D)
    ]


@pytest.mark.parametrize("on_cpu", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_feature_maps_are_those_of_keras(
    keras_network: Any, weights_choice: str, noise: NDArray[np.float32], on_cpu: bool
) -> None:
    kernels = load(weights_choice).kernels
    if Path(weights_choice).is_file():
        keras_network.load_weights(weights_choice)
    else:
        for name, arrays in kernels.items():
            keras_network.get_layer(name).set_weights(list(arrays))
    theirs = keras.Model(
        keras_network.inputs[0], {name: keras_network.get_layer(name).output for name in CONVOLUTION_NAMES}
    )(noise)
    network = Network(kernels, dtype="float32", on_cpu=on_cpu)
    ours = network.features(noise, CONVOLUTION_NAMES, pooling="max")
    assert set(ours) == set(CONVOLUTION_NAMES)
    for layer in CONVOLUTIONS:
        maps = ours[layer.name].numpy()
        assert maps.shape == (1, 37 // layer.stride, 45 // layer.stride, layer.channels)
        assert (maps.min(), maps.max() > 0) == (0, True), layer.name
        np.testing.assert_allclose(maps, theirs[layer.name], rtol=1e-5, atol=1e-5 * maps.max(), err_msg=layer.name)


def root_mean_square(values: NDArray[np.float64], axis: tuple[int, ...]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.sqrt((values**2).mean(axis))
    return found


@pytest.mark.parametrize(("pooling", "reduce"), [("max", np.max), ("average", np.mean), ("l2", root_mean_square)])
def test_pooling(random_network: Weights, noise: NDArray[np.float32], pooling: Any, reduce: Any) -> None:
    layers = ["block1_conv2", "block2_conv1"]
    maps = Network(random_network.kernels, dtype="float32", on_cpu=True).features(noise, layers, pooling=pooling)
    before = maps["block1_conv2"].numpy()[0].astype(np.float64)
    pooled = reduce(before[:36, :44].reshape(18, 2, 22, 2, 64), axis=(1, 3))
    padded = np.pad(pooled, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    kernel, bias = random_network.kernels["block2_conv1"]
    after = np.maximum(np.einsum("yxiab,abio->yxo", windows, kernel, optimize=True) + bias, 0)
    np.testing.assert_allclose(maps["block2_conv1"].numpy()[0], after, rtol=1e-4, atol=1e-5 * after.max())


def test_l2_pooling_has_a_gradient_also_where_there_is_nothing(random_network: Weights) -> None:
    pool = Network(random_network.kernels, dtype="float64", on_cpu=True).layer("block1_pool", pooling="l2")
    maps = np.zeros((1, 5, 4, 1))
    maps[0, :2, :2, 0] = ((1, 2), (3, 4))
    variable = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        pooled = pool(variable)
    expected = np.zeros_like(maps)
    root = np.sqrt((1 + 4 + 9 + 16) / 4)
    expected[0, :2, :2] = maps[0, :2, :2] / (4 * root)
    np.testing.assert_allclose(pooled.numpy()[0, ..., 0], [[root, 0], [0, 0]], rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(pooled, variable).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("on_cpu", [True, False], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("replicate", "edge")])
def test_padding(random_network: Weights, noise: NDArray[np.float32], padding: Any, mode: Any, on_cpu: bool) -> None:
    network = Network(random_network.kernels, dtype="float32", on_cpu=on_cpu)
    layers = ["block1_conv1", "block1_conv2"]
    maps = network.features(noise, layers, pooling="max", padding=padding)
    before = noise[0].astype(np.float64)
    # Only the first convolution sees the picture's border.
    for layer, kind in zip(layers, (mode, "constant"), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(before, ((1, 1), (1, 1), (0, 0)), mode=kind), (3, 3), axis=(0, 1)
        )
        kernel, bias = random_network.kernels[layer]
        before = np.maximum(np.einsum("yxiab,abio->yxo", windows, kernel, optimize=True) + bias, 0)
        np.testing.assert_allclose(maps[layer].numpy()[0], before, rtol=1e-4, atol=1e-5 * before.max())


@pytest.mark.parametrize(
    ("layers", "last", "size"),
    [
        pytest.param(["block1_conv1"], "block1_conv1", 1, id="first"),
        pytest.param(["block3_conv1", "block2_conv2"], "block3_conv1", 7, id="not in order"),
        pytest.param(["block5_conv4"], "block5_conv4", 20, id="last"),
    ],
)
def test_the_network_ends_at_the_deepest_layer_asked_for(
    random_network: Weights, noise: NDArray[np.float32], layers: list[str], last: str, size: int
) -> None:
    asked = RecordingKernels(random_network.kernels)
    maps = Network(asked, dtype="float32", on_cpu=True).features(noise, layers, pooling="max")
    assert deepest(layers) == last
    assert names_down_to(last) == tuple(layer.name for layer in LAYERS[1 : size + 1])
    assert asked.names == [layer.name for layer in LAYERS[1 : size + 1] if layer.kind == "convolution"]
    assert set(maps) == set(layers)


class RecordingKernels(dict[str, Any]):
    """Kernels that note which layers' arrays they were asked for."""

    def __init__(self, kernels: "Kernels") -> None:
        super().__init__(kernels)
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.names.append(name)
        return super().__getitem__(name)


def test_each_convolution_is_built_once(random_network: Weights, noise: NDArray[np.float32]) -> None:
    """Whatever asks for it: another depth, another pooling, or a trace."""
    asked = RecordingKernels(random_network.kernels)
    network = Network(asked, dtype="float32", on_cpu=True)
    traced = tf.function(lambda pictures: network.features(pictures, ["block1_conv2"], pooling="max"))
    first = traced(noise)["block1_conv2"].numpy()
    again = network.features(noise, ["block1_conv2", "block2_conv1"], pooling="average")["block1_conv2"].numpy()
    np.testing.assert_allclose(again, first, rtol=1e-6, atol=1e-6 * first.max())
    assert asked.names == ["block1_conv1", "block1_conv2", "block2_conv1"]
    assert network.layer("block1_conv1", pooling="max") is network.layer("block1_conv1", pooling="average")
    assert network.layer("block1_conv1", pooling="max").trainable_weights == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("on_cpu", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_maps_and_weights_have_the_dtype_asked_for(
    random_network: Weights, noise: NDArray[np.float32], dtype: str, on_cpu: bool
) -> None:
    network = Network(random_network.kernels, dtype=dtype, on_cpu=on_cpu)
    maps = network.features(tf.cast(noise, dtype), ["block2_conv1"], pooling="max")
    assert maps["block2_conv1"].dtype == dtype
    shapes = {"kernel": (3, 3, 3, 64), "bias": (64,)} | ({"mirrored": (3, 3, 64, 3)} if on_cpu else {})
    assert {
        weight.name: (weight.dtype, weight.shape) for weight in network.layer("block1_conv1", pooling="max").weights
    } == {name: (dtype, shape) for name, shape in shapes.items()}


SIDE, NARROW = 320, 16


@pytest.fixture(scope="module", params=[pytest.param(0, id="down"), pytest.param(1, id="across")])
def linear_network(request: pytest.FixtureRequest) -> Any:
    """The tape, input and feature maps of a strip through a network in which nothing is lost or cancels.

    All kernels are positive, poolings average, and the input is positive, so that a unit's gradient is positive
    wherever it sees and zero elsewhere. The strip is long in one direction only, to be quick.
    """
    kernels = {
        layer.name: (
            np.full((3, 3, layer.input_channels, layer.channels), 1 / (9 * layer.input_channels), np.float32),
            np.zeros(layer.channels, np.float32),
        )
        for layer in CONVOLUTIONS
    }
    # Winograd's rounding is not zero where nothing is seen.
    network = Network(kernels, dtype="float32", on_cpu=False)
    sides = (SIDE, NARROW) if request.param == 0 else (NARROW, SIDE)
    strip = tf.ones((1, *sides, 3))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(strip)
        maps = network.features(strip, CONVOLUTION_NAMES, pooling="average")
        lines = {name: tf.reduce_sum(found[0, ..., 0], axis=1 - request.param) for name, found in maps.items()}
        middles = {
            layer.name: [lines[layer.name][SIDE // layer.stride // 2 + shift] for shift in (0, 1)]
            for layer in CONVOLUTIONS
        }

    def seen(layer: Layer) -> list[tuple[int, int]]:
        """The first and the last pixel that the middle unit and the one after it see."""
        extents = []
        for unit in middles[layer.name]:
            gradient = tape.gradient(unit, strip).numpy()[0].sum(axis=(1 - request.param, 2))
            (pixels,) = np.nonzero(gradient)
            assert len(pixels) == pixels[-1] - pixels[0] + 1
            extents.append((int(pixels[0]), int(pixels[-1])))
        return extents

    return seen


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=lambda layer: layer.name)
def test_receptive_field_and_stride(linear_network: Any, layer: Layer) -> None:
    (first, last), (next_first, next_last) = linear_network(layer)
    assert first > 0
    assert next_last < SIDE - 1
    assert last - first + 1 == layer.receptive_field
    assert (next_first - first, next_last - last) == (layer.stride, layer.stride)
