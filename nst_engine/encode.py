"""From a finished picture to its file: PNG, JPEG, WebP, AVIF or TIFF with 8 or 16 bits a channel, the profile of sRGB,
what is kept of the content's metadata, and the settings that the picture was made with, which can be read again."""

from __future__ import annotations

import contextlib
import html
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image, PngImagePlugin

from nst_engine import exif as tags
from nst_engine.arrays import release
from nst_engine.config import OutputFormat, TransferConfig
from nst_engine.errors import ImageError
from nst_engine.exif import Entry, Exif, numbers
from nst_engine.images import FORMATS, require_file, srgb_profile, writing

SUFFIXES: Final[Mapping[OutputFormat, str]] = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "avif": ".avif",
    "tiff": ".tif",
}
_OTHERS: Final = "set format=png or tiff"
_LONGEST: Final[Mapping[OutputFormat, int]] = {"jpeg": 65_500, "webp": 16_383, "avif": 65_536}
"""Pixels of a side at the most; of the other formats more than any picture here has."""
_KEYWORD: Final = "nst"
_XMP: Final = (
    '<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:nst="urn:nst"><nst:settings>{}</nst:settings></rdf:Description>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_BEGIN, _END = "<nst:settings>", "</nst:settings>"
_BLOCK_BYTES: Final = 1 << 20


def require_format(config: TransferConfig, *, rows: int, columns: int) -> None:
    """Raise ImageError unless a result of that size can be written in the config's format on this machine."""
    kind = config.format.upper()
    if kind not in Image.SAVE:
        # Pillow loads the less common ones only now.
        Image.init()
    if kind not in Image.SAVE:
        raise ImageError(
            f"format = {config.format}: the Pillow of this machine cannot write it; install one that can, or {_OTHERS}."
        )
    longest = _LONGEST.get(config.format)
    if longest is not None and max(rows, columns) > longest:
        raise ImageError(
            f"format = {config.format}: a side may have {longest:,} pixels, and the result would have {rows:,} x "
            f"{columns:,} (rows x columns); {_OTHERS}."
        )


def encode(
    picture: np.ndarray,
    path: Path,
    *,
    config: TransferConfig,
    settings: Mapping[str, Any],
    exif: Exif | None = None,
) -> None:
    """Write a picture, uint8 or uint16 RGB (rows, columns, 3), in the config's format and quality, as `images.writing`.

    It carries the profile of sRGB, `settings` as JSON for `read_settings`, and `exif`. Raises ImageError when it cannot
    be written, or not in this format.
    """
    rows, columns = picture.shape[:2]
    require_format(config, rows=rows, columns=columns)
    text = json.dumps(settings)
    with writing(path) as file, _encoding(path, config):
        if config.format == "tiff":
            _write_tiff(picture, file, exif=exif or Exif(), xmp=_xmp(text))
        elif picture.dtype == np.uint16:
            _write_wide_png(picture, file, exif=exif, text=text)
        else:
            image = Image.fromarray(picture)
            image.save(file, config.format, **_options(config, exif=exif, text=text))


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `encode` wrote into a picture; ImageError, one sentence, where there are none."""
    require_file(path)
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            settings = json.loads(_text_of(image))
    except (OSError, EOFError, SyntaxError, ValueError, struct.error) as error:
        raise _no_settings(path) from error
    if not isinstance(settings, dict):
        raise _no_settings(path)
    return settings


def _no_settings(path: Path) -> ImageError:
    return ImageError(
        f"{path} holds no settings of nst; give a picture as nst wrote it, or the id or the name of a job: another "
        "program may have saved it without them."
    )


def _text_of(image: Image.Image) -> str:
    """The JSON in an opened picture, empty where there is none."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        return str(image.info.get(_KEYWORD, ""))
    packet = image.info.get("xmp")
    if not isinstance(packet, bytes):
        return ""
    return html.unescape(packet.decode("utf-8").partition(_BEGIN)[2].partition(_END)[0])


@contextlib.contextmanager
def _encoding(path: Path, config: TransferConfig) -> Iterator[None]:
    """Encoders raise these for what they cannot do, such as a file of more than 4 GB."""
    try:
        yield
    except (ValueError, RuntimeError, struct.error) as error:
        raise ImageError(f"{path} cannot be written as {config.format} ({error}); {_OTHERS}.") from error


def _options(config: TransferConfig, *, exif: Exif | None, text: str) -> dict[str, Any]:
    """What Pillow's encoder of the config's format is told."""
    options: dict[str, Any] = {"icc_profile": srgb_profile()}
    if exif is not None:
        options["exif"] = exif.block()
    if config.format == "png":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(_KEYWORD, text)
        return options | {"pnginfo": chunks}
    options |= {"quality": config.quality, "xmp": _xmp(text)}
    # Colours at full resolution: strokes are as fine as outlines. WebP has no such choice.
    return options if config.format == "webp" else options | {"subsampling": "4:4:4"}


def _xmp(text: str) -> bytes:
    return _XMP.format(html.escape(text, quote=False)).encode()


def _write_wide_png(picture: np.ndarray, file: BinaryIO, *, exif: Exif | None, text: str) -> None:
    """A PNG of uint16 RGB, which Pillow cannot write (PNG 3rd edition, sections 5.3, 9.2 and 11)."""

    def write(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data)))

    rows, columns = picture.shape[:2]
    file.write(b"\x89PNG\r\n\x1a\n")
    write(b"IHDR", struct.pack(">LLBBBBB", columns, rows, 16, 2, 0, 0, 0))
    write(b"iCCP", b"sRGB\0\0" + zlib.compress(srgb_profile()))
    write(b"iTXt", _KEYWORD.encode() + b"\0\0\0\0\0" + text.encode())
    if exif is not None:
        write(b"eXIf", exif.block().removeprefix(tags.PREFIX))
    compressor = zlib.compressobj()
    for part in _parts(picture):
        values = part.astype(">u2").view(np.uint8).reshape(len(part), columns, 6)
        # Filter 1 of each row: every byte less that of the pixel to the left.
        lines = np.concatenate([np.ones((len(part), 1), np.uint8), _less_left(values).reshape(len(part), -1)], axis=1)
        write(b"IDAT", compressor.compress(lines.tobytes()))
    write(b"IDAT", compressor.flush())
    write(b"IEND", b"")


