"""The preset keras-2016 against the Keras example's own arithmetic."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.keras_example import CONTENT_LAYER, CONTENT_WEIGHT, STYLE_LAYERS, STYLE_WEIGHT, TV_WEIGHT, KerasExample
from nst_engine.engine import Engine
from nst_engine.images import deprocess
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start

ITERATIONS = 10


def test_the_preset_gives_the_losses_that_the_example_prints(
    engine: Engine, weights_choice: str, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = find_preset("keras-2016").config.with_overrides(
        # With fewer rows the example's learning rate is too high: it swings, and any difference in rounding grows.
        {"rows": 128, "iterations": ITERATIONS, "weights": weights_choice}
    )
    pictures = fit_pictures(config, content, [style])
    assert [picture.shape for picture in (pictures.content, *pictures.styles)] == [(128, 170, 3)] * 2

    state, first = start(engine, config, pictures)
    state, points = advance(engine, state, Budget())
    example = KerasExample(pictures.content, pictures.styles[0], engine.weights(weights_choice).kernels)
    printed = [example.iterate() for _ in range(ITERATIONS)]

    ours = [point.losses.total for point in (first, *points)][:ITERATIONS]
    assert ours == pytest.approx(printed, rel=1e-4)
    # The pictures too, or equal losses would say little of a step that is too small to see.
    assert abs(ours[-1] / ours[0] - 1) > 1e-3
    picture = example.picture.numpy()[0]
    # On average: a rounding can tip a pooling's choice of the largest of two near equals, and a few pixels with it.
    assert np.sqrt(np.square(state.picture - picture).mean()) < 0.05
    assert np.abs(deprocess(state.picture).astype(int) - deprocess(picture).astype(int)).max() <= 1


def test_the_preset_has_the_examples_numbers() -> None:
    config = find_preset("keras-2016").config
    assert config.content_layers == {CONTENT_LAYER: 1.0}
    assert config.style_layers == dict.fromkeys(STYLE_LAYERS, 1 / 5)
    assert (config.content_weight, config.style_weight, config.tv_weight) == (CONTENT_WEIGHT, STYLE_WEIGHT, TV_WEIGHT)
