"""Every statistic against its paper's formula in NumPy, its gradient against differences, and its sums over parts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
from numpy.typing import NDArray

from nst_engine.config import STYLE_LOSSES
from nst_engine.gradients import beside, normalized
from nst_engine.masks import Guide
from nst_engine.matching import Matching

Floats = NDArray[np.float64]

ROWS, COLUMNS, CHANNELS = 6, 7, 5
STYLE_ROWS, STYLE_COLUMNS = 8, 5
PICTURE_POSITIONS = 77.0


def maps(rows: int, columns: int, *, seed: int) -> Floats:
    """As behind a ReLU: many are zero."""
    values = np.random.default_rng(seed).normal(0.4, 1.5, (1, rows, columns, CHANNELS)) * np.arange(1, CHANNELS + 1)
    return np.maximum(values, 0)


RESULT, STYLE = maps(ROWS, COLUMNS, seed=1), maps(STYLE_ROWS, STYLE_COLUMNS, seed=2)
WEIGHTS = {
    "everywhere": None,
    "masked": np.random.default_rng(3).integers(0, 3, (ROWS, COLUMNS)).astype(np.float32) / 2,
}


def samples_of(features: Floats, weights: NDArray[Any] | None) -> NDArray[np.int64]:
    """The positions that are sampled: all where they weigh alike, else one in each share of the weights."""
    count = features.shape[1] * features.shape[2]
    if weights is None:
        return np.arange(count)
    shares = (np.arange(count) + np.random.default_rng(0).random(count)) / count
    ranks = np.cumsum(weights.astype(np.float64))
    return np.searchsorted(ranks, shares * ranks[-1], side="right")


def flat(features: Floats) -> Floats:
    return features.reshape(-1, features.shape[-1])


def gram(x: Floats, w: Floats, y: Floats, _places: Any) -> float:
    """Equation 3 of Gatys and others."""
    n, m = CHANNELS, w.sum()
    return float((((x.T * w) @ x - y.T @ y * m / len(y)) ** 2).sum() / (4 * n**2 * m**2))


def mmd_linear(x: Floats, w: Floats, y: Floats, _places: Any) -> float:
    return float(((w @ x / w.sum() - y.mean(0)) ** 2).sum() / CHANNELS)


def mmd_gaussian(x: Floats, _w: Floats, y: Floats, places: Any) -> float:
    x = x[places]
    width = np.mean([((one - other) ** 2).sum() for one in y for other in y])

    def kernel(a: Floats, b: Floats) -> float:
        return float(np.mean([np.exp(-((one - other) ** 2).sum() / (2 * width)) for one in a for other in b]))

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def moments(x: Floats, w: Floats, y: Floats, _places: Any) -> float:
    mean = w @ x / w.sum()
    deviation = np.sqrt(w @ (x - mean) ** 2 / w.sum())
    return float((((mean - y.mean(0)) ** 2) + (deviation - y.std(0)) ** 2).sum() / CHANNELS)


def wasserstein(x: Floats, w: Floats, y: Floats, _places: Any) -> float:
    floor = (1e-4 * y.var(0).mean() + 1e-6) * np.eye(CHANNELS)
    mean = w @ x / w.sum()
    first = ((x - mean).T * w) @ (x - mean) / w.sum() + floor
    second = np.cov(y.T, bias=True) + floor
    root = scipy.linalg.sqrtm(first)
    middle = scipy.linalg.sqrtm(root @ second @ root)
    return float((((mean - y.mean(0)) ** 2).sum() + np.trace(first + second - 2 * np.real(middle))) / CHANNELS)


def remapped(x: Floats, w: Floats, y: Floats) -> Floats:
    """R: for each value the mean of the style's quantiles over the ranks of its bin, bin by bin."""
    result = np.zeros_like(x)
    for channel in range(CHANNELS):
        low, high = y[:, channel].min(), y[:, channel].max()

        def bins(values: Floats, low: float = low, high: float = high) -> NDArray[np.int64]:
            return np.clip(((values - low) * 256 / (high - low)).astype(int), 0, 255)

        # The style's quantiles, each bin at its mean, finely sampled.
        known = bins(y[:, channel])
        levels = np.array([y[known == one, channel].mean() for one in known])
        order = np.argsort(known, kind="stable")
        quantiles = np.repeat(levels[order], 1000)
        here, rank = bins(x[:, channel]), 0.0
        for one in np.unique(here):
            inside = here == one
            share = w[inside].sum() / w.sum()
            if share:
                start, stop = (round(edge * len(quantiles)) for edge in (rank, rank + share))
                result[inside, channel] = quantiles[start:stop].mean()
            rank += share
    return result


