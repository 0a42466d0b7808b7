"""Pictures between a file and the network, on real files of every kind."""

import io
import logging
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, features

from nst_engine import images
from nst_engine.errors import EngineError, ImageError

ROWS, COLUMNS = 24, 40
WEBP = pytest.param("WEBP", marks=pytest.mark.skipif(not features.check("webp"), reason="Pillow without WebP"))
AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF"))
LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
}


def noise(rows: int = ROWS, columns: int = COLUMNS, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, channels), dtype=np.uint8)


def smooth(rows: int = ROWS, columns: int = COLUMNS) -> NDArray[np.uint8]:
    down, across = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    return np.stack([255 * across, 255 * down, 127 + 0 * down], axis=-1).round().astype(np.uint8)


def grey_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([grey] * 3, axis=-1)


def png(pixels: NDArray[np.uint8] | NDArray[np.uint16], color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG as Pillow does not write it: any depth and colour type, with the given chunks before the data."""
    depth = pixels.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, color_type, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(f">u{pixels.dtype.itemsize}").tobytes() for line in pixels)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def icc(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A colour profile of version 2 with the given tags."""
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        padded = data + b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += padded
    device = b"prtr" if space == b"CMYK" else b"scnr"
    header = struct.pack(">I4sI4s4s4s12s4s", 0, b"none", 0x02100000, device, space, connection, bytes(12), b"acsp")
    white = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    header = header.ljust(68, b"\0") + white
    profile = header.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(profile)) + profile[4:]


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def red_green_profile() -> bytes:
    """sRGB with the red and the green primary exchanged."""
    return srgb_profile().replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


def grey_profile() -> bytes:
    """Grey of gamma 1.8."""
    white = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return icc(b"GRAY", b"XYZ ", {b"wtpt": white, b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x1CD)})


def one_grey_cmyk_profile() -> bytes:
    """Without black every ink is L* = 60, a* = b* = 0; with it, black."""
    matrix = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x10000)
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + bytes((153, 128, 128, 0, 128, 128)) * 8 + ramp * 3
    return icc(b"CMYK", b"Lab ", {b"A2B0": lut})


