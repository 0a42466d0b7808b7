"""The convolution in fewer multiplications is the plain one, forward and backward, whatever the picture's size."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_engine import winograd
from nst_engine.winograd import WinogradConv2D, convolve, transform_kernel

NUMBERS = np.random.default_rng(7)


def plain(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """From the definition, in float64: each output is a sum over its nine neighbours."""
    rows, columns = pixels.shape[:2]
    padded = np.pad(pixels.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    result = np.zeros((rows, columns, kernel.shape[3]))
    for down in range(3):
        for across in range(3):
            result += padded[down : down + rows, across : across + columns] @ kernel[down, across].astype(np.float64)
    return result


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 23),
    columns=st.integers(1, 23),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    backward=st.booleans(),
    strips=st.booleans(),
)
def test_every_size_is_convolved_as_defined(
    rows: int, columns: int, inputs: int, outputs: int, backward: bool, strips: bool
) -> None:
    kernel = NUMBERS.standard_normal((3, 3, inputs, outputs)).astype(np.float32)
    pixels = NUMBERS.standard_normal((rows, columns, outputs if backward else inputs)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        if strips:
            # One to three rows of tiles of the widest pictures at once.
            patch.setattr(winograd, "_STRIP_NUMBERS", 2 * 36 * 6 * 9)
        found = convolve(tf.constant(pixels[np.newaxis]), tf.constant(transform_kernel(kernel)), backward=backward)
    wanted = plain(pixels, kernel[::-1, ::-1].transpose(0, 1, 3, 2) if backward else kernel)
    assert found.shape == (1, *wanted.shape)
    np.testing.assert_allclose(found[0], wanted, atol=2e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("size", [(16, 16), (13, 22)], ids=["whole tiles", "ragged"])
def test_the_layer_is_keras_convolution(size: tuple[int, int]) -> None:
    """Its feature map and its gradient, of 128 channels rectified as the network's are."""
    import keras

    kernel = (NUMBERS.standard_normal((3, 3, 128, 256)) / 24).astype(np.float32)
    bias = NUMBERS.standard_normal(256).astype(np.float32)
    layer = WinogradConv2D(256, name="quick")
    layer.build((None, None, None, 128))
    layer.set_weights([transform_kernel(kernel), bias])
    reference = keras.layers.Conv2D(256, 3, padding="same", activation="relu")
    reference.build((None, None, None, 128))
    reference.set_weights([kernel, bias])
    pixels = tf.constant(NUMBERS.standard_normal((1, *size, 128)).astype(np.float32))
    found = {}
    for name, convolution in {"quick": layer, "reference": reference}.items():
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            features = convolution(pixels)
            total = tf.reduce_sum(features * tf.cos(features))
        found[name] = features.numpy(), tape.gradient(total, pixels).numpy()
    for quick, wanted in zip(found["quick"], found["reference"], strict=True):
        np.testing.assert_allclose(quick, wanted, atol=5e-5 * np.abs(wanted).max())
