"""Files made to break decoders: pieces of real pictures of every format, with bits turned over, bombs and lies. Each
is a picture or is refused in a sentence that begins with its name, by one process that outlives them all."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.decoding import GuardedDecoder
from nst_engine.errors import ImageError
from nst_engine.samples import content_sample

FORMATS = {
    "JPEG": ("jpeg", {"quality": 90}),
    "progressive JPEG": ("jpeg", {"quality": 90, "progressive": True}),
    "PNG": ("png", {}),
    "interlaced palette PNG": ("png", {}),
    "WebP": ("webp", {"quality": 80}),
    "lossless WebP": ("webp", {"lossless": True}),
    "TIFF": ("tiff", {}),
    "TIFF, LZW": ("tiff", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("tiff", {"compression": "tiff_adobe_deflate"}),
    "TIFF, JPEG": ("tiff", {"compression": "jpeg"}),
    "BMP": ("bmp", {}),
    "animated GIF": ("gif", {"save_all": True}),
    "AVIF": ("avif", {"quality": 60}),
    "animated PNG": ("png", {"save_all": True}),
    "animated WebP": ("webp", {"save_all": True}),
}
FLIPPED = 60
"""Files of each format with one to eight bits turned over."""
MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def decoder() -> Iterator[GuardedDecoder]:
    with GuardedDecoder(max_pixels=MAX_PIXELS) as decoder:
        yield decoder


def encoded(name: str) -> bytes:
    kind, options = FORMATS[name]
    image = Image.fromarray(content_sample(48, 64))
    if "palette" in name:
        image = image.convert("P")
    if "animated" in name:
        options = {**options, "append_images": [image.rotate(90), image.rotate(180)]}
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def tried(decoder: GuardedDecoder, path: Path, files: list[bytes]) -> Counter[str]:
    """Check each of these files; returns how many were pictures and how many were refused."""
    found, sentences = Counter[str](), list[str]()
    for data in files:
        path.write_bytes(data)
        try:
            checked = decoder.check(path)
        except ImageError as error:
            sentences.append(str(error))
        else:
            assert checked.rows * checked.columns <= MAX_PIXELS
            found["pictures"] += 1
    for sentence in sentences:
        assert sentence.startswith(f"{path} ")
        assert sentence.endswith(".")
        assert "\n" not in sentence
        # No decoder of today dies of any of these.
        assert "ended its decoder" not in sentence
    return found + Counter(refused=len(sentences))


@pytest.mark.parametrize("name", FORMATS)
def test_pieces_and_flipped_bits(decoder: GuardedDecoder, tmp_path: Path, name: str) -> None:
    data = encoded(name)
    draw = random.Random(name)
    whole = tried(decoder, tmp_path / "whole", [data])
    pieces = tried(decoder, tmp_path / "piece", [data[: len(data) * tenth // 10] for tenth in range(10)])
    bits = tried(decoder, tmp_path / "flipped", [flipped(data, draw) for _ in range(FLIPPED)])
    assert whole == {"pictures": 1}
    assert pieces["refused"] + pieces["pictures"] == 10
    # What is left out of a picture at its very end may be what no pixel needs, as all frames but the first.
    assert pieces["refused"] >= (3 if "animated" in name else 8)
    assert tried(decoder, tmp_path / "whole.exe", [data]) == {"pictures": 1}
    assert bits.total() == FLIPPED


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, columns: int = 64, rows: int = 48) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


def zeros(megabytes: int) -> bytes:
    """So many, deflated: a thousandth of it."""
    pack = zlib.compressobj(9)
    return b"".join([pack.compress(bytes(1 << 20)) for _ in range(megabytes)]) + pack.flush()


PIXELS = chunk(b"IDAT", zlib.compress(bytes((64 * 3 + 1) * 48))) + chunk(b"IEND", b"")
BOMB = zeros(512)


def tiff(columns: int, rows: int, *, strips: int = 1) -> bytes:
    entries = [
        (256, 4, 1, columns),
        (257, 4, 1, rows),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, strips, 8),
        (277, 3, 1, 1),
        (278, 4, 1, rows),
        (279, 4, strips, 0xFFFFFFF0),
    ]
    return (
        b"II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + bytes(4)
    )


def exif_jpeg(exif: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(content_sample(48, 64)).save(file, "jpeg", exif=b"Exif\0\0" + exif)
    return file.getvalue()


def deflated_tiff(data: bytes, *, following: int = 0) -> bytes:
    """One strip of 64 x 48 grey pixels, which unpacks to whatever it does; `following` is the next directory."""
    entries = [
        (256, 4, 1, 64),
        (257, 4, 1, 48),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, 48),
        (279, 4, 1, len(data)),
    ]
    strip = data + b"\0" * (len(data) % 2)
    at = 8 + len(strip)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", at) + strip + directory + struct.pack("<I", at if following else 0)


def directory(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF of one directory and no pixels, as EXIF data are."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4)


def segment(marker: int, data: bytes) -> bytes:
    """One of a JPEG, put right after its beginning."""
    return WHOLE_JPEG[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + WHOLE_JPEG[2:]


def sized_jpeg(size: bytes) -> bytes:
    """One that says that it has so many rows, and columns."""
    at = WHOLE_JPEG.index(b"\xff\xc0") + 5
    return WHOLE_JPEG[:at] + size + WHOLE_JPEG[at + len(size) :]


def huge_avif() -> bytes:
    """One that says in its boxes that it has 4 thousand million pixels."""
    data = bytearray(encoded("AVIF"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 65535, 65535)
    return bytes(data)


def many_frames() -> bytes:
    file = io.BytesIO()
    frame = Image.new("P", (64, 48))
    frames = [Image.fromarray(np.full((48, 64), number % 256, np.uint8)) for number in range(3000)]
    frame.save(file, "gif", save_all=True, append_images=frames)
    return file.getvalue()


WHOLE_JPEG = encoded("JPEG")
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + b"\0\0\x10\0mdat" + bytes(4096)
FIRST_FRAME = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 1, 0, 0))

HOSTILE = {
    "a JPEG with a film behind it": (WHOLE_JPEG + MP4, "pictures"),
    "a JPEG with another behind it": (WHOLE_JPEG * 2, "pictures"),
    "a JPEG of 65535 x 65535": (sized_jpeg(b"\xff\xff\xff\xff"), "refused"),
    "a JPEG of no rows": (sized_jpeg(b"\0\0"), "refused"),
    "a JPEG of several pictures that are not there": (
        segment(0xE2, b"MPF\0" + directory((0xB000, 7, 4, 0x30303130), (0xB001, 4, 1, 0xFFFFFFFF), (0xB002, 7, 32, 8))),
        None,
    ),
    "a JPEG with one of 255 parts of a colour profile": (
        segment(0xE2, b"ICC_PROFILE\0\1\xff" + b"x" * 99),
        None,
    ),
    "a JPEG whose Photoshop data have no end": (segment(0xED, b"Photoshop 3.0\08BIM\4\4\0\0\xff\xff\xff\xff"), None),
    "a JPEG of 20,000 comments": (WHOLE_JPEG[:2] + b"\xff\xfe\0\4hi" * 20_000 + WHOLE_JPEG[2:], "pictures"),
    "EXIF data of 65535 entries": (exif_jpeg(b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(60_000)), "pictures"),
    "EXIF data of 4 thousand million values": (exif_jpeg(directory((274, 12, 0xFFFFFFFF, 26))), "pictures"),
    "EXIF data that say how to turn it with a text": (exif_jpeg(directory((274, 2, 4, 0x00363636))), "pictures"),
    "EXIF data in EXIF data without end": (exif_jpeg(directory((34665, 4, 1, 8))), "pictures"),
    "EXIF data of 512 MB in a PNG": (png(chunk(b"eXIf", directory((274, 3, 0x10000000, 8))), PIXELS), None),
    "a PNG whose international text unpacks to 512 MB": (png(chunk(b"iTXt", b"bomb\0\1\0\0\0" + BOMB), PIXELS), None),
    "an animated PNG of 4 thousand million frames": (
        png(chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0)), FIRST_FRAME, PIXELS),
        None,
    ),
    "an animated PNG of no frames": (png(chunk(b"acTL", struct.pack(">II", 0, 0)), FIRST_FRAME, PIXELS), None),
    "a PNG whose palette is empty": (png(chunk(b"PLTE", b""), PIXELS), None),
    "a PNG whose pixels come in 20,000 pieces": (png(chunk(b"IDAT", b"") * 20_000, PIXELS), None),
    "a TIFF whose strip unpacks to 512 MB": (deflated_tiff(BOMB), None),
    "a TIFF whose next directory is the same": (deflated_tiff(zlib.compress(bytes(64 * 48)), following=1), "pictures"),
    "a TIFF of 65535 samples a pixel": (directory((256, 4, 1, 64), (257, 4, 1, 48), (277, 3, 1, 65535)), "refused"),
    "an AVIF of 65535 x 65535": (huge_avif(), "refused"),
    "a HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "refused"),
    "a film": (MP4, "refused"),
    "a ZIP": (b"PK\3\4" + bytes(500), "refused"),
    "a web page": (b"<!doctype html><img src=http://127.0.0.1/>", "refused"),
    "an icon": (b"\0\0\1\0\1\0\x10\x10" + bytes(500), "refused"),
    "a PCX": (b"\x0a\5\1\x08" + bytes(500), "refused"),
    "a Windows metafile": (b"\xd7\xcd\xc6\x9a" + bytes(500), "refused"),
    "a program": (b"\x7fELF\2\1\1" + bytes(500), "refused"),
    "a PNG that says it has 4 thousand million pixels": (png(PIXELS, columns=65535, rows=65535), "refused"),
    "a PNG of negative size": (png(PIXELS, columns=0xFFFFFFFF, rows=48), "refused"),
    "a PNG of no pixels": (png(PIXELS, columns=0, rows=0), "refused"),
    "a PNG whose pixels unpack to 512 MB": (png(chunk(b"IDAT", BOMB), chunk(b"IEND", b"")), "pictures"),
    "a PNG whose colour profile unpacks to 512 MB": (png(chunk(b"iCCP", b"bomb\0\0" + BOMB), PIXELS), None),
    "a PNG whose text unpacks to 512 MB": (png(chunk(b"zTXt", b"bomb\0\0" + BOMB), PIXELS), None),
    "a PNG whose text after its pixels unpacks to 512 MB": (
        png(PIXELS[:-12], chunk(b"zTXt", b"bomb\0\0" + BOMB), PIXELS[-12:]),
        None,
    ),
    "a PNG with 100,000 chunks": (png(chunk(b"tEXt", b"a\0b") * 100_000, PIXELS), None),
    "a chunk of 2 GB": (png(struct.pack(">I", 0x7FFFFFFF) + b"iCCP" + b"x" * 100, PIXELS), "refused"),
    "a GIF of 65535 x 65535": (b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(100), "refused"),
    "a GIF of 3000 frames": (many_frames(), "pictures"),
    "a TIFF of 4 thousand million pixels": (tiff(65535, 65535), "refused"),
    "a TIFF with strips beyond its end": (tiff(64, 48), "refused"),
    "a TIFF with 4 thousand million strips": (tiff(64, 48, strips=0xFFFFFFFF), "refused"),
    "a TIFF whose directory is itself": (b"II*\0" + struct.pack("<I", 0), "refused"),
    "a BMP of negative height": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 64, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
        "refused",
    ),
    "a WebP of 16383 x 16383": (
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0",
        "refused",
    ),
    "EXIF data of nonsense": (exif_jpeg(b"\xff" * 60_000), "pictures"),
    "EXIF data whose directory is itself": (exif_jpeg(b"II*\0" + struct.pack("<I", 8) + bytes(2)), "pictures"),
    "an SVG named so": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "refused"),
    "a PDF": (b"%PDF-1.7\n%%EOF", "refused"),
    "a shell script": (b"#!/bin/sh\nrm -rf ~\n", "refused"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n", "refused"),
    "one byte": (b"\xff", "refused"),
    "zeros": (bytes(1 << 20), "refused"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(decoder: GuardedDecoder, tmp_path: Path, name: str) -> None:
    data, expected = HOSTILE[name]
    found = tried(decoder, tmp_path / "lake_content.png", [data])
    # Where either will do, what counts is that it ends.
    assert found == {expected: 1} if expected else found.total() == 1


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("YCbCr", "tiff", "pictures"),
        ("YCbCr", "jpeg", "pictures"),
        ("I;16B", "tiff", "pictures"),
        ("CMYK", "jpeg", "pictures"),
        ("CMYK", "tiff", "pictures"),
        ("LAB", "tiff", "pictures"),
        ("I;16", "png", "pictures"),
        ("I;16", "tiff", "pictures"),
        ("F", "tiff", "refused"),
        ("I", "tiff", "refused"),
        ("1", "png", "pictures"),
        ("LA", "png", "pictures"),
        ("RGBA", "webp", "pictures"),
        ("P", "gif", "pictures"),
    ],
)
def test_kinds_of_pixels(decoder: GuardedDecoder, tmp_path: Path, mode: str, kind: str, expected: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (64, 48)).save(file, kind)
    assert tried(decoder, tmp_path / "lake_content.png", [file.getvalue()]) == {expected: 1}
