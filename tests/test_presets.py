"""The built-in presets against the numbers of their sources, written down here a second time."""

from typing import Any

import pytest

from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError
from nst_engine.presets import PRESETS, find_preset

FIVE = {f"block{block}_conv1": 1 / 5 for block in range(1, 6)}
KERAS: dict[str, Any] = {
    "rows": 400,
    "long_edge": None,
    "style_fit": "stretch",
    "content_layers": {"block5_conv2": 1.0},
    "style_layers": FIVE,
    "content_weight": 2.5e-8,
    "style_weight": 1e-6,
    "tv_weight": 1e-6,
    "content_normalization": "keras",
    "gram_normalization": "keras",
    "tv_form": "keras",
    "optimizer": "sgd",
    "learning_rate": 100.0,
    "decay_rate": 0.96,
    "decay_steps": 100,
    "iterations": 4000,
    "init": "content",
    "clip": False,
    "keep": "last",
    "pooling": "max",
    "precision": "float32",
    "weights": "imagenet",
}
PAPER = {**KERAS, "tv_weight": 0.0, "iterations": 40}
ADAM = {"optimizer": "adam", "learning_rate": 5.0, "decay_rate": 1.0, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}
BLOCK2 = {"content_layers": {"block2_conv2": 1.0}}
TENSORFLOW: dict[str, Any] = {
    "rows": None,
    "long_edge": 512,
    "content_layers": {"block5_conv2": 1.0},
    "style_layers": FIVE,
    "style_weight": 1e-2,
    "content_normalization": "mean",
    "gram_normalization": "mean",
    "optimizer": "adam",
    "decay_rate": 1.0,
    "beta_1": 0.99,
    "beta_2": 0.999,
    "iterations": 1000,
    "init": "content",
    "clip": True,
    "pooling": "max",
    "precision": "float32",
}


def first_style_layers(count: int) -> dict[str, Any]:
    return {"style_layers": {f"block{block}_conv1": 1 / count for block in range(1, count + 1)}}


EXPECTED: dict[str, dict[str, Any]] = {
    "default": TransferConfig().model_dump(),
    "keras-2016": KERAS,
    "paper-fig4": PAPER,
    "paper-fig5": {**PAPER, **first_style_layers(1)},
    "paper-fig6": {**PAPER, **first_style_layers(2)},
    "paper-fig7": {**PAPER, **first_style_layers(3)},
    "paper-fig8": {**PAPER, **BLOCK2},
    "paper-fig10": {**PAPER, **BLOCK2, **ADAM},
    "paper-fig13": {**PAPER, **ADAM},
    "yuan-2018": {
        **TENSORFLOW,
        "content_weight": 1e3,
        "tv_weight": 0.0,
        "learning_rate": 5.0,
        "epsilon": 0.1,
        "keep": "best",
    },
    # 0.02, 0.1 and 30 for pixels in 0..1.
    "tensorflow-tutorial": {
        **TENSORFLOW,
        "content_weight": 1e4,
        "tv_form": "l1",
        "tv_weight": pytest.approx(0.11764705882),
        "learning_rate": pytest.approx(5.1),
        "epsilon": pytest.approx(0.00039215686),
        "keep": "last",
    },
    "gatys-2015": {
        "rows": 400,
        "content_layers": {"block4_conv2": 1.0},
        "style_layers": FIVE,
        "content_weight": 1e-3,
        "style_weight": 1.0,
        "tv_weight": 0.0,
        "content_normalization": "gatys",
        "gram_normalization": "gatys",
        "optimizer": "lbfgs",
        "init": "noise",
        "pooling": "average",
        "iterations": 500,
        "precision": "float32",
    },
}


def test_these_are_all_presets() -> None:
    assert set(PRESETS) == set(EXPECTED)


@pytest.mark.parametrize("name", PRESETS)
def test_preset(name: str) -> None:
    preset = find_preset(name)
    assert preset is PRESETS[name]
    assert preset.name == name
    assert len(preset.source) > 30
    settings = preset.config.model_dump()
    assert {key: settings[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert TransferConfig.model_validate(settings) == preset.config


@pytest.mark.parametrize("figure", [4, 5, 6, 7, 8, 10, 13])
def test_a_paper_preset_names_its_figure_and_what_the_paper_leaves_open(figure: int) -> None:
    source = find_preset(f"paper-fig{figure}").source
    assert f"2021, figure {figure}. The paper gives no loss weights" in source


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "kears-2016",
            "There is no preset 'kears-2016'; did you mean 'keras-2016'? 'nst presets' lists them.",
        ),
        ("zzz", "There is no preset 'zzz'. 'nst presets' lists them."),
    ],
)
def test_there_is_no_such_preset(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        find_preset(name)
    assert str(failure.value) == sentence
