"""The losses against the paper's formulas written out in NumPy, and their gradients against differences."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from nst_engine.losses import (
    content_loss,
    gram_matrix,
    relative_content_loss,
    style_loss,
    total_variation,
    weighted_sum,
)

Floats = NDArray[np.float64]

ROWS, COLUMNS, CHANNELS = 4, 5, 6
M, N = ROWS * COLUMNS, CHANNELS
PICTURE_POSITIONS = 77


def noise(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture(scope="module")
def features() -> Floats:
    return noise(1, ROWS, COLUMNS, CHANNELS, seed=1)


@pytest.fixture(scope="module")
def target() -> Floats:
    return noise(1, ROWS, COLUMNS, CHANNELS, seed=2)


@pytest.fixture(scope="module")
def picture() -> Floats:
    return noise(ROWS, COLUMNS, 3, seed=3)


def numpy_content(features: Floats, target: Floats, normalization: str) -> float:
    """Equation 1, a sum over positions and channels one by one."""
    total = sum(
        (features[0, y, x, i] - target[0, y, x, i]) ** 2 for y, x, i in product(range(ROWS), range(COLUMNS), range(N))
    )
    return float(total * {"gatys": 0.5, "keras": 1.0, "mean": 1 / (M * N)}[normalization])


def numpy_gram(features: Floats) -> Floats:
    """Equation 2, entry by entry."""
    gram = np.zeros((N, N))
    for i, j in product(range(N), range(N)):
        gram[i, j] = sum(features[0, y, x, i] * features[0, y, x, j] for y in range(ROWS) for x in range(COLUMNS))
    return gram


def numpy_style(features: Floats, target: Floats, normalization: str) -> float:
    """Equation 3."""
    total = float(((numpy_gram(features) - numpy_gram(target)) ** 2).sum())
    return {
        "gatys": total / (4 * N**2 * M**2),
        "keras": total / (4 * 3**2 * PICTURE_POSITIONS**2),
        "mean": total / (N**2 * M**2),
    }[normalization]


def numpy_total_variation(picture: Floats, form: str) -> float:
    total = 0.0
    for y, x, c in product(range(ROWS), range(COLUMNS), range(3)):
        down = picture[y + 1, x, c] - picture[y, x, c] if y + 1 < ROWS else None
        right = picture[y, x + 1, c] - picture[y, x, c] if x + 1 < COLUMNS else None
        if form == "keras":
            if down is not None and right is not None:
                total += (down**2 + right**2) ** 1.25
        else:
            power = {"l1": 1, "l2": 2}[form]
            total += sum(abs(difference) ** power for difference in (down, right) if difference is not None)
    return total


def tf_style(features: Any, target: Any, normalization: Any) -> Any:
    return style_loss(
        gram_matrix(features),
        gram_matrix(target),
        positions=tf.constant(float(M), features.dtype),
        picture_positions=tf.constant(float(PICTURE_POSITIONS), features.dtype),
        normalization=normalization,
    )


def assert_gradient(loss: Callable[[Any], Any], at: Floats) -> None:
    """Compare TensorFlow's gradient in float64 with central differences in every entry."""
    variable = tf.constant(at)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = loss(variable)
    gradient = tape.gradient(value, variable).numpy()
    step = 1e-5
    differences = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = step
        differences[index] = (loss(tf.constant(at + shift)) - loss(tf.constant(at - shift))).numpy() / (2 * step)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8 * np.abs(differences).max())


@pytest.mark.parametrize("normalization", ["gatys", "keras", "mean"])
class TestContent:
    def test_value(self, features: Floats, target: Floats, normalization: Any) -> None:
        value = content_loss(tf.constant(features), tf.constant(target), normalization=normalization)
        assert float(value) == pytest.approx(numpy_content(features, target, normalization), rel=1e-12)

    def test_gradient(self, features: Floats, target: Floats, normalization: Any) -> None:
        assert_gradient(lambda at: content_loss(at, tf.constant(target), normalization=normalization), features)


@pytest.mark.parametrize("normalization", ["gatys", "keras", "mean"])
class TestStyle:
    def test_value(self, features: Floats, target: Floats, normalization: Any) -> None:
        value = tf_style(tf.constant(features), tf.constant(target), normalization)
        assert float(value) == pytest.approx(numpy_style(features, target, normalization), rel=1e-12)

    def test_gradient(self, features: Floats, target: Floats, normalization: Any) -> None:
        assert_gradient(lambda at: tf_style(at, tf.constant(target), normalization), features)


@pytest.mark.parametrize("form", ["keras", "l1", "l2"])
class TestTotalVariation:
    def test_value(self, picture: Floats, form: Any) -> None:
        value = total_variation(tf.constant(picture), form=form)
        assert float(value) == pytest.approx(numpy_total_variation(picture, form), rel=1e-12)

    def test_gradient(self, picture: Floats, form: Any) -> None:
        assert_gradient(lambda at: total_variation(at, form=form), picture)

    def test_a_flat_picture_has_none(self, picture: Floats, form: Any) -> None:
        flat = tf.fill(picture.shape, tf.constant(3.0, tf.float64))
        with tf.GradientTape() as tape:
            tape.watch(flat)
            value = total_variation(flat, form=form)
        assert float(value) == 0
        np.testing.assert_array_equal(tape.gradient(value, flat).numpy(), 0)


def test_l1_is_tensorflows_total_variation(picture: Floats) -> None:
    ours = total_variation(tf.constant(picture), form="l1")
    assert float(ours) == pytest.approx(float(tf.image.total_variation(tf.constant(picture))), rel=1e-12)


def test_gram_matrix(features: Floats) -> None:
    np.testing.assert_allclose(gram_matrix(tf.constant(features)).numpy(), numpy_gram(features), rtol=1e-12)


def test_weighted_sum() -> None:
    total = weighted_sum([tf.constant(2.0), tf.constant(3.0)], [tf.constant(0.5), tf.constant(10.0)])
    assert float(total) == 31.0


def test_losses_of_bfloat16_features_are_summed_in_float32() -> None:
    # 4096 ones: a bfloat16 sum cannot count past 256.
    features = tf.ones((1, 64, 64, 1), tf.bfloat16)
    loss = content_loss(features, tf.zeros_like(features), normalization="keras")
    gram = gram_matrix(features)
    assert (loss.dtype, float(loss)) == (tf.float32, 4096.0)
    assert (gram.dtype, gram.numpy().tolist()) == (tf.float32, [[4096.0]])


def test_the_relative_content_loss_is_a_share_of_the_content(features: Floats, target: Floats) -> None:
    found = relative_content_loss(tf.constant(features), tf.constant(target))
    assert float(found) == pytest.approx(((features - target) ** 2).sum() / (target**2).sum(), rel=1e-12)
    assert float(relative_content_loss(tf.zeros_like(target), tf.constant(target))) == pytest.approx(1, rel=1e-12)
    assert float(relative_content_loss(tf.constant(features), tf.zeros_like(target))) == 0
