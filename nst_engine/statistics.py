"""What of a style's feature maps can be matched. Every statistic is a function of sums over positions, so that a
picture in tiles, a mask and bfloat16 all mean the same to it: sums of tiles add up, a mask gives positions weights,
and sums are float32 whatever the maps are in. Here are those that need little more than means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import tensorflow as tf

from nst_engine.config import Normalization
from nst_engine.losses import exact, gram_matrix, style_loss

Tensor = Any

Sums = dict[str, Tensor]
"""Named tensors: what is summed over positions, or what is kept of a style."""

Where = Mapping[str, Tensor]
"""Where and how a map is summed up: "weights", (rows, columns), of its positions (without: 1 each); "places", the flat
positions of samples, -1 where a sample is in another tile; "low" and "high", the ends of each channel's bins. What is
not needed may be left out."""

Shapes = dict[str, tuple[int | None, ...]]

_DEVIATION_FLOOR: Final = 1e-5
"""Added to variances before their root, whose slope at 0 is infinite."""


class Statistic(Protocol):
    """What is matched: `sums` of a map, the `target` that a style's sums make, and the `loss` of the result's."""

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """What is summed over the positions of maps (1, rows, columns, N); additive over tiles."""

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """What is kept of a style with these sums over so many positions (the sum of their weights)."""

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """A layer's loss, a scalar, from sums over `positions`; `picture_positions` are the picture's pixels."""

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """What the sums would be if the maps were zero everywhere."""

    def sum_shapes(self, channels: int) -> Shapes:
        """The shapes of the sums."""

    def target_shapes(self, channels: int) -> Shapes:
        """The shapes of a target."""


def zeros(sums: Sums) -> Sums:
    """Sums of the same shapes, all zero."""
    return {name: tf.zeros_like(values) for name, values in sums.items()}


def matrix(maps: Tensor) -> Tensor:
    """Maps (1, rows, columns, N) as (M, N), in float32 or float64."""
    return exact(tf.reshape(maps, (-1, maps.shape[-1])))


def weight_vector(maps: Tensor, where: Where) -> Tensor:
    """The weights of all positions of `matrix(maps)`, (M,)."""
    dtype = tf.float64 if maps.dtype == tf.float64 else tf.float32
    if "weights" in where:
        return tf.cast(tf.reshape(where["weights"], (-1,)), dtype)
    return tf.ones((tf.reduce_prod(tf.shape(maps)[:-1]),), dtype)


def weighted(maps: Tensor, where: Where) -> Tensor:
    """The maps times the roots of the positions' weights, so that products of two have the weights themselves."""
    if "weights" not in where:
        return maps
    roots = tf.reshape(tf.sqrt(weight_vector(maps, where)), (*tf.unstack(tf.shape(maps)[:-1]), 1))
    return maps * tf.cast(roots, maps.dtype)


def vector_sum(maps: Tensor, where: Where) -> Tensor:
    """sum_k w_k F_k, (N,). As a product it is summed in blocks, and so loses less to rounding."""
    return tf.linalg.matvec(matrix(maps), weight_vector(maps, where), transpose_a=True)


class Gram:
    """The Gram matrix (L. Gatys, A. Ecker and M. Bethge, arXiv:1508.06576, equations 2 and 3)."""

    def __init__(self, normalization: Normalization) -> None:
        self._normalization = normalization

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """G_ij = sum_k w_k F_ki F_kj; the product is in the maps' dtype."""
        return {"gram": gram_matrix(weighted(maps, where))}

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """G / M, which a style of another size than the result has too."""
        return {"gram": sums["gram"] / positions}

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """Equation 3, see `losses.style_loss`."""
        return style_loss(
            sums["gram"],
            target["gram"] * positions,
            positions=positions,
            picture_positions=picture_positions,
            normalization=self._normalization,
        )

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """Zeros."""
        return zeros(sums)

    def sum_shapes(self, channels: int) -> Shapes:
        """A matrix."""
        return {"gram": (channels, channels)}

    def target_shapes(self, channels: int) -> Shapes:
        """A matrix."""
        return {"gram": (channels, channels)}


class LinearMmd:
    """The maximum mean discrepancy with a linear kernel (Y. Li and others, arXiv:1701.01036).

    That is the squared distance of the means, here divided by N.
    """

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """The sum of all positions."""
        return {"sum": vector_sum(maps, where)}

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """The mean."""
        return {"mean": sums["sum"] / positions}

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """|mu - mu'|^2 / N."""
        return tf.reduce_mean(tf.square(sums["sum"] / positions - target["mean"]))

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """Zeros."""
        return zeros(sums)

    def sum_shapes(self, channels: int) -> Shapes:
        """A vector."""
        return {"sum": (channels,)}

    def target_shapes(self, channels: int) -> Shapes:
        """A vector."""
        return {"mean": (channels,)}


