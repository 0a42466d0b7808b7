"""The pictures of a transfer: their working sizes and the picture it starts from."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine.config import TransferConfig
from nst_engine.errors import ImageError
from nst_engine.images import deprocess, display_range
from nst_engine.pictures import Pictures, content_size, fit_pictures, initial_picture, style_size


def blank(rows: int, columns: int) -> NDArray[np.uint8]:
    return np.full((rows, columns, 3), 128, np.uint8)


def config(**settings: Any) -> TransferConfig:
    return TransferConfig().with_overrides(settings)


WIDE, TALL = (60, 120), (120, 60)


FITS = [
    pytest.param({"rows": 40, "style_fit": "stretch"}, WIDE, TALL, (40, 80), (40, 80), id="stretch, wide"),
    pytest.param({"rows": 40, "style_fit": "stretch"}, TALL, WIDE, (40, 20), (40, 20), id="stretch, tall"),
    pytest.param({"rows": 40, "style_fit": "area"}, WIDE, TALL, (40, 80), (80, 40), id="area, wide"),
    pytest.param({"rows": 60, "style_fit": "area"}, TALL, WIDE, (60, 30), (30, 60), id="area, tall"),
    pytest.param({"rows": 40, "style_fit": "edge"}, WIDE, TALL, (40, 80), (40, 20), id="edge by rows, wide"),
    pytest.param({"rows": 40, "style_fit": "edge"}, TALL, WIDE, (40, 20), (40, 80), id="edge by rows, tall"),
    pytest.param({"long_edge": 80, "style_fit": "edge"}, WIDE, TALL, (40, 80), (80, 40), id="edge by long edge, wide"),
    pytest.param({"long_edge": 80, "style_fit": "edge"}, TALL, WIDE, (80, 40), (40, 80), id="edge by long edge, tall"),
    pytest.param({"long_edge": 80, "style_fit": "area"}, WIDE, (90, 90), (40, 80), (57, 57), id="area, square"),
]
fits = pytest.mark.parametrize(("settings", "content", "style", "content_fit", "style_fit"), FITS)


@fits
def test_fit(
    settings: dict[str, Any],
    content: tuple[int, int],
    style: tuple[int, int],
    content_fit: tuple[int, int],
    style_fit: tuple[int, int],
) -> None:
    pictures = fit_pictures(config(**settings), blank(*content), [blank(*style), blank(*content)])
    assert pictures.content.shape == (*content_fit, 3)
    assert pictures.styles[0].shape == (*style_fit, 3)
    assert pictures.styles[1].shape == (*content_fit, 3)


@fits
def test_the_sizes_are_known_without_the_pictures(
    settings: dict[str, Any],
    content: tuple[int, int],
    style: tuple[int, int],
    content_fit: tuple[int, int],
    style_fit: tuple[int, int],
) -> None:
    assert content_size(config(**settings), content) == content_fit
    assert style_size(config(**settings), style, content=content_fit) == style_fit


@pytest.mark.parametrize(
    ("style_fit", "refused"),
    [
        pytest.param("area", True, id="area"),
        pytest.param("edge", True, id="edge"),
        pytest.param("stretch", False, id="stretch"),
    ],
)
def test_the_size_of_a_style_that_would_be_too_narrow(style_fit: str, refused: bool) -> None:
    """Only one that is stretched to the content's shape can have any shape."""
    narrow, size = (400, 10), (48, 64)
    if refused:
        with pytest.raises(ImageError, match=r"^the picture is too narrow: 400 x 10 pixels"):
            style_size(config(rows=48, style_fit=style_fit), narrow, content=size)
    else:
        assert style_size(config(rows=48, style_fit=style_fit), narrow, content=size) == size


def test_the_size_of_a_content_that_would_be_too_narrow() -> None:
    with pytest.raises(ImageError, match=r"^the picture is too narrow: 100 x 20 pixels"):
        content_size(config(rows=48), (100, 20))


def test_a_picture_that_would_be_too_narrow() -> None:
    with pytest.raises(ImageError, match=r"^the picture is too narrow: 100 x 20 pixels"):
        fit_pictures(config(rows=48), blank(100, 20), [blank(50, 50)])


@pytest.fixture(scope="module")
def pictures(content: NDArray[np.uint8], style: NDArray[np.uint8]) -> Pictures:
    return fit_pictures(config(rows=32), content, [style])


def test_start_from_the_content(pictures: Pictures) -> None:
    np.testing.assert_array_equal(deprocess(initial_picture(config(init="content"), pictures)), pictures.content)


def test_start_from_the_style(pictures: Pictures) -> None:
    rows, columns = pictures.content.shape[:2]
    same_size = fit_pictures(config(rows=32, style_fit="stretch"), pictures.content, list(pictures.styles))
    start = initial_picture(config(init="style"), pictures)
    assert pictures.styles[0].shape != (rows, columns, 3)
    np.testing.assert_array_equal(deprocess(start), same_size.styles[0])


def test_start_from_grey(pictures: Pictures) -> None:
    start = initial_picture(config(init="grey"), pictures)
    assert start.shape == pictures.content.shape
    means = np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(start + means, 127.5, atol=1e-4)


def test_start_from_noise(pictures: Pictures) -> None:
    low, high = display_range()
    start, same, other = (initial_picture(config(init="noise", seed=seed), pictures) for seed in (4, 4, 5))
    assert (start.shape, start.dtype) == (pictures.content.shape, np.float32)
    assert (start >= low).all()
    assert (start <= high).all()
    assert (start - low).std() == pytest.approx(255 / np.sqrt(12), rel=0.03)
    np.testing.assert_array_equal(start, same)
    assert not np.array_equal(start, other)


@pytest.mark.parametrize("init", ["content", "style", "grey", "noise"])
def test_the_start_is_a_picture_of_its_own(pictures: Pictures, init: str) -> None:
    """Writing to it must not reach the pictures that it came from."""
    before = pictures.digest()
    start = initial_picture(config(init=init), pictures)
    assert start.dtype == np.float32
    start += 50
    assert pictures.digest() == before


def test_digest_knows_pixels_shapes_and_order(pictures: Pictures) -> None:
    content, (style,) = pictures.content, pictures.styles
    changed = content.copy()
    changed[-1, -1, -1] ^= 1
    digests = [
        Pictures(content, (style,)).digest(),
        Pictures(changed, (style,)).digest(),
        Pictures(content.transpose(1, 0, 2), (style,)).digest(),
        Pictures(content.reshape(content.shape[1], content.shape[0], 3), (style,)).digest(),
        Pictures(style, (content,)).digest(),
        Pictures(content, (style, style)).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert Pictures(content.copy(), (style.copy(),)).digest() == digests[0]
