"""The presets that are other engines' defaults: the name of each, its source and its settings. An engine's weights are
given for the losses as they are normalised here; docs/presets.md says what else differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from nst_engine.vgg19 import CONVOLUTIONS

_CHANNELS: Final = {layer.name: layer.channels for layer in CONVOLUTIONS if layer.name.endswith("_conv1")}
"""Of the five usual style layers."""
_GATYS_LAYERS: Final[Mapping[str, Any]] = {"content_layers": ["block4_conv2"], "style_layers": tuple(_CHANNELS)}
_ALL_ELEMENTS: Final = {layer: 1 / channels**2 for layer, channels in _CHANNELS.items()}
"""Weights that make a mean over all elements of a Gram matrix of their sum."""
_UNIFORM_DEVIATION: Final = 255 / 12**0.5
"""Of the noise here, in grey levels."""

# Both have the same losses but for the total variation.
_JOHNSON: Final[Mapping[str, Any]] = {
    "long_edge": 512,
    "style_fit": "edge",
    **_GATYS_LAYERS,
    "style_layers": _ALL_ELEMENTS,
    "content_weight": 5.0,
    "style_weight": 100.0,
    "content_normalization": "mean",
    "gram_normalization": "mean",
    "init": "grey",
    "init_noise": 0.001 / _UNIFORM_DEVIATION,
    "optimizer": "lbfgs",
    "history": 100,
    "iterations": 1000,
    "precision": "float32",
}

ATHALYE_PIXELS: Final = 512 * 512
"""The size for which the weight of its total variation is given: the engine divides that by the size."""
SMITH_POSITIONS: Final = 64 * 48
"""Of block4_conv2 in 512 x 384 pixels, for which the weight of its content is given."""
CROWSON_PIXELS: Final = 512 * 384
"""The size for which the weight of its total variation is given."""
CROWSON_DEVIATION: Final = 255 * 0.226
"""What its network's pictures are divided by, in grey levels, and so what its feature maps are smaller by."""
_CROWSON_LAYERS: Final = {layer: 4.0 ** (4 - place) / 341 for place, layer in enumerate(_CHANNELS)}

LI_PIXELS: Final = 600 * 450
"""The size that all weights of its losses have been divided by: there they are sums over positions."""
_LI_SHARES: Final = {layer: 4.0**-place for place, layer in enumerate(_CHANNELS)}
"""The positions of a layer's map, as a share of the picture's."""


def _li(losses: Mapping[str, float], layers: Mapping[str, float], *, balance: float) -> dict[str, Any]:
    """The settings of one of its methods; `balance` is gamma, the weight of the style."""
    return {
        "long_edge": 600,
        "style_fit": "stretch",
        **_GATYS_LAYERS,
        "style_layers": dict(layers),
        "style_loss": dict(losses),
        # A sum over block4_conv2's 512 channels and one in 64 of the picture's positions.
        "content_weight": 512 / 64,
        "style_weight": balance,
        "content_normalization": "mean",
        "gram_normalization": "gatys",
        "tv_form": "l2",
        "tv_weight": 1e-2 / 16 / LI_PIXELS,
        "pooling": "average",
        "init": "grey",
        "init_noise": 0.2 / 255,
        "optimizer": "lbfgs",
        "iterations": 1000,
        "precision": "float32",
    }


def _li_source(method: str) -> str:
    return (
        f"Y. Li, N. Wang, J. Liu and X. Hou, Demystifying Neural Style Transfer, arXiv:1701.01036, 2017: {method}; "
        "numbers of github.com/lyttonhao/Neural-Style-MMD at 600 x 450 pixels. L-BFGS in place of its SGD with momentum"
    )


