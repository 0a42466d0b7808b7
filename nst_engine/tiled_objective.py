"""The loss and gradient that `objective` computes of a whole picture, in memory bounded by a tile, for pictures of any
size. A first pass through the segments in tiles sums their Gram matrices over the positions that the tiles own and
keeps the maps between the segments; the rest of the network, where it is worked on as a whole, needs none. With the
sums fixed, a second pass goes back segment by segment, and tile by tile adds up the gradient. Both are exact: nothing
differs from the whole picture's but the order of sums. Of a picture on disk, all that is as large is on disk too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nst_engine.arrays import empty, empty_like, release
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.losses import total_variation, weighted_sum
from nst_engine.objective import Form, StyleTargets, Targets, mean_style_loss
from nst_engine.tiling import Tile, Tiling
from nst_engine.traced_segments import TracedRest, TracedSegment
from nst_engine.vgg19 import CONVOLUTIONS, Network, deepest

_LAYERS = {layer.name: layer for layer in CONVOLUTIONS}

Maps = Mapping[str, np.ndarray]
"""The map of each content layer, (rows, columns, channels)."""


@dataclass(frozen=True)
class _Sums:
    """One evaluation of a picture (rows, columns) large: its targets, by how much the loss grows with each layer's sum
    of squared differences and with its style loss, and what has been found of the two so far.
    """

    size: tuple[int, int]
    targets: Targets[Maps]
    content_slopes: dict[str, float]
    style_slopes: dict[str, float]
    squares: dict[str, float] = field(default_factory=dict)
    style_parts: dict[str, float] = field(default_factory=dict)

    def add_squares(self, layers: Sequence[str], values: Sequence[Any]) -> None:
        """Count in what a tile owns of the content layers' sums."""
        for layer, value in zip(layers, values, strict=True):
            self.squares[layer] = self.squares.get(layer, 0.0) + float(value)

    def add_styles(self, layers: Sequence[str], values: Sequence[Any]) -> None:
        """Count in the whole losses of style layers."""
        self.style_parts.update(zip(layers, map(float, values), strict=True))


