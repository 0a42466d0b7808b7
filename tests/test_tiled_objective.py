"""The tiled objective against the whole picture's: the same losses and the same gradient, at every border."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation
from nst_engine.images import preprocess
from nst_engine.objective import Form, Targets, TracedObjective
from nst_engine.presets import PRESETS, Preset
from nst_engine.samples import content_sample, style_sample
from nst_engine.tiled_objective import TiledObjective
from nst_engine.weights import Weights, random_weights

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}
"""Of the gradient's norm and the loss, relative."""


@dataclass(frozen=True)
class Both:
    """One objective as a whole and in tiles, made once for all pictures."""

    config: TransferConfig
    whole: TracedObjective
    tiled: TiledObjective

    def agree_at(self, rows: int, columns: int, *, style: tuple[int, int], tolerance: float) -> None:
        content, styled = preprocess(content_sample(rows, columns)), preprocess(style_sample(*style))
        # No two equal pixels: where a maximum is taken twice, either way back is right.
        picture = content[:, ::-1] + np.random.default_rng(7).normal(0, 8, content.shape).astype(np.float32)
        expected, found = (
            objective.evaluate(
                picture, Targets(objective.content_targets(content), [objective.style_targets(styled)]), self.config
            )
            for objective in (self.whole, self.tiled)
        )
        assert_agree(found, expected, tolerance=tolerance)


def assert_agree(found: Evaluation, expected: Evaluation, *, tolerance: float) -> None:
    assert found.gradient.dtype == expected.gradient.dtype
    assert found.gradient.shape == expected.gradient.shape
    assert norm(found.gradient - expected.gradient) < tolerance * norm(expected.gradient)
    parts = [
        [losses.total, losses.content, losses.style, losses.tv, *losses.layers.values()]
        for losses in (found.losses, expected.losses)
    ]
    assert parts[0] == pytest.approx(parts[1], rel=tolerance)
    assert list(found.losses.layers) == list(expected.losses.layers)


def norm(values: NDArray[Any]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def both(network: Weights, config: TransferConfig, *, dtype: str, side: int) -> Both:
    form = Form.of(config, styles=1, dtype=dtype)
    return Both(
        config,
        TracedObjective(form, network.kernels, on_cpu=True),
        TiledObjective(form, network.kernels, on_cpu=True, side=side),
    )


SHALLOW: dict[str, dict[str, Any]] = {
    "max, l2": {"gram_normalization": "keras"},
    "average, l1": {
        "pooling": "average",
        "content_normalization": "gatys",
        "gram_normalization": "gatys",
        "tv_form": "l1",
    },
    "max, keras": {"content_normalization": "keras", "tv_form": "keras"},
}
_shallow = {
    name: both(
        random_weights(),
        TransferConfig().with_overrides(
            {
                "content_layers": "block2_conv2:0.3,block3_conv2:0.7",
                "style_layers": "block1_conv1:3,block3_conv1:0.5,block2_conv1:1",
                **changes,
            }
        ),
        dtype="float64",
        side=24,
    )
    for name, changes in SHALLOW.items()
}


@pytest.mark.parametrize("form", SHALLOW)
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(16, 90), columns=st.integers(16, 90), style=st.tuples(st.integers(16, 80), st.integers(16, 80)))
def test_any_size(form: str, rows: int, columns: int, style: tuple[int, int]) -> None:
    _shallow[form].agree_at(rows, columns, style=style, tolerance=TOLERANCES["float64"])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_precision(random_network: Weights, dtype: str) -> None:
    objectives = both(random_network, PRESETS["default"].config, dtype=dtype, side=32)
    objectives.agree_at(77, 113, style=(65, 95), tolerance=TOLERANCES[dtype])


def layers_of(config: TransferConfig) -> tuple[str, ...]:
    return (config.pooling, *config.content_layers, *config.style_layers)


# Presets that look at the same layers differ in what is tested above.
DISTINCT = {layers_of(preset.config): preset for preset in reversed(PRESETS.values())}


@pytest.mark.parametrize("preset", [pytest.param(preset, id=preset.name) for preset in DISTINCT.values()])
def test_presets(random_network: Weights, preset: Preset) -> None:
    objectives = both(random_network, preset.config, dtype="float32", side=32)
    objectives.agree_at(81, 67, style=(48, 90), tolerance=TOLERANCES["float32"])


def test_one_trace_serves_every_size(random_network: Weights) -> None:
    tiled = both(random_network, TransferConfig(), dtype="float32", side=32).tiled
    for rows, columns in ((16, 40), (33, 47), (64, 20)):
        picture = preprocess(content_sample(rows, columns))
        targets = Targets(tiled.content_targets(picture), [tiled.style_targets(picture)])
        tiled.evaluate(picture, targets, TransferConfig())
    counts = {
        function.experimental_get_tracing_count()
        for segment in tiled._segments
        for function in (segment.grams, segment.features, segment.backward)
    }
    assert counts == {1}
