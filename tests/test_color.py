"""Colours: known values of each space, round trips, what each way of matching promises, and jobs that keep them."""

from __future__ import annotations

import io
import itertools
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy import linalg

from flows.chunks import take_snapshot
from nst_engine import arrays
from nst_engine.arrays import on_disk, placed
from nst_engine.color import (
    grey,
    luminance_only,
    match_histogram,
    match_linear,
    matched_style,
    recolored,
)
from nst_engine.color_spaces import from_rgb, to_rgb
from nst_engine.config import ColorSpace, TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import NotFiniteError
from nst_engine.images import deprocess, preprocess, resize
from nst_engine.pictures import Pictures, fit_pictures, initial_picture
from nst_engine.transfer import Budget, TransferState, advance, start

SPACES: tuple[ColorSpace, ...] = get_args(ColorSpace)
every_space = pytest.mark.parametrize("space", SPACES)
with_luminance = pytest.mark.parametrize("space", [space for space in SPACES if space != "rgb"])

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
# Lab and Luv as Lindbloom's calculator gives them for sRGB and D65; YUV and YCrCb from BT.601's coefficients.
KNOWN = [
    pytest.param("lab", RED, (53.24, 80.09, 67.20), id="lab red"),
    pytest.param("lab", GREEN, (87.73, -86.18, 83.18), id="lab green"),
    pytest.param("lab", BLUE, (32.30, 79.19, -107.86), id="lab blue"),
    pytest.param("lab", WHITE, (100, 0, 0), id="lab white"),
    pytest.param("lab", BLACK, (0, 0, 0), id="lab black"),
    pytest.param("lab", (119, 119, 119), (50.03, 0, 0), id="lab grey"),
    pytest.param("luv", RED, (53.24, 175.01, 37.75), id="luv red"),
    pytest.param("luv", GREEN, (87.73, -83.08, 107.40), id="luv green"),
    pytest.param("luv", BLUE, (32.30, -9.40, -130.34), id="luv blue"),
    pytest.param("luv", WHITE, (100, 0, 0), id="luv white"),
    pytest.param("luv", BLACK, (0, 0, 0), id="luv black"),
    pytest.param("yuv", RED, (76.245, -37.52, 156.825), id="yuv red"),
    pytest.param("yuv", BLUE, (29.07, 111.18, -25.50), id="yuv blue"),
    pytest.param("yuv", WHITE, (255, 0, 0), id="yuv white"),
    pytest.param("ycrcb", RED, (76.245, 127.5, -43.03), id="ycrcb red"),
    pytest.param("ycrcb", BLUE, (29.07, -20.74, 127.5), id="ycrcb blue"),
    pytest.param("ycrcb", WHITE, (255, 0, 0), id="ycrcb white"),
    pytest.param("rgb", (1, 2, 3), (1, 2, 3), id="rgb"),
]


