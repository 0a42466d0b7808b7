"""What one transfer minimises: the targets of its content and style pictures, computed once, and the loss of
a picture with its gradient. One trace with unknown rows and columns serves pictures of every size, since
TensorFlow never frees a trace; XLA needs one a size, and there are a few of them at the most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from nst_engine.acceleration import Acceleration
from nst_engine.config import Normalization, TotalVariationForm, TransferConfig
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.losses import (
    content_loss,
    gram_matrix,
    gram_matrix_beside,
    style_loss,
    total_variation,
    weighted_sum,
)
from nst_engine.recent import Recent
from nst_engine.vgg19 import Network, Pooling, deepest, names_down_to

_PROGRAMS_KEPT: Final = 4


@dataclass(frozen=True)
class Form:
    """What decides the shape of the computation: everything that a trace is made for, and no number in it."""

    content_layers: tuple[str, ...]
    style_layers: tuple[str, ...]
    styles: int
    content_normalization: Normalization
    gram_normalization: Normalization
    tv_form: TotalVariationForm | None
    pooling: Pooling
    dtype: str

    @classmethod
    def of(cls, config: TransferConfig, *, styles: int, dtype: str) -> Form:
        """The form of `config` with so many style pictures and features in `dtype`."""
        return cls(
            content_layers=tuple(config.content_layers),
            style_layers=tuple(config.style_layers),
            styles=styles,
            content_normalization=config.content_normalization,
            gram_normalization=config.gram_normalization,
            tv_form=config.tv_form if config.tv_weight else None,
            pooling=config.pooling,
            dtype=dtype,
        )

    def named(self, layers: list[float]) -> dict[str, float]:
        """The layers' losses, contents first, under the names that `Losses` has for them."""
        names = [
            *(f"content/{layer}" for layer in self.content_layers),
            *(f"style/{layer}" for layer in self.style_layers),
        ]
        return dict(zip(names, layers, strict=True))

    @property
    def content(self) -> ContentForm:
        """What the targets of the content depend on."""
        return ContentForm(self.content_layers, self.pooling, self.dtype)

    @property
    def style(self) -> StyleForm:
        """What the targets of a style depend on, whatever the content and the other styles are."""
        return StyleForm(self.style_layers, self.pooling, self.dtype)


@dataclass(frozen=True)
class ContentForm:
    """The part of a form that decides the targets of a content picture."""

    layers: tuple[str, ...]
    pooling: Pooling
    dtype: str


@dataclass(frozen=True)
class StyleForm:
    """The part of a form that decides the targets of a style picture."""

    layers: tuple[str, ...]
    pooling: Pooling
    dtype: str


@dataclass(frozen=True)
class ContentTargets:
    """The content's feature maps, a tensor a layer."""

    features: list[Any]


@dataclass(frozen=True)
class StyleTargets:
    """One style's Gram matrices a position, G / M, a tensor a layer.

    A Gram matrix is kept a position so that a style of another size than the result compares with it.
    """

    grams: list[Any]

    @property
    def bytes(self) -> int:
        """The memory that they take."""
        return sum(int(np.prod(gram.shape)) * gram.dtype.size for gram in self.grams)


Content = TypeVar("Content")


@dataclass(frozen=True)
class Targets(Generic[Content]):
    """The targets of one transfer, whose content and styles may each have been computed for another."""

    content: Content
    styles: list[StyleTargets]


