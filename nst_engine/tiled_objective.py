"""The loss and gradient that `objective` computes of a whole picture, in memory bounded by a tile, for pictures of any
size. A first pass through the segments in tiles sums up what is matched over the positions that the tiles own and keeps
the maps between the segments; the rest of the network, where it is worked on as a whole, needs none. With the sums
fixed, a second pass goes back segment by segment, and tile by tile adds up the gradient. Both are exact: nothing
differs from the whole picture's but the order of sums. Of a picture on disk, all that is as large is on disk too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from nst_engine.arrays import empty_like, release
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.form import Form, LossWeights
from nst_engine.gradients import normalizing_factor
from nst_engine.losses import weighted_sum
from nst_engine.masks import Guide
from nst_engine.objective import StyleTargets, Targets, matching_of, style_losses
from nst_engine.tiled_forward import Forward, Maps, Sums, shape_of
from nst_engine.tiled_variation import StripVariation
from nst_engine.tiling import Tile, Tiling
from nst_engine.traced_segments import TracedRest, TracedSegment
from nst_engine.vgg19 import CONVOLUTIONS, Network, deepest
from nst_engine.views import Views

_LAYERS = {layer.name: layer for layer in CONVOLUTIONS}


@dataclass(frozen=True)
class _Evaluated:
    """One evaluation of a picture (rows, columns) large: its targets, views and weights, by how much the loss grows
    with each layer's sum of squared differences and with its style loss, and what has been found of the two so far.
    """

    size: tuple[int, int]
    targets: Targets[Maps]
    views: Views
    weights: LossWeights
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
        parts = tiling.segments(deepest(layers))
        self._tiled = [TracedSegment(part, network, form, dtype) for part in parts if not part.whole]
        self._rest = next((TracedRest(part, network, form, dtype) for part in parts if part.whole), None)
        feature_number = np.dtype(tf.as_dtype(form.dtype).as_numpy_dtype)
        self._through_tiles, self._through_all = (
            Forward(segments, tiling, number=self._number, feature_number=feature_number)
            for segments in (self._tiled, [*self._tiled, self._rest] if self._rest else self._tiled)
        )
        # Those that must be summed up before anything is known of their losses.
        self._summed_styles = [
            layer for layer in form.style_layers if any(layer in traced.style_layers for traced in self._tiled)
        ]
        self._matching = matching_of(form)
        channels = [_LAYERS[layer].channels for layer in self._summed_styles]
        vector = tf.TensorSpec((None,), dtype)
        self._styles = tf.function(
            self._style_losses_and_gradients,
            input_signature=[
                [[self._matching.sum_specs(number, dtype)] * form.views for number in channels],
                [[self._matching.target_specs(number, dtype) for number in channels]] * form.styles,
                tf.TensorSpec((form.views, len(channels)), dtype),
                vector,
                vector,
                vector,
                vector,
            ],
            autograph=False,
        )
        self._variation = form.tv_form and StripVariation(form.tv_form, pixels=tiling.side**2, dtype=dtype)

    def content_targets(self, content: np.ndarray) -> Maps:
        """The targets of a preprocessed content, (rows, columns, 3); raises DiskSpaceError."""
        return self._through_all.features(content)

    def style_targets(self, style: np.ndarray, guide: Guide | None = None) -> StyleTargets:
        """The targets of a preprocessed style, (rows, columns, 3), or of where `guide` says that it counts.

        Raises DiskSpaceError.
        """
        layers = self.form.style_layers
        guide = guide or Guide.of(layers, style.shape, sampled=self.form.sampled)
        ranged = "histogram" in self.form.style_losses
        views = Views([guide], [self._through_all.ranges(style) if ranged else {layer: {} for layer in layers}])
        sums, _ = self._through_all.sums(style, views, of_style=True)
        (wheres,), (positions,) = views.wheres(layers), views.positions(layers)
        targets = [
            self._matching.target(
                tf.nest.map_structure(tf.convert_to_tensor, sums[layer][0]),
                where,
                positions=tf.constant(count, tf.float64),
            )
            for layer, where, count in zip(layers, wheres, positions, strict=True)
        ]
        return StyleTargets(tf.nest.map_structure(lambda tensor: tf.cast(tensor, self._dtype), targets))

    def evaluate(self, picture: np.ndarray, targets: Targets[Maps], config: TransferConfig) -> Evaluation:
        """The losses of a preprocessed picture under the weights of `config`, and their gradient.

        Raises DiskSpaceError where the picture is on disk.
        """
        form = self.form
        rows, columns = picture.shape[:2]
        weights = LossWeights.of(config, pixels=rows * columns, styles=form.styles)
        scales = {layer: self._content_scale(layer, targets.content, rows, columns) for layer in form.content_layers}
        known = _Evaluated(
            (rows, columns),
            targets,
            targets.views(form, (rows, columns)),
            weights,
            {layer: weights.content * config.content_layers[layer] * scale for layer, scale in scales.items()},
            {layer: weights.style * config.style_layers[layer] for layer in form.style_layers},
        )
        content_weights = {layer: weights.content * weight for layer, weight in config.content_layers.items()}
        sums, maps = self._through_tiles.sums(picture, known.views)
        slopes = self._style_slopes(sums, known)
        gradient = None if self._rest is None else self._rest_back(self._rest, maps.pop(), content_weights, known)
        for traced in reversed(self._tiled):
            source, given = maps.pop(), (slopes, known.content_slopes)
            if form.normalize_gradients:
                given = self._normalized(traced, source, slopes, content_weights, known)
            gradient = self._back(traced, source, gradient, *given, known)
        assert gradient is not None
        tv = self._variation.add(picture, gradient, weights.tv) if self._variation else 0.0
        contents = [known.squares[layer] * scales[layer] for layer in form.content_layers]
        styles = [known.style_parts[layer] for layer in form.style_layers]
        content = sum(known.squares[layer] * slope for layer, slope in known.content_slopes.items())
        style = sum(known.style_parts[layer] * slope for layer, slope in known.style_slopes.items())
        losses = Losses(content + style + tv, content, style, tv, form.named([*contents, *styles]))
        return Evaluation(losses, gradient)

    def _tensor(self, values: Any) -> Any:
        return tf.convert_to_tensor(values, self._dtype)

    def _style_slopes(self, sums: dict[str, Sums], known: _Evaluated) -> dict[str, Any]:
        """The gradient of the loss for all that has been summed up; counts those layers' losses in."""
        layers = self._summed_styles
        if not layers:
            return {}
        places = [self.form.style_layers.index(layer) for layer in layers]
        parts, slopes = self._styles(
            [tf.nest.map_structure(self._tensor, sums[layer]) for layer in layers],
            [[style.layers[place] for place in places] for style in known.targets.styles],
            known.views.positions(layers),
            known.views.picture_positions,
            [known.style_slopes[layer] for layer in layers],
            known.weights.losses,
            known.weights.styles,
        )
        known.add_styles(layers, parts)
        return dict(zip(layers, slopes, strict=True))

    def _rest_back(
        self, rest: TracedRest, source: np.ndarray, content_weights: dict[str, float], known: _Evaluated
    ) -> np.ndarray:
        """The gradient for the map that the rest of the network begins with; counts its layers' losses in."""
        places = [self.form.style_layers.index(layer) for layer in rest.style_layers]
        contents = [known.targets.content.layers[layer] for layer in rest.content_layers]
        squares, parts, gradient = rest.losses(
            tf.convert_to_tensor(source),
            [tf.convert_to_tensor(content) for content in contents],
            [known.content_slopes[layer] for layer in rest.content_layers],
            self._tensor([content_weights[layer] for layer in rest.content_layers]),
            [[style.layers[place] for place in places] for style in known.targets.styles],
            known.views.wheres(rest.style_layers),
            self._tensor(known.views.positions(rest.style_layers)),
            known.views.picture_positions,
            self._tensor([known.style_slopes[layer] for layer in rest.style_layers]),
            known.weights.losses,
            known.weights.styles,
        )
        release(source, *contents)
        known.add_squares(rest.content_layers, squares)
        known.add_styles(rest.style_layers, parts)
        found: np.ndarray = gradient.numpy()
        return found

    def _normalized(
        self,
        traced: TracedSegment,
        source: np.ndarray,
        slopes: dict[str, Any],
        content_weights: dict[str, float],
        known: _Evaluated,
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The slopes of the segment's layers so that their gradients for their maps are normalised."""
        content_sizes, style_sizes = (
            dict.fromkeys(layers, 0.0) for layers in (traced.content_layers, traced.style_layers)
        )
        for row in self.tiling.tiles(traced.segment, *source.shape[:2]):
            for tile in row:
                of_contents, of_styles = traced.magnitudes(
                    tf.convert_to_tensor(source[tile.read]),
                    tf.constant(tile.core),
                    *self._backward_inputs(traced, tile, slopes, known.content_slopes, known),
                )
                for sizes, found in ((content_sizes, of_contents), (style_sizes, of_styles)):
                    for layer, size in zip(sizes, found, strict=True):
                        sizes[layer] += float(size)
                release(source, *known.targets.content.layers.values())
        content_factors = {
            layer: float(normalizing_factor(size, content_weights[layer])) for layer, size in content_sizes.items()
        }
        style_factors = {
            layer: self._tensor(normalizing_factor(size, known.style_slopes[layer]))
            for layer, size in style_sizes.items()
        }
        return (
            {
                layer: tf.nest.map_structure(lambda slope, by=factor: slope * by, slopes[layer])
                for layer, factor in style_factors.items()
            },
            {layer: known.content_slopes[layer] * factor for layer, factor in content_factors.items()},
        )

    def _backward_inputs(
        self,
        traced: TracedSegment,
        tile: Tile,
        slopes: dict[str, Any],
        content_slopes: dict[str, float],
        known: _Evaluated,
    ) -> tuple[list[Any], ...]:
        """What both ways back are given of a tile, behind its input."""
        owned = traced.owned(tile)
        contents = known.targets.content.layers
        return (
            [slopes[layer] for layer in traced.style_layers],
            known.views.wheres(traced.style_layers, owned),
            [tf.convert_to_tensor(contents[layer][owned(layer)]) for layer in traced.content_layers],
            [self._tensor(content_slopes[layer]) for layer in traced.content_layers],
        )

    def _back(
        self,
        traced: TracedSegment,
        source: np.ndarray,
        upstream: np.ndarray | None,
        slopes: dict[str, Any],
        content_slopes: dict[str, float],
        known: _Evaluated,
    ) -> np.ndarray:
        """The gradient for the segment's input, from that for its pooled map; counts its content layers in."""
        segment = traced.segment
        contents = [known.targets.content.layers[layer] for layer in traced.content_layers]
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
                    *self._backward_inputs(traced, tile, slopes, content_slopes, known),
                )
                known.add_squares(traced.content_layers, found)
                gradient[tile.read] += part.numpy()
                release(source, gradient, *contents, *([] if upstream is None else [upstream]))
        return gradient

    def _content_scale(self, layer: str, content: Maps, rows: int, columns: int) -> float:
        """What the sum of squared differences is multiplied by, see `losses`."""
        if self.form.balanced:
            return 1 / content.energies[layer] if content.energies[layer] else 0.0
        if self.form.content_normalization == "mean":
            return 1 / (_positions(layer, rows, columns) * _LAYERS[layer].channels)
        return 0.5 if self.form.content_normalization == "gatys" else 1.0

    def _style_losses_and_gradients(
        self,
        sums: Any,
        styles: Any,
        positions: Any,
        picture_positions: Any,
        weights: Any,
        loss_weights: Any,
        style_weights: Any,
    ) -> tuple[list[Any], Any]:
        """Each layer's loss, and the gradient of their weighted sum for all sums."""
        with tf.GradientTape() as tape:
            tape.watch(sums)
            parts = style_losses(
                self.form, self._matching, sums, styles, (positions, picture_positions), (loss_weights, style_weights)
            )
            total = weighted_sum(parts, tf.unstack(weights, len(parts)))
        return parts, tape.gradient(total, sums, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _positions(layer: str, rows: int, columns: int) -> int:
    """The positions of a layer's map of a picture of that size."""
    down, across, _ = shape_of(layer, rows, columns)
    return down * across
