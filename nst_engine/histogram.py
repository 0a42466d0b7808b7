"""The histogram loss of E. Risser, P. Wilmot and C. Barnes (arXiv:1701.08893), as a statistic of feature maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import tensorflow as tf

from nst_engine.statistics import Shapes, Sums, Where, matrix, weight_vector

Tensor = Any

BINS: Final = 256


def channel_range(maps: Tensor) -> Sums:
    """Each channel's least and greatest value, where the bins of a style end: "low" and "high", (N,)."""
    positions = matrix(maps)
    return {"low": tf.reduce_min(positions, 0), "high": tf.reduce_max(positions, 0)}


class Histogram:
    """Each channel's distribution: sum |F - R(F)|^2 / (N M), with R the monotone map to the style's distribution.

    R is constant for the gradient, and in each of 256 bins between the style's least and greatest value of that
    channel; what is beyond counts in the last bin there.
    """

    def sums(self, maps: Tensor, where: Where) -> Sums:
        """The values in each bin, counted and summed, and the sum of all squares."""
        weights, low, high = weight_vector(maps, where), where["low"], where["high"]

        # A bin is a step; what slopes is what the loss makes of sums, where a value stays in its bin.
        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def binned(maps: Tensor) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
            positions = matrix(maps)
            bins = _flat_bins(positions, low, high)
            channels = positions.shape[-1]

            def added(values: Tensor) -> Tensor:
                return tf.reshape(tf.math.unsorted_segment_sum(values, bins, channels * BINS), (channels, BINS))

            values = positions * weights[:, tf.newaxis]
            found = (
                added(tf.broadcast_to(weights[:, tf.newaxis], tf.shape(positions))),
                added(values),
                tf.reduce_sum(values * positions, 0),
            )

            def gradient(_counts: Tensor, sums: Tensor, squares: Tensor) -> Tensor:
                again = matrix(maps)
                slopes = tf.gather(tf.reshape(sums, (-1,)), _flat_bins(again, low, high)) + 2 * again * squares
                return tf.reshape(tf.cast(slopes * weights[:, tf.newaxis], maps.dtype), tf.shape(maps))

            return found, gradient

        counts, sums, squares = binned(maps)
        return {"counts": counts, "sums": sums, "squares": squares}

    def target(self, sums: Sums, where: Where, positions: Tensor) -> Sums:
        """The bins' ends, and counts and sums a position."""
        return {
            "low": where["low"],
            "high": where["high"],
            "counts": sums["counts"] / positions,
            "sums": sums["sums"] / positions,
        }

    def loss(self, sums: Sums, target: Sums, *, positions: Tensor, picture_positions: Tensor) -> Tensor:
        """sum |F - R(F)|^2 / (N M), from sum F^2 - 2 sum_b r_b sum F + sum_b r_b^2 n_b."""
        counts, values, squares = (tf.cast(sums[name], tf.float64) for name in ("counts", "sums", "squares"))
        levels = tf.stop_gradient(_levels(counts, target))
        total = tf.reduce_sum(squares) - 2 * tf.reduce_sum(levels * values) + tf.reduce_sum(levels**2 * counts)
        channels = sums["counts"].shape[0]
        return tf.cast(total, positions.dtype) / (channels * positions)

    def empty(self, sums: Sums, target: Sums, positions: Tensor) -> Sums:
        """All positions in the bin of 0."""
        low = target["low"]
        bins = _bins(tf.zeros_like(low), low, target["high"])
        counts = tf.one_hot(bins, BINS, dtype=low.dtype) * positions
        return {"counts": counts, "sums": tf.zeros_like(sums["sums"]), "squares": tf.zeros_like(sums["squares"])}

    def sum_shapes(self, channels: int) -> Shapes:
        """Two tables of bins, and a vector."""
        return {"counts": (channels, BINS), "sums": (channels, BINS), "squares": (channels,)}

    def target_shapes(self, channels: int) -> Shapes:
        """Two tables of bins, and two vectors."""
        return {"low": (channels,), "high": (channels,), "counts": (channels, BINS), "sums": (channels, BINS)}


def _bins(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The bin of each value, 0 in a channel without any range."""
    places = tf.math.divide_no_nan((values - low) * BINS, high - low)
    return tf.cast(tf.clip_by_value(places, 0, BINS - 1), tf.int32)


def _flat_bins(positions: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same of (M, N), as indices into all channels' bins one after another."""
    return _bins(positions, low, high) + BINS * tf.range(positions.shape[-1])


def _levels(counts: Tensor, target: Sums) -> Tensor:
    """r_b, (N, 256): the mean of what the style has at the same ranks as the result has in that bin.

    The style's sum up to a rank is a broken line through its bins; r_b is its mean slope between two ranks.
    """
    ranks = _cumulated(counts / tf.reduce_sum(counts, 1, keepdims=True))
    known = tf.cast(target["counts"], tf.float64)
    total = tf.reduce_sum(known, 1, keepdims=True)
    known_ranks = _cumulated(known / total)
    known_sums = _cumulated(tf.cast(target["sums"], tf.float64) / total)
    after = tf.clip_by_value(tf.searchsorted(known_ranks, ranks), 1, BINS)
    start, stop = (tf.gather(known_ranks, index, batch_dims=1) for index in (after - 1, after))
    sum_start, sum_stop = (tf.gather(known_sums, index, batch_dims=1) for index in (after - 1, after))
    share = tf.clip_by_value(tf.math.divide_no_nan(ranks - start, stop - start), 0, 1)
    sums = sum_start + share * (sum_stop - sum_start)
    return tf.math.divide_no_nan(sums[:, 1:] - sums[:, :-1], ranks[:, 1:] - ranks[:, :-1])


def _cumulated(shares: Tensor) -> Tensor:
    """The sums of the first 0, 1, ... 256 of each row."""
    return tf.pad(tf.cumsum(shares, 1), ((0, 0), (1, 0)))
