"""EXIF data entry by entry, each value as the very bytes that it was: what of a content's is kept in its result, and
the directories of tags that EXIF blocks and TIFF files are made of (TIFF 6.0; EXIF 2.32, section 4.6)."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final, Literal

from PIL import Image

from nst_engine.images import FORMATS

ByteOrder = Literal["<", ">"]

BYTE, SHORT, LONG, RATIONAL, UNDEFINED = 1, 3, 4, 5, 7
PREFIX: Final = b"Exif\0\0"
_ORDERS: Final[Mapping[bytes, ByteOrder]] = {b"II*\0": "<", b"MM\0*": ">"}
_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Of one value, by its type."""
_MOST_BYTES: Final = 60_000
"""JPEG has room for 65,533 bytes of it."""

_CAMERA_POINTER: Final = 0x8769
_PLACE_POINTER: Final = 0x8825
_KEPT_OF_PICTURE: Final = frozenset(
    {
        0x010E,  # ImageDescription
        *(0x010F, 0x0110, 0x013C),  # Make, Model, HostComputer
        0x0132,  # DateTime
        *(0x013B, 0x8298),  # Artist, Copyright
        *(0x4746, 0x4749),  # Rating
        *range(0x9C9B, 0x9CA0),  # the title, comment, author, keywords and subject of Windows
    }
)
"""All other tags tell how the content's file is made: its orientation, size, compression, thumbnail and XMP."""
_COLOR_SPACE, _COLUMNS, _ROWS = 0xA001, 0xA002, 0xA003
_NOT_KEPT_OF_CAMERA: Final = frozenset(
    {
        0x927C,  # MakerNote: its offsets hold only where it was
        *(0x9101, 0x9102),  # how the file is compressed
        *(0xA004, 0xA005),  # a sound file, interoperability
        *(0x9214, 0xA214),  # SubjectArea, SubjectLocation: in the content's pixels
        *(0xA20E, 0xA20F, 0xA210),  # the resolution of the focal plane, likewise
    }
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One tag's type, how many values it has, and their bytes in the order of its block or file."""

    kind: int
    count: int
    data: bytes


Directory = Mapping[int, Entry]


@dataclass(frozen=True)
class Exif:
    """What is known of a picture, of how its camera took it, and of the place, by tag."""

    order: ByteOrder = "<"
    picture: Directory = field(default_factory=dict)
    camera: Directory = field(default_factory=dict)
    place: Directory = field(default_factory=dict)

    def block(self) -> bytes:
        """The EXIF block of a JPEG, PNG, WebP or AVIF file."""
        return PREFIX + header(self.order, first=8) + self.directories(at=8)

    def directories(self, *, at: int) -> bytes:
        """The directories as they lie in a file from the even offset `at` on, the picture's first."""
        first, further = dict(self.picture), b""
        parts = {tag: part for tag, part in ((_CAMERA_POINTER, self.camera), (_PLACE_POINTER, self.place)) if part}
        for tag in parts:
            first[tag] = numbers(self.order, LONG, 0)
        end = at + len(_directory_bytes(first, order=self.order, at=at))
        for tag, part in parts.items():
            first[tag] = numbers(self.order, LONG, end + len(further))
            further += _directory_bytes(part, order=self.order, at=end + len(further))
        return _directory_bytes(first, order=self.order, at=at) + further


def header(order: ByteOrder, *, first: int) -> bytes:
    """The first eight bytes of a TIFF file or an EXIF block, whose first directory lies at the offset `first`."""
    mark = next(mark for mark, known in _ORDERS.items() if known == order)
    return mark + struct.pack(f"{order}L", first)


def numbers(order: ByteOrder, kind: int, *values: int) -> Entry:
    """An entry of whole numbers, SHORT or LONG; raises struct.error for one that is too large."""
    return Entry(kind, len(values), struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'L'}", *values))


def content_exif(path: Path, *, location: bool, rows: int, columns: int) -> Exif | None:
    """What a result of that size keeps of the EXIF data in its content's file; None where there is none.

    It is that of an upright sRGB picture, without the camera maker's notes, a thumbnail, or, unless `location` is
    wanted, the place. Data that is damaged or too much is left out, which is logged.
    """
    try:
        found = _read(path)
        if found is None:
            return None
        return _of_result(found, location=location, rows=rows, columns=columns)
    except (OSError, EOFError, SyntaxError, ValueError, struct.error) as error:
        logger.warning("%s has EXIF data that cannot be kept (%s); the result is without.", path, error)
        return None


def _of_result(exif: Exif, *, location: bool, rows: int, columns: int) -> Exif:
    """What is kept of it; ValueError where that is too much."""
    size = {
        _COLOR_SPACE: numbers(exif.order, SHORT, 1),
        _COLUMNS: numbers(exif.order, LONG, columns),
        _ROWS: numbers(exif.order, LONG, rows),
    }
    kept = replace(exif, camera={**exif.camera, **size}, place=exif.place if location else {})
    if len(kept.block()) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return kept


def _read(path: Path) -> Exif | None:
    """What may be kept of a picture file's EXIF data; None where it has none."""
    with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        if image.format == "TIFF":
            return _parse(file)
        if image.format == "PNG":
            # It may lie behind the pixels.
            image.load()
        block = image.info.get("exif")
        return _parse(io.BytesIO(block.removeprefix(PREFIX))) if block else None


def _parse(file: BinaryIO) -> Exif | None:
    """The same of a TIFF file or the inside of an EXIF block; raises ValueError or struct.error."""
    file.seek(0)
    order = _ORDERS.get(file.read(4))
    if order is None:
        raise ValueError("it does not begin as such data does")
    (first,) = struct.unpack(f"{order}L", file.read(4))
    pointers = {_CAMERA_POINTER, _PLACE_POINTER}
    first_tags = _directory(file, order, first, wanted=lambda tag: tag in _KEPT_OF_PICTURE or tag in pointers)
    offsets = {tag: struct.unpack(f"{order}L", first_tags.pop(tag).data)[0] for tag in pointers & first_tags.keys()}
    camera, place = dict[int, Entry](), dict[int, Entry]()
    if _CAMERA_POINTER in offsets:
        camera = _directory(file, order, offsets[_CAMERA_POINTER], wanted=lambda tag: tag not in _NOT_KEPT_OF_CAMERA)
    if _PLACE_POINTER in offsets:
        place = _directory(file, order, offsets[_PLACE_POINTER], wanted=lambda _: True)
    return Exif(order, first_tags, camera, place) if first_tags or camera or place else None


def _directory(file: BinaryIO, order: ByteOrder, at: int, *, wanted: Callable[[int], bool]) -> dict[int, Entry]:
    file.seek(at)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    table = file.read(12 * count)
    if len(table) < 12 * count:
        raise ValueError("a list of its tags is cut off")
    found = {}
    for tag, kind, length, value in struct.iter_unpack(f"{order}HHL4s", table):
        if kind not in _BYTES or not wanted(tag):
            continue
        size = length * _BYTES[kind]
        if size > _MOST_BYTES:
            raise ValueError(f"its tag {tag} has {size:,} bytes")
        if size > len(value):
            file.seek(struct.unpack(f"{order}L", value)[0])
            value = file.read(size)
        if len(value) < size:
            raise ValueError(f"its tag {tag} is cut off")
        found[tag] = Entry(kind, length, value[:size])
    return found


def _directory_bytes(entries: Directory, *, order: ByteOrder, at: int) -> bytes:
    """A directory at the offset `at`, and behind it the values that it has no room for."""
    table, values = b"", b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, entry in sorted(entries.items()):
        value = entry.data.ljust(4, b"\0")
        if len(value) > 4:
            value = struct.pack(f"{order}L", behind + len(values))
            # Offsets are even.
            values += entry.data + b"\0" * (len(entry.data) % 2)
        table += struct.pack(f"{order}HHL4s", tag, entry.kind, entry.count, value)
    return struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + values
