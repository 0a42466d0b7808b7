"""A picture through the network in tiles, forward only, for `tiled_objective`: what its tiles own is put together or
added up, and the maps between the segments are kept. Of a picture on disk, they are on disk too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nst_engine.arrays import empty, empty_like, release
from nst_engine.tiling import Tile, Tiling
from nst_engine.traced_segments import TracedSegment
from nst_engine.vgg19 import CONVOLUTIONS
from nst_engine.views import Views

_LAYERS = {layer.name: layer for layer in CONVOLUTIONS}

Sums = Any
"""What all views sum up of a layer: a nested structure of float64 arrays."""


@dataclass(frozen=True)
class Maps:
    """The map of each content layer, (rows, columns, channels), and the sum of its squares."""

    layers: Mapping[str, np.ndarray]
    energies: Mapping[str, float]


def shape_of(layer: str, rows: int, columns: int) -> tuple[int, int, int]:
    """The shape of a layer's map of a picture of that size."""
    stride = _LAYERS[layer].stride
    return rows // stride, columns // stride, _LAYERS[layer].channels


class Forward:
    """The way through `segments`, in tiles as `tiling` says; pictures are in `number`, maps in `feature_number`."""

    def __init__(
        self, segments: Sequence[TracedSegment], tiling: Tiling, *, number: np.dtype, feature_number: np.dtype
    ) -> None:
        self._segments = segments
        self._tiling = tiling
        self._number = number
        self._feature_number = feature_number

    def features(self, content: np.ndarray) -> Maps:
        """The maps of the content layers, on disk; raises DiskSpaceError."""
        rows, columns = content.shape[:2]
        found = {
            layer: empty(shape_of(layer, rows, columns), self._feature_number, on_disk=True)
            for traced in self._segments
            for layer in traced.content_layers
        }
        energies = dict.fromkeys(found, 0.0)

        def keep(traced: TracedSegment, layer: str, tile: Tile, features: Any) -> None:
            values = features[0].numpy()
            found[layer][traced.owned(tile)(layer)] = values
            energies[layer] += float(np.square(values, dtype=np.float64).sum())
            release(found[layer])

        source = content.astype(self._number, copy=False)
        for traced in self._segments:
            source = self._through(
                traced, source, lambda _, *given, of=traced: of.features(*given), traced.content_layers, keep
            )
        return Maps(found, energies)

    def ranges(self, style: np.ndarray) -> dict[str, dict[str, Any]]:
        """What must be known of each style layer's map before it is summed up, see `Matching.range`."""
        found = dict[str, dict[str, Any]]()

        def take(_traced: TracedSegment, layer: str, _tile: Tile, ends: dict[str, Any]) -> None:
            known = found.get(layer, ends)
            found[layer] = {
                "low": tf.minimum(known["low"], ends["low"]),
                "high": tf.maximum(known["high"], ends["high"]),
            }

        source = style.astype(self._number, copy=False)
        for traced in self._segments:
            source = self._through(
                traced, source, lambda _, *given, of=traced: of.ranges(*given), traced.style_layers, take
            )
        return found

    def sums(
        self, picture: np.ndarray, views: Views, *, of_style: bool = False
    ) -> tuple[dict[str, Sums], list[np.ndarray]]:
        """What the views sum up of the style layers, and all maps that another segment begins with.

        Of a style there is one view, masked or not, whatever the form has.
        """
        sums = dict[str, Sums]()

        def add(_traced: TracedSegment, layer: str, _tile: Tile, found: Any) -> None:
            values = tf.nest.map_structure(lambda tensor: tensor.numpy().astype(np.float64), found)
            sums[layer] = tf.nest.map_structure(np.add, sums[layer], values) if layer in sums else values

        def compute(traced: TracedSegment, tile: Tile, source: Any, core: Any) -> tuple[list[Any], list[Any]]:
            function = traced.style_sums[bool(views.guides[0].weights)] if of_style else traced.sums
            found: tuple[list[Any], list[Any]] = function(
                source, core, views.wheres(traced.style_layers, traced.owned(tile))
            )
            return found

        source = picture.astype(self._number, copy=False)
        maps = [source]
        for traced in self._segments:
            if traced.segment.pools or traced.style_layers:
                source = self._through(traced, source, functools.partial(compute, traced), traced.style_layers, add)
            if traced.segment.pools:
                maps.append(source)
        return sums, maps

    def _through(
        self,
        traced: TracedSegment,
        source: np.ndarray,
        compute: Callable[[Tile, Any, Any], tuple[list[Any], list[Any]]],
        layers: tuple[str, ...],
        take: Callable[[TracedSegment, str, Tile, Any], None],
    ) -> np.ndarray:
        """The pooled map behind the segment, empty behind the last; `take` is given what `compute` finds of each of
        `layers`, tile by tile.
        """
        segment, stride = traced.segment, traced.segment.alignment
        rows, columns = (length // stride if segment.pools else 0 for length in source.shape[:2])
        behind = empty_like(source, (rows, columns, segment.layers[-1][0].channels), self._feature_number)
        for row in self._tiling.tiles(segment, *source.shape[:2]):
            for tile in row:
                pooled, found = compute(tile, tf.convert_to_tensor(source[tile.read]), tf.constant(tile.core))
                for part in pooled:
                    behind[tile.owned(stride)] = part[0].numpy()
                for layer, values in zip(layers, found, strict=True):
                    take(traced, layer, tile, values)
                release(source, behind)
        return behind