class TiledObjective:
    """The traces of one form on one network, as `TracedObjective`, for pictures that are cut as `tiling` says.

    The content's targets are maps on disk, wherever the picture is: they are as large as the picture's, and to read
    them costs less than a hundredth of an evaluation's time (66 MB at 1080 x 1920: read in 0.1 s, of 54 s).
    """

    def __init__(self, form: Form, network: Network, *, tiling: Tiling) -> None:
        layers = (*form.content_layers, *form.style_layers)
        dtype = tf.float64 if form.dtype == "float64" else tf.float32
        self.form = form
        self.tiling = tiling
        self._dtype = dtype
        self._number = np.dtype(dtype.as_numpy_dtype)
        self._feature_number = np.dtype(tf.as_dtype(form.dtype).as_numpy_dtype)
        parts = tiling.segments(deepest(layers))
        self._tiled = [TracedSegment(part, network, form, dtype) for part in parts if not part.whole]
        self._rest = next((TracedRest(part, network, form, dtype) for part in parts if part.whole), None)
        # Those whose Gram matrices must be summed up before anything is known of their losses.
        self._summed_styles = [
            layer for layer in form.style_layers if any(layer in traced.style_layers for traced in self._tiled)
        ]
        matrices = [tf.TensorSpec((_LAYERS[layer].channels,) * 2, dtype) for layer in self._summed_styles]
        vector = tf.TensorSpec((None,), dtype)
        self._styles = tf.function(
            self._style_losses_and_gradients,
            input_signature=[matrices, [matrices] * form.styles, vector, tf.TensorSpec((), dtype), vector],
            autograph=False,
        )
        self._variation = tf.function(
            self._variation_and_gradient, input_signature=[tf.TensorSpec((None, None, 3), dtype)], autograph=False
        )

    def content_targets(self, content: np.ndarray) -> Maps:
        """The targets of a preprocessed content, (rows, columns, 3); raises DiskSpaceError."""
        rows, columns = content.shape[:2]
        found = {
            layer: empty(_shape(layer, rows, columns), self._feature_number, on_disk=True)
            for layer in self.form.content_layers
        }
        strides = {layer.name: stride for part in self._segments for layer, stride in part.segment.layers}

        def keep(layer: str, tile: Tile, features: np.ndarray) -> None:
            found[layer][tile.owned(strides[layer])] = features[0]
            release(found[layer])

        source = content.astype(self._number, copy=False)
        for traced in self._segments:
            source = self._through(traced, source, traced.features, traced.content_layers, keep)
        return found

    def style_targets(self, style: np.ndarray) -> StyleTargets:
        """The targets of a preprocessed style, (rows, columns, 3); raises DiskSpaceError."""
        grams, _ = self._grams(style, self._segments)
        rows, columns = style.shape[:2]
        targets = [grams[layer] / _positions(layer, rows, columns) for layer in self.form.style_layers]
        return StyleTargets([tf.convert_to_tensor(target, self._dtype) for target in targets])

    def evaluate(self, picture: np.ndarray, targets: Targets[Maps], config: TransferConfig) -> Evaluation:
        """The losses of a preprocessed picture under the weights of `config`, and their gradient.

        Raises DiskSpaceError where the picture is on disk.
        """
        form = self.form
        rows, columns = picture.shape[:2]
        scales = {layer: self._content_scale(layer, rows, columns) for layer in form.content_layers}
        sums = _Sums(
            (rows, columns),
            targets,
            {layer: config.content_weight * config.content_layers[layer] * scale for layer, scale in scales.items()},
            {layer: config.style_weight * config.style_layers[layer] for layer in form.style_layers},
        )
        grams, maps = self._grams(picture, self._tiled)
        slopes = self._gram_slopes(grams, sums)
        gradient = None if self._rest is None else self._rest_back(self._rest, maps.pop(), sums)
        for traced in reversed(self._tiled):
            gradient = self._back(traced, maps.pop(), gradient, slopes, sums)
        assert gradient is not None
        tv = self._add_variation(picture, gradient, config.tv_weight) if form.tv_form else 0.0
        contents = [sums.squares[layer] * scales[layer] for layer in form.content_layers]
        styles = [sums.style_parts[layer] for layer in form.style_layers]
        content = sum(sums.squares[layer] * slope for layer, slope in sums.content_slopes.items())
        style = sum(sums.style_parts[layer] * slope for layer, slope in sums.style_slopes.items())
        losses = Losses(content + style + tv, content, style, tv, form.named([*contents, *styles]))
        return Evaluation(losses, gradient)

    @property
    def _segments(self) -> list[TracedSegment]:
        return [*self._tiled, self._rest] if self._rest else self._tiled

    def _through(
        self,
        traced: TracedSegment,
        source: np.ndarray,
        compute: Callable[[Any, Any], tuple[list[Any], list[Any]]],
        layers: tuple[str, ...],
        take: Callable[[str, Tile, np.ndarray], None],
    ) -> np.ndarray:
        """The pooled map behind the segment, empty behind the last; `take` is given what `compute` finds of each of
        `layers`, tile by tile.
        """
        segment, stride = traced.segment, traced.segment.alignment
        rows, columns = (length // stride if segment.pools else 0 for length in source.shape[:2])
        behind = empty_like(source, (rows, columns, segment.layers[-1][0].channels), self._feature_number)
        for row in self.tiling.tiles(segment, *source.shape[:2]):
            for tile in row:
                pooled, found = compute(tf.convert_to_tensor(source[tile.read]), tf.constant(tile.core))
                for part in pooled:
                    behind[tile.owned(stride)] = part[0].numpy()
                for layer, values in zip(layers, found, strict=True):
                    take(layer, tile, values.numpy())
                release(source, behind)
        return behind

    def _grams(
        self, picture: np.ndarray, through: Sequence[TracedSegment]
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """The Gram matrices of the style layers in these segments, and all maps that another segment begins with."""
        layers = [layer for traced in through for layer in traced.style_layers]
        sums = {layer: np.zeros((_LAYERS[layer].channels,) * 2, np.float64) for layer in layers}

        def add(layer: str, _tile: Tile, gram: np.ndarray) -> None:
            sums[layer] += gram

        source = picture.astype(self._number, copy=False)
        maps = [source]
        for traced in through:
            if traced.segment.pools or traced.style_layers:
                source = self._through(traced, source, traced.grams, traced.style_layers, add)
            if traced.segment.pools:
                maps.append(source)
        return sums, maps

    def _gram_slopes(self, grams: dict[str, np.ndarray], sums: _Sums) -> dict[str, Any]:
        """The gradient of the loss for each of the summed Gram matrices; counts their layers' losses in."""
        layers = self._summed_styles
        if not layers:
            return {}
        places = [self.form.style_layers.index(layer) for layer in layers]
        parts, slopes = self._styles(
            [tf.convert_to_tensor(grams[layer], self._dtype) for layer in layers],
            [[style.grams[place] for place in places] for style in sums.targets.styles],
            [_positions(layer, *sums.size) for layer in layers],
            sums.size[0] * sums.size[1],
            [sums.style_slopes[layer] for layer in layers],
        )
        sums.add_styles(layers, parts)
        return dict(zip(layers, slopes, strict=True))

    def _rest_back(self, rest: TracedRest, source: np.ndarray, sums: _Sums) -> np.ndarray:
        """The gradient for the map that the rest of the network begins with; counts its layers' losses in."""
        places = [self.form.style_layers.index(layer) for layer in rest.style_layers]
        contents = [sums.targets.content[layer] for layer in rest.content_layers]
        squares, parts, gradient = rest.losses(
            tf.convert_to_tensor(source),
            [tf.convert_to_tensor(content) for content in contents],
            [sums.content_slopes[layer] for layer in rest.content_layers],
            [[style.grams[place] for place in places] for style in sums.targets.styles],
            [_positions(layer, *sums.size) for layer in rest.style_layers],
            sums.size[0] * sums.size[1],
            [sums.style_slopes[layer] for layer in rest.style_layers],
        )
        release(source, *contents)
        sums.add_squares(rest.content_layers, squares)
        sums.add_styles(rest.style_layers, parts)
        found: np.ndarray = gradient.numpy()
        return found

    def _back(
        self,
        traced: TracedSegment,
        source: np.ndarray,
        upstream: np.ndarray | None,
        slopes: dict[str, Any],
        sums: _Sums,
    ) -> np.ndarray:
        """The gradient for the segment's input, from that for its pooled map; counts its content layers in."""
        segment = traced.segment
        strides = {layer.name: stride for layer, stride in segment.layers}
        contents = {layer: sums.targets.content[layer] for layer in traced.content_layers}
        content_slopes = [tf.constant(sums.content_slopes[layer], self._dtype) for layer in traced.content_layers]
        gradient = empty_like(source, dtype=self._number)
        begun = 0
        for row in self.tiling.tiles(segment, *source.shape[:2]):
            gradient[begun : row[0].rows.read_stop] = 0
            begun = row[0].rows.read_stop
            for tile in row:
                found, part = traced.backward(
                    tf.convert_to_tensor(source[tile.read]),
                    tf.constant(tile.core),
                    [] if upstream is None else [tf.convert_to_tensor(upstream[tile.owned(segment.alignment)])],
                    [slopes[layer] for layer in traced.style_layers],
                    [tf.convert_to_tensor(kept[tile.owned(strides[layer])]) for layer, kept in contents.items()],
                    content_slopes,
                )
                sums.add_squares(traced.content_layers, found)
                gradient[tile.read] += part.numpy()
                release(source, gradient, *contents.values(), *([] if upstream is None else [upstream]))
        return gradient

    def _content_scale(self, layer: str, rows: int, columns: int) -> float:
        """What the sum of squared differences is multiplied by, see `losses.content_loss`."""
        if self.form.content_normalization == "mean":
            return 1 / (_positions(layer, rows, columns) * _LAYERS[layer].channels)
        return 0.5 if self.form.content_normalization == "gatys" else 1.0

    def _add_variation(self, picture: np.ndarray, gradient: np.ndarray, weight: float) -> float:
        """The weighted total variation, by strips, whose gradient is added to `gradient`."""
        source = picture.astype(self._number, copy=False)
        rows = max(1, self.tiling.side**2 // source.shape[1])
        total = 0.0
        for start in range(0, len(source) - 1, rows):
            # A strip ends with the first row of the next, which so comes twice.
            twice = [(slice(start, start + 1), -1.0)] if start else []
            for strip, sign in [(slice(start, start + rows + 1), 1.0), *twice]:
                value, part = self._variation(tf.convert_to_tensor(source[strip]))
                total += sign * float(value)
                gradient[strip] += self._number.type(sign * weight) * part.numpy()
            release(source, gradient)
        return weight * total

    def _variation_and_gradient(self, strip: Any) -> tuple[Any, Any]:
        assert self.form.tv_form is not None
        with tf.GradientTape() as tape:
            tape.watch(strip)
            value = total_variation(strip, form=self.form.tv_form)
        return value, tape.gradient(value, strip)

    def _style_losses_and_gradients(
        self, grams: Any, styles: Any, positions: Any, picture_positions: Any, weights: Any
    ) -> tuple[list[Any], list[Any]]:
        """Each layer's loss, and the gradient of their weighted sum for each layer's Gram matrix."""
        with tf.GradientTape() as tape:
            tape.watch(grams)
            parts = [
                mean_style_loss(
                    gram,
                    [style[index] for style in styles],
                    positions=positions[index],
                    picture_positions=picture_positions,
                    normalization=self.form.gram_normalization,
                )
                for index, gram in enumerate(grams)
            ]
            total = weighted_sum(parts, tf.unstack(weights, len(parts)))
        return parts, tape.gradient(total, grams)


def _shape(layer: str, rows: int, columns: int) -> tuple[int, int, int]:
    """The shape of a layer's map of a picture of that size."""
    stride = _LAYERS[layer].stride
    return rows // stride, columns // stride, _LAYERS[layer].channels


def _positions(layer: str, rows: int, columns: int) -> int:
    """The positions of that map."""
    down, across, _ = _shape(layer, rows, columns)
    return down * across