def write(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def sentence(error: pytest.ExceptionInfo[ImageError], path: Path) -> str:
    """The message without its file; it must begin with it and be one sentence."""
    message = str(error.value)
    assert message.startswith(f"{path} ")
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


# Formats


@pytest.mark.parametrize("kind", ["PNG", WEBP, "TIFF", "BMP"])
def test_lossless_formats_come_back_whole(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "picture", Image.fromarray(noise()), format=kind, **LOSSLESS[kind])
    picture = images.decode(path)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable
    np.testing.assert_array_equal(picture, noise())


@pytest.mark.parametrize("kind", ["JPEG", WEBP, AVIF, "MPO"])
def test_lossy_formats_come_back_near(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "picture.any", Image.fromarray(smooth()), format=kind, quality=95)
    picture = images.decode(path)
    assert picture.shape == (ROWS, COLUMNS, 3)
    assert np.abs(picture.astype(int) - smooth()).max() <= 12


def test_two_frames_of_a_phone_give_the_first(tmp_path: Path) -> None:
    first, second = Image.fromarray(smooth()), Image.fromarray(255 - smooth())
    path = write(tmp_path / "p.jpg", first, format="MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert np.abs(images.decode(path).astype(int) - smooth()).max() <= 12


@pytest.mark.parametrize("kind", ["GIF", WEBP, "PNG", "TIFF"])
def test_animations_give_their_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (COLUMNS, ROWS), color) for color in ("#204060", "#ff0000", "#00ff00")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = write(tmp_path / "p", frames[0], format=kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(images.decode(path), np.full((ROWS, COLUMNS, 3), (0x20, 0x40, 0x60)))


# Orientation


UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("kind", ["PNG", WEBP, "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = write(tmp_path / "p", Image.fromarray(noise()), format=kind, exif=exif, **LOSSLESS[kind])
    np.testing.assert_array_equal(images.decode(path), UPRIGHT[orientation](noise()))


@pytest.mark.parametrize("kind", ["JPEG", AVIF])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_to_lossy_formats(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = write(tmp_path / "p", Image.fromarray(smooth()), format=kind, exif=exif, quality=95)
    picture, expected = images.decode(path), UPRIGHT[orientation](smooth())
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= 12


@pytest.mark.parametrize("orientation", [0, 9, 65535], ids=str)
def test_an_orientation_that_does_not_exist_is_none(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = write(tmp_path / "p.png", Image.fromarray(noise()), exif=exif)
    np.testing.assert_array_equal(images.decode(path), noise())


def test_damaged_exif_is_logged_and_the_picture_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "p.png", Image.fromarray(noise()), exif=b"Exif\0\0this is no TIFF header")
    with caplog.at_level(logging.WARNING):
        picture = images.decode(path)
    np.testing.assert_array_equal(picture, noise())
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [f"{path} has damaged EXIF data"]


def test_orientation_with_transparency_and_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgba = np.dstack([noise(), np.where(np.arange(COLUMNS) < 9, 0, 255) * np.ones((ROWS, 1))]).astype(np.uint8)
    path = write(tmp_path / "p.png", Image.fromarray(rgba), exif=exif, icc_profile=srgb_profile())
    expected = noise()
    expected[:, :9] = 255
    np.testing.assert_array_equal(images.decode(path), np.rot90(expected, -1))


# Modes


def test_grey(tmp_path: Path) -> None:
    grey = noise()[..., 0]
    path = write(tmp_path / "p.png", Image.fromarray(grey))
    np.testing.assert_array_equal(images.decode(path), grey_rgb(grey))


def test_one_bit(tmp_path: Path) -> None:
    bits = noise()[..., 0] > 127
    path = write(tmp_path / "p.png", Image.fromarray(bits))
    np.testing.assert_array_equal(images.decode(path), grey_rgb(np.where(bits, 255, 0).astype(np.uint8)))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(tmp_path: Path, kind: str) -> None:
    indexes = noise()[..., 0] % 4
    colors = np.array([(1, 2, 3), (200, 10, 20), (30, 210, 40), (50, 60, 220)], np.uint8)
    image = Image.fromarray(indexes)
    image.putpalette(colors.tobytes())
    path = write(tmp_path / "p", image, format=kind)
    np.testing.assert_array_equal(images.decode(path), colors[indexes])


@pytest.mark.parametrize("kind", ["PNG", WEBP, "TIFF"])
def test_alpha_is_laid_over_white(tmp_path: Path, kind: str) -> None:
    rgba = noise(channels=4)
    path = write(tmp_path / "p", Image.fromarray(rgba), format=kind, **LOSSLESS[kind])
    opacity = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * opacity + 255 * (1 - opacity)
    assert np.abs(images.decode(path) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_alpha_is_laid_over_white(tmp_path: Path, kind: str) -> None:
    grey_alpha = noise(channels=2)
    path = write(tmp_path / "p", Image.fromarray(grey_alpha), format=kind)
    opacity = grey_alpha[..., 1:].astype(float) / 255
    expected = np.repeat(grey_alpha[..., :1] * opacity + 255 * (1 - opacity), 3, axis=-1)
    assert np.abs(images.decode(path) - expected).max() <= 1


def test_palette_with_alpha_is_laid_over_white(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tiff", Image.new("RGBA", (COLUMNS, ROWS), (200, 0, 0, 128)).convert("PA"))
    with Image.open(path) as image:
        assert image.mode == "PA"
        red, _, _, alpha = image.convert("RGBA").getpixel((0, 0))  # type: ignore[misc]
    white = 255 - alpha
    expected = np.full((ROWS, COLUMNS, 3), (red * alpha / 255 + white, white, white))
    assert np.abs(images.decode(path) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_one_transparent_palette_entry(tmp_path: Path, kind: str) -> None:
    indexes = noise()[..., 0] % 3
    colors = np.array([(1, 2, 3), (200, 10, 20), (30, 210, 40)], np.uint8)
    image = Image.fromarray(indexes)
    image.putpalette(colors.tobytes())
    path = write(tmp_path / "p", image, format=kind, transparency=1)
    colors[1] = 255
    np.testing.assert_array_equal(images.decode(path), colors[indexes])


def test_palette_entries_of_their_own_transparency(tmp_path: Path) -> None:
    indexes = noise()[..., 0] % 3
    image = Image.fromarray(indexes)
    image.putpalette(bytes((0, 0, 0, 200, 0, 0, 0, 0, 200)))
    path = write(tmp_path / "p.png", image, transparency=bytes((0, 255, 255)))
    expected = np.array([(255, 255, 255), (200, 0, 0), (0, 0, 200)], np.uint8)[indexes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(images.decode(path), expected)


def test_one_transparent_colour(tmp_path: Path) -> None:
    pixels = noise()
    pixels[3:9] = (10, 20, 30)
    path = tmp_path / "p.png"
    path.write_bytes(png(pixels, 2, (b"tRNS", struct.pack(">3H", 10, 20, 30))))
    expected = pixels.copy()
    expected[3:9] = 255
    np.testing.assert_array_equal(images.decode(path), expected)


def test_one_transparent_grey(tmp_path: Path) -> None:
    grey = noise()[..., 0] | 1
    grey[3:9] = 10
    path = tmp_path / "p.png"
    path.write_bytes(png(grey, 0, (b"tRNS", struct.pack(">H", 10))))
    expected = grey_rgb(grey)
    expected[3:9] = 255
    np.testing.assert_array_equal(images.decode(path), expected)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(tmp_path: Path, kind: str) -> None:
    ink = Image.new("CMYK", (COLUMNS, ROWS), (0, 255, 255, 0))
    picture = images.decode(write(tmp_path / "p", ink, format=kind))
    assert np.abs(picture.astype(int) - (255, 0, 0)).max() <= 3


def test_ycbcr(tmp_path: Path) -> None:
    image = Image.fromarray(smooth()).convert("YCbCr")
    path = write(tmp_path / "p.tiff", image)
    with Image.open(path) as stored:
        assert stored.mode == "YCbCr"
    np.testing.assert_array_equal(images.decode(path), np.asarray(image.convert("RGB")))


def test_lab(tmp_path: Path) -> None:
    pixels = np.full((ROWS, COLUMNS, 3), (180, 90, 60), np.uint8)
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB").apply(
        Image.fromarray(pixels)
    )
    picture = images.decode(write(tmp_path / "p.tiff", lab))
    assert np.abs(picture.astype(int) - pixels).max() <= 3


# 16 and 32 bits


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_16_bit_grey_tiff(tmp_path: Path, order: str) -> None:
    wide = np.random.default_rng(1).integers(0, 65536, (ROWS, COLUMNS)).astype(f"{order}u2")
    wide[0, :3] = (0, 128, 65535)
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (COLUMNS, ROWS), wide.tobytes())
    path = write(tmp_path / "p.tiff", image)
    with Image.open(path) as stored:
        assert stored.mode == mode
    expected = np.rint(wide.astype(float) / 257).astype(np.uint8)
    np.testing.assert_array_equal(images.decode(path), grey_rgb(expected))


def test_16_bit_grey_png_with_a_transparent_grey(tmp_path: Path) -> None:
    wide = np.random.default_rng(1).integers(20_000, 65536, (ROWS, COLUMNS)).astype(np.uint16)
    wide[3:9] = 5000
    path = tmp_path / "p.png"
    path.write_bytes(png(wide, 0, (b"tRNS", struct.pack(">H", 5000))))
    expected = grey_rgb(np.rint(wide / 257).astype(np.uint8))
    expected[3:9] = 255
    np.testing.assert_array_equal(images.decode(path), expected)


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(png(noise().astype(np.uint16) * 257, 2))
    np.testing.assert_array_equal(images.decode(path), noise())


def test_16_bit_rgb_png_with_a_transparent_colour(tmp_path: Path) -> None:
    wide = (noise().astype(np.uint16) | 64) * 257
    wide[3:9] = 8 * 257
    path = tmp_path / "p.png"
    path.write_bytes(png(wide, 2, (b"tRNS", struct.pack(">3H", *[8 * 257] * 3))))
    expected = (wide // 257).astype(np.uint8)
    expected[3:9] = 255
    np.testing.assert_array_equal(images.decode(path), expected)


@pytest.mark.parametrize("color_type", [4, 6], ids=["grey", "rgb"])
def test_16_bit_png_with_alpha(tmp_path: Path, color_type: int) -> None:
    channels = 2 if color_type == 4 else 4
    pixels = noise(channels=channels)
    pixels[..., -1] = np.where(pixels[..., -1] > 127, 255, 0)
    path = tmp_path / "p.png"
    path.write_bytes(png(pixels.astype(np.uint16) * 257, color_type))
    expected = np.broadcast_to(pixels[..., :-1], (ROWS, COLUMNS, 3)).copy()
    expected[pixels[..., -1] == 0] = 255
    np.testing.assert_array_equal(images.decode(path), expected)


@pytest.mark.parametrize(("mode", "kind"), [("I", "32-bit"), ("F", "floating-point")], ids=["int", "float"])
def test_32_bits_are_refused(tmp_path: Path, mode: str, kind: str) -> None:
    path = write(tmp_path / "p.tiff", Image.new(mode, (COLUMNS, ROWS), 70_000))
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == (
        f"has {kind} pixels, which nst does not read; save it with 8 or 16 bits a channel."
    )


# Colour profiles


@pytest.mark.parametrize("kind", ["PNG", WEBP, "TIFF"])
def test_the_srgb_profile_changes_nothing(tmp_path: Path, kind: str) -> None:
    profile = srgb_profile()
    path = write(tmp_path / "p", Image.fromarray(noise()), format=kind, icc_profile=profile, **LOSSLESS[kind])
    np.testing.assert_array_equal(images.decode(path), noise())


@pytest.mark.parametrize("kind", ["PNG", WEBP, "TIFF"])
def test_an_rgb_profile_is_applied(tmp_path: Path, kind: str) -> None:
    profile = red_green_profile()
    path = write(tmp_path / "p", Image.fromarray(noise()), format=kind, icc_profile=profile, **LOSSLESS[kind])
    assert np.abs(images.decode(path).astype(int) - noise()[..., [1, 0, 2]]).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", AVIF])
def test_an_rgb_profile_is_applied_to_lossy_formats(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "p", Image.fromarray(smooth()), format=kind, icc_profile=red_green_profile(), quality=95)
    assert np.abs(images.decode(path).astype(int) - smooth()[..., [1, 0, 2]]).max() <= 14


def test_a_profile_is_applied_before_white_is_laid_under(tmp_path: Path) -> None:
    image = Image.new("RGBA", (COLUMNS, ROWS), (200, 0, 0, 128))
    path = write(tmp_path / "p.png", image, icc_profile=red_green_profile())
    expected = np.full((ROWS, COLUMNS, 3), (127, 228, 127))
    assert np.abs(images.decode(path) - expected).max() <= 1


def test_a_profile_is_applied_to_a_palette(tmp_path: Path) -> None:
    image = Image.new("RGB", (COLUMNS, ROWS), (200, 0, 50)).quantize(2)
    path = write(tmp_path / "p.png", image, icc_profile=red_green_profile())
    expected = np.full((ROWS, COLUMNS, 3), (0, 200, 50))
    assert np.abs(images.decode(path) - expected).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_profile_is_applied(tmp_path: Path, bits: int) -> None:
    grey = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (ROWS, 1))
    image = Image.fromarray(grey if bits == 8 else grey.astype(np.uint16) * 257)
    path = write(tmp_path / "p.png", image, icc_profile=grey_profile())
    light = (grey / 255) ** (0x1CD / 256)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(images.decode(path) - np.stack([encoded * 255] * 3, -1)).max() <= 1.5


def test_grey_with_an_rgb_profile_is_taken_as_rgb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = noise()[..., 0]
    path = write(tmp_path / "p.png", Image.fromarray(grey), icc_profile=red_green_profile())
    assert np.abs(images.decode(path).astype(int) - grey_rgb(grey)).max() <= 1
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_cmyk_profile_is_applied(tmp_path: Path, kind: str) -> None:
    ink = Image.new("CMYK", (COLUMNS, ROWS), (0, 255, 255, 0))
    path = write(tmp_path / "p", ink, format=kind, icc_profile=one_grey_cmyk_profile())
    # L* = 60 is a luminance of 0.281, which sRGB encodes as 145.
    assert np.abs(images.decode(path).astype(int) - 145).max() <= 2


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"this is no colour profile"),
        ("RGB", red_green_profile()[:200]),
        ("RGB", grey_profile()),
        ("L", one_grey_cmyk_profile()),
    ],
    ids=["text", "truncated", "grey on rgb", "cmyk on grey"],
)
def test_a_useless_profile_is_logged_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str, profile: bytes
) -> None:
    image = Image.fromarray(noise()).convert(mode)
    path = write(tmp_path / "p.png", image, icc_profile=profile)
    np.testing.assert_array_equal(images.decode(path), np.asarray(image.convert("RGB")))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.fullmatch(
        rf"{path} has a colour profile that cannot be used \(.+\); it is taken as sRGB\.", record.getMessage()
    )


# Files that are no pictures


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jpg", b"Dear diary, today I took no picture at all.\n" * 20),
        ("p.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='90' height='90'/>"),
        ("p.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj << /Type /Catalog >> endobj\n"),
        ("p.heic", b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(200)),
        ("p.tif", bytes(4096)),
        ("p.jpg", b"\xff"),
        ("p.png", b"\x89PNG\r\n\x1a\n"),
    ],
    ids=["text", "svg", "pdf", "heic", "zeros", "one byte", "signature only"],
)
def test_foreign_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == (
        "is no JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF picture, or its beginning is damaged; "
        "export it again in one of these formats."
    )
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX"])
def test_formats_off_the_list_are_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "p.png", Image.fromarray(noise()), format=kind)
    with pytest.raises(ImageError, match="is no JPEG, PNG"):
        images.decode(path)


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == "does not exist; check the name."


