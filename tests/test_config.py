"""The settings of a transfer: what is taken, and the sentence for what is not."""

from typing import Any

import pytest
from pydantic import ValidationError

from nst_engine.config import TransferConfig, did_you_mean
from nst_engine.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("block4_conv2", {"block4_conv2": 1.0}, id="one name"),
        pytest.param(["block1_conv1", "block2_conv1"], {"block1_conv1": 0.5, "block2_conv1": 0.5}, id="list"),
        pytest.param(("block1_conv1:3",), {"block1_conv1": 3.0}, id="tuple with a weight"),
        pytest.param("block1_conv1, block2_conv1", {"block1_conv1": 0.5, "block2_conv1": 0.5}, id="names"),
        pytest.param("block2_conv1:2,block1_conv1: 0.5", {"block2_conv1": 2.0, "block1_conv1": 0.5}, id="weights"),
        pytest.param("block1_conv1,block2_conv1:3", {"block1_conv1": 0.5, "block2_conv1": 3.0}, id="some weights"),
        pytest.param({"block3_conv4": 7}, {"block3_conv4": 7.0}, id="dict"),
    ],
)
def test_layers(given: Any, expected: dict[str, float]) -> None:
    for key in ("content_layers", "style_layers"):
        layers = getattr(TransferConfig().with_overrides({key: given}), key)
        assert (layers, list(layers)) == (expected, list(expected))


@pytest.mark.parametrize(
    ("start", "overrides", "expected"),
    [
        pytest.param({}, {"rows": 200}, (200, None), id="other rows"),
        pytest.param({}, {"long_edge": 512}, (None, 512), id="long_edge for rows"),
        pytest.param({"long_edge": 512}, {"rows": 300}, (300, None), id="rows for long_edge"),
        pytest.param({"long_edge": 512}, {"rows": "300", "long_edge": "none"}, (300, None), id="both, as text"),
        pytest.param({"long_edge": 512}, {"iterations": 3}, (None, 512), id="neither"),
    ],
)
def test_rows_and_long_edge_replace_each_other(
    start: dict[str, Any], overrides: dict[str, Any], expected: tuple[int | None, int | None]
) -> None:
    config = TransferConfig().with_overrides(start).with_overrides(overrides)
    assert (config.rows, config.long_edge) == expected


def test_overrides_leave_the_rest_as_it_was() -> None:
    before = TransferConfig()
    after = before.with_overrides({"iterations": 7, "style_weight": "2.5"})
    assert after.model_dump() == {**before.model_dump(), "iterations": 7, "style_weight": 2.5}
    assert before == TransferConfig()


SENTENCES = {
    "unknown key": ({"row": 3}, "row: there is no such setting; did you mean 'rows'?"),
    "unknown key like no other": ({"zzzzz": 3}, "zzzzz: there is no such setting."),
    "unknown layer": (
        {"style_layers": "block1_conv1,block3_conv9"},
        "style_layers: VGG19 has no convolution 'block3_conv9'; did you mean 'block3_conv4'?",
    ),
    "unlike any layer": ({"content_layers": "relu4_2"}, "content_layers: VGG19 has no convolution 'relu4_2'."),
    "no layer": ({"content_layers": " , "}, "content_layers: needs at least one layer, such as block1_conv1."),
    "layer twice": (
        {"content_layers": "block1_conv1,block1_conv1:3"},
        "content_layers: block1_conv1 is given twice; name each once, with its weight as in block1_conv1:2.",
    ),
    "layer weight below 0": (
        {"content_layers": "block5_conv2:-1"},
        "content_layers.block5_conv2 = -1: input should be greater than 0 (content layers and their weights).",
    ),
    "layer weight no number": (
        {"style_layers": "block5_conv2:x"},
        "style_layers.block5_conv2 = x: input should be a valid number, unable to parse string as a number "
        "(style layers and their weights).",
    ),
    "too few rows": (
        {"rows": 8},
        "rows = 8: input should be greater than or equal to 16 (rows of the result, the columns follow the "
        "content's shape; content: its own size).",
    ),
    "too long an edge": (
        {"long_edge": 20_001},
        "long_edge = 20001: input should be less than or equal to 20000 (the result's longer side, instead of rows).",
    ),
    "rows and long_edge": (
        {"rows": 400, "long_edge": 512},
        "Give either rows or long_edge, and 'none' for the other.",
    ),
    "neither rows nor long_edge": ({"rows": "none"}, "Give either rows or long_edge, and 'none' for the other."),
    "clip with lbfgs": ({"clip": True}, "clip works with sgd and adam, not with lbfgs; set clip=false."),
    "normalised gradients with lbfgs": (
        {"normalize_gradients": True},
        "normalize_gradients works with sgd and adam, not with lbfgs, which compares gradients with losses; set "
        "optimizer=adam.",
    ),
    "no content and no style": (
        {"content_weight": 0, "style_weight": 0},
        "content_weight and style_weight cannot both be 0: nothing would be left to do.",
    ),
    "weight below 0": (
        {"content_weight": -1},
        "content_weight = -1: input should be greater than or equal to 0 (alpha, the weight of the content loss).",
    ),
    "learning rate 0": (
        {"learning_rate": 0},
        "learning_rate = 0: input should be greater than 0 (of sgd and adam, in grey levels).",
    ),
    "not a number": (
        {"style_weight": float("nan")},
        "style_weight = nan: input should be a finite number (beta, the weight of the style loss).",
    ),
    "infinite": (
        {"learning_rate": "inf"},
        "learning_rate = inf: input should be a finite number (of sgd and adam, in grey levels).",
    ),
    "decay that grows": (
        {"decay_rate": 1.5},
        "decay_rate = 1.5: input should be less than or equal to 1 (the learning rate is multiplied by this every "
        "decay_steps iterations, smoothly).",
    ),
    "no iteration": (
        {"iterations": 0},
        "iterations = 0: input should be greater than or equal to 1 (steps of the optimiser).",
    ),
    "half an iteration": (
        {"iterations": 2.5},
        "iterations = 2.5: input should be a valid integer, got a number with a fractional part (steps of the "
        "optimiser).",
    ),
    "unknown choice": (
        {"keep": "first"},
        "keep = first: input should be 'last', 'best' or 'average' (the result: the last picture, that of least loss, "
        "or a running average of all).",
    ),
    "unknown style loss": (
        {"style_loss": "gram,historgam"},
        "style_loss: there is no style loss 'historgam'; did you mean 'histogram'?",
    ),
    "no style loss": (
        {"style_loss": []},
        "style_loss: needs at least one of gram, mmd-linear, mmd-gaussian, moments, wasserstein, histogram.",
    ),
    "style weight below 0": (
        {"style_weights": "1,-2"},
        "style_weights.1 = -2: input should be greater than 0 (of several styles, in their order; only their ratio "
        "counts; none: all alike).",
    ),
    "16 bits of JPEG": (
        {"format": "jpeg", "bits": "16"},
        "jpeg has 8 bits a channel; set bits=8, or format=png or tiff.",
    ),
    "the place without the rest": ({"keep_location": True}, "keep_location needs keep_metadata=true."),
    "luminance of rgb": (
        {"preserve_color": "luminance", "color_space": "rgb"},
        "rgb has no luminance of its own; set color_space to yuv, ycrcb, lab or luv.",
    ),
}


