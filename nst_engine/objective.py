"""What one transfer minimises: the targets of its content and style pictures, computed once, and the loss of
a picture with its gradient. One trace with unknown rows and columns serves pictures of every size, since
TensorFlow never frees a trace; XLA needs one a size, and there are a few of them at the most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from nst_engine.acceleration import Acceleration
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.form import Form, LossWeights
from nst_engine.gradients import beside, normalized
from nst_engine.losses import content_loss, relative_content_loss, sum_of, total_variation, weighted_sum
from nst_engine.masks import Guide
from nst_engine.matching import Matching, NamedSums, range_of
from nst_engine.recent import Recent
from nst_engine.vgg19 import CONVOLUTIONS, Network, deepest, names_down_to
from nst_engine.views import Views

_PROGRAMS_KEPT: Final = 4
_CHANNELS: Final = {layer.name: layer.channels for layer in CONVOLUTIONS}


@dataclass(frozen=True)
class ContentTargets:
    """The content's feature maps, a tensor a layer."""

    features: list[Any]


@dataclass(frozen=True)
class StyleTargets:
    """What is matched of one style, by statistic, for each layer.

    It is kept a position (the Gram matrix as G / M), so that a style of another size than the result compares with it.
    """

    layers: list[NamedSums]

    @property
    def bytes(self) -> int:
        """The memory that they take."""
        return sum(int(np.prod(tensor.shape)) * tensor.dtype.size for tensor in tf.nest.flatten(self.layers))


Content = TypeVar("Content")


@dataclass(frozen=True)
class Targets(Generic[Content]):
    """The targets of one transfer, whose content and styles may each have been computed for another.

    `guides` say where in the result each style counts; without them all count everywhere.
    """

    content: Content
    styles: list[StyleTargets]
    guides: list[Guide] = field(default_factory=list)

    def views(self, form: Form, size: tuple[int, ...]) -> Views:
        """Where and how often a picture of that size is summed up."""
        everywhere = [Guide.of(form.style_layers, size, sampled=form.sampled)] * form.views
        ranges = [
            dict(zip(form.style_layers, map(range_of, style.layers), strict=True))
            for style in self.styles[: form.views]
        ]
        return Views(self.guides or everywhere, ranges)


class Objective(Protocol[Content]):
    """What computes targets and evaluations of one form; `Content` is how it keeps a content's targets."""

    form: Form

    def content_targets(self, content: np.ndarray) -> Content:
        """The targets of a preprocessed content, (rows, columns, 3)."""

    def style_targets(self, style: np.ndarray, guide: Guide | None = None) -> StyleTargets:
        """The targets of a preprocessed style, (rows, columns, 3), or of where `guide` says that it counts."""

    def evaluate(self, picture: np.ndarray, targets: Targets[Content], config: TransferConfig) -> Evaluation:
        """The losses of a preprocessed picture under the weights of `config`, and their gradient."""