def test_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.mkdir()
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == "is a folder; name a picture file."


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.touch()
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == "is empty; copy it again."


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    os.mkfifo(path)
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == "is no regular file; name a picture file."


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "p.png"
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == ("cannot be reached (Not a directory); check its folder and your rights to it.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "p.png", Image.fromarray(noise()))
    path.chmod(0)
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == "may not be read; give this user the right to read it."


# Damaged files


def variants() -> dict[str, bytes]:
    """One file of each kind of coding that a format knows."""
    made: dict[str, bytes] = {}
    frames = [Image.fromarray(np.roll(smooth(64, 96), 9 * n, 1)) for n in range(3)]
    for name, kind, options in [
        ("jpeg", "JPEG", {}),
        ("progressive jpeg", "JPEG", {"progressive": True}),
        ("phone jpeg", "MPO", {"save_all": True, "append_images": frames[1:]}),
        ("png", "PNG", {}),
        ("animated png", "PNG", {"save_all": True, "append_images": frames[1:]}),
        ("gif", "GIF", {}),
        ("animated gif", "GIF", {"save_all": True, "append_images": frames[1:]}),
        ("bmp", "BMP", {}),
        ("tiff", "TIFF", {}),
        ("lzw tiff", "TIFF", {"compression": "tiff_lzw"}),
        ("deflate tiff", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("jpeg tiff", "TIFF", {"compression": "jpeg"}),
        ("packbits tiff", "TIFF", {"compression": "packbits"}),
        ("webp", "WEBP", {}),
        ("lossless webp", "WEBP", {"lossless": True}),
        ("animated webp", "WEBP", {"save_all": True, "append_images": frames[1:]}),
        ("avif", "AVIF", {}),
    ]:
        if kind in {"WEBP", "AVIF"} and not features.check(kind.lower()):
            continue
        file = io.BytesIO()
        frames[0].save(file, format=kind, **options)
        made[name] = file.getvalue()
    return made


VARIANTS = variants()


def outcome(path: Path, *, max_pixels: int = images.MAX_PIXELS) -> NDArray[np.uint8] | ImageError:
    """The picture, or the error, which must be a sentence about the file."""
    try:
        return images.decode(path, max_pixels=max_pixels)
    except ImageError as error:
        caught = error
    assert re.fullmatch(rf"{path} [^\n]+\.", str(caught))
    return caught


@pytest.mark.filterwarnings("ignore:(Corrupt EXIF data|Truncated File Read)")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_truncated_file_is_refused_or_whole(tmp_path: Path, name: str) -> None:
    whole, path = VARIANTS[name], tmp_path / "p"
    path.write_bytes(whole)
    expected = images.decode(path)
    lengths = {round(len(whole) * part / 24) for part in range(1, 24)} | {len(whole) - n for n in range(1, 24)}
    refused = 0
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        found = outcome(path)
        if isinstance(found, ImageError):
            assert found.__cause__ is not None
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected, err_msg=f"{length} of {len(whole)} bytes")
    assert refused >= 4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, name: str) -> None:
    whole, path = VARIANTS[name], tmp_path / "p"
    rng = np.random.default_rng(7)
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        # Half of the hits go to the headers, where the decoders' own checks are.
        reach = len(whole) if rng.random() < 0.5 else min(len(whole), 200)
        places = rng.integers(0, reach, 4)
        damaged[places] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        found = outcome(path, max_pixels=1_000_000)
        if not isinstance(found, ImageError):
            assert (found.dtype, found.ndim, found.shape[2]) == (np.uint8, 3, 3)


