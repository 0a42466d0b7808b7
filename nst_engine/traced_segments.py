"""What TensorFlow computes of one segment of the network, for `tiled_objective`: forward, the maps and Gram matrices of
a tile; and back, the gradient for it. One trace with unknown rows and columns serves tiles of every size."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nst_engine.losses import content_loss, gram_matrix
from nst_engine.objective import Form, mean_style_loss
from nst_engine.tiling import Segment
from nst_engine.vgg19 import Network


class TracedSegment:
    """One segment, in tiles: a tile of its input in, what the tile owns of its outputs and gradient out.

    A tile is (rows, columns, channels), maps have a first axis of one more, and `core` is `Tile.core`. `grams` and
    `features` give the pooled map at the end, in a list that is empty where there is none, and the Gram matrices of
    the style layers or the maps of the content layers. Losses and gradients are in `dtype`.
    """

    def __init__(self, segment: Segment, network: Network, form: Form, dtype: Any) -> None:
        self.segment = segment
        self.content_layers = tuple(layer for layer in form.content_layers if layer in segment.names)
        self.style_layers = tuple(layer for layer in form.style_layers if layer in segment.names)
        self._network = network
        self._pooling = form.pooling
        self._dtype = dtype
        self._feature_dtype = form.dtype
        self._tile = tf.TensorSpec((None, None, segment.channels), dtype if segment.stride == 1 else form.dtype)
        self._contents = [tf.TensorSpec((None, None, None), form.dtype)] * len(self.content_layers)
        self._content_slopes = [tf.TensorSpec((), dtype)] * len(self.content_layers)
        core = tf.TensorSpec((4,), tf.int32)
        self.grams = tf.function(self._map_and_grams, input_signature=[self._tile, core], autograph=False)
        self.features = tf.function(self._map_and_features, input_signature=[self._tile, core], autograph=False)
        self.backward = tf.function(
            self._squares_and_gradient,
            input_signature=[
                self._tile,
                core,
                [tf.TensorSpec((None, None, None), dtype)] * segment.pools,
                [tf.TensorSpec((None, None), dtype)] * len(self.style_layers),
                self._contents,
                self._content_slopes,
            ],
            autograph=False,
        )

    def _maps(self, tile: Any) -> dict[str, Any]:
        """The maps of all convolutions, halo and all."""
        features = tf.cast(tile, self._feature_dtype)[tf.newaxis]
        maps = dict[str, Any]()
        for layer in self.segment.names[: -1 if self.segment.pools else None]:
            features = self._network.layer(layer, pooling=self._pooling)(features)
            if not layer.endswith("_pool"):
                maps[layer] = features
        return maps

    def _owned(self, tile: Any, core: Any) -> tuple[dict[str, Any], list[Any]]:
        """What is owned of each convolution's map, and of the pooled map at the end where there is one."""
        maps = self._maps(tile)
        strides = {layer.name: stride for layer, stride in self.segment.layers}
        owned = {layer: _cut(features, core // strides[layer]) for layer, features in maps.items()}
        if not self.segment.pools:
            return owned, []
        # Pooling the core alone drops a last odd row or column where the whole map's does.
        return owned, [
            self._network.layer(self.segment.names[-1], pooling=self._pooling)(owned[self.segment.names[-2]])
        ]

    def _map_and_grams(self, tile: Any, core: Any) -> tuple[list[Any], list[Any]]:
        owned, pooled = self._owned(tile, core)
        return pooled, [gram_matrix(owned[layer]) for layer in self.style_layers]

    def _map_and_features(self, tile: Any, core: Any) -> tuple[list[Any], list[Any]]:
        owned, pooled = self._owned(tile, core)
        return pooled, [owned[layer] for layer in self.content_layers]

    def _squares_and_gradient(
        self, tile: Any, core: Any, upstream: Any, gram_gradients: Any, contents: Any, content_slopes: Any
    ) -> tuple[list[Any], Any]:
        """The core's sums of squared content differences, and the gradient for the whole tile of what it owns."""
        with tf.GradientTape() as tape:
            tape.watch(tile)
            owned, pooled = self._owned(tile, core)
            squares = self._squares(owned, contents)
            grams = [gram_matrix(owned[layer]) for layer in self.style_layers]
        gradient = tape.gradient(
            [*squares, *grams, *pooled],
            tile,
            output_gradients=[
                *content_slopes,
                *gram_gradients,
                *(tf.cast(part, self._feature_dtype)[tf.newaxis] for part in upstream),
            ],
        )
        return squares, tf.cast(gradient, self._dtype)

    def _squares(self, maps: dict[str, Any], contents: Any) -> list[Any]:
        return [
            content_loss(maps[layer], content[tf.newaxis], normalization="keras")
            for layer, content in zip(self.content_layers, contents, strict=True)
        ]


class TracedRest(TracedSegment):
    """The rest of the network as one segment, whose only tile is its whole input: forward and back in one go.

    Its Gram matrices are complete, so `losses` goes from the input and the targets to the sums of squared content
    differences, the losses of the style layers and the gradient of all of them, each times its slope.
    """

    def __init__(self, segment: Segment, network: Network, form: Form, dtype: Any) -> None:
        super().__init__(segment, network, form, dtype)
        self._normalization = form.gram_normalization
        vector = tf.TensorSpec((len(self.style_layers),), dtype)
        self.losses = tf.function(
            self._losses_and_gradient,
            input_signature=[
                self._tile,
                self._contents,
                self._content_slopes,
                [[tf.TensorSpec((None, None), dtype)] * len(self.style_layers)] * form.styles,
                vector,
                tf.TensorSpec((), dtype),
                vector,
            ],
            autograph=False,
        )

    def _losses_and_gradient(
        self,
        source: Any,
        contents: Any,
        content_slopes: Any,
        styles: Any,
        positions: Any,
        picture_positions: Any,
        style_slopes: Any,
    ) -> tuple[list[Any], list[Any], Any]:
        with tf.GradientTape() as tape:
            tape.watch(source)
            maps = self._maps(source)
            squares = self._squares(maps, contents)
            parts = [
                mean_style_loss(
                    gram_matrix(maps[layer]),
                    [style[index] for style in styles],
                    positions=positions[index],
                    picture_positions=picture_positions,
                    normalization=self._normalization,
                )
                for index, layer in enumerate(self.style_layers)
            ]
        slopes = [*content_slopes, *tf.unstack(style_slopes, len(parts))]
        gradient = tape.gradient([*squares, *parts], source, output_gradients=slopes)
        return squares, parts, tf.cast(gradient, self._dtype)


def _cut(features: Any, core: Any) -> Any:
    """The core of a map. The gradient of features[:, top : ...] is the same, but takes longer than a convolution's."""
    top, left, rows, columns = tf.unstack(core)
    cut = tf.slice(features, [0, top, left, 0], [1, rows, columns, features.shape[-1]])
    return tf.ensure_shape(cut, (1, None, None, features.shape[-1]))
