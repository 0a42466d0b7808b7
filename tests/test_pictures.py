"""The pictures of a transfer: their working sizes and the picture it starts from."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nst_engine.arrays import on_disk
from nst_engine.config import TransferConfig
from nst_engine.errors import ImageError
from nst_engine.images import deprocess, display_range, resize
from nst_engine.masks import feathered
from nst_engine.pictures import (
    Pictures,
    at_scale,
    content_size,
    digest_of,
    fit_pictures,
    initial_picture,
    style_size,
)


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
    pytest.param({"rows": 40, "style_fit": "crop"}, WIDE, TALL, (40, 80), (40, 80), id="crop"),
    pytest.param({"rows": "content", "style_fit": "edge"}, WIDE, (33, 40), WIDE, (33, 40), id="own size, edge"),
    pytest.param({"rows": "content", "style_fit": "stretch"}, TALL, (33, 40), TALL, TALL, id="own size, stretch"),
    pytest.param({"rows": "content"}, WIDE, (90, 90), WIDE, (85, 85), id="own size, area"),
    pytest.param({"rows": 40, "style_scale": 1.5}, WIDE, TALL, (40, 80), (120, 60), id="scale, area"),
    pytest.param(
        {"rows": 40, "style_scale": 0.5, "style_fit": "crop"}, WIDE, TALL, (40, 80), (20, 40), id="scale, crop"
    ),
    pytest.param({"rows": 40, "style_size": 50}, WIDE, TALL, (40, 80), (50, 25), id="size, area"),
    pytest.param({"rows": 40, "style_size": 50, "style_fit": "edge"}, WIDE, TALL, (40, 80), (50, 25), id="size, edge"),
    pytest.param({"rows": 40, "style_size": 50, "style_fit": "crop"}, WIDE, TALL, (40, 80), (25, 50), id="size, crop"),
    pytest.param(
        {"rows": 40, "style_size": 50, "style_scale": 3, "style_fit": "stretch"},
        WIDE,
        TALL,
        (40, 80),
        (25, 50),
        id="size before scale, stretch",
    ),
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
    if not settings.keys() & {"style_scale", "style_size"}:
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


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"style_scale": 0.1},
            "style_scale makes the style too small: it would have 8 x 4 pixels (rows x columns), and each side needs "
            "at least 16; give more.",
            id="small scale",
        ),
        pytest.param(
            {"rows": 3000, "style_scale": 20, "style_fit": "crop"},
            "style_scale makes the style too large: it would have 60000 x 120000 pixels (rows x columns), and at most "
            "20,000 a side and 100,000,000 in all are allowed; give less.",
            id="large scale",
        ),
        pytest.param(
            {"style_size": 15000, "style_fit": "stretch"},
            "style_size makes the style too large: it would have 7500 x 15000 pixels (rows x columns), and at most "
            "20,000 a side and 100,000,000 in all are allowed; give less.",
            id="large size",
        ),
        pytest.param(
            {"style_size": 20},
            "the picture is too narrow: 120 x 60 pixels (rows x columns) would become 20 x 10, and each side needs at "
            "least 16; crop it or ask for more.",
            id="small size",
        ),
        pytest.param(
            {"style_scale": 0.5, "scales": 2, "style_fit": "crop"},
            "the picture is too small for 2 scales: of 20 x 40 pixels (rows x columns) the coarsest would leave "
            "10 x 20, and each side needs at least 16; ask for fewer scales or a larger picture.",
            id="small at the coarsest scale",
        ),
    ],
)
def test_the_size_of_a_style_that_the_settings_make_impossible(settings: dict[str, Any], sentence: str) -> None:
    asked = config(**{"rows": 40} | settings)
    with pytest.raises(ImageError) as failure:
        style_size(asked, TALL, content=content_size(asked, WIDE))
    assert str(failure.value) == sentence


@pytest.mark.parametrize(
    ("content", "style", "kept"),
    [
        pytest.param((40, 80), (60, 30), (slice(22, 37), slice(0, 30)), id="of a tall style"),
        pytest.param((80, 40), (30, 60), (slice(0, 30), slice(22, 37)), id="of a wide style"),
        pytest.param((40, 80), (20, 40), (slice(0, 20), slice(0, 40)), id="of the same shape"),
    ],
)
def test_crop_keeps_the_middle(content: tuple[int, int], style: tuple[int, int], kept: tuple[slice, slice]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*style, 3), np.uint8)
    mask = np.ascontiguousarray(picture[..., 0])
    fitted = fit_pictures(config(rows=content[0], style_fit="crop"), blank(*content), [picture], style_masks=[mask])
    np.testing.assert_array_equal(fitted.styles[0], resize(picture[kept], rows=content[0], columns=content[1]))
    expected = Image.fromarray(mask[kept]).resize((content[1], content[0]), Image.Resampling.BOX)
    np.testing.assert_array_equal(fitted.style_masks[0], np.asarray(expected))


def halves(rows: int, columns: int, *, inside: int) -> NDArray[np.uint8]:
    """A mask of the first columns."""
    mask = np.zeros((rows, columns), np.uint8)
    mask[:, :inside] = 255
    return mask


def test_masks_take_the_size_of_what_they_belong_to() -> None:
    """Each pixel is the mean of those that it stands for; a scale makes masks as small as their pictures."""
    asked = config(rows=32, style_fit="edge", scales=2)
    masks, style_masks = [halves(64, 96, inside=45), halves(256, 384, inside=8)], [None, halves(128, 128, inside=66)]
    fitted = fit_pictures(asked, blank(64, 96), [blank(64, 64)] * 2, masks=masks, style_masks=style_masks)
    assert fitted.content.shape == (32, 48, 3)
    first = np.repeat([[255] * 22 + [128] + [0] * 25], 32, axis=0)
    second = np.repeat([[255] + [0] * 47], 32, axis=0)
    of_style = np.repeat([[255] * 16 + [128] + [0] * 15], 32, axis=0)
    np.testing.assert_array_equal(fitted.masks, [first, second])
    assert fitted.style_masks[0] is None
    np.testing.assert_array_equal(fitted.style_masks[1], of_style)
    coarse = at_scale(asked, fitted, 1)
    assert coarse.content.shape == (16, 24, 3)
    np.testing.assert_array_equal(
        coarse.masks, [np.repeat([[255] * 11 + [64] + [0] * 12], 16, axis=0), np.repeat([[128] + [0] * 23], 16, axis=0)]
    )
    assert coarse.style_masks[0] is None
    np.testing.assert_array_equal(coarse.style_masks[1], np.repeat([[255] * 8 + [64] + [0] * 7], 16, axis=0))
    fine = at_scale(asked, fitted, 2)
    assert [mask is same for mask, same in zip(fine.masks, fitted.masks, strict=True)] == [True, True]


def test_masks_are_feathered_at_the_size_of_the_result() -> None:
    asked = config(rows=64, style_fit="edge", feather=8.0, scales=2, scale_factor=4.0)
    mask, of_style = halves(64, 96, inside=48), halves(64, 64, inside=32)
    fitted = fit_pictures(asked, blank(64, 96), [blank(64, 64)] * 2, masks=[mask], style_masks=[None, of_style])
    soft, soft_of_style = feathered(mask, 8.0), feathered(of_style, 8.0)
    assert 0 < soft[0, 50] < soft[0, 45] < 255
    np.testing.assert_array_equal(fitted.masks, [soft, feathered(255 - mask, 8.0)])
    assert fitted.style_masks[0] is None
    np.testing.assert_array_equal(fitted.style_masks[1], soft_of_style)
    coarse = at_scale(asked, fitted, 1).masks[0]
    expected = soft.reshape(16, 4, 24, 4).mean((1, 3))
    np.testing.assert_allclose(coarse, expected, atol=0.51)


def test_the_last_style_takes_what_no_mask_covers() -> None:
    first, second = halves(40, 80, inside=30), 180 * (halves(40, 80, inside=50) // 255)
    fitted = fit_pictures(config(rows=40), blank(40, 80), [blank(40, 40)] * 3, masks=[first, second])
    np.testing.assert_array_equal(fitted.masks[2][0], [0] * 30 + [75] * 20 + [255] * 30)
    assert (fitted.masks[2] == fitted.masks[2][:1]).all()
    assert fit_pictures(config(rows=40), blank(40, 80), [blank(40, 40)]).masks == ()


@pytest.mark.parametrize(
    ("masks", "style_masks", "sentence"),
    [
        pytest.param(
            [(40, 80)] * 3,
            [],
            "there are 3 masks for 2 styles; give one a style, or leave out the last style's.",
            id="too many",
        ),
        pytest.param(
            [], [(40, 40)] * 3, "there are 3 style masks for 2 styles; give one a style.", id="too many of styles"
        ),
        pytest.param(
            [(40, 80), (40, 77)],
            [],
            "mask 2 has another shape than the content: 40 x 77 pixels (rows x columns), the content 40 x 80; make it "
            "from that picture.",
            id="another shape",
        ),
        pytest.param(
            [],
            [None, (80, 40)],
            "style mask 2 has another shape than style 2: 80 x 40 pixels (rows x columns), style 2 40 x 40; make it "
            "from that picture.",
            id="another shape than the style",
        ),
    ],
)
def test_masks_that_do_not_belong_to_the_pictures(
    masks: list[tuple[int, int]], style_masks: list[tuple[int, int] | None], sentence: str
) -> None:
    with pytest.raises(ImageError) as failure:
        fit_pictures(
            config(rows=40),
            blank(40, 80),
            [blank(40, 40)] * 2,
            masks=[np.zeros(shape, np.uint8) for shape in masks],
            style_masks=[None if shape is None else np.zeros(shape, np.uint8) for shape in style_masks],
        )
    assert str(failure.value) == sentence


def test_a_mask_may_be_a_rounding_off() -> None:
    fitted = fit_pictures(config(rows=40), blank(40, 80), [blank(40, 40)], masks=[np.full((50, 101), 255, np.uint8)])
    np.testing.assert_array_equal(fitted.masks, np.full((1, 40, 80), 255))


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
    mask, other_mask = np.zeros(content.shape[:2], np.uint8), np.full(content.shape[:2], 255, np.uint8)
    digests += [
        Pictures(content, (style,), initial=content).digest(),
        Pictures(content, (style,), initial=changed).digest(),
        Pictures(content, (style,), masks=(mask,)).digest(),
        Pictures(content, (style,), masks=(other_mask,)).digest(),
        Pictures(content, (style,), style_masks=(mask,)).digest(),
        Pictures(content, (style,), masks=(mask,), style_masks=(mask,)).digest(),
        Pictures(content, (style, style), style_masks=(mask, None)).digest(),
        Pictures(content, (style, style), style_masks=(None, mask)).digest(),
        Pictures(content, (style,), colors=content).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert Pictures(content.copy(), (style.copy(),)).digest() == digests[0]
    # What was there before there were masks: a checkpoint of such a job goes on.
    assert digests[0] == digest_of(content, style)


def test_placed_on_disk_with_all_that_belongs_to_it(pictures: Pictures) -> None:
    content = pictures.content
    whole = Pictures(
        content, (content, content), content, (content[..., 0], content[..., 1]), (None, content[..., 2]), content
    )
    there = whole.placed(on_disk=True)
    arrays = [there.content, *there.styles, there.initial, *there.masks, there.style_masks[1], there.colors]
    assert [array is not None and on_disk(array) for array in arrays] == [True] * 8
    assert there.style_masks[0] is None
    assert there.digest() == whole.digest()
