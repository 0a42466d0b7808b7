"""What the paper finds, in numbers, on the project's own samples: how much of the style its settings take on in 40
iterations, and how much of the content they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from nst_engine.engine import Engine
from nst_engine.pictures import fit_pictures
from nst_engine.presets import FIVE_STYLE_LAYERS, find_preset
from nst_engine.samples import content_sample, style_sample
from nst_engine.transfer import Budget, advance, start

ROWS = 64
PRESET_ROWS = 400
CONTENT_LAYERS = ("block2_conv2", "block5_conv2")
NEXT_TO_NOTHING = 1e-15


@dataclass(frozen=True)
class Painted:
    """What became of the content; the losses are of the same layers, whichever a preset uses.

    `change`: the mean change of a pixel's channel, of 255 levels. `edges`: the correlation of the slopes of the
    luminance with the content's. `texture`: the mean size of the Laplacian of the luminance, the content's being 1.
    `style_left`: the share that is left of the style loss of a layer, the mean over all five. `content_loss`: by layer.
    """

    change: float
    edges: float
    texture: float
    style_left: float
    content_loss: dict[str, float]


@pytest.fixture(scope="module")
def painted(engine: Engine, weights_choice: str) -> Callable[[str], Painted]:
    """What a preset makes of the samples at 64 rows, each preset run once.

    A pixel's part of the example's style loss grows as the picture shrinks, and with it what SGD does at its fixed
    learning rate. The style weight is made smaller by as much, so that a pixel moves about as far as at the preset's
    rows.
    """
    content, style = content_sample(), style_sample()

    @cache
    def run(name: str) -> Painted:
        preset = find_preset(name).config
        assert preset.rows == PRESET_ROWS
        config = preset.with_overrides(
            {
                "rows": ROWS,
                "style_weight": preset.style_weight * (ROWS / PRESET_ROWS) ** 2,
                # One form for all presets: it is traced once, and every state has the losses of all layers.
                "content_layers": with_others(preset.content_layers, CONTENT_LAYERS),
                "style_layers": with_others(preset.style_layers, FIVE_STYLE_LAYERS),
                "weights": weights_choice,
            }
        )
        pictures = fit_pictures(config, content, [style])
        begun, first = start(engine, config, pictures)
        state, _ = advance(engine, begun, Budget())
        result, before, after = state.result(), first.losses.layers, state.losses.layers
        return Painted(
            change=float(np.abs(result.astype(int) - pictures.content).mean()),
            edges=float(np.corrcoef(slopes(result).ravel(), slopes(pictures.content).ravel())[0, 1]),
            texture=roughness(result) / roughness(pictures.content),
            style_left=float(
                np.mean([after[f"style/{layer}"] / before[f"style/{layer}"] for layer in FIVE_STYLE_LAYERS])
            ),
            content_loss={layer: after[f"content/{layer}"] for layer in CONTENT_LAYERS},
        )

    return run


def with_others(own: Mapping[str, float], layers: Iterable[str]) -> dict[str, float]:
    return dict.fromkeys(layers, NEXT_TO_NOTHING) | dict(own)


def luminance(picture: np.ndarray) -> np.ndarray:
    return np.asarray(picture @ np.array([0.299, 0.587, 0.114]))


def slopes(picture: np.ndarray) -> np.ndarray:
    return np.asarray(np.hypot(*np.gradient(luminance(picture))))


def roughness(picture: np.ndarray) -> float:
    grey = luminance(picture)
    beside = grey[2:, 1:-1] + grey[:-2, 1:-1] + grey[1:-1, 2:] + grey[1:-1, :-2]
    return float(np.abs(4 * grey[1:-1, 1:-1] - beside).mean())


# Those that ask for the stand-in weights hold for a network that was trained: in a random one the lowest layer has as
# much to say as any other, and takes up more of a step the fewer there are.


@pytest.mark.usefixtures("standin_weights")
def test_one_low_style_layer_and_sgd_leave_the_picture_nearly_untouched(painted: Callable[[str], Painted]) -> None:
    result = painted("paper-fig5")
    assert result.change < 0.1
    assert result.edges > 0.999
    assert result.texture == pytest.approx(1, abs=0.01)
    assert result.style_left > 0.97


@pytest.mark.usefixtures("standin_weights")
@pytest.mark.parametrize(
    ("fewer", "more", "left", "edges"),
    [
        pytest.param("paper-fig5", "paper-fig6", 0.6, 0.03, id="one and two"),
        pytest.param("paper-fig6", "paper-fig7", 0.9, 0.005, id="two and three"),
        pytest.param("paper-fig7", "paper-fig4", 0.99, 0.005, id="three and five"),
    ],
)
def test_more_style_layers_bring_more_of_the_style_and_hide_more_edges(
    painted: Callable[[str], Painted], fewer: str, more: str, left: float, edges: float
) -> None:
    assert painted(more).style_left < left * painted(fewer).style_left
    assert painted(more).edges < painted(fewer).edges - edges


@pytest.mark.usefixtures("standin_weights")
@pytest.mark.parametrize("several", ["paper-fig6", "paper-fig7", "paper-fig4"])
def test_several_style_layers_bring_texture_that_one_does_not(painted: Callable[[str], Painted], several: str) -> None:
    assert painted(several).texture > 1.4 * painted("paper-fig5").texture


def test_all_style_layers_and_adam_make_a_painting(painted: Callable[[str], Painted]) -> None:
    result = painted("paper-fig13")
    assert result.change > 15
    assert result.texture > 2
    assert result.style_left < 0.15


@pytest.mark.parametrize(
    ("adam", "sgd"), [("paper-fig13", "paper-fig4"), ("paper-fig10", "paper-fig8")], ids=CONTENT_LAYERS[::-1]
)
def test_adam_takes_on_more_texture_than_sgd(painted: Callable[[str], Painted], adam: str, sgd: str) -> None:
    assert painted(adam).change > 1.5 * painted(sgd).change
    assert painted(adam).texture > 1.4 * painted(sgd).texture
    assert painted(adam).style_left < 0.5 * painted(sgd).style_left
    assert painted(adam).edges < painted(sgd).edges - 0.1


# Random weights' gradients are so small that SGD moves hardly a pixel, whichever the content layer is.
@pytest.mark.usefixtures("standin_weights")
def test_a_lower_content_layer_keeps_more_of_the_content_with_sgd(painted: Callable[[str], Painted]) -> None:
    lower, higher = painted("paper-fig8"), painted("paper-fig4")
    assert lower.change < 0.95 * higher.change
    assert lower.edges > higher.edges + 0.01
    assert lower.content_loss["block2_conv2"] < 0.8 * higher.content_loss["block2_conv2"]
    assert lower.content_loss["block5_conv2"] < 0.95 * higher.content_loss["block5_conv2"]


def test_a_lower_content_layer_keeps_more_of_the_content_with_adam(painted: Callable[[str], Painted]) -> None:
    lower, higher = painted("paper-fig10"), painted("paper-fig13")
    assert lower.change < 0.95 * higher.change
    assert lower.edges > higher.edges + 0.1
    assert lower.content_loss["block2_conv2"] < 0.6 * higher.content_loss["block2_conv2"]
    assert lower.content_loss["block5_conv2"] < 0.95 * higher.content_loss["block5_conv2"]
