"""The contact sheet of a collection's night: one JPEG with the contents down, the styles across, and what became of
each pair where they meet. It is meant to be looked at and printed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from nst_engine.errors import ImageError
from nst_engine.images import decode
from storage.disk import part_of, sync
from storage.errors import WorkspaceError

MAX_ROWS: Final = 60
MAX_COLUMNS: Final = 12
THUMBNAIL: Final = 160
"""The longer side of a picture, in pixels."""
_FRAME: Final = 10
_STEP: Final = THUMBNAIL + 2 * _FRAME + 6
_MARGIN: Final = 40
_NAMES: Final = 190
_HEADER: Final = 34
_TITLE: Final = 56
_LINE: Final = 17
_DPI: Final = 150
_QUALITY: Final = 92
_PAPER: Final = (255, 255, 255)
_GREY: Final = (238, 238, 238)
_INK: Final = (34, 34, 34)
_FAINT: Final = (120, 120, 120)
_ALARM: Final = (150, 40, 30)
_MISSING: Final = "…"

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Cell:
    """What became of one pair: its picture, or else a note such as "failed: the picture is damaged"."""

    content: str
    style: str
    picture: Path | None
    note: str


@dataclass(frozen=True)
class _Fonts:
    title: Font
    name: Font
    note: Font

    @classmethod
    def load(cls) -> _Fonts:
        return cls(_font("DejaVuSans-Bold.ttf", 26), _font("DejaVuSans.ttf", 14), _font("DejaVuSans.ttf", 13))


def draw_contact_sheet(cells: Iterable[Cell], *, title: str, path: Path) -> None:
    """Draw the cells, contents and styles in the order in which they first come, and write the JPEG to `path`.

    At most MAX_ROWS contents and MAX_COLUMNS styles are shown, and the sheet says what is left out. A picture that
    cannot be read is said in its place. Raises WorkspaceError where the disk refuses.
    """
    title = _one_line(title)
    by_place = {(cell.content, cell.style): cell for cell in cells}
    contents = list(dict.fromkeys(content for content, _ in by_place))
    styles = list(dict.fromkeys(style for _, style in by_place))
    rows, columns = contents[:MAX_ROWS], styles[:MAX_COLUMNS]
    fonts = _Fonts.load()
    remark = _remark(contents=len(contents), styles=len(styles))
    top = _MARGIN + _TITLE + _HEADER
    least = _MARGIN * 2 + max(ceil(fonts.title.getlength(title)), ceil(fonts.name.getlength(remark)))
    width = max(_MARGIN * 2 + _NAMES + _STEP * len(columns), min(least, _MARGIN * 2 + _NAMES + _STEP * 6))
    height = top + _STEP * len(rows) + _MARGIN + (_LINE * 2 if remark else 0)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _cut(title, fonts.title, width - 2 * _MARGIN), font=fonts.title, fill=_INK)
    for column, style in enumerate(columns):
        center = _MARGIN + _NAMES + _STEP * column + _STEP // 2
        draw.text((center, top - _FRAME), _cut(style, fonts.name, _STEP - 12), font=fonts.name, fill=_INK, anchor="ms")
    for row, content in enumerate(rows):
        y = top + _STEP * row
        name = _cut(content, fonts.name, _NAMES - 16)
        draw.text((_MARGIN + _NAMES - 14, y + _STEP // 2), name, font=fonts.name, fill=_INK, anchor="rm")
        for column, style in enumerate(columns):
            _draw_cell(sheet, draw, by_place.get((content, style)), (_MARGIN + _NAMES + _STEP * column, y), fonts)
    if remark:
        draw.text((_MARGIN, height - _MARGIN), remark, font=fonts.name, fill=_FAINT, anchor="ls")
    _write(sheet, path)


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell | None, corner: tuple[int, int], fonts: _Fonts
) -> None:
    side = _STEP - 6
    x, y = corner[0] + 3, corner[1] + 3
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=_GREY)
    if cell is None:
        # This pair was not asked for.
        draw.text((x + side // 2, y + side // 2), "–", font=fonts.name, fill=_FAINT, anchor="mm")
        return
    note = cell.note
    if cell.picture is not None:
        try:
            # The result may be as large as the service's settings allow.
            small = Image.fromarray(decode(cell.picture, max_pixels=sys.maxsize))
        except ImageError:
            note = f"{cell.picture.name} cannot be read"
        else:
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
            return
    lines = _wrapped(note, fonts.note, width=THUMBNAIL, most=THUMBNAIL // _LINE)
    draw.multiline_text(
        (x + side // 2, y + side // 2),
        "\n".join(lines),
        font=fonts.note,
        fill=_ALARM if note.startswith("failed") else _FAINT,
        anchor="mm",
        align="center",
    )


def _remark(*, contents: int, styles: int) -> str:
    """What is left out, as a sentence; empty when nothing is."""
    shown = [
        f"{most} of {count} {what}"
        for count, most, what in ((contents, MAX_ROWS, "contents"), (styles, MAX_COLUMNS, "styles"))
        if count > most
    ]
    return f"Shown are the first {' and the first '.join(shown)}; the others are in the same folder." if shown else ""


def _cut(text: str, font: Font, width: float) -> str:
    """The text, or so much of its beginning and end as fits into `width` pixels."""
    text = _one_line(text)
    if font.getlength(text) <= width:
        return text
    # The end of a name tells as much as its beginning.
    return _longest(
        len(text), lambda kept: text[: (kept + 1) // 2] + _MISSING + text[len(text) - kept // 2 :], font, width
    )


def _one_line(text: str) -> str:
    """The text without what has no glyph at all, on which the layout fails."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _longest(most: int, make: Callable[[int], str], font: Font, width: float) -> str:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(make(middle)) <= width:
            low = middle
        else:
            high = middle - 1
    return make(low)


def _wrapped(text: str, font: Font, *, width: int, most: int) -> Sequence[str]:
    """The text in at most `most` lines of `width` pixels; a word longer than a line is cut in the middle."""
    lines: list[str] = []
    for word in _one_line(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(_cut(word, font, width))
    if len(lines) > most:
        lines[most - 1 :] = [
            _longest(len(lines[most - 1]), lambda kept: lines[most - 1][:kept] + _MISSING, font, width)
        ]
    return lines


def _font(name: str, size: int) -> Font:
    """A font with most alphabets, which Matplotlib brings; Pillow's own has Latin letters alone."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / name, size)


def _write(sheet: Image.Image, path: Path) -> None:
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            sheet.save(part, "JPEG", quality=_QUALITY, subsampling=0, dpi=(_DPI, _DPI))
            sync(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise WorkspaceError(
            f"The contact sheet {path} cannot be written ({error.strerror or error}); check that folder."
        ) from error
