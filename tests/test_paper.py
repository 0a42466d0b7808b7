"""What the paper finds, on the project's own samples: how much of the style its settings take on in 40 iterations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nst_engine.engine import Engine
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.samples import content_sample, style_sample
from nst_engine.transfer import Budget, advance, start


@pytest.fixture(scope="module")
def change(engine: Engine, standin_weights: Path) -> dict[str, float]:
    """By preset: the mean change of a pixel's channel from content to result, of 255 levels, at 200 rows.

    The example's losses grow as the picture shrinks, and with them what SGD does at its fixed learning rate.
    """
    content, style = content_sample(), style_sample()
    found = {}
    for name in ("paper-fig4", "paper-fig5", "paper-fig8", "paper-fig10", "paper-fig13"):
        config = find_preset(name).config.with_overrides({"rows": 200, "weights": str(standin_weights)})
        pictures = fit_pictures(config, content, [style])
        state, _ = advance(engine, start(engine, config, pictures)[0], Budget())
        found[name] = float(np.abs(state.result().astype(int) - pictures.content).mean())
    return found


def test_one_low_style_layer_and_sgd_leave_the_picture_nearly_untouched(change: dict[str, float]) -> None:
    assert change["paper-fig5"] < 1


def test_all_style_layers_and_adam_make_a_painting(change: dict[str, float]) -> None:
    assert change["paper-fig13"] > 15


def test_adam_takes_on_more_than_sgd(change: dict[str, float]) -> None:
    assert change["paper-fig13"] > 1.5 * change["paper-fig4"]


def test_a_lower_content_layer_keeps_more_of_the_content(change: dict[str, float]) -> None:
    assert change["paper-fig8"] < change["paper-fig4"]
    assert change["paper-fig10"] < change["paper-fig13"]