def _write_tiff(picture: np.ndarray, file: BinaryIO, *, exif: Exif, xmp: bytes) -> None:
    """A baseline TIFF of uint8 or uint16 RGB: strips, deflated (TIFF 6.0, sections 6 and 14). Pillow writes no 16 bits.

    Raises struct.error where it would have more than 4 GB.
    """
    rows, columns = picture.shape[:2]
    order = exif.order
    file.write(tags.header(order, first=0))
    offsets, sizes, height = list[int](), list[int](), 0
    for part in _parts(picture):
        strip = zlib.compress(_less_left(part).astype(picture.dtype.newbyteorder(order)).tobytes())
        offsets.append(file.tell())
        sizes.append(len(strip))
        height = height or len(part)
        # Directories begin at even offsets.
        file.write(strip + b"\0" * (len(strip) % 2))
    profile = srgb_profile()
    inch = Entry(tags.RATIONAL, 1, numbers(order, tags.LONG, 72, 1).data)
    structure = {
        256: numbers(order, tags.LONG, columns),
        257: numbers(order, tags.LONG, rows),
        258: numbers(order, tags.SHORT, *[8 * picture.itemsize] * 3),
        259: numbers(order, tags.SHORT, 8),  # deflated
        262: numbers(order, tags.SHORT, 2),  # RGB
        273: numbers(order, tags.LONG, *offsets),
        277: numbers(order, tags.SHORT, 3),
        278: numbers(order, tags.LONG, height),
        279: numbers(order, tags.LONG, *sizes),
        282: inch,
        283: inch,
        296: numbers(order, tags.SHORT, 2),
        317: numbers(order, tags.SHORT, 2),  # each value less that of the pixel to the left
        700: Entry(tags.BYTE, len(xmp), xmp),
        34675: Entry(tags.UNDEFINED, len(profile), profile),
    }
    end = file.tell()
    whole = Exif(order, {**exif.picture, **structure}, exif.camera, exif.place)
    file.write(whole.directories(at=end))
    file.seek(0)
    file.write(tags.header(order, first=end))


def _parts(picture: np.ndarray) -> Iterator[np.ndarray]:
    """The picture in stretches of equally many rows, the last of fewer, each let go of after its use."""
    height = max(1, _BLOCK_BYTES // (picture.shape[1] * 3 * picture.itemsize))
    for start in range(0, len(picture), height):
        yield picture[start : start + height]
        release(picture)


def _less_left(values: np.ndarray) -> np.ndarray:
    """Whole numbers (rows, columns, channels) less those of the pixel to the left, modulo their range."""
    difference = values.copy()
    difference[:, 1:] -= values[:, :-1]
    return difference