@pytest.mark.parametrize(("space", "rgb", "expected"), KNOWN)
def test_known_colours(space: ColorSpace, rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(from_rgb(np.array(rgb, np.float64), space), expected, atol=0.01)


@every_space
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@given(data=st.data())
def test_round_trip(space: ColorSpace, kind: Any, data: st.DataObject) -> None:
    width = 8 * np.dtype(kind).itemsize
    rgb = data.draw(hnp.arrays(kind, (2, 3, 3), elements=st.floats(0, 255, width=width)))
    back = to_rgb(from_rgb(rgb, space), space)
    assert back.dtype == kind
    np.testing.assert_allclose(back, rgb, atol=0.01)


@every_space
def test_round_trip_of_colours_of_8_bits(space: ColorSpace) -> None:
    rgb = np.array(list(itertools.product(range(0, 256, 5), repeat=3)), np.float32)
    np.testing.assert_allclose(to_rgb(from_rgb(rgb, space), space), rgb, atol=0.01)


@with_luminance
def test_grey_has_no_chroma_and_no_chroma_is_grey(space: ColorSpace) -> None:
    greys = np.repeat(np.arange(256.0)[:, np.newaxis], 3, axis=1)
    colors = from_rgb(greys, space)
    np.testing.assert_allclose(colors[:, 1:], 0, atol=1e-6)
    assert (np.diff(colors[:, 0]) > 0).all()
    colors[:, 1:] = 0
    np.testing.assert_allclose(to_rgb(colors, space), greys, atol=1e-6)


def colourful(rows: int, columns: int, *, seed: int, low: float = 60, high: float = 200) -> NDArray[np.float64]:
    """Related colours, none of them near the border of what a screen shows."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, columns, 3)) @ random.uniform(-1, 1, (3, 3))
    return np.asarray(low + (high - low) / (1 + np.exp(-mixed)))


def colors_of(picture: NDArray[Any], space: ColorSpace) -> NDArray[np.float64]:
    return np.asarray(from_rgb(picture.astype(np.float64), space).reshape(-1, 3))


@with_luminance
def test_luminance_only(space: ColorSpace) -> None:
    picture, content = colourful(20, 30, seed=1), colourful(20, 30, seed=2)
    ours = colors_of(luminance_only(picture, content, space), space)
    np.testing.assert_allclose(ours[:, 0], colors_of(picture, space)[:, 0], atol=1e-6)
    np.testing.assert_allclose(ours[:, 1:], colors_of(content, space)[:, 1:], atol=1e-6)


def moments(picture: NDArray[Any], space: ColorSpace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    colors = colors_of(picture, space)
    return colors.mean(axis=0), np.cov(colors.T, bias=True)


@every_space
def test_linear_matching_gives_the_targets_mean_and_covariance(space: ColorSpace) -> None:
    picture, target = colourful(40, 30, seed=3), colourful(25, 60, seed=4, low=100, high=140)
    before = picture.copy()
    for ours, theirs in zip(moments(match_linear(picture, target, space), space), moments(target, space), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_array_equal(picture, before)


def test_linear_matching_is_by_symmetric_square_roots() -> None:
    picture, target = colourful(40, 30, seed=3), colourful(25, 60, seed=4)
    (mean, covariance), (target_mean, target_covariance) = moments(picture, "rgb"), moments(target, "rgb")
    matrix = linalg.sqrtm(target_covariance) @ linalg.inv(linalg.sqrtm(covariance))
    expected = (picture - mean) @ matrix.T + target_mean
    np.testing.assert_allclose(match_linear(picture, target, "rgb"), expected, atol=1e-6)


@every_space
def test_linear_matching_makes_no_noise_of_what_has_no_colours(space: ColorSpace) -> None:
    """A grey picture has no colours to stretch: rounding must not be taken for some."""
    random = np.random.default_rng(5)
    light = random.uniform(0, 255, (40, 40, 1))
    picture = np.rint(light + random.uniform(-0.3, 0.3, (40, 40, 3))).clip(0, 255).astype(np.uint8)
    target = colourful(40, 40, seed=6, low=0, high=255)
    matched = match_linear(picture, target, space).astype(np.float64)
    slopes = np.polynomial.polynomial.polyfit(light.ravel(), matched.reshape(-1, 3), 5)
    smooth = np.polynomial.polynomial.polyval(light.ravel(), slopes).T
    assert np.abs(matched.reshape(-1, 3) - smooth).mean() < 3


@every_space
def test_histogram_matching_gives_the_targets_quantiles(space: ColorSpace) -> None:
    picture, target = colourful(60, 50, seed=7, low=20, high=90), colourful(45, 70, seed=8)
    matched = match_histogram(picture, target, space)
    shares = np.linspace(0.02, 0.98, 49)
    ours, theirs = (np.quantile(colors_of(one, space), shares, axis=0) for one in (matched, target))
    np.testing.assert_allclose(ours, theirs, atol=0.5)
    # What was darker stays darker, and what was equal stays equal.
    order = np.argsort(colors_of(picture, space), axis=0, kind="stable")
    assert (np.diff(np.take_along_axis(colors_of(matched, space), order, axis=0), axis=0) >= -1e-6).all()


def test_histogram_matching_of_few_values() -> None:
    """Half of the picture is one value, a quarter each another: each takes what is at the middle of its share."""
    values = np.array([[10, 10, 80, 200]], np.uint8)[..., np.newaxis].repeat(3, axis=2)
    target = np.arange(100, 108, dtype=np.uint8).reshape(1, 8, 1).repeat(3, axis=2)
    # The shares end at 1/2, 3/4 and 1; their middles 2/8, 5/8 and 7/8 are those of the target's 2nd, 5th and 7th value.
    expected = np.array([[101, 101, 104, 106]], np.uint8)[..., np.newaxis].repeat(3, axis=2)
    np.testing.assert_array_equal(match_histogram(values, target, "rgb"), expected)


@every_space
@pytest.mark.parametrize("match", [match_linear, match_histogram])
def test_a_picture_matched_to_itself_stays_as_it_is(match: Any, space: ColorSpace) -> None:
    picture = np.rint(colourful(30, 40, seed=9, low=0, high=255)).astype(np.uint8)
    matched = match(picture, picture, space)
    assert matched.dtype == np.uint8
    np.testing.assert_array_equal(matched, picture)


@with_luminance
def test_grey(space: ColorSpace) -> None:
    picture = np.rint(colourful(30, 40, seed=10)).astype(np.uint8)
    without = grey(picture, space)
    assert without.dtype == np.uint8
    assert (without == without[..., :1]).all()
    np.testing.assert_allclose(colors_of(without, space)[:, 0], colors_of(picture, space)[:, 0], atol=0.6)


MATCHES = {
    "luminance": lambda picture, other, space: luminance_only(picture, resize(other, rows=40, columns=30), space),
    "linear": match_linear,
    "histogram": match_histogram,
}


@pytest.mark.parametrize("way", list(MATCHES))
@pytest.mark.parametrize("space", ["lab", "yuv"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_in_blocks_and_on_disk(monkeypatch: pytest.MonkeyPatch, way: str, space: ColorSpace, kind: Any) -> None:
    picture = np.rint(colourful(40, 30, seed=11)).astype(kind)
    other = np.rint(colourful(25, 50, seed=12)).astype(np.uint8)
    whole = MATCHES[way](picture, other, space)
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 700)
    blocked = MATCHES[way](picture, other, space)
    there = MATCHES[way](placed(picture, on_disk=True), placed(other, on_disk=True), space)
    assert (blocked.dtype, on_disk(blocked), on_disk(there)) == (kind, False, True)
    np.testing.assert_allclose(blocked, whole, atol=2e-3)
    np.testing.assert_array_equal(blocked, there)


def config(**settings: Any) -> TransferConfig:
    return TransferConfig().with_overrides(settings)


def test_without_the_setting_pictures_are_the_very_same(content: NDArray[np.uint8], style: NDArray[np.uint8]) -> None:
    fitted = fit_pictures(config(rows=48), content, [style])
    picture = preprocess(fitted.content)
    assert recolored(config(), picture, fitted.content) is picture
    assert matched_style(config(color_when="before"), fitted.styles[0], fitted.content) is fitted.styles[0]
    assert fitted.colors is None
    assert fitted.content_in_color is fitted.content


@pytest.mark.parametrize("way", ["linear", "histogram"])
def test_before_the_style_takes_the_contents_colours(
    content: NDArray[np.uint8], style: NDArray[np.uint8], way: str
) -> None:
    asked = config(rows=48, preserve_color=way, color_when="before", init="style")
    plain, fitted = fit_pictures(config(rows=48), content, [style]), fit_pictures(asked, content, [style])
    match = match_linear if way == "linear" else match_histogram
    np.testing.assert_array_equal(fitted.content, plain.content)
    np.testing.assert_array_equal(fitted.styles[0], match(plain.styles[0], plain.content, "lab"))
    # Nothing is left to be done afterwards.
    picture = initial_picture(asked, fitted)
    assert recolored(asked, picture, fitted.content_in_color) is picture


def test_before_as_luminance_all_is_grey_but_what_is_shown(
    content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    asked = config(rows=48, preserve_color="luminance", color_when="before", init="picture")
    fitted = fit_pictures(asked, content, [style, 255 - style], initial=style)
    plain = fit_pictures(config(rows=48), content, [style])
    np.testing.assert_array_equal(fitted.content, grey(plain.content, "lab"))
    np.testing.assert_array_equal(fitted.content_in_color, plain.content)
    assert fitted.initial is not None
    for picture in (*fitted.styles, fitted.initial):
        assert (picture == picture[..., :1]).all()
    wanted = colors_of(plain.content, "lab")[:, 0]
    for matched in fitted.styles:
        ours = colors_of(matched, "lab")[:, 0]
        # What would be darker than black or lighter than white is clipped.
        assert (ours.mean(), ours.std()) == pytest.approx((wanted.mean(), wanted.std()), rel=0.05)
    # The grey content itself is shown in its colours again.
    shown = deprocess(recolored(asked, preprocess(fitted.content), fitted.content_in_color))
    np.testing.assert_allclose(shown.astype(int), plain.content, atol=3)


def hue_error(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """The mean angle in degrees between the hues of two pictures, where both have colour that is no rounding."""
    a, b = (colors_of(one, "lab")[:, 1:] for one in (ours, theirs))
    coloured = (np.hypot(*a.T) > 8) & (np.hypot(*b.T) > 8)
    assert coloured.mean() > 0.2
    angle = np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(axis=1))[coloured]
    return float(np.degrees(np.abs(angle)).mean())


@pytest.fixture(scope="module")
def quick(weights_choice: str) -> TransferConfig:
    return config(
        rows=48,
        content_layers="block2_conv2",
        style_layers="block1_conv1,block2_conv1",
        iterations=6,
        precision="float32",
        weights=weights_choice,
        init="style",
    )


WAYS = [
    pytest.param(way, when, id=f"{way} {when}")
    for way in ("luminance", "linear", "histogram")
    for when in ("after", "before")
]


def ended(engine: Engine, asked: TransferConfig, *pictures: NDArray[np.uint8]) -> TransferState:
    content, style = pictures
    return advance(engine, start(engine, asked, fit_pictures(asked, content, [style]))[0], Budget())[0]


@pytest.fixture(scope="module")
def plain_end(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> TransferState:
    return ended(engine, quick, content, style)


@pytest.mark.parametrize(("way", "when"), WAYS)
def test_a_job_keeps_the_contents_colours(
    engine: Engine,
    quick: TransferConfig,
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    plain_end: TransferState,
    way: str,
    when: str,
) -> None:
    asked = quick.with_overrides({"preserve_color": way, "color_when": when})
    state = ended(engine, asked, content, style)
    given = plain_end.pictures.content
    result, plain = state.result(), plain_end.result()
    if when == "after":
        # Only what is shown differs: the same picture comes out of the optimisation.
        np.testing.assert_array_equal(state.picture, plain_end.picture)
    far, near = (
        np.linalg.norm(colors_of(one, "lab").mean(axis=0)[1:] - colors_of(given, "lab").mean(axis=0)[1:])
        for one in (plain, result)
    )
    assert near < 0.35 * far
    if way == "luminance":
        assert hue_error(result, given) < 5 < 20 < hue_error(plain, given)
    # A snapshot has the result's colours, and 16 bits are those of 8, but finer.
    with Image.open(io.BytesIO(take_snapshot(state).jpeg)) as snapshot:
        snapped = np.asarray(snapshot).astype(float)
    # So small and full of detail a picture loses much in a JPEG file, but not its mean.
    assert np.abs((snapped - result).mean(axis=(0, 1))).max() < 1
    assert np.abs(snapped - result).mean() < 0.5 * np.abs(snapped - plain).mean()
    wide = state.result(bits=16)
    assert wide.dtype == np.uint16
    assert np.abs(wide / 257 - result).max() <= 0.5 + 1e-6
    assert (wide % 257 != 0).any()


def test_at_a_coarser_scale_the_colours_are_kept_too(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    asked = quick.with_overrides({"preserve_color": "luminance", "color_when": "before", "scales": 2})
    state, _ = advance(engine, start(engine, asked, fit_pictures(asked, content, [style]))[0], Budget(iterations=1))
    shown = state.result()
    assert shown.shape == (24, 32, 3)
    assert hue_error(shown, resize(state.pictures.content_in_color, rows=24, columns=32)) < 5


def test_the_best_picture_of_a_failure_has_the_colours_too(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    asked = quick.with_overrides({"preserve_color": "luminance", "optimizer": "adam", "learning_rate": 1e30})
    state, _ = start(engine, asked, fit_pictures(asked, content, [style]))
    with pytest.raises(NotFiniteError) as failure:
        advance(engine, state, Budget())
    np.testing.assert_array_equal(failure.value.best, state.result())
    assert hue_error(state.result(), state.pictures.content) < 5


def test_the_digest_knows_colours(content: NDArray[np.uint8], style: NDArray[np.uint8]) -> None:
    """A grey content of two colourings is not the same transfer."""
    plain = Pictures(content, (style,))
    others = [Pictures(content, (style,), colors=colors) for colors in (content, 255 - content)]
    assert len({pictures.digest() for pictures in (plain, *others)}) == 3