def histogram(x: Floats, w: Floats, y: Floats, _places: Any) -> float:
    return float((w[:, np.newaxis] * (x - remapped(x, w, y)) ** 2).sum() / (CHANNELS * w.sum()))


REFERENCES: dict[str, Callable[[Floats, Floats, Floats, Any], float]] = {
    "gram": gram,
    "mmd-linear": mmd_linear,
    "mmd-gaussian": mmd_gaussian,
    "moments": moments,
    "wasserstein": wasserstein,
    "histogram": histogram,
}
# Deviations are the roots of variances with 1e-5 more; the quantiles above are sampled.
TOLERANCES = {"moments": 1e-4, "histogram": 3e-3}


def guide_of(features: Any, weights: NDArray[Any] | None) -> dict[str, Any]:
    places = samples_of(features, weights).astype(np.int32)
    return {"places": tf.constant(places)} | ({} if weights is None else {"weights": tf.constant(weights)})


def matching(*names: str, relative: bool = False) -> Matching:
    return Matching(names, gram_normalization="gatys", relative=relative)


def target_of(known: Matching, style: Any) -> tuple[Any, dict[str, Any]]:
    ends = known.range(style)
    where = {**guide_of(style, None), **ends}
    sums = known.sums(style, where)
    count = tf.constant(float(style.shape[1] * style.shape[2]), tf.nest.flatten(sums)[0].dtype)
    return known.target(sums, where, positions=count), ends


def loss_of(known: Matching, features: Any, target: Any, where: dict[str, Any], *, positions: float) -> Any:
    sums = known.sums(features, where)
    dtype = tf.nest.flatten(sums)[0].dtype
    return known.loss(
        [sums],
        [target],
        positions=[tf.constant(positions, dtype)],
        picture_positions=[tf.constant(PICTURE_POSITIONS, dtype)],
        loss_weights=None,
        style_weights=None,
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", STYLE_LOSSES)
class TestStatistic:
    def case(self, name: str, weights: str) -> tuple[Callable[[Any], Any], Floats]:
        """The loss as a function of the maps, and the weights of their positions."""
        known, given = matching(name), WEIGHTS[weights]
        target, ends = target_of(known, tf.constant(STYLE))
        where = {**guide_of(RESULT, given), **ends}
        vector = np.ones(ROWS * COLUMNS) if given is None else given.reshape(-1).astype(np.float64)
        return lambda features: loss_of(known, features, target, where, positions=vector.sum()), vector

    def test_it_is_that_of_the_formula(self, name: str, weights: str) -> None:
        loss, vector = self.case(name, weights)
        expected = REFERENCES[name](flat(RESULT), vector, flat(STYLE), samples_of(RESULT, WEIGHTS[weights]))
        assert float(loss(tf.constant(RESULT))) == pytest.approx(expected, rel=TOLERANCES.get(name, 1e-9))
        assert expected > 1e-3

    def test_its_gradient_agrees_with_differences(self, name: str, weights: str) -> None:
        loss, vector = self.case(name, weights)
        found = gradient(loss, RESULT)
        if name == "histogram":
            # What a value is mapped to is constant, so that a difference would be of another function.
            mapped = remapped(flat(RESULT), vector, flat(STYLE))
            expected = 2 * vector[:, np.newaxis] * (flat(RESULT) - mapped) / (CHANNELS * vector.sum())
            np.testing.assert_allclose(flat(found), expected, atol=3e-3 * np.abs(expected).max())
            return
        expected, step = np.zeros_like(RESULT), 1e-5
        for index in np.ndindex(RESULT.shape):
            shift = np.zeros_like(RESULT)
            shift[index] = step
            expected[index] = float(loss(tf.constant(RESULT + shift)) - loss(tf.constant(RESULT - shift))) / (2 * step)
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())

    def test_sums_of_parts_add_up(self, name: str, weights: str) -> None:
        """And so do the gradients: the same, whether maps are summed up as a whole or in tiles."""
        known, given = matching(name), WEIGHTS[weights]
        _, ends = target_of(known, tf.constant(STYLE))
        mask = None if given is None else np.repeat(np.repeat(given, 2, 0), 2, 1)
        guide = Guide.of(
            ["block2_conv1"],
            (2 * ROWS, 2 * COLUMNS),
            sampled=True,
            mask=None if mask is None else (mask * 254).astype(np.uint8),
        )
        whole = known.sums(tf.constant(RESULT), {**guide.where("block2_conv1"), **ends})
        slopes = [np.random.default_rng(5).normal(size=part.shape) for part in tf.nest.flatten(whole)]
        total, sums = gradient_of_sums(known, RESULT, {**guide.where("block2_conv1"), **ends}, slopes), None
        parts = np.zeros_like(RESULT)
        for down in (slice(0, 4), slice(4, ROWS)):
            for across in (slice(0, 3), slice(3, COLUMNS)):
                where = {**guide.where("block2_conv1", (down, across)), **ends}
                tile = RESULT[:, down, across]
                found = known.sums(tf.constant(tile), where)
                sums = found if sums is None else tf.nest.map_structure(tf.add, sums, found)
                parts[:, down, across] = gradient_of_sums(known, tile, where, slopes)
        tf.nest.map_structure(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12), sums, whole)
        np.testing.assert_allclose(parts, total, atol=1e-12 * np.abs(total).max())


