"""The sample pictures: what they show, at any size, the same each time."""

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine.samples import content_sample, style_sample

Draw = Callable[..., NDArray[np.uint8]]
BOTH = pytest.mark.parametrize("draw", [content_sample, style_sample])


def hue(picture: NDArray[np.uint8]) -> float:
    """The hue, in degrees, of a picture's mean colour."""
    return 360 * colorsys.rgb_to_hsv(*(picture.reshape(-1, 3).mean(0) / 255))[0]


def edges(picture: NDArray[np.uint8]) -> float:
    """The mean difference of pixels beside each other."""
    return float(np.abs(np.diff(picture.astype(int), axis=1)).mean())


@pytest.mark.parametrize(
    ("draw", "shape"),
    [(content_sample, (480, 640, 3)), (style_sample, (480, 480, 3))],
    ids=["content", "style"],
)
def test_the_sizes_they_have_unless_told(draw: Draw, shape: tuple[int, int, int]) -> None:
    picture = draw()
    assert (picture.shape, picture.dtype) == (shape, np.uint8)


@BOTH
@pytest.mark.parametrize("size", [(16, 16), (201, 67)], ids=str)
def test_any_size_can_be_drawn(draw: Draw, size: tuple[int, int]) -> None:
    picture = draw(*size)
    assert (picture.shape, picture.dtype) == ((*size, 3), np.uint8)
    assert picture.std() > 20


@BOTH
def test_the_same_size_gives_the_same_picture(draw: Draw) -> None:
    np.testing.assert_array_equal(draw(96, 128), draw(96, 128))


@BOTH
def test_a_larger_one_shows_the_same(draw: Draw) -> None:
    coarse = [draw(size, size).reshape(8, size // 8, 8, size // 8, 3).mean((1, 3)) for size in (160, 320)]
    assert np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1] > 0.7


def test_the_landscape_has_sky_sun_water_and_grass() -> None:
    picture = content_sample(240, 320)
    sky, grass = picture[8:30, 20:80], picture[-20:]
    assert 200 < hue(sky) < 225
    assert 70 < hue(grass) < 110
    sun, around = picture[47:55, 206:216], picture[15:23, 206:216]
    assert sun.mean() > 230
    assert sun.mean() > around.mean() + 30
    # The water repeats the wood before it upside down.
    wood, reflection = picture[126:135, 120:190].mean((0, 1)), picture[139:146, 120:190].mean((0, 1))
    assert np.abs(wood - reflection).max() < 30


def test_the_painting_is_blue_and_ochre_and_full_of_strokes() -> None:
    picture = style_sample(240, 240)
    red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
    assert 0.5 < (blue > red + 30).mean() < 0.9
    assert 0.08 < (red > blue + 30).mean() < 0.4
    assert edges(picture) > 2 * edges(content_sample(240, 240))
