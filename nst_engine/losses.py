"""The losses of Gatys, Ecker and Bethge (arXiv:1508.06576), as the paper's equations 1 to 4 write them, with
the other normalisations in use, and total variation. Pure functions of TensorFlow tensors; F is a layer's
feature map as a matrix of M positions by N channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nst_engine.config import Normalization, TotalVariationForm

Tensor = Any


def content_loss(features: Tensor, target: Tensor, *, normalization: Normalization) -> Tensor:
    """Equation 1: 1/2 sum (F - P)^2 over all positions and channels; a float32 scalar.

    "keras" leaves out the half, "mean" divides the sum by M N. Differences are taken in the features' dtype
    and summed in float32.
    """
    squares = tf.square(exact(features - target))
    if normalization == "mean":
        return tf.reduce_mean(squares)
    total = tf.reduce_sum(squares)
    return total / 2 if normalization == "gatys" else total


def relative_content_loss(features: Tensor, target: Tensor) -> Tensor:
    """sum (F - P)^2 / sum P^2: 1 where there is nothing of the content; a float32 scalar, 0 where P is empty."""
    difference = content_loss(features, target, normalization="keras")
    return tf.math.divide_no_nan(difference, tf.reduce_sum(tf.square(exact(target))))


def gram_matrix(features: Tensor) -> Tensor:
    """Equation 2: G_ij = sum_k F_ki F_kj, from (..., N) to float32 (N, N).

    The product is taken in the features' dtype, since that is where bfloat16 hardware pays, and is float32 from
    there on.
    """
    return exact(_gram_product(tf.reshape(features, (-1, features.shape[-1]))))


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _gram_product(positions: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    def gradient(upstream: Tensor) -> Tensor:
        # Autodiff sees two factors and multiplies twice; F (U + U^T) is the same in one product.
        return tf.matmul(positions, upstream + tf.transpose(upstream))

    return tf.matmul(positions, positions, transpose_a=True), gradient


def style_loss(
    gram: Tensor,
    target: Tensor,
    *,
    positions: Tensor,
    picture_positions: Tensor,
    normalization: Normalization,
) -> Tensor:
    """Equation 3: E_l = 1 / (4 N^2 M^2) sum (G - A)^2, a scalar in the Gram matrices' dtype.

    `positions` is M, the feature map's rows times columns. "mean" leaves out the 4; "keras" takes N = 3 and
    M = `picture_positions`, the picture's rows times columns, in every layer, as the Keras example does.
    """
    channels = gram.shape[-1]
    if normalization == "keras":
        scale = 4.0 * 3.0**2 * tf.square(picture_positions)
    else:
        scale = (4.0 if normalization == "gatys" else 1.0) * channels**2 * tf.square(positions)
    return tf.reduce_sum(tf.square(gram - target)) / scale


def weighted_sum(losses: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Equation 4: L = sum_l w_l E_l."""
    return sum_of([weight * loss for loss, weight in zip(losses, weights, strict=True)])


def sum_of(numbers: list[Tensor]) -> Tensor:
    """The sum of scalars, always in the same order.

    That of tf.add_n depends on which of them it may overwrite, and so, in the last bit, on the moment.
    """
    return tf.reduce_sum(tf.stack(numbers))


def total_variation(picture: Tensor, *, form: TotalVariationForm) -> Tensor:
    """How rough a picture (rows, columns, 3) is, from the differences of neighbouring pixels; a scalar.

    "keras": sum (dy^2 + dx^2)^1.25 without the last row and column, as the Keras example has it; "l1": the
    sum of absolute differences, as tf.image.total_variation; "l2": the sum of squared differences.
    """
    if form == "keras":
        return _keras_variation(picture)
    return _variation_of_absolutes(picture) if form == "l1" else _variation_of_squares(picture)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _variation_of_absolutes(picture: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    down, right = _differences(picture)

    def gradient(upstream: Tensor) -> Tensor:
        return _undifferenced(upstream * tf.sign(down), upstream * tf.sign(right))

    return tf.reduce_sum(tf.abs(down)) + tf.reduce_sum(tf.abs(right)), gradient


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _variation_of_squares(picture: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    down, right = _differences(picture)

    def gradient(upstream: Tensor) -> Tensor:
        return _undifferenced(2 * upstream * down, 2 * upstream * right)

    return tf.reduce_sum(tf.square(down)) + tf.reduce_sum(tf.square(right)), gradient


def _differences(picture: Tensor) -> tuple[Tensor, Tensor]:
    return picture[1:] - picture[:-1], picture[:, 1:] - picture[:, :-1]


def _undifferenced(by_down: Tensor, by_right: Tensor) -> Tensor:
    """The gradient for the picture from those for its differences.

    Automatic differentiation would add four slices up, in an order that depends on the moment, see `sum_of`.
    """
    vertical = tf.pad(by_down, ((1, 0), (0, 0), (0, 0))) - tf.pad(by_down, ((0, 1), (0, 0), (0, 0)))
    horizontal = tf.pad(by_right, ((0, 0), (1, 0), (0, 0))) - tf.pad(by_right, ((0, 0), (0, 1), (0, 0)))
    return vertical + horizontal


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _keras_variation(picture: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    down = picture[1:, :-1] - picture[:-1, :-1]
    right = picture[:-1, 1:] - picture[:-1, :-1]
    squares = tf.square(down) + tf.square(right)
    root = tf.sqrt(tf.sqrt(squares))

    def gradient(upstream: Tensor) -> Tensor:
        # Two powers and six slices to undo cost autodiff three times as long.
        by_down, by_right = 2.5 * upstream * root * down, 2.5 * upstream * root * right
        here = tf.pad(by_down + by_right, ((0, 1), (0, 1), (0, 0)))
        below, beside = tf.pad(by_down, ((1, 0), (0, 1), (0, 0))), tf.pad(by_right, ((0, 1), (1, 0), (0, 0)))
        return below + beside - here

    return tf.reduce_sum(squares * root), gradient


def exact(tensor: Tensor) -> Tensor:
    """In float32 what is in bfloat16, and all else as it is."""
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