@pytest.mark.parametrize("name", STYLE_LOSSES)
class TestEachStatistic:
    def test_a_style_matches_itself(self, name: str) -> None:
        known = matching(name)
        target, ends = target_of(known, tf.constant(STYLE))
        at_style, at_result = (
            float(
                loss_of(
                    known,
                    tf.constant(features),
                    target,
                    {**guide_of(features, None), **ends},
                    positions=float(features.shape[1] * features.shape[2]),
                )
            )
            for features in (STYLE, RESULT)
        )
        # A bin is as wide as a 256th of its channel's range.
        assert abs(at_style) < (1e-3 if name == "histogram" else 1e-9) * at_result

    def test_bfloat16_maps_are_summed_in_float32(self, name: str) -> None:
        known = matching(name)
        maps16 = [tf.cast(features, tf.bfloat16) for features in (RESULT, STYLE)]
        losses = []
        for dtype in (tf.bfloat16, tf.float64):
            result, style = (tf.cast(features, dtype) for features in maps16)
            target, ends = target_of(known, style)
            assert {part.dtype for part in tf.nest.flatten(target)} == {tf.float32 if dtype == tf.bfloat16 else dtype}
            with tf.GradientTape() as tape:
                tape.watch(result)
                loss = loss_of(known, result, target, {**guide_of(result, None), **ends}, positions=42.0)
            assert tape.gradient(loss, result).dtype == dtype
            losses.append(float(loss))
        assert losses[0] == pytest.approx(losses[1], rel=2e-2)

    def test_relative_to_empty_maps(self, name: str) -> None:
        known = matching(name, relative=True)
        plain = matching(name)
        target, ends = target_of(known, tf.constant(STYLE))
        where = {**guide_of(RESULT, None), **ends}

        def at(which: Matching, features: Any) -> float:
            return float(loss_of(which, tf.constant(features), target, where, positions=42.0))

        empty = np.zeros_like(RESULT)
        assert at(known, empty) == pytest.approx(1, rel=1e-12)
        assert at(known, RESULT) == pytest.approx(at(plain, RESULT) / at(plain, empty), rel=1e-12)

    def test_maps_without_anything_in_them_have_finite_losses_and_gradients(self, name: str) -> None:
        known = matching(name, relative=True)
        for style in (np.zeros_like(STYLE), STYLE):
            target, ends = target_of(known, tf.constant(style))
            where = {**guide_of(RESULT, None), **ends}
            for features in (np.zeros_like(RESULT), np.ones_like(RESULT), RESULT):

                def loss(features: Any, target: Any = target, where: Any = where) -> Any:
                    return loss_of(known, features, target, where, positions=42.0)

                assert np.isfinite(float(loss(tf.constant(features))))
                assert np.isfinite(gradient(loss, features)).all()


