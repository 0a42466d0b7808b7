"""The tiled objective against the whole picture's: the same losses and the same gradient, at every border."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nst_engine.acceleration import Acceleration
from nst_engine.arrays import on_disk, placed
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation
from nst_engine.images import preprocess
from nst_engine.objective import Form, Objective, Targets, TracedObjective
from nst_engine.presets import PRESETS, Preset
from nst_engine.samples import content_sample, style_sample
from nst_engine.tiled_objective import TiledObjective
from nst_engine.tiling import WHOLE_FROM, Tiling
from nst_engine.vgg19 import Network
from nst_engine.weights import random_weights

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}
"""Of the gradient's norm and the loss, relative."""


@dataclass(frozen=True)
class Both:
    """One objective as a whole and in tiles, made once for all pictures."""

    config: TransferConfig
    whole: TracedObjective
    tiled: TiledObjective

    def agree_at(self, rows: int, columns: int, *, style: tuple[int, int], tolerance: float) -> None:
        assert_agree(
            *(evaluate(objective, self.config, rows, columns, style=style) for objective in (self.tiled, self.whole)),
            tolerance=tolerance,
        )


def evaluate(
    objective: Objective[Any],
    config: TransferConfig,
    rows: int,
    columns: int,
    *,
    style: tuple[int, int],
    on_disk: bool = False,
) -> Evaluation:
    content, styled = preprocess(content_sample(rows, columns)), preprocess(style_sample(*style))
    # No two equal pixels: where a maximum is taken twice, either way back is right.
    picture = content[:, ::-1] + np.random.default_rng(7).normal(0, 8, content.shape).astype(np.float32)
    content, styled, picture = (placed(array, on_disk=on_disk) for array in (content, styled, picture))
    targets = Targets(objective.content_targets(content), [objective.style_targets(styled)])
    return objective.evaluate(picture, targets, config)


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


@functools.cache
def network(dtype: str) -> Network:
    return Network(random_weights().kernels, dtype=dtype, on_cpu=True)


@functools.cache
def whole_objective(form: Form) -> TracedObjective:
    return TracedObjective(form, network(form.dtype), acceleration=Acceleration(on_cpu=True))


def both(config: TransferConfig, *, dtype: str, tiling: Tiling) -> Both:
    form = Form.of(config, styles=1, dtype=dtype)
    return Both(config, whole_objective(form), TiledObjective(form, network(dtype), tiling=tiling))


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


@functools.cache
def shallow(form: str, whole_from: int | None) -> Both:
    layers = {
        "content_layers": "block2_conv2:0.3,block3_conv2:0.7",
        "style_layers": "block1_conv1:3,block3_conv1:0.5,block2_conv1:1",
    }
    config = TransferConfig().with_overrides({**layers, **SHALLOW[form]})
    return both(config, dtype="float64", tiling=Tiling(24, whole_from))


@pytest.mark.parametrize("whole_from", [pytest.param(2, id="from 2"), pytest.param(3, id="from 3"), None])
@pytest.mark.parametrize("form", SHALLOW)
@settings(max_examples=5, deadline=None)
@given(rows=st.integers(16, 90), columns=st.integers(16, 90), style=st.tuples(st.integers(16, 80), st.integers(16, 80)))
def test_any_size(form: str, whole_from: int | None, rows: int, columns: int, style: tuple[int, int]) -> None:
    shallow(form, whole_from).agree_at(rows, columns, style=style, tolerance=TOLERANCES["float64"])


@pytest.mark.parametrize(
    ("dtype", "whole_from"),
    [
        pytest.param("float32", None, id="float32"),
        pytest.param("float32", 4, id="float32, from 4"),
        pytest.param("bfloat16", None, id="bfloat16"),
        pytest.param("bfloat16", 3, id="bfloat16, from 3"),
    ],
)
def test_every_precision(dtype: str, whole_from: int | None) -> None:
    objectives = both(PRESETS["default"].config, dtype=dtype, tiling=Tiling(32, whole_from))
    objectives.agree_at(77, 113, style=(65, 95), tolerance=TOLERANCES[dtype])


def layers_of(config: TransferConfig) -> tuple[str, ...]:
    return (config.pooling, *config.content_layers, *config.style_layers)


# Presets that look at the same layers differ in what is tested above.
DISTINCT = {layers_of(preset.config): preset for preset in reversed(PRESETS.values())}


CUTS = (None, *WHOLE_FROM)


# Two cuts each, so that every cut meets several presets.
@pytest.mark.parametrize(
    ("preset", "whole_from"),
    [
        pytest.param(
            preset, CUTS[(index + step) % len(CUTS)], id=f"{preset.name}, from {CUTS[(index + step) % len(CUTS)]}"
        )
        for index, preset in enumerate(DISTINCT.values())
        for step in (0, 2)
    ],
)
def test_presets(preset: Preset, whole_from: int | None) -> None:
    # In float32 a sum in another order may put one unit on the other side of its ReLU, which a small picture shows.
    objectives = both(preset.config, dtype="float64", tiling=Tiling(32, whole_from))
    objectives.agree_at(81, 67, style=(48, 90), tolerance=TOLERANCES["float64"])


def test_a_picture_on_disk_has_the_same_bits_and_a_gradient_on_disk() -> None:
    config = TransferConfig()
    tiled = both(config, dtype="float32", tiling=Tiling(32, 4)).tiled
    in_memory, there = (evaluate(tiled, config, 77, 113, style=(65, 95), on_disk=place) for place in (False, True))
    assert there.losses == in_memory.losses
    np.testing.assert_array_equal(there.gradient, in_memory.gradient)
    assert [on_disk(found.gradient) for found in (in_memory, there)] == [False, True]


def test_one_trace_serves_every_size() -> None:
    config = TransferConfig()
    tiled = both(config, dtype="float32", tiling=Tiling(32, 4)).tiled
    for rows, columns in ((16, 40), (33, 47), (64, 20)):
        evaluate(tiled, config, rows, columns, style=(rows, columns))
    assert tiled._rest is not None
    functions = [
        *(function for segment in tiled._tiled for function in (segment.grams, segment.features, segment.backward)),
        *(tiled._rest.grams, tiled._rest.features, tiled._rest.losses),
    ]
    assert {function.experimental_get_tracing_count() for function in functions} == {1}