class Objective(Protocol[Content]):
    """What computes targets and evaluations of one form; `Content` is how it keeps a content's targets."""

    form: Form

    def content_targets(self, content: np.ndarray) -> Content:
        """The targets of a preprocessed content, (rows, columns, 3)."""

    def style_targets(self, style: np.ndarray) -> StyleTargets:
        """The targets of a preprocessed style, (rows, columns, 3)."""

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
        picture = tf.TensorSpec((None, None, 3), dtype)
        # Nothing here needs autograph, which reads and rewrites the source of all that is called.
        self._content = tf.function(self._content_features, input_signature=[picture], autograph=False)
        self._grams = tf.function(self._style_grams, input_signature=[picture], autograph=False)
        self._xla = acceleration.xla
        self._evaluations: Recent[tuple[int | None, ...], Any] = Recent(_PROGRAMS_KEPT)

    def content_targets(self, content: np.ndarray) -> ContentTargets:
        """The targets of a preprocessed content, (rows, columns, 3)."""
        return ContentTargets(list(self._content(self._tensor(content))))

    def style_targets(self, style: np.ndarray) -> StyleTargets:
        """The targets of a preprocessed style, (rows, columns, 3)."""
        return StyleTargets(list(self._grams(self._tensor(style))))

    def evaluate(self, picture: np.ndarray, targets: Targets[ContentTargets], config: TransferConfig) -> Evaluation:
        """The losses of a preprocessed picture under the weights of `config`, and their gradient."""
        form = self.form
        parts, gradient = self._evaluation(picture.shape[:2])(
            self._tensor(picture),
            targets.content.features,
            [style.grams for style in targets.styles],
            self._tensor([config.content_weight, config.style_weight, config.tv_weight]),
            self._tensor(list(config.content_layers.values())),
            self._tensor(list(config.style_layers.values())),
        )
        total, content, style, tv, *layers = (float(part) for part in parts.numpy())
        return Evaluation(Losses(total, content, style, tv, form.named(layers)), gradient.numpy())

    def _evaluation(self, size: tuple[int, ...]) -> Any:
        """The traced evaluation of pictures of that size: with XLA a program of its own, else the same for all."""
        known = size if self._xla else (None, None)
        return self._evaluations.get(known, lambda: self._traced_evaluation(known))

    def _traced_evaluation(self, size: tuple[int | None, ...]) -> Any:
        form, dtype = self.form, self._dtype
        vector = tf.TensorSpec((None,), dtype)
        return tf.function(
            self._loss_and_gradient,
            input_signature=[
                tf.TensorSpec((*size, 3), dtype),
                [tf.TensorSpec((1, None, None, None), form.dtype)] * len(form.content_layers),
                [[tf.TensorSpec((None, None), dtype)] * len(form.style_layers)] * form.styles,
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
        return self._network.features(pictures, layers, pooling=self.form.pooling)

    def _features_and_grams(self, picture: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The maps of all layers that are needed, and the Gram matrices of the style layers."""
        form = self.form
        features, grams = dict[str, Any](), dict[str, Any]()
        maps = tf.cast(picture, form.dtype)[tf.newaxis]
        for name in names_down_to(deepest((*form.content_layers, *form.style_layers))):
            maps = self._network.layer(name, pooling=form.pooling)(maps)
            if name in form.style_layers:
                maps, grams[name] = gram_matrix_beside(maps)
            features[name] = maps
        return features, grams

    def _content_features(self, picture: Any) -> list[Any]:
        features = self._features(picture, self.form.content_layers)
        return [features[layer] for layer in self.form.content_layers]

    def _style_grams(self, picture: Any) -> list[Any]:
        features = self._features(picture, self.form.style_layers)
        return [gram_matrix(features[layer]) / self._positions(features[layer]) for layer in self.form.style_layers]

    def _positions(self, features: Any) -> Any:
        return tf.cast(tf.reduce_prod(tf.shape(features)[1:3]), self._dtype)

    def _loss_and_gradient(
        self, picture: Any, content: Any, styles: Any, weights: Any, content_weights: Any, style_weights: Any
    ) -> tuple[Any, Any]:
        form = self.form
        with tf.GradientTape() as tape:
            tape.watch(picture)
            features, grams = self._features_and_grams(picture)
            content_parts = [
                content_loss(features[layer], target, normalization=form.content_normalization)
                for layer, target in zip(form.content_layers, content, strict=True)
            ]
            style_parts = [
                self._style_part(features[layer], grams[layer], [style[index] for style in styles], picture)
                for index, layer in enumerate(form.style_layers)
            ]
            content_total = weights[0] * weighted_sum(content_parts, tf.unstack(content_weights, len(content_parts)))
            style_total = weights[1] * weighted_sum(style_parts, tf.unstack(style_weights, len(style_parts)))
            zero = tf.zeros((), self._dtype)
            tv = weights[2] * total_variation(picture, form=form.tv_form) if form.tv_form else zero
            total = content_total + style_total + tv
        gradient = tape.gradient(total, picture)
        return tf.stack([total, content_total, style_total, tv, *content_parts, *style_parts]), gradient

    def _style_part(self, features: Any, gram: Any, targets: list[Any], picture: Any) -> Any:
        return mean_style_loss(
            gram,
            targets,
            positions=self._positions(features),
            picture_positions=tf.cast(tf.reduce_prod(tf.shape(picture)[:2]), self._dtype),
            normalization=self.form.gram_normalization,
        )


def mean_style_loss(
    gram: Any, targets: list[Any], *, positions: Any, picture_positions: Any, normalization: Normalization
) -> Any:
    """The mean over all styles of a layer's style loss; `targets` has each one's Gram matrix a position."""
    losses = [
        style_loss(
            gram,
            target * positions,
            positions=positions,
            picture_positions=picture_positions,
            normalization=normalization,
        )
        for target in targets
    ]
    return tf.add_n(losses) / len(losses)
