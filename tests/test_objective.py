"""The whole objective: its value against NumPy over Keras' own feature maps, its gradient against differences."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from nst_engine.acceleration import Acceleration
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation
from nst_engine.images import preprocess
from nst_engine.losses import total_variation
from nst_engine.objective import Form, Targets, TracedObjective
from nst_engine.samples import content_sample, style_sample
from nst_engine.vgg19 import Network
from nst_engine.weights import Weights

ROWS, COLUMNS = 33, 42
STYLE_SHAPES = ((33, 42), (48, 37))
ON_CPU = Acceleration(on_cpu=True)


def config(**settings: Any) -> TransferConfig:
    return TransferConfig().with_overrides({"precision": "float32", **settings})


# The weights are such that content, style and total variation have like shares in the total.
CONFIGS = {
    "default": config(content_weight=1e-3, style_weight=4e-9, tv_weight=2e-7),
    "keras": config(
        content_normalization="keras",
        gram_normalization="keras",
        tv_form="keras",
        content_layers="block5_conv2",
        content_weight=4e-6,
        style_weight=1e-10,
        tv_weight=2.5e-8,
    ),
    "gatys": config(
        content_normalization="gatys",
        gram_normalization="gatys",
        content_layers="block2_conv2:0.3,block4_conv2:0.7",
        style_layers="block1_conv1:3,block3_conv4:0.5,block2_conv2:1",
        content_weight=5e-8,
        style_weight=4e-9,
        tv_weight=0,
        pooling="average",
    ),
    "l1": config(
        content_layers="block3_conv1",
        style_layers="block3_conv1",
        content_weight=2e-4,
        style_weight=2.5e-9,
        tv_form="l1",
        tv_weight=7e-6,
    ),
}


@dataclass(frozen=True)
class Case:
    """An objective, what it was made of, and its evaluation of a picture that is neither target."""

    config: TransferConfig
    content: NDArray[Any]
    styles: list[NDArray[Any]]
    picture: NDArray[Any]
    at: Callable[[NDArray[Any]], Evaluation]
    evaluation: Evaluation


def targets_of(objective: TracedObjective, content: NDArray[Any], styles: list[NDArray[Any]]) -> Targets:
    return Targets(objective.content_targets(content), [objective.style_targets(style) for style in styles])


def make_case(random_network: Weights, config: TransferConfig, *, dtype: str) -> Case:
    content = preprocess(content_sample(ROWS, COLUMNS))
    styles = [preprocess(style_sample(*shape)) for shape in STYLE_SHAPES]
    # No two equal pixels, where l1 would have a kink.
    picture = content[:, ::-1] + np.random.default_rng(7).normal(0, 8, (ROWS, COLUMNS, 3))
    form = Form.of(config, styles=len(styles), dtype=dtype)
    objective = TracedObjective(form, Network(random_network.kernels, dtype=dtype, on_cpu=True), acceleration=ON_CPU)
    targets = targets_of(objective, content, styles)

    def at(picture: NDArray[Any]) -> Evaluation:
        return objective.evaluate(picture, targets, config)

    return Case(config, content, styles, picture, at, at(picture))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, random_network: Weights) -> Case:
    """Each of CONFIGS in float64."""
    return make_case(random_network, CONFIGS[request.param], dtype="float64")


@pytest.fixture(scope="module")
def keras_features(random_network: Weights) -> Callable[..., dict[str, NDArray[np.float64]]]:
    """Each convolution's (positions, channels) of a picture, from Keras' network in float64."""
    picture_in = keras.Input((None, None, 3), dtype="float64")
    whole = keras.applications.VGG19(include_top=False, weights=None, input_tensor=picture_in)
    networks = {}
    for average in (False, True):

        def in_float64(layer: Any, average: bool = average) -> Any:
            kind = keras.layers.AveragePooling2D if average and "pool" in layer.name else type(layer)
            return kind.from_config({**layer.get_config(), "dtype": "float64"})

        network = keras.models.clone_model(whole, clone_function=in_float64)
        for name, arrays in random_network.kernels.items():
            network.get_layer(name).set_weights(list(arrays))
        outputs = {name: network.get_layer(name).output for name in random_network.kernels}
        networks[average] = keras.Model(network.inputs[0], outputs)

    def features(picture: NDArray[Any], *, average: bool) -> dict[str, NDArray[np.float64]]:
        maps = networks[average](picture[np.newaxis].astype(np.float64))
        return {name: np.asarray(found)[0].reshape(-1, found.shape[-1]) for name, found in maps.items()}

    return features


def test_losses_are_those_of_the_formulas(
    case: Case, keras_features: Callable[..., dict[str, NDArray[np.float64]]]
) -> None:
    config, losses = case.config, case.evaluation.losses
    result, content, *styles = (
        keras_features(picture, average=config.pooling == "average")
        for picture in (case.picture, case.content, *case.styles)
    )
    parts: dict[str, float] = {}
    for layer in config.content_layers:
        squares = (result[layer] - content[layer]) ** 2
        scale = {"gatys": 0.5, "keras": 1.0, "mean": 1 / squares.size}[config.content_normalization]
        parts[f"content/{layer}"] = float(squares.sum() * scale)
    for layer in config.style_layers:
        m, n = result[layer].shape
        scale = {
            "gatys": 1 / (4 * n**2 * m**2),
            "keras": 1 / (4 * 3**2 * (ROWS * COLUMNS) ** 2),
            "mean": 1 / (n**2 * m**2),
        }[config.gram_normalization]
        gram = result[layer].T @ result[layer]
        # A style of another size is scaled to the result's number of positions.
        targets = [style[layer].T @ style[layer] * (m / len(style[layer])) for style in styles]
        parts[f"style/{layer}"] = float(np.mean([scale * ((gram - target) ** 2).sum() for target in targets]))

    assert losses.layers == pytest.approx(parts, rel=1e-9)
    variation = total_variation(tf.constant(case.picture), form=config.tv_form)
    expected = [
        config.content_weight
        * sum(weight * parts[f"content/{layer}"] for layer, weight in config.content_layers.items()),
        config.style_weight * sum(weight * parts[f"style/{layer}"] for layer, weight in config.style_layers.items()),
        config.tv_weight * float(variation),
    ]
    assert [losses.content, losses.style, losses.tv] == pytest.approx(expected, rel=1e-9)
    assert losses.total == pytest.approx(sum(expected), rel=1e-9)
    # Else a wrong part could hide behind the others, here and in the tests of the gradient.
    assert min(share for share in expected if share) > 0.1 * losses.total


def test_gradient_agrees_with_differences(case: Case) -> None:
    gradient = case.evaluation.gradient
    assert gradient.dtype == np.float64
    generator = np.random.default_rng(8)
    # So small a step crosses few of the network's kinks, and they weigh little in the difference.
    step = 1e-5
    for _ in range(3):
        direction = generator.standard_normal(case.picture.shape)
        ahead, behind = (case.at(case.picture + sign * step * direction).losses.total for sign in (1, -1))
        scale = np.linalg.norm(gradient) / np.sqrt(gradient.size) * np.linalg.norm(direction)
        assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum(), abs=1e-6 * scale)


def test_float32_is_near_float64(case: Case, random_network: Weights) -> None:
    single = make_case(random_network, case.config, dtype="float32").evaluation
    exact = case.evaluation
    assert single.gradient.dtype == np.float32
    assert single.losses.total == pytest.approx(exact.losses.total, rel=1e-5)
    assert np.linalg.norm(single.gradient - exact.gradient) < 1e-4 * np.linalg.norm(exact.gradient)


def test_the_targets_own_pictures_have_no_loss(random_network: Weights) -> None:
    config = CONFIGS["l1"]
    network = Network(random_network.kernels, dtype="float64", on_cpu=True)
    objective = TracedObjective(Form.of(config, styles=1, dtype="float64"), network, acceleration=ON_CPU)
    content, style = preprocess(content_sample(20, 30)), preprocess(style_sample(20, 30))
    targets = targets_of(objective, content, [style])
    at_content, at_style = (objective.evaluate(picture, targets, config).losses for picture in (content, style))
    assert at_content.content == 0
    assert at_style.content > 0
    assert at_style.style < 1e-20 * at_content.style


def test_one_trace_serves_every_size(random_network: Weights) -> None:
    config = CONFIGS["l1"]
    network = Network(random_network.kernels, dtype="float32", on_cpu=True)
    objective = TracedObjective(Form.of(config, styles=1, dtype="float32"), network, acceleration=ON_CPU)
    losses = set()
    for rows, columns in ((16, 40), (31, 16), (20, 20)):
        picture = preprocess(content_sample(rows, columns))
        targets = targets_of(objective, picture, [preprocess(style_sample(columns, rows))])
        evaluation = objective.evaluate(picture, targets, config)
        assert evaluation.gradient.shape == (rows, columns, 3)
        losses.add(evaluation.losses.total)
    assert len(losses) == 3
    assert objective._evaluation((20, 20)).experimental_get_tracing_count() == 1


SHALLOW = {"content_layers": "block2_conv1", "style_layers": "block1_conv2:0.7,block2_conv1:2", "precision": "float32"}


@pytest.fixture(scope="module")
def shallow(random_network: Weights) -> Callable[..., Evaluation]:
    """Evaluations of one picture in float64, not deep; objectives of one form are shared."""
    network = Network(random_network.kernels, dtype="float64", on_cpu=True)
    known: dict[Form, TracedObjective] = {}

    def evaluate(size: tuple[int, int] = (40, 52), styles: int = 2, **settings: Any) -> Evaluation:
        config = TransferConfig().with_overrides({**SHALLOW, **settings})
        form = Form.of(config, styles=styles, dtype="float64")
        if form not in known:
            known[form] = TracedObjective(form, network, acceleration=ON_CPU)
        objective = known[form]
        content = preprocess(content_sample(*size))
        targets = targets_of(objective, content, [preprocess(style_sample(*size)), preprocess(style_sample(44, 36))])
        # Half way, so that content and style both have something to say.
        picture = (content + preprocess(style_sample(*size))) / 2
        return objective.evaluate(picture, Targets(targets.content, targets.styles[:styles]), config)

    return evaluate


def test_style_weights_share_the_style_loss(shallow: Callable[..., Evaluation]) -> None:
    alike, given, first = shallow(), shallow(style_weights="3,1"), shallow(style_weights="1,0.0001")
    one = shallow(styles=1)
    twice = shallow(style_weights="6,2")
    other = 2 * alike.losses.style - one.losses.style
    assert given.losses.style == pytest.approx(0.75 * one.losses.style + 0.25 * other, rel=1e-12)
    assert twice.losses == given.losses
    assert first.losses.style == pytest.approx(one.losses.style, rel=1e-5)
    assert alike.losses.style != pytest.approx(one.losses.style, rel=1e-3)
    np.testing.assert_allclose(first.gradient, one.gradient, atol=1e-3 * np.abs(one.gradient).max())


def test_equal_layers_are_shares_of_what_empty_maps_would_have(
    random_network: Weights, shallow: Callable[..., Evaluation]
) -> None:
    plain, equal = shallow(styles=1), shallow(styles=1, equal_layers=True)
    objective = TracedObjective(
        Form.of(TransferConfig().with_overrides(SHALLOW), styles=1, dtype="float64"),
        Network(random_network.kernels, dtype="float64", on_cpu=True),
        acceleration=ON_CPU,
    )
    target = objective.style_targets(preprocess(style_sample(40, 52)))
    # The Gram matrix of nothing is zero: what is left of equation 3 is the sum of squares of the style's, a position.
    for layer, sums in zip(("block1_conv2", "block2_conv1"), target.layers, strict=True):
        gram = sums["gram"]["gram"].numpy()
        empty = (gram**2).sum() / len(gram) ** 2
        name = f"style/{layer}"
        assert equal.losses.layers[name] == pytest.approx(plain.losses.layers[name] / empty, rel=1e-12)
    assert equal.losses.content == plain.losses.content
    scaled = shallow(styles=1, equal_layers=True, gram_normalization="gatys")
    assert scaled.losses.style == pytest.approx(equal.losses.style, rel=1e-12)


def test_balance_weighs_shares(random_network: Weights, shallow: Callable[..., Evaluation]) -> None:
    network = Network(random_network.kernels, dtype="float32", on_cpu=True)
    maps = network.features(preprocess(content_sample(40, 52))[np.newaxis], ["block2_conv1"], pooling="max")
    content_energy = float((maps["block2_conv1"].numpy().astype(np.float64) ** 2).sum())
    equal = shallow(equal_layers=True, style_weight=1)
    plain = shallow(tv_weight=1, content_normalization="keras", tv_form="l2")
    found = shallow(balance=3, tv_weight=0.5, content_weight=17, style_weight=23, tv_form="l2")
    other = shallow(balance=3, tv_weight=0.5, content_normalization="gatys", gram_normalization="keras", tv_form="l2")
    assert found.losses == other.losses
    assert found.losses.style == pytest.approx(equal.losses.style, rel=1e-12)
    assert found.losses.content == 3 * found.losses.layers["content/block2_conv1"]
    assert found.losses.layers["content/block2_conv1"] == pytest.approx(
        plain.losses.layers["content/block2_conv1"] / content_energy, rel=1e-6
    )
    assert found.losses.tv == pytest.approx(0.5 * plain.losses.tv / (40 * 52 * 3 * 255**2), rel=1e-12)


@pytest.mark.parametrize(("form", "power"), [("keras", 2.5), ("l1", 1)])
def test_balance_means_pixels_from_0_to_1_in_every_variation(
    shallow: Callable[..., Evaluation], form: str, power: float
) -> None:
    plain, found = shallow(tv_weight=1, tv_form=form), shallow(balance=3, tv_weight=1, tv_form=form)
    assert found.losses.tv == pytest.approx(plain.losses.tv / (40 * 52 * 3 * 255**power), rel=1e-12)


def test_balance_means_the_same_at_every_size(shallow: Callable[..., Evaluation]) -> None:
    def ratio(size: tuple[int, int], **settings: Any) -> float:
        parts = [
            np.linalg.norm(shallow(size, styles=1, tv_weight=0, **settings, **alone).gradient)
            for alone in ({"style_loss": "gram:1e-12"}, {"content_layers": "block2_conv1:1e-12"})
        ]
        return float(parts[0] / parts[1])

    small, large = ratio((64, 84), balance=0.1), ratio((128, 168), balance=0.1)
    assert large == pytest.approx(small, rel=0.06)


def test_normalised_gradients_are_divided_by_the_sum_of_their_absolute_values(
    random_network: Weights, shallow: Callable[..., Evaluation]
) -> None:
    """Against each layer's own gradient, taken by hand and carried back through the network."""
    settings: dict[str, Any] = {
        "styles": 1,
        "optimizer": "adam",
        "content_weight": 0.2,
        "style_weight": 0.03,
        "tv_weight": 0,
    }
    found, plain = shallow(normalize_gradients=True, **settings), shallow(**settings)
    assert found.losses == plain.losses
    network = Network(random_network.kernels, dtype="float64", on_cpu=True)
    content, style = preprocess(content_sample(40, 52)), preprocess(style_sample(40, 52))
    picture = tf.constant(((content + style) / 2).astype(np.float64)[np.newaxis])
    layers = ("block1_conv2", "block2_conv1")

    def maps(of: Any) -> dict[str, Any]:
        return network.features(tf.cast(of, tf.float64), layers, pooling="max")

    of_content, of_style = maps(content[np.newaxis]), maps(style[np.newaxis])
    with tf.GradientTape() as tape:
        tape.watch(picture)
        of_picture = maps(picture)
    upstream = {layer: tf.zeros_like(of_picture[layer]) for layer in layers}
    for name, layer, weight in (
        ("content", "block2_conv1", 0.2),
        ("style", "block1_conv2", 0.03 * 0.7),
        ("style", "block2_conv1", 0.03 * 2),
    ):
        features = of_picture[layer].numpy().reshape(-1, of_picture[layer].shape[-1])
        m, n = features.shape
        if name == "content":
            own = 2 * (features - of_content[layer].numpy().reshape(m, n)) / (m * n)
        else:
            target = of_style[layer].numpy().reshape(-1, n)
            own = 4 * features @ (features.T @ features - target.T @ target) / (n**2 * m**2)
        scaled = weight * own / (np.abs(own).sum() + 1e-8)
        upstream[layer] += scaled.reshape(upstream[layer].shape)
    expected = tape.gradient(
        [of_picture[layer] for layer in layers], picture, output_gradients=[upstream[layer] for layer in layers]
    ).numpy()[0]
    np.testing.assert_allclose(found.gradient, expected, atol=1e-9 * np.abs(expected).max())
