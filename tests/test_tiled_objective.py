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
from nst_engine.masks import Guide
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
    content = preprocess(content_sample(rows, columns))
    styles = [preprocess(style_sample(style[0] + 2 * place, style[1])) for place in range(objective.form.styles)]
    # No two equal pixels: where a maximum is taken twice, either way back is right.
    picture = content[:, ::-1] + np.random.default_rng(7).normal(0, 8, content.shape).astype(np.float32)
    content, picture = (placed(array, on_disk=on_disk) for array in (content, picture))
    targets = Targets(
        objective.content_targets(content),
        [objective.style_targets(placed(one, on_disk=on_disk)) for one in styles],
    )
    if objective.form.masked:
        targets = Targets(
            targets.content,
            [
                objective.style_targets(one, guide(objective.form, one.shape, seed=place))
                for place, one in enumerate(styles)
            ],
            [guide(objective.form, content.shape, seed=10 + place) for place in range(len(styles))],
        )
    return objective.evaluate(picture, targets, config)


def guide(form: Form, shape: tuple[int, ...], *, seed: int) -> Guide:
    """Under a mask of patches, of which each layer has some."""
    patches = np.random.default_rng(seed).integers(0, 256, (3, 3), np.uint8)
    mask = np.kron(patches, np.ones((shape[0] // 3 + 1, shape[1] // 3 + 1), np.uint8))[: shape[0], : shape[1]]
    return Guide.of(form.style_layers, mask.shape, sampled=form.sampled, mask=mask)


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


def both(config: TransferConfig, *, dtype: str, tiling: Tiling, styles: int = 1, masked: bool = False) -> Both:
    form = Form.of(config, styles=styles, dtype=dtype, masked=masked)
    return Both(config, whole_objective(form), TiledObjective(form, network(dtype), tiling=tiling))


EVERY_STATISTIC = "gram:1e-5,mmd-linear:0.1,mmd-gaussian:100,moments:0.1,wasserstein:0.1,histogram:0.1"
TO_BLOCK_3 = {
    "content_layers": "block2_conv2:0.3,block3_conv2:0.7",
    "style_layers": "block1_conv1:3,block3_conv1:0.5,block2_conv1:1",
}
TO_BLOCK_2 = {"content_layers": "block2_conv1", "style_layers": "block1_conv2:2,block2_conv2:1"}


@dataclass(frozen=True)
class Shallow:
    """A form that is not deep, and how it is cut."""

    whole_from: int | None
    settings: dict[str, Any]
    styles: int = 1
    masked: bool = False


# Every cut that there is so far up, and all that a form can have.
SHALLOW = {
    "max, l2, from 2": Shallow(2, TO_BLOCK_3 | {"gram_normalization": "keras"}),
    "average, l1, from 3": Shallow(
        3,
        TO_BLOCK_3
        | {"pooling": "average", "content_normalization": "gatys", "gram_normalization": "gatys", "tv_form": "l1"},
    ),
    "max, keras": Shallow(None, TO_BLOCK_3 | {"content_normalization": "keras", "tv_form": "keras"}),
    "statistics": Shallow(None, TO_BLOCK_2 | {"style_loss": EVERY_STATISTIC, "style_weights": "3,1"}, styles=2),
    "masked statistics, from 2": Shallow(2, TO_BLOCK_2 | {"style_loss": EVERY_STATISTIC}, styles=2, masked=True),
    "balanced, replicate, l2 pooling": Shallow(
        None, TO_BLOCK_2 | {"balance": 0.1, "padding": "replicate", "pooling": "l2"}, styles=3, masked=True
    ),
    "normalised": Shallow(
        None, TO_BLOCK_2 | {"optimizer": "adam", "normalize_gradients": True, "style_loss": "gram,moments"}, styles=2
    ),
    "normalised, from 2": Shallow(
        2, TO_BLOCK_2 | {"optimizer": "adam", "normalize_gradients": True, "equal_layers": True}
    ),
}


@functools.cache
def shallow(name: str) -> Both:
    form = SHALLOW[name]
    return both(
        TransferConfig().with_overrides(form.settings),
        dtype="float64",
        tiling=Tiling(24, form.whole_from),
        styles=form.styles,
        masked=form.masked,
    )


@pytest.mark.parametrize("form", SHALLOW)
@settings(max_examples=3, deadline=None)
@given(rows=st.integers(16, 60), columns=st.integers(16, 60), style=st.tuples(st.integers(16, 40), st.integers(16, 40)))
def test_any_size(form: str, rows: int, columns: int, style: tuple[int, int]) -> None:
    statistics = "wasserstein" in shallow(form).config.style_loss
    shallow(form).agree_at(rows, columns, style=style, tolerance=1e-10 if statistics else TOLERANCES["float64"])


@pytest.mark.parametrize(
    ("dtype", "whole_from"),
    [pytest.param("float32", None, id="float32"), pytest.param("bfloat16", 3, id="bfloat16, from 3")],
)
def test_every_precision(dtype: str, whole_from: int | None) -> None:
    # Deep enough for Winograd's convolution.
    config = TransferConfig().with_overrides(TO_BLOCK_3)
    both(config, dtype=dtype, tiling=Tiling(24, whole_from)).agree_at(
        61, 83, style=(48, 70), tolerance=TOLERANCES[dtype]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_in_every_precision(dtype: str) -> None:
    config = TransferConfig().with_overrides({**TO_BLOCK_2, "style_loss": EVERY_STATISTIC})
    objectives = both(config, dtype=dtype, tiling=Tiling(24, None), masked=True)
    # Roots of small eigenvalues make more of float32's rounding.
    objectives.agree_at(51, 63, style=(48, 70), tolerance=10 * TOLERANCES[dtype] if dtype == "float32" else 2e-2)


def layers_of(config: TransferConfig) -> tuple[str, ...]:
    return (config.pooling, *config.content_layers, *config.style_layers)


# Presets that look at the same layers differ in what is tested above.
DISTINCT = {layers_of(preset.config): preset for preset in reversed(PRESETS.values())}


CUTS = (None, *WHOLE_FROM)


@pytest.mark.parametrize(
    ("preset", "whole_from"),
    [
        pytest.param(preset, CUTS[index % len(CUTS)], id=f"{preset.name}, from {CUTS[index % len(CUTS)]}")
        for index, preset in enumerate(DISTINCT.values())
    ],
)
def test_presets(preset: Preset, whole_from: int | None) -> None:
    # In float32 a sum in another order may put one unit on the other side of its ReLU, which a small picture shows.
    objectives = both(preset.config, dtype="float64", tiling=Tiling(16, whole_from))
    objectives.agree_at(49, 43, style=(32, 40), tolerance=TOLERANCES["float64"])


def test_a_picture_on_disk_has_the_same_bits_and_a_gradient_on_disk() -> None:
    config = TransferConfig().with_overrides(TO_BLOCK_2)
    tiled = both(config, dtype="float32", tiling=Tiling(32, 2)).tiled
    in_memory, there = (evaluate(tiled, config, 77, 113, style=(65, 95), on_disk=place) for place in (False, True))
    assert there.losses == in_memory.losses
    np.testing.assert_array_equal(there.gradient, in_memory.gradient)
    assert [on_disk(found.gradient) for found in (in_memory, there)] == [False, True]


def test_one_trace_serves_every_size() -> None:
    config = TransferConfig().with_overrides(TO_BLOCK_2)
    tiled = both(config, dtype="float32", tiling=Tiling(32, 2)).tiled
    for rows, columns in ((16, 40), (33, 47), (64, 20)):
        evaluate(tiled, config, rows, columns, style=(rows, columns))
    assert tiled._rest is not None
    functions = [
        *(function for segment in tiled._tiled for function in (segment.sums, segment.features, segment.backward)),
        *(tiled._rest.style_sums[False], tiled._rest.features, tiled._rest.losses),
    ]
    assert {function.experimental_get_tracing_count() for function in functions} == {1}