def test_the_sentence_for_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    path.write_bytes(VARIANTS["jpeg"][:-300])
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert re.fullmatch(
        r"is damaged or incomplete \(image file is truncated.*\); copy or export it again\.",
        sentence(error, path),
    )
    assert isinstance(error.value, EngineError)
    assert isinstance(error.value.__cause__, OSError)


# Limits


@pytest.mark.parametrize("kind", ["JPEG", "PNG", WEBP, "TIFF", "BMP", "GIF", AVIF])
def test_the_limit_on_pixels_is_exact(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "p", Image.fromarray(smooth()), format=kind)
    assert images.decode(path, max_pixels=ROWS * COLUMNS).shape == (ROWS, COLUMNS, 3)
    with pytest.raises(ImageError) as error:
        images.decode(path, max_pixels=ROWS * COLUMNS - 1)
    assert sentence(error, path) == (
        "has 960 pixels (24 x 40, rows x columns) and at most 959 are allowed; make it smaller."
    )


@pytest.mark.parametrize("side", [10_001, 20_000], ids=str)
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "p.png"
    header = png(np.zeros((16, 16), np.uint8), 0)
    data = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(header[:16] + data + struct.pack(">I", zlib.crc32(b"IHDR" + data)) + header[33:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as error:
            images.decode(path)
    assert sentence(error, path) == (
        f"has {side**2:,} pixels ({side} x {side}, rows x columns) and at most 100,000,000 are allowed; "
        "make it smaller."
    )


def test_a_larger_limit_than_pillows_own_holds(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    header = png(np.zeros((16, 16), np.uint8), 0)
    data = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    path.write_bytes(header[:16] + data + struct.pack(">I", zlib.crc32(b"IHDR" + data)) + header[33:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The header passes; the few bytes behind it are no 400 megapixels.
        with pytest.raises(ImageError, match="is damaged or incomplete"):
            images.decode(path, max_pixels=500_000_000)


@pytest.mark.parametrize("size", [(16, 15), (15, 16), (1, 1)], ids=str)
def test_a_picture_too_small_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "p.png", Image.new("RGB", size[::-1]))
    with pytest.raises(ImageError) as error:
        images.decode(path)
    assert sentence(error, path) == (
        f"has {size[0]} x {size[1]} pixels (rows x columns) and each side needs at least 16; use a larger picture."
    )


def test_the_smallest_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "p.png", Image.fromarray(noise(16, 16)))
    np.testing.assert_array_equal(images.decode(path), noise(16, 16))


# Size


@pytest.mark.parametrize(
    ("shape", "wanted", "size"),
    [
        ((480, 640), {"rows": 400}, (400, 533)),
        ((480, 640, 3), {"rows": 400}, (400, 533)),
        ((1000, 999), {"rows": 500}, (500, 499)),
        ((480, 640), {"long_edge": 512}, (384, 512)),
        ((640, 480), {"long_edge": 512}, (512, 384)),
        ((600, 799), {"long_edge": 512}, (384, 512)),
        ((100, 100), {"long_edge": 512}, (512, 512)),
        ((400, 533), {"rows": 400}, (400, 533)),
        ((160, 16), {"rows": 160}, (160, 16)),
    ],
    ids=str,
)
def test_target_size(shape: tuple[int, ...], wanted: dict[str, int], size: tuple[int, int]) -> None:
    assert images.target_size(shape, **wanted) == size


@pytest.mark.parametrize(
    ("shape", "wanted", "would"),
    [
        ((2000, 60), {"rows": 400}, "400 x 12"),
        ((60, 2000), {"long_edge": 400}, "12 x 400"),
        ((100, 100), {"rows": 15}, "15 x 15"),
    ],
    ids=str,
)
def test_a_target_too_narrow_is_refused(shape: tuple[int, int], wanted: dict[str, int], would: str) -> None:
    with pytest.raises(ImageError) as error:
        images.target_size(shape, **wanted)
    assert str(error.value) == (
        f"the picture is too narrow: {shape[0]} x {shape[1]} pixels (rows x columns) would become {would}, "
        "and each side needs at least 16; crop it or ask for more."
    )


@pytest.mark.parametrize("wanted", [{}, {"rows": 400, "long_edge": 400}], ids=["none", "both"])
def test_exactly_one_target_is_given(wanted: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        images.target_size((480, 640), **wanted)


def test_resize() -> None:
    halved = images.resize(smooth(96, 160), rows=48, columns=80)
    assert (halved.dtype, halved.shape) == (np.uint8, (48, 80, 3))
    assert np.abs(halved.astype(int) - smooth(48, 80)).max() <= 4


def test_resize_to_the_same_size_is_the_same_array() -> None:
    picture = noise()
    assert images.resize(picture, rows=ROWS, columns=COLUMNS) is picture


# The network's form


def test_preprocess_is_bgr_less_the_means() -> None:
    picture = np.array([[(0, 128, 255)]], np.uint8)
    array = images.preprocess(picture)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, [[(255 - 103.939, 128 - 116.779, 0 - 123.68)]], rtol=1e-6)


def test_every_value_survives_the_way_there_and_back() -> None:
    values = np.arange(256, dtype=np.uint8)
    picture = np.stack([values, values[::-1], np.roll(values, 100)], axis=-1)[None]
    np.testing.assert_array_equal(images.deprocess(images.preprocess(picture)), picture)


def test_deprocess_rounds_clips_and_leaves_its_input_alone() -> None:
    array = images.preprocess(np.array([[(10, 10, 10), (0, 0, 0), (255, 255, 255)]], np.uint8))
    array += np.array([[(0.4, 0.6, -0.6), (-300, -0.4, -1), (300, 0.4, 1)]], np.float32)
    before = array.copy()
    picture = images.deprocess(array)
    np.testing.assert_array_equal(picture, np.array([[(9, 11, 10), (0, 0, 0), (255, 255, 255)]]))
    assert (picture.dtype, picture.flags.c_contiguous) == (np.uint8, True)
    np.testing.assert_array_equal(array, before)


def test_display_range_is_what_pictures_can_hold() -> None:
    low, high = images.display_range()
    assert (low.dtype, low.shape, high.dtype, high.shape) == (np.float32, (3,), np.float32, (3,))
    np.testing.assert_array_equal(low, images.preprocess(np.zeros((1, 1, 3), np.uint8))[0, 0])
    np.testing.assert_array_equal(high, images.preprocess(np.full((1, 1, 3), 255, np.uint8))[0, 0])


# Writing


def test_encode_png_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    path.write_bytes(b"old")
    images.encode_png(noise(), path)
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(images.decode(path), noise())
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_encode_png_into_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "result.png"
    with pytest.raises(ImageError) as error:
        images.encode_png(noise(), path)
    assert sentence(error, path) == (
        "cannot be written (No such file or directory); check that its folder exists, may be written to and has space."
    )


def test_encode_png_over_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "result.png"
    path.mkdir()
    with pytest.raises(ImageError, match="cannot be written"):
        images.encode_png(noise(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.png"]
    assert path.is_dir()
