"""A contact sheet: many results in one picture, contents down and styles across (or whatever else two jobs differ in),
and what became of each pair where they meet. It is meant to be looked at and printed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from flows.lettering import LINE, Font, cut, font, one_line, wrapped
from nst_engine.errors import ImageError
from nst_engine.images import decode
from storage.disk import part_of, sync
from storage.errors import WorkspaceError

MAX_ROWS: Final = 60
MAX_COLUMNS: Final = 12
THUMBNAIL: Final = 160
"""The longer side of a picture, in pixels."""
_FRAME: Final = 10
_GAP: Final = 6
_MARGIN: Final = 40
_NAMES: Final = 190
_HEADER: Final = 34
_HEADER_LINES: Final = 3
_TITLE: Final = 56
_DPI: Final = 150
_QUALITY: Final = 92
_PAPER: Final = (255, 255, 255)
_GREY: Final = (238, 238, 238)
_INK: Final = (34, 34, 34)
_FAINT: Final = (120, 120, 120)
_ALARM: Final = (150, 40, 30)


@dataclass(frozen=True)
class Cell:
    """What became of one pair: its picture, or else a note such as "failed: the picture is damaged".

    The lines of `caption` stand under the picture.
    """

    content: str
    style: str
    picture: Path | None
    note: str
    caption: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Look:
    """The fonts of a sheet, the side of its pictures and the lines that it has for a caption."""

    title: Font
    name: Font
    note: Font
    thumbnail: int
    lines: int

    @property
    def side(self) -> int:
        """Of the square that a picture stands in."""
        return self.thumbnail + 2 * _FRAME

    @property
    def across(self) -> int:
        """From one column to the next."""
        return self.side + _GAP

    @property
    def down(self) -> int:
        """From one row to the next."""
        return self.across + LINE * self.lines + (_GAP if self.lines else 0)


def draw_contact_sheet(
    cells: Iterable[Cell],
    *,
    title: str,
    path: Path,
    thumbnail: int = THUMBNAIL,
    axes: tuple[str, str] = ("contents", "styles"),
) -> None:
    """Draw the cells, contents and styles in the order in which they first come, and write the picture to `path`.

    At most MAX_ROWS contents and MAX_COLUMNS styles are shown, and the sheet says what is left out, calling them as in
    `axes`. A picture that cannot be read is said in its place. Raises WorkspaceError where the disk refuses.
    """
    title = one_line(title)
    by_place = {(cell.content, cell.style): cell for cell in cells}
    contents = list(dict.fromkeys(content for content, _ in by_place))
    styles = list(dict.fromkeys(style for _, style in by_place))
    rows, columns = contents[:MAX_ROWS], styles[:MAX_COLUMNS]
    look = _Look(
        font("bold", 26),
        font("plain", 14),
        font("plain", 13),
        thumbnail,
        max((len(cell.caption) for cell in by_place.values()), default=0),
    )
    heads = [wrapped(style, look.name, width=look.across - 12, most=_HEADER_LINES) for style in columns]
    remark = _remark({axes[0]: (len(contents), MAX_ROWS), axes[1]: (len(styles), MAX_COLUMNS)})
    top = _MARGIN + _TITLE + _HEADER + LINE * (max([1, *map(len, heads)]) - 1)
    least = _MARGIN * 2 + max(ceil(look.title.getlength(title)), ceil(look.name.getlength(remark)))
    width = max(_MARGIN * 2 + _NAMES + look.across * len(columns), min(least, _MARGIN * 2 + _NAMES + look.across * 6))
    height = top + look.down * len(rows) + _MARGIN + (LINE * 2 if remark else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), cut(title, look.title, width - 2 * _MARGIN), font=look.title, fill=_INK)
    for column, lines in enumerate(heads):
        center = _MARGIN + _NAMES + look.across * column + look.across // 2
        for above, line in enumerate(reversed(lines)):
            draw.text((center, top - _FRAME - LINE * above), line, font=look.name, fill=_INK, anchor="ms")
    for row, content in enumerate(rows):
        y = top + look.down * row
        name = wrapped(content, look.name, width=_NAMES - 16, most=look.side // LINE)
        _draw_name(draw, "\n".join(name), (_MARGIN + _NAMES - 14, y + look.across // 2), look)
        for column, style in enumerate(columns):
            corner = (_MARGIN + _NAMES + look.across * column + _GAP // 2, y + _GAP // 2)
            _draw_cell(sheet, draw, by_place.get((content, style)), corner, look)
    if remark:
        draw.text((_MARGIN, height - _MARGIN), remark, font=look.name, fill=_FAINT, anchor="ls")
    write_sheet(sheet, path)


def _draw_name(draw: ImageDraw.ImageDraw, name: str, place: tuple[int, int], look: _Look) -> None:
    draw.multiline_text(place, name, font=look.name, fill=_INK, anchor="rm", align="right")


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell | None, corner: tuple[int, int], look: _Look
) -> None:
    x, y = corner
    side = look.side
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_GREY)
    if cell is None:
        # This pair was not asked for.
        draw.text((x + side // 2, y + side // 2), "–", font=look.name, fill=_FAINT, anchor="mm")
        return
    for line, text in enumerate(cell.caption):
        place = (x + side // 2, y + side + _GAP + LINE * line)
        draw.text(place, cut(text, look.note, side), font=look.note, fill=_FAINT, anchor="ma")
    note = cell.note
    if cell.picture is not None:
        try:
            # The result may be as large as the service's settings allow.
            small = Image.fromarray(decode(cell.picture, max_pixels=sys.maxsize))
        except ImageError:
            note = f"{cell.picture.name} cannot be read"
        else:
            small.thumbnail((look.thumbnail, look.thumbnail), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
            return
    lines = wrapped(note, look.note, width=look.thumbnail, most=look.thumbnail // LINE)
    draw.multiline_text(
        (x + side // 2, y + side // 2),
        "\n".join(lines),
        font=look.note,
        fill=_ALARM if note.startswith("failed") else _FAINT,
        anchor="mm",
        align="center",
    )


def _remark(axes: dict[str, tuple[int, int]]) -> str:
    """What is left out, as a sentence; empty when nothing is. `axes` has the number and the most that is shown."""
    shown = [f"{most} of {count} {what}" for what, (count, most) in axes.items() if count > most]
    return f"Shown are the first {' and the first '.join(shown)}; the others are in the same folder." if shown else ""


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet whole, as PNG or JPEG by the suffix of `path`; WorkspaceError where the disk refuses."""
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix.lower() == ".png":
                sheet.save(part, "PNG", dpi=(_DPI, _DPI))
            else:
                sheet.save(part, "JPEG", quality=_QUALITY, subsampling=0, dpi=(_DPI, _DPI))
            sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise WorkspaceError(
            f"The picture {path} cannot be written ({error.strerror or error}); check that folder."
        ) from error