class TracedObjective:
    """The traces of one form on one network: pictures in, targets and evaluations out."""

    def __init__(self, form: Form, network: Network, *, acceleration: Acceleration) -> None:
        # Losses that are differentiated in float64 by the tests need pictures in float64 too.
        dtype = tf.float64 if form.dtype == "float64" else tf.float32
        self.form = form
        self._dtype = dtype
        self._network = network
        self._matching = matching_of(form)
        picture = tf.TensorSpec((None, None, 3), dtype)
        # Nothing here needs autograph, which reads and rewrites the source of all that is called.
        self._content = tf.function(self._content_features, input_signature=[picture], autograph=False)
        self._styles = {
            masked: tf.function(
                self._style_targets,
                input_signature=[
                    picture,
                    [
                        self._matching.where_specs(_CHANNELS[layer], dtype, masked=masked, ranged=False)
                        for layer in form.style_layers
                    ],
                    tf.TensorSpec((None,), dtype),
                ],
                autograph=False,
            )
            for masked in (False, True)
        }
        self._xla = acceleration.xla
        self._evaluations: Recent[tuple[int | None, ...], Any] = Recent(_PROGRAMS_KEPT)

    def content_targets(self, content: np.ndarray) -> ContentTargets:
        """The targets of a preprocessed content, (rows, columns, 3)."""
        return ContentTargets(list(self._content(self._tensor(content))))

    def style_targets(self, style: np.ndarray, guide: Guide | None = None) -> StyleTargets:
        """The targets of a preprocessed style, (rows, columns, 3), or of where `guide` says that it counts."""
        layers = self.form.style_layers
        guide = guide or Guide.of(layers, style.shape, sampled=self.form.sampled)
        found = self._styles[bool(guide.weights)](
            self._tensor(style),
            [guide.where(layer) for layer in layers],
            self._tensor([guide.positions[layer] for layer in layers]),
        )
        return StyleTargets(list(found))

    def evaluate(self, picture: np.ndarray, targets: Targets[ContentTargets], config: TransferConfig) -> Evaluation:
        """The losses of a preprocessed picture under the weights of `config`, and their gradient."""
        form = self.form
        rows, columns = picture.shape[:2]
        views = targets.views(form, (rows, columns))
        weights = LossWeights.of(config, pixels=rows * columns, styles=form.styles)
        parts, gradient = self._evaluation((rows, columns))(
            self._tensor(picture),
            targets.content.features,
            [style.layers for style in targets.styles],
            views.wheres(form.style_layers),
            self._tensor(views.positions(form.style_layers)),
            self._tensor(views.picture_positions),
            self._tensor([weights.content, weights.style, weights.tv]),
            self._tensor(list(config.content_layers.values())),
            self._tensor(list(config.style_layers.values())),
            self._tensor(weights.losses),
            self._tensor(weights.styles),
        )
        total, content, style, tv, *layers = (float(part) for part in parts.numpy())
        return Evaluation(Losses(total, content, style, tv, form.named(layers)), gradient.numpy())

    def _evaluation(self, size: tuple[int, ...]) -> Any:
        """The traced evaluation of pictures of that size: with XLA a program of its own, else the same for all."""
        known = size if self._xla else (None, None)
        return self._evaluations.get(known, lambda: self._traced_evaluation(known))

    def _traced_evaluation(self, size: tuple[int | None, ...]) -> Any:
        form, dtype, matching = self.form, self._dtype, self._matching
        vector = tf.TensorSpec((None,), dtype)
        channels = [_CHANNELS[layer] for layer in form.style_layers]
        return tf.function(
            self._loss_and_gradient,
            input_signature=[
                tf.TensorSpec((*size, 3), dtype),
                [tf.TensorSpec((1, None, None, None), form.dtype)] * len(form.content_layers),
                [[matching.target_specs(number, dtype) for number in channels]] * form.styles,
                [[matching.where_specs(number, dtype, masked=form.masked) for number in channels]] * form.views,
                tf.TensorSpec((form.views, len(channels)), dtype),
                tf.TensorSpec((form.views,), dtype),
                vector,
                vector,
                vector,
                vector,
                vector,
            ],
            autograph=False,
            jit_compile=self._xla or None,
        )

    def _tensor(self, values: Any) -> Any:
        return tf.convert_to_tensor(values, self._dtype)

    def _features(self, picture: Any, layers: Iterable[str]) -> dict[str, Any]:
        pictures = tf.cast(picture, self.form.dtype)[tf.newaxis]
        return self._network.features(pictures, layers, pooling=self.form.pooling, padding=self.form.padding)

    def _content_features(self, picture: Any) -> list[Any]:
        features = self._features(picture, self.form.content_layers)
        return [features[layer] for layer in self.form.content_layers]

    def _style_targets(self, picture: Any, wheres: Any, positions: Any) -> list[Any]:
        layers, matching = self.form.style_layers, self._matching
        features = self._features(picture, layers)
        found = []
        for layer, guide, count in zip(layers, wheres, tf.unstack(positions, len(layers)), strict=True):
            where = {**guide, **matching.range(features[layer])}
            found.append(matching.target(matching.sums(features[layer], where), where, positions=count))
        return found

    def _features_and_sums(
        self, picture: Any, wheres: Any, content_weights: list[Any], style_weights: list[Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The maps of the content layers, and what each view sums up of the style layers."""
        form = self.form
        features, sums = dict[str, Any](), dict[str, Any]()
        maps = tf.cast(picture, form.dtype)[tf.newaxis]
        for name in names_down_to(deepest((*form.content_layers, *form.style_layers))):
            maps = self._network.layer(name, pooling=form.pooling, padding=form.padding)(maps)
            if name in form.style_layers:
                place = form.style_layers.index(name)
                weight = style_weights[place] if form.normalize_gradients else None
                summed_up = summing(self._matching, [view[place] for view in wheres], weight)
                maps, sums[name] = beside(maps, summed_up)
            if name in form.content_layers:
                weight = content_weights[form.content_layers.index(name)]
                features[name] = normalized(maps, weight) if form.normalize_gradients else maps
        return features, sums

    def _loss_and_gradient(
        self,
        picture: Any,
        content: Any,
        styles: Any,
        wheres: Any,
        positions: Any,
        picture_positions: Any,
        weights: Any,
        content_weights: Any,
        style_weights: Any,
        loss_weights: Any,
        shares: Any,
    ) -> tuple[Any, Any]:
        form = self.form
        content_factors = tf.unstack(content_weights, len(form.content_layers))
        style_factors = tf.unstack(style_weights, len(form.style_layers))
        with tf.GradientTape() as tape:
            tape.watch(picture)
            features, sums = self._features_and_sums(
                picture,
                wheres,
                [weights[0] * factor for factor in content_factors],
                [weights[1] * factor for factor in style_factors],
            )
            content_parts = [
                relative_content_loss(features[layer], target)
                if form.balanced
                else content_loss(features[layer], target, normalization=form.content_normalization)
                for layer, target in zip(form.content_layers, content, strict=True)
            ]
            style_parts = style_losses(
                form,
                self._matching,
                [sums[layer] for layer in form.style_layers],
                styles,
                (positions, picture_positions),
                (loss_weights, shares),
            )
            content_total = weights[0] * weighted_sum(content_parts, content_factors)
            style_total = weights[1] * weighted_sum(style_parts, style_factors)
            zero = tf.zeros((), self._dtype)
            tv = weights[2] * total_variation(picture, form=form.tv_form) if form.tv_form else zero
            total = sum_of([content_total, style_total, tv])
        gradient = tape.gradient(total, picture)
        return tf.stack([total, content_total, style_total, tv, *content_parts, *style_parts]), gradient


def matching_of(form: Form) -> Matching:
    """What is matched at each style layer."""
    return Matching(form.style_losses, gram_normalization=form.gram_normalization, relative=form.equal_layers)


def style_losses(
    form: Form, matching: Matching, sums: Sequence[Any], styles: Sequence[Any], counts: Any, weights: Any
) -> list[Any]:
    """The losses of some style layers from what all views sum up of each, and from every style's targets of them.

    `counts` are the positions of (views, layers) and of the picture for each view; `weights` those of the statistics
    and of the styles.
    """
    positions, picture_positions = counts
    loss_weights = tf.unstack(weights[0], len(form.style_losses)) if form.weighted_losses else None
    style_weights = tf.unstack(weights[1], form.styles) if form.weighted_styles else None
    return [
        matching.loss(
            views,
            [style[place] for style in styles],
            positions=tf.unstack(positions[:, place], form.views),
            picture_positions=tf.unstack(picture_positions, form.views),
            loss_weights=loss_weights,
            style_weights=style_weights,
        )
        for place, views in enumerate(sums)
    ]


def summing(matching: Matching, wheres: Sequence[Any], weight: Any | None) -> Any:
    """The function that sums up maps for every view; with a `weight`, its gradient is normalised and times that."""

    def sums(maps: Any) -> list[Any]:
        source = maps if weight is None else normalized(maps, weight)
        return [matching.sums(source, where) for where in wheres]

    return sums
