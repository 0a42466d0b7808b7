"""What TensorFlow computes of one segment of the network, for `tiled_objective`: forward, the maps and sums of a tile;
and back, the gradient for it. One trace with unknown rows and columns serves tiles of every size."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nst_engine.form import Form
from nst_engine.gradients import magnitude, normalized
from nst_engine.losses import content_loss
from nst_engine.objective import matching_of, style_losses, summing
from nst_engine.tiling import Segment, Tile
from nst_engine.vgg19 import CONVOLUTIONS, Network
from nst_engine.views import Owned

_CHANNELS = {layer.name: layer.channels for layer in CONVOLUTIONS}


class TracedSegment:
    """One segment, in tiles: a tile of its input in, what the tile owns of its outputs and gradient out.

    A tile is (rows, columns, channels), maps have a first axis of one more, and `core` is `Tile.core`. `sums`, `ranges`
    and `features` give the pooled map at the end, in a list that is empty where there is none, and, for each style
    layer, what every view sums up or the range of the channels, or the maps of the content layers. `style_sums` do as
    `sums` for the only view of a style, masked or not. `slopes` are by how much the loss grows with each of the sums.
    Losses and gradients are in `dtype`.
    """

    def __init__(self, segment: Segment, network: Network, form: Form, dtype: Any) -> None:
        self.segment = segment
        self.content_layers = tuple(layer for layer in form.content_layers if layer in segment.names)
        self.style_layers = tuple(layer for layer in form.style_layers if layer in segment.names)
        self._network = network
        self._matching = matching_of(form)
        self._form = form
        self._dtype = dtype
        self._channels = [_CHANNELS[layer] for layer in self.style_layers]
        self._tile = tf.TensorSpec((None, None, segment.channels), dtype if segment.stride == 1 else form.dtype)
        self._contents = [tf.TensorSpec((None, None, None), form.dtype)] * len(self.content_layers)
        self._content_slopes = [tf.TensorSpec((), dtype)] * len(self.content_layers)
        self._core = tf.TensorSpec((4,), tf.int32)
        self._wheres = self._where_specs(views=form.views, masked=form.masked)
        slopes = [[self._matching.sum_specs(channels, dtype)] * form.views for channels in self._channels]
        self.style_sums = {
            masked: self._traced(self._map_and_sums, self._where_specs(views=1, masked=masked))
            for masked in (False, True)
        }
        # Where they are the same, one trace is enough.
        one_view = form.views == 1
        self.sums = self.style_sums[form.masked] if one_view else self._traced(self._map_and_sums, self._wheres)
        self.ranges = self._traced(self._map_and_ranges)
        self.features = self._traced(self._map_and_features)
        back = [slopes, self._wheres, self._contents, self._content_slopes]
        self.magnitudes = self._traced(self._magnitudes, *back)
        upstream = [tf.TensorSpec((None, None, None), dtype)] * segment.pools
        self.backward = self._traced(self._squares_and_gradient, upstream, *back)

    def owned(self, tile: Tile) -> Owned:
        """What the tile owns of each layer's map."""
        strides = {layer.name: stride for layer, stride in self.segment.layers}
        return lambda layer: tile.owned(strides[layer])

    def _traced(self, function: Any, *others: Any) -> Any:
        return tf.function(function, input_signature=[self._tile, self._core, *others], autograph=False)

    def _where_specs(self, *, views: int, masked: bool) -> list[list[Any]]:
        return [
            [self._matching.where_specs(channels, self._dtype, masked=masked) for channels in self._channels]
        ] * views

    def _maps(self, tile: Any) -> dict[str, Any]:
        """The maps of all convolutions, halo and all."""
        features = tf.cast(tile, self._form.dtype)[tf.newaxis]
        maps = dict[str, Any]()
        for layer in self.segment.names[: -1 if self.segment.pools else None]:
            features = self._layer(layer)(features)
            if not layer.endswith("_pool"):
                maps[layer] = features
        return maps

    def _layer(self, name: str) -> Any:
        return self._network.layer(name, pooling=self._form.pooling, padding=self._form.padding)

    def _owned(self, tile: Any, core: Any) -> tuple[dict[str, Any], list[Any]]:
        """What is owned of each convolution's map, and of the pooled map at the end where there is one."""
        maps = self._maps(tile)
        strides = {layer.name: stride for layer, stride in self.segment.layers}
        owned = {layer: _cut(features, core // strides[layer]) for layer, features in maps.items()}
        if not self.segment.pools:
            return owned, []
        # Pooling the core alone drops a last odd row or column where the whole map's does.
        return owned, [self._layer(self.segment.names[-1])(owned[self.segment.names[-2]])]

    def _map_and_sums(self, tile: Any, core: Any, wheres: Any) -> tuple[list[Any], list[Any]]:
        owned, pooled = self._owned(tile, core)
        return pooled, self._sums(owned, wheres)

    def _map_and_ranges(self, tile: Any, core: Any) -> tuple[list[Any], list[Any]]:
        owned, pooled = self._owned(tile, core)
        return pooled, [self._matching.range(owned[layer]) for layer in self.style_layers]

    def _map_and_features(self, tile: Any, core: Any) -> tuple[list[Any], list[Any]]:
        owned, pooled = self._owned(tile, core)
        return pooled, [owned[layer] for layer in self.content_layers]

    def _magnitudes(
        self, tile: Any, core: Any, slopes: Any, wheres: Any, contents: Any, content_slopes: Any
    ) -> tuple[list[Any], list[Any]]:
        """The sums of absolute values of each content and each style layer's own gradient for what is owned of it."""
        owned, _ = self._owned(tile, core)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(owned)
            squares = self._squares(owned, contents)
            sums = self._sums(owned, wheres)
        of_contents = [
            magnitude(tape.gradient(square, owned[layer], output_gradients=slope))
            for layer, square, slope in zip(self.content_layers, squares, content_slopes, strict=True)
        ]
        of_styles = [
            magnitude(tape.gradient(tf.nest.flatten(found), owned[layer], output_gradients=tf.nest.flatten(slope)))
            for layer, found, slope in zip(self.style_layers, sums, slopes, strict=True)
        ]
        return of_contents, of_styles

    def _squares_and_gradient(
        self, tile: Any, core: Any, upstream: Any, slopes: Any, wheres: Any, contents: Any, content_slopes: Any
    ) -> tuple[list[Any], Any]:
        """The core's sums of squared content differences, and the gradient for the whole tile of what it owns."""
        with tf.GradientTape() as tape:
            tape.watch(tile)
            owned, pooled = self._owned(tile, core)
            squares = self._squares(owned, contents)
            sums = self._sums(owned, wheres)
        gradient = tape.gradient(
            [*squares, *tf.nest.flatten(sums), *pooled],
            tile,
            output_gradients=[
                *content_slopes,
                *tf.nest.flatten(slopes),
                *(tf.cast(part, self._form.dtype)[tf.newaxis] for part in upstream),
            ],
        )
        return squares, tf.cast(gradient, self._dtype)

    def _sums(self, maps: dict[str, Any], wheres: Any, weights: Any | None = None) -> list[Any]:
        """What every view sums up of each style layer; with their `weights`, their gradients are normalised."""
        return [
            summing(self._matching, [view[place] for view in wheres], None if weights is None else weights[place])(
                maps[layer]
            )
            for place, layer in enumerate(self.style_layers)
        ]

    def _squares(self, maps: dict[str, Any], contents: Any) -> list[Any]:
        return [
            content_loss(maps[layer], content[tf.newaxis], normalization="keras")
            for layer, content in zip(self.content_layers, contents, strict=True)
        ]


class TracedRest(TracedSegment):
    """The rest of the network as one segment, whose only tile is its whole input: forward and back in one go.

    Its sums are complete, so `losses` goes from the input and the targets to the sums of squared content differences,
    the losses of the style layers and the gradient of all of them, each times its slope. With normalised gradients,
    `content_weights` are those of the content layers' losses.
    """

    def __init__(self, segment: Segment, network: Network, form: Form, dtype: Any) -> None:
        super().__init__(segment, network, form, dtype)
        vector = tf.TensorSpec((None,), dtype)
        targets = [self._matching.target_specs(channels, dtype) for channels in self._channels]
        self.losses = tf.function(
            self._losses_and_gradient,
            input_signature=[
                self._tile,
                self._contents,
                self._content_slopes,
                vector,
                [targets] * form.styles,
                self._wheres,
                tf.TensorSpec((form.views, len(targets)), dtype),
                vector,
                vector,
                vector,
                vector,
            ],
            autograph=False,
        )

    def _losses_and_gradient(
        self,
        source: Any,
        contents: Any,
        content_slopes: Any,
        content_weights: Any,
        styles: Any,
        wheres: Any,
        positions: Any,
        picture_positions: Any,
        style_slopes: Any,
        loss_weights: Any,
        style_weights: Any,
    ) -> tuple[list[Any], list[Any], Any]:
        form = self._form
        weights = tf.unstack(style_slopes, len(self.style_layers))
        with tf.GradientTape() as tape:
            tape.watch(source)
            maps = self._maps(source)
            compared = maps
            if form.normalize_gradients:
                factors = tf.unstack(content_weights, len(self.content_layers))
                compared = {
                    layer: normalized(maps[layer], factor)
                    for layer, factor in zip(self.content_layers, factors, strict=True)
                }
            squares = self._squares(compared, contents)
            sums = self._sums(maps, wheres, weights if form.normalize_gradients else None)
            parts = style_losses(
                form, self._matching, sums, styles, (positions, picture_positions), (loss_weights, style_weights)
            )
        gradient = tape.gradient([*squares, *parts], source, output_gradients=[*content_slopes, *weights])
        return squares, parts, tf.cast(gradient, self._dtype)


def _cut(features: Any, core: Any) -> Any:
    """The core of a map. The gradient of features[:, top : ...] is the same, but takes longer than a convolution's."""
    top, left, rows, columns = tf.unstack(core)
    cut = tf.slice(features, [0, top, left, 0], [1, rows, columns, features.shape[-1]])
    return tf.ensure_shape(cut, (1, None, None, features.shape[-1]))
