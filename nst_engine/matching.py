"""All that is matched at a layer, together: the statistics of a form, each with its weight ("fusion" in Y. Li and
others, arXiv:1701.01036), for every style, under masks or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import tensorflow as tf

from nst_engine.config import Normalization
from nst_engine.histogram import Histogram, channel_range
from nst_engine.losses import sum_of, weighted_sum
from nst_engine.statistics import GaussianMmd, Gram, LinearMmd, Moments, Statistic, Sums, Where
from nst_engine.wasserstein import Wasserstein

Tensor = Any

NamedSums = dict[str, Sums]
"""By the statistic's name."""

_STATISTICS: Final[Mapping[str, Callable[[Normalization], Statistic]]] = {
    "gram": Gram,
    "mmd-linear": lambda _: LinearMmd(),
    "mmd-gaussian": lambda _: GaussianMmd(),
    "moments": lambda _: Moments(),
    "wasserstein": lambda _: Wasserstein(),
    "histogram": lambda _: Histogram(),
}


class Matching:
    """The statistics of `names`. With `relative`, each one's loss is a share of what empty maps would have."""

    def __init__(self, names: Iterable[str], *, gram_normalization: Normalization, relative: bool) -> None:
        self._statistics = {name: _STATISTICS[name](gram_normalization) for name in names}
        self._relative = relative

    def range(self, maps: Tensor) -> Sums:
        """What must be known of all positions of a style before it is summed up; nothing without a histogram."""
        return channel_range(maps) if "histogram" in self._statistics else {}

    def sums(self, maps: Tensor, where: Where) -> NamedSums:
        """What is summed over the positions of maps (1, rows, columns, N)."""
        return {name: statistic.sums(maps, where) for name, statistic in self._statistics.items()}

    def target(self, sums: NamedSums, where: Where, *, positions: Tensor) -> NamedSums:
        """What is kept of a style."""
        return {name: statistic.target(sums[name], where, positions) for name, statistic in self._statistics.items()}

    def loss(
        self,
        views: Sequence[NamedSums],
        targets: Sequence[NamedSums],
        *,
        positions: Sequence[Tensor],
        picture_positions: Sequence[Tensor],
        loss_weights: Sequence[Tensor] | None,
        style_weights: Sequence[Tensor] | None,
    ) -> Tensor:
        """A layer's style loss: the mean over all styles, times their weights, whose mean is 1; None for weights of 1.

        `targets` has one a style; `views`, the result's sums, and their positions one a style or one for all.
        """
        shared = len(views) == 1
        losses = []
        for index, target in enumerate(targets):
            view = 0 if shared else index
            parts = [
                self._part(name, views[view][name], target[name], positions[view], picture_positions[view])
                for name in self._statistics
            ]
            loss = sum_of(parts) if loss_weights is None else weighted_sum(parts, list(loss_weights))
            # TensorFlow makes other sums of what is multiplied, even by 1.
            losses.append(loss if style_weights is None else style_weights[index] * loss)
        return sum_of(losses) / len(losses)

    def _part(self, name: str, sums: Sums, target: Sums, positions: Tensor, picture_positions: Tensor) -> Tensor:
        statistic = self._statistics[name]
        loss = statistic.loss(sums, target, positions=positions, picture_positions=picture_positions)
        if not self._relative:
            return loss
        empty = statistic.empty(sums, target, positions)
        scale = tf.stop_gradient(
            statistic.loss(empty, target, positions=positions, picture_positions=picture_positions)
        )
        # Of a style that is empty there too, nothing is a share.
        return tf.where(scale > 0, loss / tf.where(scale > 0, scale, tf.ones_like(scale)), loss)

    def sum_specs(self, channels: int, dtype: Any) -> dict[str, dict[str, tf.TensorSpec]]:
        """The TensorFlow types of `sums`."""
        return {
            name: {part: tf.TensorSpec(shape, dtype) for part, shape in statistic.sum_shapes(channels).items()}
            for name, statistic in self._statistics.items()
        }

    def target_specs(self, channels: int, dtype: Any) -> dict[str, dict[str, tf.TensorSpec]]:
        """The TensorFlow types of a target."""
        return {
            name: {part: tf.TensorSpec(shape, dtype) for part, shape in statistic.target_shapes(channels).items()}
            for name, statistic in self._statistics.items()
        }

    def where_specs(self, channels: int, dtype: Any, *, masked: bool, ranged: bool = True) -> dict[str, tf.TensorSpec]:
        """The TensorFlow types of where and how a map is summed up; not `ranged`: without what `range` finds."""
        found = {}
        if masked:
            found["weights"] = tf.TensorSpec((None, None), tf.float32)
        if "mmd-gaussian" in self._statistics:
            found["places"] = tf.TensorSpec((None,), tf.int32)
        if ranged and "histogram" in self._statistics:
            found |= {end: tf.TensorSpec((channels,), dtype) for end in ("low", "high")}
        return found


def range_of(target: NamedSums) -> Sums:
    """What `Matching.range` found of a style."""
    return {end: target["histogram"][end] for end in ("low", "high")} if "histogram" in target else {}
