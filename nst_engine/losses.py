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
    squares = tf.square(_exact(features - target))
    if normalization == "mean":
        return tf.reduce_mean(squares)
    total = tf.reduce_sum(squares)
    return total / 2 if normalization == "gatys" else total


def gram_matrix(features: Tensor) -> Tensor:
    """Equation 2: G_ij = sum_k F_ki F_kj, from (..., N) to float32 (N, N).

    The product is taken in the features' dtype, since that is where bfloat16 hardware pays, and is float32 from
    there on.
    """
    return _exact(_gram_product(tf.reshape(features, (-1, features.shape[-1]))))


def gram_matrix_beside(features: Tensor) -> tuple[Tensor, Tensor]:
    """The features again, for all that comes after them, and their Gram matrix.

    The gradient that the Gram matrix gives them is as large as they are and could be computed long before that of what
    comes after them; here it waits for that one, so that it need not be kept.
    """
    after, product = _features_and_gram_product(features)
    return after, _exact(product)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _features_and_gram_product(features: Tensor) -> tuple[tuple[Tensor, Tensor], Callable[..., Tensor]]:
    positions = tf.reshape(features, (-1, features.shape[-1]))

    def gradient(after: Tensor, upstream: Tensor) -> Tensor:
        with tf.control_dependencies([after]):
            product = tf.matmul(positions, upstream + tf.transpose(upstream))
        return after + tf.reshape(product, tf.shape(features))

    return (tf.identity(features), tf.matmul(positions, positions, transpose_a=True)), gradient


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
    return tf.add_n([weight * loss for loss, weight in zip(losses, weights, strict=True)])


def total_variation(picture: Tensor, *, form: TotalVariationForm) -> Tensor:
    """How rough a picture (rows, columns, 3) is, from the differences of neighbouring pixels; a scalar.

    "keras": sum (dy^2 + dx^2)^1.25 without the last row and column, as the Keras example has it; "l1": the
    sum of absolute differences, as tf.image.total_variation; "l2": the sum of squared differences.
    """
    if form == "keras":
        return _keras_variation(picture)
    down = picture[1:] - picture[:-1]
    right = picture[:, 1:] - picture[:, :-1]
    if form == "l1":
        return tf.reduce_sum(tf.abs(down)) + tf.reduce_sum(tf.abs(right))
    return tf.reduce_sum(tf.square(down)) + tf.reduce_sum(tf.square(right))


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


def _exact(tensor: Tensor) -> Tensor:
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor
