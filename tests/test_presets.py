"""The built-in presets against the numbers of their sources, written down here a second time."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from benchmarks.presets import table
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import ConfigError
from nst_engine.form import Form
from nst_engine.images import preprocess
from nst_engine.objective import matching_of
from nst_engine.pictures import Pictures
from nst_engine.presets import PRESETS, find_preset
from nst_engine.samples import content_sample, style_sample
from nst_engine.vgg19 import Network, Padding, Pooling

ROOT = Path(__file__).resolve().parents[1]
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


CHANNELS = (64, 128, 256, 512, 512)
JOHNSON: dict[str, Any] = {
    "rows": None,
    "long_edge": 512,
    "style_fit": "edge",
    "content_layers": {"block4_conv2": 1.0},
    "style_layers": {f"block{block}_conv1": 1 / channels**2 for block, channels in enumerate(CHANNELS, 1)},
    "style_loss": {"gram": 1.0},
    "content_weight": 5.0,
    "style_weight": 100.0,
    "content_normalization": "mean",
    "gram_normalization": "mean",
    "optimizer": "lbfgs",
    "history": 100,
    "iterations": 1000,
    "init": "grey",
    "init_noise": pytest.approx(1.3585e-5, rel=1e-4),
    "pooling": "max",
    "padding": "zeros",
    "precision": "float32",
}
LI: dict[str, Any] = {
    "rows": None,
    "long_edge": 600,
    "style_fit": "stretch",
    "content_layers": {"block4_conv2": 1.0},
    "style_layers": {f"block{block}_conv1": 4.0 ** (1 - block) for block in range(1, 6)},
    "content_weight": 8.0,
    "style_weight": 5.0,
    "content_normalization": "mean",
    "gram_normalization": "gatys",
    "tv_form": "l2",
    "tv_weight": pytest.approx(2.314815e-9),
    "optimizer": "lbfgs",
    "iterations": 1000,
    "init": "grey",
    "init_noise": pytest.approx(7.843137e-4),
    "pooling": "average",
    "precision": "float32",
}

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
    "johnson-neural-style": {**JOHNSON, "tv_form": "l2", "tv_weight": 5e-4},
    "neural-style-pt": {**JOHNSON, "tv_form": "l1", "tv_weight": 1e-3},
    "athalye": {
        **JOHNSON,
        "rows": "content",
        "long_edge": None,
        "style_fit": "area",
        "style_layers": {f"block{block}_conv1": 0.2 / channels**2 for block, channels in enumerate(CHANNELS, 1)},
        "style_weight": 500.0,
        "tv_form": "l2",
        "tv_weight": pytest.approx(1.2715658e-4),
        "optimizer": "adam",
        "history": 10,
        "learning_rate": 10.0,
        "decay_rate": 1.0,
        "beta_1": 0.9,
        "beta_2": 0.999,
        "epsilon": 1e-8,
        "init_noise": pytest.approx(3.47767e-3, rel=1e-4),
        "keep": "last",
    },
    "titu": {
        "rows": 400,
        "style_fit": "stretch",
        "content_layers": {"block5_conv2": 1.0},
        "style_layers": FIVE,
        "content_weight": 0.025,
        "style_weight": 1.0,
        "tv_weight": 8.5e-5,
        "content_normalization": "keras",
        "gram_normalization": "keras",
        "tv_form": "keras",
        "optimizer": "lbfgs",
        "history": 10,
        "iterations": 200,
        "init": "content",
        "pooling": "max",
        "precision": "float32",
    },
    "smith": {
        "rows": None,
        "long_edge": 512,
        "style_fit": "stretch",
        "content_layers": {"block4_conv2": 1.0},
        "style_layers": FIVE,
        "content_weight": pytest.approx(3135.3469),
        "style_weight": 2000.0,
        "tv_weight": 1e-3,
        "content_normalization": "mean",
        "gram_normalization": "gatys",
        "tv_form": "l1",
        "optimizer": "lbfgs",
        "history": 10,
        "iterations": 1000,
        "init": "content",
        "pooling": "average",
        "precision": "float32",
    },
    "crowson": {
        "rows": None,
        "long_edge": 512,
        "style_fit": "edge",
        "content_layers": {"block4_conv2": 1.0},
        "style_layers": {f"block{block}_conv1": weight / 341 for block, weight in enumerate((256, 64, 16, 4, 1), 1)},
        "style_loss": {"wasserstein": 1.0},
        "content_weight": 0.015,
        "style_weight": 1.0,
        "content_normalization": "mean",
        "tv_form": "l2",
        "tv_weight": pytest.approx(1.7319065e-7),
        "optimizer": "adam",
        "learning_rate": pytest.approx(5.1),
        "decay_rate": 1.0,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "epsilon": pytest.approx(1.30244e-7, rel=1e-4),
        "clip": True,
        "keep": "average",
        "average_decay": 0.99,
        "scales": 5,
        "scale_factor": pytest.approx(1.41421356),
        "scale_iterations": 500,
        "iterations": 2500,
        "init": "content",
        "init_noise": 0.0,
        "pooling": "max",
        "padding": "replicate",
        "precision": "float32",
    },
    "li-2017-linear": {**LI, "style_loss": {"mmd-linear": 1000.0}},
    "li-2017-poly": {**LI, "style_loss": {"gram": 0.1}},
    "li-2017-gaussian": {
        **LI,
        "style_loss": {"mmd-gaussian": pytest.approx(2.7777778e8)},
        "style_layers": {f"block{block}_conv1": 1 / channels for block, channels in enumerate(CHANNELS, 1)},
    },
    "li-2017-bn": {**LI, "style_loss": {"moments": 500.0}, "style_weight": 1.0},
    "li-2017-fusion": {**LI, "style_loss": {"moments": 250.0, "gram": 0.05}},
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


def test_the_page_of_all_presets_is_what_was_measured() -> None:
    report = json.loads((ROOT / "benchmarks" / "results" / "presets.json").read_text())
    page = (ROOT / "docs" / "presets.md").read_text()
    assert [run["preset"] for run in report["runs"]] == [*PRESETS]
    assert table(report) in page
    assert "(presets.jpg)" in page
    assert (ROOT / "docs" / "presets.jpg").is_file()


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


Maps = dict[str, NDArray[np.float64]]
"""By layer, (M, N)."""
Source = Callable[[Maps, Maps, Maps, NDArray[np.float32]], dict[str, float]]
"""The parts of an engine's loss from the maps of picture, content and style, and from the picture in grey levels."""

SIZE = (48, 64)
PIXELS = 48 * 64
STYLE_LAYERS = tuple(FIVE)
CONTENT_LAYER = "block4_conv2"


def mean_of_squares(difference: NDArray[Any]) -> float:
    return float(np.square(difference).mean())


def gram_over_all(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(maps.T @ maps / maps.size)


def differences(picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return picture[1:] - picture[:-1], picture[:, 1:] - picture[:, :-1]


def johnson(maps: Maps, content: Maps, style: Maps, picture: NDArray[np.float32]) -> dict[str, float]:
    """jcjohnson/neural-style; total variation by what its gradient is of."""
    down, right = picture[1:, :-1] - picture[:-1, :-1], picture[:-1, 1:] - picture[:-1, :-1]
    return {
        "content": 5 * mean_of_squares(maps[CONTENT_LAYER] - content[CONTENT_LAYER]),
        "style": sum(
            100 * mean_of_squares(gram_over_all(maps[layer]) - gram_over_all(style[layer])) for layer in STYLE_LAYERS
        ),
        "tv": 1e-3 / 2 * float(np.square(down).sum() + np.square(right).sum()),
    }


def neural_style_pt(maps: Maps, content: Maps, style: Maps, picture: NDArray[np.float32]) -> dict[str, float]:
    down, right = differences(picture)
    variation = 1e-3 * float(np.abs(down).sum() + np.abs(right).sum())
    return {**johnson(maps, content, style, picture), "tv": variation}


def athalye(maps: Maps, content: Maps, style: Maps, picture: NDArray[np.float32]) -> dict[str, float]:
    """Its l2_loss is half a sum of squares, which each term doubles."""
    down, right = differences(picture)
    grams = [mean_of_squares(gram_over_all(maps[layer]) - gram_over_all(style[layer])) for layer in STYLE_LAYERS]
    return {
        "content": 5 * mean_of_squares(maps[CONTENT_LAYER] - content[CONTENT_LAYER]),
        "style": 500 * sum(0.2 * gram for gram in grams),
        "tv": 100 * (mean_of_squares(down) + mean_of_squares(right)),
    }


def smith(maps: Maps, content: Maps, style: Maps, picture: NDArray[np.float32]) -> dict[str, float]:
    """With content_loss_function 1; the weighted sum over the layers is divided by their number once more."""
    found = maps[CONTENT_LAYER]
    losses = [
        np.square(maps[layer].T @ maps[layer] - style[layer].T @ style[layer]).sum() / (4 * maps[layer].size ** 2)
        for layer in STYLE_LAYERS
    ]
    down, right = differences(picture)
    return {
        "content": 5 * float(np.square(found - content[CONTENT_LAYER]).sum() / (2 * found.size**0.5)),
        "style": 1e4 * float(sum(0.2 * loss for loss in losses)) / 5,
        "tv": 1e-3 * float(np.abs(down).sum() + np.abs(right).sum()),
    }


def crowson(maps: Maps, content: Maps, style: Maps, picture: NDArray[np.float32]) -> dict[str, float]:
    """For maps of a network that sees pixels in 0..1, normalised, and then for ours, whose maps are `scale` larger."""
    scale = 255 * 0.226
    style_loss = 0.0
    for layer, weight in zip(STYLE_LAYERS, (256, 64, 16, 4, 1), strict=True):
        style_loss += weight / 341 * wasserstein(maps[layer] / scale, style[layer] / scale)
    padded = np.pad(picture / 255, ((1, 1), (1, 1), (0, 0)), "edge")
    inside, beyond, before, after = slice(1, -1), slice(2, None), slice(None, -1), slice(1, None)
    variation = 2 * (
        mean_of_squares(padded[inside, beyond] - padded[inside, inside]) / 3
        + mean_of_squares(padded[beyond, inside] - padded[inside, inside]) / 3
        + mean_of_squares(padded[after, after] - padded[before, before]) / 12
        + mean_of_squares(padded[after, before] - padded[before, after]) / 12
    )
    of_content = mean_of_squares((maps[CONTENT_LAYER] - content[CONTENT_LAYER]) / scale)
    return {
        "content": scale**2 * 0.015 * of_content,
        "style": scale**2 * style_loss,
        "tv": scale**2 * 2 * variation,
    }


def wasserstein(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Squared, between Gaussians, by the channel; without the 1e-4 on the covariances' diagonals."""
    a, b = ((maps - maps.mean(0)) / len(maps) ** 0.5 for maps in (x, y))
    # The singular values of a b^T are the eigenvalues of the root of A^1/2 B A^1/2, where A = a^T a and B = b^T b.
    if len(x) < x.shape[1]:
        root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    else:
        root = np.sqrt(np.maximum(np.linalg.eigvals(a.T @ a @ b.T @ b).real, 0)).sum()
    between: float = (np.square(a).sum() + np.square(b).sum() - 2 * root) / x.shape[1]
    return mean_of_squares(x.mean(0) - y.mean(0)) + between


# What a source divides by its picture's size is set for 48 x 64 pixels; its own size is the second number.
SOURCES: dict[str, tuple[Source, dict[str, float]]] = {
    "johnson-neural-style": (johnson, {}),
    "neural-style-pt": (neural_style_pt, {}),
    "athalye": (athalye, {"tv_weight": 512 * 512 / PIXELS}),
    "smith": (smith, {"content_weight": (PIXELS / (512 * 384)) ** 0.5}),
    "crowson": (crowson, {"tv_weight": 512 * 384 / PIXELS}),
}


@pytest.fixture(scope="module")
def eagerly() -> Iterator[None]:
    """Without traces, of which each of the sources would need one for a single picture."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def picture() -> NDArray[np.float32]:
    """A random picture, smooth as pictures are, preprocessed."""
    small = Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8))
    return preprocess(np.asarray(small.resize(SIZE[::-1], Image.Resampling.BICUBIC)))


@pytest.fixture(scope="module")
def maps_of(engine: Engine, picture: NDArray[np.float32]) -> Callable[[Pooling, Padding], tuple[Maps, Maps, Maps]]:
    """The maps of picture, content and style."""
    # With Keras' own convolutions, which take several pictures at once.
    network = Network(engine.weights("random").kernels, dtype="float32", on_cpu=False)
    layers = (*STYLE_LAYERS, CONTENT_LAYER)

    @functools.cache
    def maps(pooling: Pooling, padding: Padding) -> tuple[Maps, Maps, Maps]:
        pictures = np.stack([picture, preprocess(content_sample(*SIZE)), preprocess(style_sample(*SIZE))])
        found = network.features(tf.constant(pictures), layers, pooling=pooling, padding=padding)
        positions = {layer: np.reshape(found[layer], (3, -1, found[layer].shape[-1])) for layer in layers}
        first, second, third = ({layer: positions[layer][i].astype(np.float64) for layer in layers} for i in range(3))
        return first, second, third

    return maps


@pytest.mark.parametrize("name", SOURCES)
def test_it_has_the_loss_of_its_source(
    name: str,
    engine: Engine,
    picture: NDArray[np.float32],
    maps_of: Callable[[Pooling, Padding], tuple[Maps, Maps, Maps]],
    eagerly: None,
) -> None:
    formula, sizes = SOURCES[name]
    preset = find_preset(name).config
    config = preset.with_overrides(
        {"rows": SIZE[0], "weights": "random"} | {key: getattr(preset, key) * factor for key, factor in sizes.items()}
    )
    pictures = Pictures(content_sample(*SIZE), (style_sample(*SIZE),))
    ours = engine.evaluator(config, pictures, precision="float32")(picture).losses
    theirs = formula(*maps_of(config.pooling, config.padding), picture)
    assert ours.content == pytest.approx(theirs["content"], rel=1e-3)
    assert ours.style == pytest.approx(theirs["style"], rel=1e-2)
    # Some leave out the last row and column, one of 48 and one of 64, or take other neighbours at the border.
    assert ours.tv == pytest.approx(theirs["tv"], rel=0.04)
    assert ours.total == pytest.approx(sum(theirs.values()), rel=1e-2)


LI_PIXELS = 600 * 450
LI_POSITIONS, LI_CHANNELS = LI_PIXELS // 256, 512
"""Of block5_conv1 at the size of its source."""


def linear_gradient(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """mmd_loss.py, with its weight 2e3 / (M N)."""
    return np.broadcast_to((x - y).sum(0), x.shape) * 2e3 / x.size


def poly_gradient(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """mmd_loss.py, with its weight 0.1 / (M N^2)."""
    return np.asarray(x @ (x.T @ x - y.T @ y) * 1e-1 / (x.size * x.shape[1]))


def bn_gradient(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """bn_loss.py, with its weight 1e3 M, of a mean over N."""
    means, deviations = x.mean(0), x.std(0)
    slope = (means - y.mean(0)) + (deviations - y.std(0)) / deviations * (x - means)
    return np.asarray(slope / len(x) * 1e3 * len(x) / x.shape[1])


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        pytest.param("li-2017-linear", lambda x, y: 5 * linear_gradient(x, y), id="linear"),
        pytest.param("li-2017-poly", lambda x, y: 5 * poly_gradient(x, y), id="poly"),
        pytest.param("li-2017-bn", bn_gradient, id="bn"),
        pytest.param("li-2017-fusion", lambda x, y: 5 * (bn_gradient(x, y) / 2 + poly_gradient(x, y) / 2), id="fusion"),
    ],
)
def test_its_gradient_is_that_of_its_source_by_the_pixel(
    name: str, gradient: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    config = find_preset(name).config
    form = Form.of(config, styles=1, dtype="float64")
    matching = matching_of(form)
    rng = np.random.default_rng(0)
    x, y = (np.maximum(rng.normal(mean, 40, (LI_POSITIONS, LI_CHANNELS)), 0) for mean in (0, 10))
    count = tf.constant(float(LI_POSITIONS), tf.float64)
    maps = tf.constant(x[np.newaxis, np.newaxis])
    target = matching.target(matching.sums(tf.constant(y[np.newaxis, np.newaxis]), {}), {}, positions=count)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = matching.loss(
            [matching.sums(maps, {})],
            [target],
            positions=[count],
            picture_positions=[tf.constant(float(LI_PIXELS), tf.float64)],
            loss_weights=[tf.constant(weight, tf.float64) for weight in config.style_loss.values()],
            style_weights=None,
        )
        weighted = config.style_weight * config.style_layers["block5_conv1"] * loss
    ours = tape.gradient(weighted, maps).numpy()[0, 0]
    np.testing.assert_allclose(ours * LI_PIXELS, gradient(x, y), rtol=2e-3, atol=1e-6 * np.abs(gradient(x, y)).max())
