"""Masks as people save them: grey, black and white, painted on an empty layer, turned, in any format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from nst_engine.errors import ImageError
from nst_engine.images import decode_mask

ROWS, COLUMNS = 24, 40
RAMP = np.tile(np.linspace(0, 255, COLUMNS).round().astype(np.uint8), (ROWS, 1))
LEFT = np.where(np.arange(COLUMNS) < 20, 255, 0).astype(np.uint8) * np.ones((ROWS, 1), np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def layers(colour: tuple[int, int, int], opacity: np.ndarray, *, elsewhere: tuple[int, int, int]) -> Image.Image:
    """A colour where the opacity is more than 0, another colour elsewhere, and the opacity."""
    rgb = np.where(opacity[..., None] > 0, np.uint8(colour), np.uint8(elsewhere))
    return Image.fromarray(np.dstack([rgb, opacity]).astype(np.uint8))


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (250, 30, 60)
OPAQUE = np.full((ROWS, COLUMNS), 255, np.uint8)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        pytest.param(Image.fromarray(RAMP), RAMP, id="grey"),
        pytest.param(Image.fromarray(np.dstack([RAMP] * 3)), RAMP, id="grey as RGB"),
        pytest.param(Image.fromarray(LEFT).convert("1"), LEFT, id="black and white"),
        pytest.param(Image.fromarray(LEFT).convert("P"), LEFT, id="palette"),
        pytest.param(Image.fromarray(RAMP.astype(np.uint16) * 257), RAMP, id="16 bits"),
        pytest.param(layers(WHITE, LEFT, elsewhere=BLACK), LEFT, id="white on an empty layer"),
        pytest.param(layers(BLACK, LEFT, elsewhere=BLACK), LEFT, id="black on an empty layer"),
        pytest.param(layers(RED, LEFT, elsewhere=WHITE), LEFT, id="a colour on an empty layer"),
        pytest.param(layers(RED, RAMP, elsewhere=BLACK), RAMP, id="a soft brush"),
        pytest.param(layers(BLACK, OPAQUE, elsewhere=BLACK), 0 * LEFT, id="black with nothing transparent"),
        pytest.param(layers(WHITE, OPAQUE, elsewhere=BLACK), OPAQUE, id="white with nothing transparent"),
        pytest.param(
            Image.fromarray(np.dstack([RAMP, LEFT])), np.where(LEFT, RAMP, 0), id="several greys, in part transparent"
        ),
    ],
)
def test_a_mask_is_its_luminance_or_what_was_painted(tmp_path: Path, image: Image.Image, mask: np.ndarray) -> None:
    found = decode_mask(saved(tmp_path / "mask.png", image))
    assert found.dtype == np.uint8
    assert np.array_equal(found, mask)


def test_a_colour_counts_as_bright_as_it_looks(tmp_path: Path) -> None:
    found = decode_mask(saved(tmp_path / "mask.png", Image.new("RGB", (COLUMNS, ROWS), (255, 0, 0))))
    assert found.shape == (ROWS, COLUMNS)
    assert np.unique(found).tolist() == [76]


def test_a_mask_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = saved(tmp_path / "mask.webp", Image.fromarray(LEFT), exif=exif, lossless=True)
    assert np.array_equal(decode_mask(path), np.rot90(LEFT, -1))


def test_a_mask_is_refused_as_a_picture_is(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(RAMP).save(whole, "png")
    path = tmp_path / "mask.png"
    path.write_bytes(whole.getvalue()[:60])
    with pytest.raises(ImageError, match=r"mask\.png is damaged or incomplete"):
        decode_mask(path)
    with pytest.raises(ImageError, match="at most 100 are allowed"):
        decode_mask(saved(path, Image.fromarray(RAMP)), max_pixels=100)
