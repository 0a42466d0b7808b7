"""The built-in presets: named TransferConfigs, each with its source. A preset gives the source's numbers in
its own normalisation and, where the source leaves something open, says what was chosen. Those of other engines are in
`engine_presets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nst_engine.config import TransferConfig, did_you_mean
from nst_engine.engine_presets import ENGINE_PRESETS
from nst_engine.errors import ConfigError

FIVE_STYLE_LAYERS = tuple(f"block{block}_conv1" for block in range(1, 6))


@dataclass(frozen=True)
class Preset:
    """A named config and where its numbers come from."""

    name: str
    source: str
    config: TransferConfig


_KERAS_SOURCE = (
    "F. Chollet, Neural style transfer, Keras example, 2016 (keras.io/examples/generative/neural_style_transfer)"
)
_KERAS: Mapping[str, Any] = {
    "rows": 400,
    "style_fit": "stretch",
    "content_layers": ["block5_conv2"],
    "style_layers": FIVE_STYLE_LAYERS,
    "content_weight": 2.5e-8,
    "style_weight": 1e-6,
    "content_normalization": "keras",
    "gram_normalization": "keras",
    "tv_weight": 0.0,
    "tv_form": "keras",
    "optimizer": "sgd",
    "learning_rate": 100.0,
    "decay_rate": 0.96,
    "decay_steps": 100,
    "precision": "float32",
}

_PAPER_SOURCE = (
    "M. Chunduru Balaji, Neural Style Transfer for Modeling Artistic Images, 2021, figure {figure}. The paper "
    "gives no loss weights: those of the Keras example, without total variation. Layers: our reading, see "
    "docs/presets.md"
)
_SGD = {"optimizer": "sgd", "learning_rate": 100.0, "decay_rate": 0.96}
_ADAM = {"optimizer": "adam", "learning_rate": 5.0, "decay_rate": 1.0}
_PAPER_FIGURES: Mapping[int, tuple[str, tuple[str, ...], Mapping[str, Any]]] = {
    4: ("block5_conv2", FIVE_STYLE_LAYERS, _SGD),
    5: ("block5_conv2", FIVE_STYLE_LAYERS[:1], _SGD),
    6: ("block5_conv2", FIVE_STYLE_LAYERS[:2], _SGD),
    7: ("block5_conv2", FIVE_STYLE_LAYERS[:3], _SGD),
    8: ("block2_conv2", FIVE_STYLE_LAYERS, _SGD),
    10: ("block2_conv2", FIVE_STYLE_LAYERS, _ADAM),
    13: ("block5_conv2", FIVE_STYLE_LAYERS, _ADAM),
}
"""Figure: content layer, style layers, optimiser."""


def _paper(figure: int) -> Preset:
    content_layer, style_layers, optimizer = _PAPER_FIGURES[figure]
    config = TransferConfig().with_overrides(
        {
            **_KERAS,
            **optimizer,
            "content_layers": [content_layer],
            "style_layers": style_layers,
            "iterations": 40,
        }
    )
    return Preset(f"paper-fig{figure}", _PAPER_SOURCE.format(figure=figure), config)


_YUAN: Mapping[str, Any] = {
    "long_edge": 512,
    "style_fit": "edge",
    "content_layers": ["block5_conv2"],
    "style_layers": FIVE_STYLE_LAYERS,
    "content_normalization": "mean",
    "gram_normalization": "mean",
    "tv_weight": 0.0,
    "optimizer": "adam",
    "beta_1": 0.99,
    "clip": True,
    "iterations": 1000,
    "precision": "float32",
}


def _preset(name: str, source: str, settings: Mapping[str, Any]) -> Preset:
    return Preset(name, source, TransferConfig().with_overrides(settings))


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset("default", "nst's own: what we would give a friend. L-BFGS from the content picture", {}),
        *(_paper(figure) for figure in _PAPER_FIGURES),
        _preset("keras-2016", _KERAS_SOURCE, {**_KERAS, "tv_weight": 1e-6, "iterations": 4000}),
        _preset(
            "yuan-2018",
            "R. Yuan, Neural Style Transfer with tf.keras, TensorFlow blog, 2018",
            {
                **_YUAN,
                "content_weight": 1e3,
                "style_weight": 1e-2,
                "learning_rate": 5.0,
                "epsilon": 0.1,
                "keep": "best",
            },
        ),
        _preset(
            "tensorflow-tutorial",
            "TensorFlow tutorial, Neural style transfer. It optimises pixels in 0..1: learning rate 0.02, epsilon "
            "0.1 and total variation 30 are given here for 0..255",
            {
                **_YUAN,
                "content_weight": 1e4,
                "style_weight": 1e-2,
                "tv_form": "l1",
                "tv_weight": 30 / 255,
                "learning_rate": 0.02 * 255,
                "epsilon": 0.1 / 255,
            },
        ),
        _preset(
            "gatys-2015",
            "L. Gatys, A. Ecker and M. Bethge, A Neural Algorithm of Artistic Style, arXiv:1508.06576, 2015, "
            "alpha / beta = 1e-3. It names no optimiser, size or iterations: L-BFGS (as in their paper of 2016), "
            "400 rows, 500 iterations",
            {
                "style_fit": "area",
                "content_layers": ["block4_conv2"],
                "style_layers": FIVE_STYLE_LAYERS,
                "content_weight": 1e-3,
                "style_weight": 1.0,
                "content_normalization": "gatys",
                "gram_normalization": "gatys",
                "tv_weight": 0.0,
                "pooling": "average",
                "init": "noise",
                "optimizer": "lbfgs",
                "iterations": 500,
                "precision": "float32",
            },
        ),
        *(_preset(name, source, settings) for name, source, settings in ENGINE_PRESETS),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name; raises ConfigError with the nearest name when there is none."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset '{name}'{did_you_mean(name, PRESETS)} 'nst presets' lists them.")
    return PRESETS[name]