@pytest.mark.parametrize(("overrides", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_one_sentence_for_what_is_wrong(overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        TransferConfig().with_overrides(overrides)
    assert str(failure.value) == sentence


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("rows", [16, 20_000, "content"], [15, 20_001, "style"]),
        ("content_weight", [0, 1e30], [-1e-9]),
        ("style_weight", [0, 1e30], [-1e-9]),
        ("tv_weight", [0], [-1e-9]),
        ("learning_rate", [1e-9], [0]),
        ("decay_rate", [1e-9, 1], [0, 1.01]),
        ("decay_steps", [1], [0]),
        ("beta_1", [0, 0.999], [-0.1, 1]),
        ("beta_2", [0, 0.999], [-0.1, 1]),
        ("epsilon", [1e-12], [0]),
        ("history", [1, 100], [0, 101]),
        ("iterations", [1, 1_000_000], [0, 1_000_001]),
        ("seed", [0, 2**32 - 1], [-1, 2**32]),
        ("init", ["content", "style", "grey", "noise", "picture"], ["gray"]),
        ("init_noise", [0, 1], [-0.1, 1.1]),
        ("style_scale", [0.05, 20], [0.04, 21]),
        ("style_size", [16, None], [15]),
        ("balance", [1e-9, None], [0]),
        ("feather", [0, 1000], [-1, 1001]),
        ("average_decay", [0.5], [0, 1]),
        ("min_improvement", [0, 1], [-0.1, 1.1]),
        ("patience", [1], [0]),
        ("preserve_color", ["no", "luminance", "histogram", "linear"], ["yes"]),
        ("color_when", ["before", "after"], ["never"]),
        ("color_space", ["rgb", "yuv", "ycrcb", "lab", "luv"], ["hsv"]),
        ("format", ["png", "jpeg", "webp", "avif", "tiff"], ["gif"]),
        ("quality", [1, 100], [0, 101]),
        ("bits", [8, 16], [12]),
        ("padding", ["zeros", "replicate"], ["reflect"]),
        ("optimizer", ["sgd", "adam", "lbfgs"], ["lbfgs-b"]),
        ("pooling", ["max", "average", "l2"], ["avg"]),
        ("precision", ["auto", "float32", "bfloat16"], ["float64"]),
        ("style_fit", ["stretch", "area", "edge", "crop"], ["warp"]),
        ("tv_form", ["keras", "l1", "l2"], ["l3"]),
        ("content_normalization", ["gatys", "keras", "mean"], ["sum"]),
        ("gram_normalization", ["gatys", "keras", "mean"], ["sum"]),
        ("weights", ["imagenet", "random", "/a/b.h5"], [""]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranges(setting: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(TransferConfig().with_overrides({setting: value}), setting) == value
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^{setting} = "):
            TransferConfig().with_overrides({setting: value})


def test_every_setting_says_what_it_is() -> None:
    undescribed = [name for name, field in TransferConfig.model_fields.items() if not field.description]
    assert undescribed == []


def test_a_config_cannot_be_changed() -> None:
    config = TransferConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.rows = 3  # type: ignore[misc]


def test_a_config_survives_json() -> None:
    config = TransferConfig().with_overrides({"style_layers": "block1_conv1:3,block2_conv2", "long_edge": 99})
    assert TransferConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("word", "expected"),
    [("adm", "; did you mean 'adam'?"), ("lbgfs", "; did you mean 'lbfgs'?"), ("qqqqq", ".")],
)
def test_did_you_mean(word: str, expected: str) -> None:
    assert did_you_mean(word, ["sgd", "adam", "lbfgs"]) == expected