def test_fusion_is_the_weighted_sum() -> None:
    weights = dict(zip(STYLE_LOSSES, (1.0, 2.0, 300.0, 0.5, 0.1, 3.0), strict=True))
    together = matching(*STYLE_LOSSES)
    target, ends = target_of(together, tf.constant(STYLE))
    where = {**guide_of(RESULT, None), **ends}
    sums, count = together.sums(tf.constant(RESULT), where), tf.constant(42.0, tf.float64)
    found = together.loss(
        [sums],
        [target],
        positions=[count],
        picture_positions=[count],
        loss_weights=[tf.constant(weight, tf.float64) for weight in weights.values()],
        style_weights=None,
    )
    expected = 0.0
    for name, weight in weights.items():
        alone = matching(name)
        expected += weight * float(
            alone.loss(
                [{name: sums[name]}],
                [{name: target[name]}],
                positions=[count],
                picture_positions=[count],
                loss_weights=None,
                style_weights=None,
            )
        )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_a_covariance_with_equal_eigenvalues_has_a_gradient() -> None:
    """The eigenvectors, and what automatic differentiation takes for their gradient, are not defined there."""
    known = matching("wasserstein")
    style = np.sqrt(CHANNELS) * np.eye(CHANNELS).reshape(1, 1, CHANNELS, CHANNELS)
    target, _ = target_of(known, tf.constant(style))

    def loss(features: Any) -> Any:
        return loss_of(known, features, target, {}, positions=float(CHANNELS))

    at = 3 * style
    found, step = gradient(loss, at), 1e-5
    direction = np.random.default_rng(6).normal(size=at.shape)
    difference = float(loss(tf.constant(at + step * direction)) - loss(tf.constant(at - step * direction))) / (2 * step)
    assert difference == pytest.approx(float((found * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_beside_the_maps_have_the_same_gradient(dtype: str) -> None:
    features = tf.cast(RESULT, dtype)
    known = matching("gram", "moments")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(features)
        expected = known.sums(features, {})
        after, found = beside(features, lambda source: known.sums(source, {}))
        both, apart = (
            tf.add_n([tf.reduce_sum(part**2) for part in tf.nest.flatten(sums)])
            + tf.cast(tf.reduce_sum(rest * 3), tf.float32)
            for sums, rest in ((found, after), (expected, features))
        )
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(after, features)
    # Where a map is used twice, the order of the sum differs.
    np.testing.assert_allclose(
        *(tf.cast(tape.gradient(total, features), tf.float32) for total in (both, apart)),
        rtol=1e-6 if dtype == "float32" else 2e-2,
    )


def test_a_normalised_gradient_is_divided_by_the_sum_of_its_absolute_values() -> None:
    weight = tf.constant(0.3, tf.float64)
    before, after = (
        gradient(lambda features, through=through: weight * tf.reduce_sum(through(features) ** 3), RESULT)
        for through in (lambda features: features, lambda features: normalized(features, weight))
    )
    own = before / 0.3
    np.testing.assert_allclose(after, 0.3 * own / (np.abs(own).sum() + 1e-8), rtol=1e-12)
    nothing = gradient(lambda features: 0 * tf.reduce_sum(normalized(features, tf.zeros((), tf.float64))), RESULT)
    np.testing.assert_array_equal(nothing, 0)


def gradient(loss: Callable[[Any], Any], at: Floats) -> Any:
    variable = tf.constant(at)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = loss(variable)
    return tape.gradient(value, variable).numpy()


def gradient_of_sums(known: Matching, features: Floats, where: dict[str, Any], slopes: list[Any]) -> Any:
    variable = tf.constant(features)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        sums = tf.nest.flatten(known.sums(variable, where))
    return tape.gradient(sums, variable, output_gradients=list(map(tf.constant, slopes))).numpy()
