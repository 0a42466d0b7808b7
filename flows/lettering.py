"""Text on pictures: fonts with most alphabets, and text cut or wrapped to the pixels that there are."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from PIL import ImageFont

Font = ImageFont.FreeTypeFont

LINE: Final = 17
"""The height of a line of 13 or 14 points, in pixels."""
_MISSING: Final = "…"
_FILES: Final = {"plain": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}


@functools.cache
def font(face: Literal["plain", "bold"], size: int) -> Font:
    """A font with most alphabets, which Matplotlib brings; Pillow's own has Latin letters alone."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / _FILES[face], size)


def cut(text: str, font: Font, width: float) -> str:
    """The text, or so much of its beginning and end as fits into `width` pixels."""
    text = one_line(text)
    if font.getlength(text) <= width:
        return text
    # The end of a name tells as much as its beginning.
    return _longest(
        len(text), lambda kept: text[: (kept + 1) // 2] + _MISSING + text[len(text) - kept // 2 :], font, width
    )


def wrapped(text: str, font: Font, *, width: int, most: int) -> Sequence[str]:
    """The text in at most `most` lines of `width` pixels; a word longer than a line is cut in the middle."""
    lines: list[str] = []
    for word in one_line(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(cut(word, font, width))
    if len(lines) > most:
        last = lines[most - 1]
        lines[most - 1 :] = [_longest(len(last), lambda kept: last[:kept] + _MISSING, font, width)]
    return lines


def one_line(text: str) -> str:
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
