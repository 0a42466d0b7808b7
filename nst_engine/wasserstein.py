"""The squared Wasserstein-2 distance between two Gaussians, as a statistic of feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import tensorflow as tf

from nst_engine.losses import exact, gram_matrix
from nst_engine.statistics import Shapes, Sums, Where, vector_sum, weighted, zeros

Tensor = Any

_FLOOR: Final = 1e-4
"""Added to both covariances' diagonals, in shares of the style's mean variance: maps of fewer positions than channels
have eigenvalues of 0, where the root has no slope, and float32 sums leave an error of some 1e-5 there."""
_LEAST: Final = 1e-6
"""Added too, where a style has no variance at all."""


class Wasserstein:
    """Means and covariances, S, as Gaussians: (|mu - mu'|^2 + tr(S + S' - 2 (S'^1/2 S S'^1/2)^1/2)) / N.

    Sums are float32 also of bfloat16 maps, and the rest is float64: it takes roots of small differences.
    """

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """The sum of all positions and the Gram matrix."""
        return {"sum": vector_sum(maps, where), "gram": gram_matrix(weighted(exact(maps), where))}

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """The mean, the root of the covariance, and what was added to its diagonal."""
        mean, covariance = _gaussian(sums, positions)
        floor = _FLOOR * tf.maximum(tf.reduce_mean(tf.linalg.diag_part(covariance)), 0) + _LEAST
        values, vectors = tf.linalg.eigh(_raised(covariance, floor))
        # Rounding may leave some below the floor.
        root = tf.matmul(vectors * tf.sqrt(tf.maximum(values, floor)), vectors, transpose_b=True)
        kind = sums["sum"].dtype
        return {"mean": tf.cast(mean, kind), "root": tf.cast(root, kind), "floor": tf.cast(floor, kind)}

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """The squared distance, divided by N."""
        mean, covariance = _gaussian(sums, positions)
        known = {name: tf.cast(values, tf.float64) for name, values in target.items()}
        raised = _raised(covariance, known["floor"])
        between = tf.reduce_sum(tf.square(mean - known["mean"]))
        # The trace of a symmetric root's square is the sum of its squares.
        traces = tf.linalg.trace(raised) + tf.reduce_sum(tf.square(known["root"]))
        total = between + traces - 2 * _root_trace(raised, known["root"], known["floor"])
        return tf.cast(total / covariance.shape[-1], sums["sum"].dtype)

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """Zeros."""
        return zeros(sums)

    def sum_shapes(self, channels: int) -> Shapes:
        """A vector and a matrix."""
        return {"sum": (channels,), "gram": (channels, channels)}

    def target_shapes(self, channels: int) -> Shapes:
        """A vector, a matrix and a number."""
        return {"mean": (channels,), "root": (channels, channels), "floor": ()}


def _gaussian(sums: Sums, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance, in float64."""
    count = tf.cast(positions, tf.float64)
    mean = tf.cast(sums["sum"], tf.float64) / count
    return mean, tf.cast(sums["gram"], tf.float64) / count - mean[:, tf.newaxis] * mean


def _raised(covariance: Tensor, floor: Tensor) -> Tensor:
    return covariance + floor * tf.eye(covariance.shape[-1], dtype=covariance.dtype)


def _root_trace(covariance: Tensor, root: Tensor, floor: Tensor) -> Tensor:
    """tr (R S R)^1/2, whose gradient for S is 1/2 R (R S R)^-1/2 R: unlike that of the eigenvectors, which automatic
    differentiation takes, it is finite where eigenvalues are equal.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def trace(covariance: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        values, vectors = tf.linalg.eigh(tf.matmul(tf.matmul(root, covariance), root))
        roots = tf.sqrt(tf.maximum(values, tf.square(floor)))

        def gradient(upstream: Tensor) -> Tensor:
            half = tf.matmul(root, vectors)
            return upstream / 2 * tf.matmul(half / roots, half, transpose_b=True)

        return tf.reduce_sum(roots), gradient

    return trace(covariance)
