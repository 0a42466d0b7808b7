"""Results as files: every format and depth as readers that are not ours find it, what they carry, what goes wrong."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin
from PIL.TiffImagePlugin import IFDRational

from nst_engine.arrays import placed
from nst_engine.config import TransferConfig
from nst_engine.encode import SUFFIXES, encode, read_settings, require_format
from nst_engine.errors import ImageError
from nst_engine.exif import Exif, content_exif
from nst_engine.images import decode, deprocess, display_range, encode_png
from nst_engine.samples import content_sample

ROWS, COLUMNS = 50, 70
SETTINGS = {"preset": "default", "config": {"rows": 50}, "sources": [{"name": '</nst:settings> & "é" 好 \x07.png'}]}
LOSSLESS = [("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16)]
LOSSY = [("jpeg", 8), ("webp", 8), ("avif", 8)]
ALL = [pytest.param(*each, id=f"{each[0]} {each[1]}") for each in LOSSLESS + LOSSY]


def config_of(kind: str, bits: int, **more: Any) -> TransferConfig:
    return TransferConfig().with_overrides({"format": kind, "bits": bits, **more})


def picture_of(bits: int) -> np.ndarray:
    """A picture whose low bytes matter: a smooth one with 16 bits, with noise in the lower eight."""
    narrow = content_sample(ROWS, COLUMNS)
    if bits == 8:
        return narrow
    return narrow.astype(np.uint16) * 256 + np.random.default_rng(3).integers(0, 256, narrow.shape, dtype=np.uint16)


def written(tmp_path: Path, kind: str, bits: int, *, exif: Exif | None = None, **more: Any) -> Path:
    path = tmp_path / f"result{SUFFIXES[config_of(kind, bits).format]}"
    encode(picture_of(bits), path, config=config_of(kind, bits, **more), settings=SETTINGS, exif=exif)
    return path


# The pixels.


def wide_png(path: Path) -> np.ndarray:
    """The 16-bit pixels of a PNG as libpng reads them."""
    tensorflow = pytest.importorskip("tensorflow")
    return np.asarray(tensorflow.io.decode_png(path.read_bytes(), dtype=tensorflow.uint16))


def wide_tiff(path: Path) -> np.ndarray:
    """The 16-bit pixels of a deflated TIFF, put together as its tags say (TIFF 6.0, section 14)."""
    with Image.open(path) as image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        order, whole = tags.prefix.decode(), path.read_bytes()
        strips = zip(np.atleast_1d(tags[273]), np.atleast_1d(tags[279]), strict=True)
        data = b"".join(zlib.decompress(whole[start : start + size]) for start, size in strips)
        assert (tags[258], tags[259], tags[277], tags[317]) == ((16, 16, 16), 8, 3, 2)
    differences = np.frombuffer(data, "<u2" if order == "II" else ">u2").reshape(ROWS, COLUMNS, 3)
    return np.cumsum(differences, axis=1, dtype=np.uint16)


@pytest.mark.parametrize(("kind", "bits"), LOSSLESS, ids=lambda value: str(value))
@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
def test_a_lossless_format_keeps_every_pixel(tmp_path: Path, kind: str, bits: int, on_disk: bool) -> None:
    picture = picture_of(bits)
    path = tmp_path / "picture"
    encode(placed(picture, on_disk=on_disk), path, config=config_of(kind, bits), settings=SETTINGS)
    if bits == 16:
        np.testing.assert_array_equal({"png": wide_png, "tiff": wide_tiff}[kind](path), picture)
        # Pillow reads the high bytes.
        picture = (picture >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(path), picture)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_picture_of_many_strips_is_whole(tmp_path: Path, kind: str) -> None:
    picture = np.random.default_rng(1).integers(0, 65536, (700, 301, 3), dtype=np.uint16)
    encode(picture, tmp_path / "picture", config=config_of(kind, 16), settings=SETTINGS)
    np.testing.assert_array_equal(decode(tmp_path / "picture"), (picture >> 8).astype(np.uint8))


@pytest.mark.parametrize(("kind", "worst"), [("jpeg", 3.0), ("webp", 6.0), ("avif", 3.0)])
def test_a_lossy_format_comes_near_and_nearer_with_quality(tmp_path: Path, kind: str, worst: float) -> None:
    errors, sizes = [], []
    for quality in (30, 95):
        path = written(tmp_path, kind, 8, quality=quality)
        errors.append(float(np.abs(decode(path).astype(int) - picture_of(8)).mean()))
        sizes.append(path.stat().st_size)
    assert errors[1] < min(errors[0], worst)
    assert sizes[0] < sizes[1]


def test_a_jpeg_has_its_colours_at_full_resolution(tmp_path: Path) -> None:
    with Image.open(written(tmp_path, "jpeg", 8)) as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4


def test_an_avif_has_its_colours_at_full_resolution(tmp_path: Path) -> None:
    """Lines of one pixel that differ in colour alone stay apart."""
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::2], lines[:, 1::2] = (200, 60, 60), (60, 60, 200)
    encode(lines, tmp_path / "lines.avif", config=config_of("avif", 8), settings=SETTINGS)
    decoded = decode(tmp_path / "lines.avif").astype(int)
    assert np.abs(decoded - lines).mean() < 8


def test_sixteen_bits_are_those_of_the_float_picture() -> None:
    low, high = display_range()
    levels = np.array([[0.0, 100.3, 254.9], [-5.0, 255.2, 17.5]], np.float32)
    # Inputs are BGR.
    wide = deprocess(levels[..., ::-1][None] + low, bits=16)
    assert wide.dtype == np.uint16
    expected = np.rint(np.clip(levels, 0, 255) * 257)
    np.testing.assert_allclose(wide[0].astype(int), expected, atol=1)
    assert set((wide & 255).ravel()) > {0, 255}
    noise = np.random.default_rng(0).uniform(-20, 275, (40, 30, 3)).astype(np.float32) + low
    narrow = deprocess(noise)
    near = np.abs(np.rint(deprocess(noise, bits=16) / 257) - narrow)
    assert (narrow.dtype, near.max()) == (np.uint8, 0)
    assert deprocess(high[None, None], bits=16).tolist() == [[[65535] * 3]]


# What it carries.


@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_every_result_has_the_profile_of_srgb_and_no_other_metadata(tmp_path: Path, kind: str, bits: int) -> None:
    with Image.open(written(tmp_path, kind, bits)) as image:
        image.load()
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        structure = set(range(254, 300)) | {317, 700, 34675}
        assert set(image.getexif()) - (structure if kind == "tiff" else set()) == set()
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    colours = [(255, 0, 0), (1, 128, 254)]
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    for colour in colours:
        seen = transform.apply(Image.new("RGB", (1, 1), colour)).getpixel((0, 0))
        assert np.abs(np.subtract(seen, colour)).max() <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_the_settings_come_back(tmp_path: Path, kind: str, bits: int) -> None:
    assert read_settings(written(tmp_path, kind, bits)) == SETTINGS


@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_the_same_picture_is_the_same_file(tmp_path: Path, kind: str, bits: int) -> None:
    first = written(tmp_path, kind, bits).read_bytes()
    assert written(tmp_path, kind, bits).read_bytes() == first


# The content's metadata.

DESCRIPTION, MAKE, ARTIST = ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Artist
CAMERA, PLACE = ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo
LATITUDE = (IFDRational(48, 1), IFDRational(12, 1), IFDRational(305, 10))
KEPT_CAMERA = {
    ExifTags.Base.DateTimeOriginal: "2024:05:01 12:00:00",
    ExifTags.Base.ExposureTime: IFDRational(1, 250),
    ExifTags.Base.LensModel: "50mm",
    ExifTags.Base.ISOSpeedRatings: 200,
}


def photo(path: Path, *, kind: str = "JPEG", endian: str = "<") -> Path:
    """A photograph that lies on its side, with all that cameras write."""
    exif = Image.Exif()
    exif.endian = endian
    exif[DESCRIPTION], exif[MAKE], exif[ARTIST] = "At the lake", "Camera & Co", "Jos\N{LATIN SMALL LETTER E WITH ACUTE}"
    exif[ARTIST] = exif[ARTIST].encode("utf-8")
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Software] = "firmware 1"
    exif[CAMERA] = KEPT_CAMERA | {
        ExifTags.Base.MakerNote: b"secret of the maker" * 10,
        ExifTags.Base.ExifImageWidth: 4000,
        ExifTags.Base.ExifImageHeight: 3000,
        ExifTags.Base.ColorSpace: 65535,
    }
    exif[PLACE] = {1: "N", 2: LATITUDE}
    options = {"xmp": b"<x:xmpmeta>of the content</x:xmpmeta>"} if kind in ("JPEG", "WEBP", "AVIF") else {}
    Image.new("RGB", (64, 48), (90, 120, 60)).save(path, kind, exif=exif.tobytes(), **options)
    return path


def metadata(path: Path) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    with Image.open(path) as image:
        image.load()
        exif = image.getexif()
        structure = {*range(256, 270), *range(273, 298), 317, 700, 34665, 34853, 34675} - {274, 305, 306, 315}
        own = {tag: value for tag, value in exif.items() if tag not in structure}
        return own, dict(exif.get_ifd(CAMERA)), dict(exif.get_ifd(PLACE))


@pytest.mark.parametrize("location", [False, True], ids=["without the place", "with the place"])
@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_the_metadata_of_the_content_is_kept(tmp_path: Path, kind: str, bits: int, location: bool) -> None:
    exif = content_exif(photo(tmp_path / "photo.jpg"), location=location, rows=ROWS, columns=COLUMNS)
    assert exif is not None
    path = written(tmp_path, kind, bits, exif=exif)
    own, camera, place = metadata(path)
    # Pillow reads text as Latin-1; the bytes are those of the content.
    assert own == {DESCRIPTION: "At the lake", MAKE: "Camera & Co", ARTIST: "José".encode().decode("latin-1")}
    size = {ExifTags.Base.ExifImageWidth: COLUMNS, ExifTags.Base.ExifImageHeight: ROWS, ExifTags.Base.ColorSpace: 1}
    assert camera == KEPT_CAMERA | size
    assert place == ({1: "N", 2: LATITUDE} if location else {})
    assert read_settings(path) == SETTINGS
    with Image.open(path) as image:
        assert image.size == (COLUMNS, ROWS)
    whole = path.read_bytes()
    assert b"secret" not in whole
    assert b"of the content" not in whole


@pytest.mark.parametrize("endian", ["<", ">"], ids=["little endian", "big endian"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_every_kind_of_content_has_its_metadata_kept(tmp_path: Path, kind: str, endian: str) -> None:
    path = photo(tmp_path / "photo", kind=kind, endian=endian)
    exif = content_exif(path, location=True, rows=ROWS, columns=COLUMNS)
    assert exif is not None
    for result in ("tiff", "webp"):
        own, camera, place = metadata(written(tmp_path, result, 8, exif=exif))
        assert set(own) == {DESCRIPTION, MAKE, ARTIST}
        assert camera.items() >= KEPT_CAMERA.items()
        assert place[2] == LATITUDE


def test_a_content_without_metadata_leaves_none(tmp_path: Path) -> None:
    encode_png(picture_of(8), tmp_path / "plain.png")
    assert content_exif(tmp_path / "plain.png", location=True, rows=ROWS, columns=COLUMNS) is None


def with_block(path: Path, block: bytes) -> Path:
    Image.new("RGB", (32, 32)).save(path, "JPEG", exif=b"Exif\0\0" + block)
    return path


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHLL", tag, kind, count, value)


DAMAGED = {
    "no header": b"something else",
    "only a header": b"II*\0",
    "no directory": b"II*\0\x08\0\0\0",
    "a directory cut off": b"II*\0\x08\0\0\0\x05\0" + entry(DESCRIPTION, 2, 4, 0),
    "a value behind the end": b"II*\0\x08\0\0\0\x01\0" + entry(DESCRIPTION, 2, 40, 5000) + bytes(4),
    "a huge value": b"II*\0\x08\0\0\0\x01\0" + entry(DESCRIPTION, 2, 2**32 - 1, 8) + bytes(4),
    "a pointer without a value": b"II*\0\x08\0\0\0\x01\0" + entry(CAMERA, 4, 0, 0) + bytes(4),
    "a directory of another": b"II*\0\x08\0\0\0\x01\0" + entry(CAMERA, 4, 1, 9999) + bytes(4),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of the same damage
@pytest.mark.parametrize("block", DAMAGED.values(), ids=DAMAGED)
def test_damaged_metadata_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, block: bytes
) -> None:
    path = with_block(tmp_path / "photo.jpg", block)
    with caplog.at_level(logging.WARNING):
        assert content_exif(path, location=True, rows=ROWS, columns=COLUMNS) is None
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{path} has EXIF data that cannot be kept (")
    assert said.endswith("); the result is without.")


def test_metadata_that_has_no_room_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[DESCRIPTION], exif[ARTIST] = "x" * 40_000, "y" * 24_000
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg", exif=exif)
    assert content_exif(tmp_path / "photo.jpg", location=False, rows=ROWS, columns=COLUMNS) is None
    assert "it has more than 60,000 bytes" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of the same damage
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.binary(max_size=200), cut=st.integers(0, 600))
def test_no_metadata_whatever_fails(tmp_path: Path, block: bytes, cut: int) -> None:
    with Image.open(photo(tmp_path / "whole.jpg")) as image:
        whole = image.info["exif"][6:]
    for damaged in (b"II*\0\x08\0\0\0" + block, whole[:cut] + block + whole[cut + len(block) :]):
        exif = content_exif(with_block(tmp_path / "photo.jpg", damaged), location=True, rows=ROWS, columns=COLUMNS)
        if exif is not None:
            written(tmp_path, "tiff", 8, exif=exif)


# What goes wrong.


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.jpg"
    path.write_bytes(b"an earlier one")
    wrong = np.zeros((ROWS, COLUMNS, 5), np.uint8)
    with pytest.raises(TypeError):
        encode(wrong, path, config=config_of("jpeg", 8), settings=SETTINGS)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"result.jpg": b"an earlier one"}


@pytest.mark.parametrize(("kind", "bits"), ALL)
def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path, kind: str, bits: int) -> None:
    path = tmp_path / "none" / "result"
    with pytest.raises(ImageError) as caught:
        encode(picture_of(bits), path, config=config_of(kind, bits), settings=SETTINGS)
    assert str(caught.value) == (
        f"{path} cannot be written (No such file or directory); check that its folder exists, may be written to and "
        "has space."
    )


def test_a_pillow_without_avif_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(ImageError) as caught:
        encode(picture_of(8), tmp_path / "result.avif", config=config_of("avif", 8), settings=SETTINGS)
    assert str(caught.value) == (
        "format = avif: the Pillow of this machine cannot write it; install one that can, or set format=png or tiff."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "refused"),
    [
        ("webp", 16_383, 100, False),
        ("webp", 16_384, 100, True),
        ("jpeg", 100, 65_501, True),
        ("avif", 100, 65_537, True),
        ("png", 20_000, 100_000, False),
        ("tiff", 20_000, 100_000, False),
    ],
)
def test_a_size_that_the_format_does_not_know_is_refused(kind: str, rows: int, columns: int, refused: bool) -> None:
    if not refused:
        require_format(config_of(kind, 8), rows=rows, columns=columns)
        return
    with pytest.raises(ImageError, match=rf"^format = {kind}: a side may have [\d,]+ pixels, and the result would "):
        require_format(config_of(kind, 8), rows=rows, columns=columns)


def test_a_picture_of_webp_s_greatest_size_is_written(tmp_path: Path) -> None:
    picture = np.zeros((16, 16_383, 3), np.uint8)
    encode(picture, tmp_path / "wide.webp", config=config_of("webp", 8), settings=SETTINGS)
    assert decode(tmp_path / "wide.webp").shape == picture.shape


def plain(path: Path) -> None:
    encode_png(picture_of(8), path)


def saved_again(path: Path) -> None:
    encode(picture_of(8), path, config=config_of("png", 8), settings=SETTINGS)
    with Image.open(path) as image:
        image.convert("RGB").save(path, "JPEG")


def other_xmp(path: Path) -> None:
    Image.new("RGB", (32, 32)).save(path, "JPEG", xmp=b"<x:xmpmeta>\xff</x:xmpmeta>")


def a_list(path: Path) -> None:
    Image.new("RGB", (32, 32)).save(path, "JPEG", xmp=b"<nst:settings>[1]</nst:settings>")


def a_letter(path: Path) -> None:
    path.write_text("Dear Sir")


@pytest.mark.parametrize("make", [plain, saved_again, other_xmp, a_list, a_letter], ids=lambda make: make.__name__)
def test_a_file_without_settings_is_one_sentence(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "picture"
    make(path)
    with pytest.raises(ImageError) as caught:
        read_settings(path)
    assert str(caught.value) == (
        f"{path} holds no settings of nst; give a picture as nst wrote it, or the id or the name of a job: another "
        "program may have saved it without them."
    )