ENGINE_PRESETS: Final[tuple[tuple[str, str, Mapping[str, Any]], ...]] = (
    (
        "johnson-neural-style",
        "J. Johnson, neural-style, 2015 (github.com/jcjohnson/neural-style). It starts from its mean colour with "
        "hardly any noise: grey here",
        # It has the gradient of half the sum of squares.
        {**_JOHNSON, "tv_form": "l2", "tv_weight": 1e-3 / 2},
    ),
    (
        "neural-style-pt",
        "ProGamerGov, neural-style-pt (github.com/ProGamerGov/neural-style-pt), after J. Johnson's. It starts from its "
        "mean colour with hardly any noise: grey here",
        {**_JOHNSON, "tv_form": "l1", "tv_weight": 1e-3},
    ),
    (
        "athalye",
        "A. Athalye, neural-style (github.com/anishathalye/neural-style). Its total variation is a mean: the weight is "
        "that for 512 x 512 pixels. It starts from its mean colour with hardly any noise: grey here",
        {
            "rows": "content",
            "style_fit": "area",
            **_GATYS_LAYERS,
            "style_layers": {layer: weight / 5 for layer, weight in _ALL_ELEMENTS.items()},
            "content_weight": 5.0,
            "style_weight": 500.0,
            "content_normalization": "mean",
            "gram_normalization": "mean",
            "tv_form": "l2",
            "tv_weight": 100 / (3 * ATHALYE_PIXELS),
            "init": "grey",
            "init_noise": 0.256 / _UNIFORM_DEVIATION,
            "optimizer": "adam",
            "learning_rate": 10.0,
            "epsilon": 1e-8,
            "iterations": 1000,
            "precision": "float32",
        },
    ),
    (
        "titu",
        "S. Majumdar, Neural-Style-Transfer, Network.py --model vgg19 (github.com/titu1994/Neural-Style-Transfer). "
        "10 rounds of 20 evaluations are 200 iterations here",
        {
            "rows": 400,
            "style_fit": "stretch",
            "content_layers": ["block5_conv2"],
            "style_layers": tuple(_CHANNELS),
            "content_weight": 0.025,
            "style_weight": 1.0,
            "content_normalization": "keras",
            "gram_normalization": "keras",
            "tv_form": "keras",
            "tv_weight": 8.5e-5,
            "optimizer": "lbfgs",
            "iterations": 200,
            "precision": "float32",
        },
    ),
    (
        "smith",
        "C. Smith, neural-style-tf (github.com/cysmith/neural-style-tf). Its content loss is divided by the root of "
        "the map's size: the weight is that for 512 x 384 pixels. It takes the content layer before its ReLU",
        {
            "long_edge": 512,
            "style_fit": "stretch",
            **_GATYS_LAYERS,
            "content_weight": 5 / 2 * (512 * SMITH_POSITIONS) ** 0.5,
            # The mean of the layers' losses, whose weights are 1/5 already.
            "style_weight": 1e4 / 5,
            "content_normalization": "mean",
            "gram_normalization": "gatys",
            "tv_form": "l1",
            "tv_weight": 1e-3,
            "pooling": "average",
            "optimizer": "lbfgs",
            "iterations": 1000,
            "precision": "float32",
        },
    ),
    (
        "crowson",
        "K. Crowson, style-transfer-pytorch (github.com/crowsonkb/style-transfer-pytorch). Its total variation is a "
        "mean, and its network sees pictures of unit deviation: the weight is for 512 x 384 pixels in grey levels. "
        "500 iterations at the coarsest scale too, where it has 1000",
        {
            "long_edge": 512,
            "style_fit": "edge",
            **_GATYS_LAYERS,
            "style_layers": _CROWSON_LAYERS,
            "style_loss": {"wasserstein": 1.0},
            "content_weight": 0.015,
            "style_weight": 1.0,
            "content_normalization": "mean",
            "tv_form": "l2",
            "tv_weight": 2 * (CROWSON_DEVIATION / 255) ** 2 / (3 * CROWSON_PIXELS),
            "padding": "replicate",
            "optimizer": "adam",
            "learning_rate": 0.02 * 255,
            "beta_2": 0.99,
            # Its gradients are for pixels in 0..1, of losses of the smaller feature maps.
            "epsilon": 1e-8 * CROWSON_DEVIATION**2 / 255,
            "clip": True,
            "keep": "average",
            "average_decay": 0.99,
            "scales": 5,
            "scale_factor": 2**0.5,
            "scale_iterations": 500,
            "iterations": 2500,
            "precision": "float32",
        },
    ),
    (
        "li-2017-linear",
        _li_source("MMD with a linear kernel"),
        _li({"mmd-linear": 2e3 / 2}, _LI_SHARES, balance=5.0),
    ),
    (
        "li-2017-poly",
        _li_source("MMD with a polynomial kernel, which is the Gram matrix"),
        _li({"gram": 1e-1}, _LI_SHARES, balance=5.0),
    ),
    (
        "li-2017-gaussian",
        _li_source("MMD with a Gaussian kernel"),
        _li(
            {"mmd-gaussian": 3e14 / 4 / LI_PIXELS},
            {layer: 1 / channels for layer, channels in _CHANNELS.items()},
            balance=5.0,
        ),
    ),
    (
        "li-2017-bn",
        _li_source("the statistics of batch normalisation"),
        _li({"moments": 1e3 / 2}, _LI_SHARES, balance=1.0),
    ),
    (
        "li-2017-fusion",
        _li_source("the statistics of batch normalisation and the Gram matrix, half of each"),
        _li({"moments": 1e3 / 2 / 2, "gram": 1e-1 / 2}, _LI_SHARES, balance=5.0),
    ),
)
"""Each one's name, source and settings, over those of the default preset."""