class Moments:
    """Each channel's mean and deviation, as in batch normalisation (Y. Li and others, arXiv:1701.01036)."""

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """The sums of all positions and of their squares."""
        positions, weights = matrix(maps), weight_vector(maps, where)
        return {
            "sum": vector_sum(maps, where),
            "squares": tf.linalg.matvec(tf.square(positions), weights, transpose_a=True),
        }

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """Mean and deviation."""
        mean, deviation = self._moments(sums, positions)
        return {"mean": mean, "deviation": deviation}

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """sum_i ((mu_i - mu'_i)^2 + (sigma_i - sigma'_i)^2) / N."""
        mean, deviation = self._moments(sums, positions)
        return tf.reduce_mean(tf.square(mean - target["mean"]) + tf.square(deviation - target["deviation"]))

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """Zeros."""
        return zeros(sums)

    def sum_shapes(self, channels: int) -> Shapes:
        """Two vectors."""
        return {"sum": (channels,), "squares": (channels,)}

    def target_shapes(self, channels: int) -> Shapes:
        """Two vectors."""
        return {"mean": (channels,), "deviation": (channels,)}

    def _moments(self, sums: Sums, positions: Tensor) -> tuple[Tensor, Tensor]:
        mean = sums["sum"] / positions
        variance = tf.maximum(sums["squares"] / positions - tf.square(mean), 0)
        return mean, tf.sqrt(variance + _DEVIATION_FLOOR)


class GaussianMmd:
    """The maximum mean discrepancy with a Gaussian kernel (Y. Li and others, arXiv:1701.01036).

    It is the biased estimate, 0 where both have the same samples, from at most `masks.SAMPLES` positions of each,
    always the same ones. The kernel is exp(-|x - y|^2 / (2 s^2)), with s^2 the mean squared distance of all pairs of
    the style's samples.
    """

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """The samples, (K, N), each a sum over the one position where it is."""
        return {"samples": _rows(maps, where["places"])}

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """The samples, the square of the kernel's width, and the mean of the kernel over all pairs of them."""
        samples = sums["samples"]
        width = tf.reduce_mean(_squared_distances(samples, samples))
        return {"samples": samples, "width": width, "own": _kernel_mean(samples, samples, width)}

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """Mean k(x, x') + mean k(y, y') - 2 mean k(x, y)."""
        samples, width = sums["samples"], target["width"]
        across = _kernel_mean(samples, target["samples"], width)
        return _kernel_mean(samples, samples, width) + target["own"] - 2 * across

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """Zeros."""
        return zeros(sums)

    def sum_shapes(self, channels: int) -> Shapes:
        """A matrix of at most `masks.SAMPLES` rows."""
        return {"samples": (None, channels)}

    def target_shapes(self, channels: int) -> Shapes:
        """A matrix of at most `masks.SAMPLES` rows, and two numbers."""
        return {"samples": (None, channels), "width": (), "own": ()}


def _rows(maps: Tensor, places: Tensor) -> Tensor:
    """The maps at flat positions, (K, N), zeros where one is -1."""
    here, rows = (places >= 0)[:, tf.newaxis], tf.maximum(places, 0)

    # Automatic differentiation would give a sparse gradient.
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def gathered(maps: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        flat = tf.reshape(maps, (-1, maps.shape[-1]))
        found = exact(tf.gather(flat, rows))

        def gradient(upstream: Tensor) -> Tensor:
            kept = tf.where(here, upstream, tf.zeros_like(upstream))
            return tf.reshape(
                tf.cast(tf.scatter_nd(rows[:, tf.newaxis], kept, tf.shape(flat)), maps.dtype), tf.shape(maps)
            )

        return tf.where(here, found, tf.zeros_like(found)), gradient

    return gathered(maps)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    lengths = tf.reduce_sum(tf.square(x), 1)[:, tf.newaxis] + tf.reduce_sum(tf.square(y), 1)
    return tf.maximum(lengths - 2 * tf.matmul(x, y, transpose_b=True), 0)


def _kernel_mean(x: Tensor, y: Tensor, width: Tensor) -> Tensor:
    return tf.reduce_mean(tf.exp(tf.math.divide_no_nan(-_squared_distances(x, y), 2 * width)))
