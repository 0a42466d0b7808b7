"""Text from strangers, such as the names of files, on one line that can be printed, logged and stored: no control
characters, nothing that turns the direction of what follows, no half of a character."""

from __future__ import annotations

import re
from typing import Final

# Controls, what turns the direction, line and paragraph separators, and bytes of a name that are no UTF-8.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", re.UNICODE
)
_LONGEST: Final = 2000


def printable(text: str) -> str:
    """The text with a question mark for each character that is not to be shown."""
    return _UNPRINTABLE.sub("?", text)


def one_line(sentence: str) -> str:
    """A printable sentence of at most 2000 characters; of a longer one the middle is left out."""
    text = printable(sentence)
    if len(text) <= _LONGEST:
        return text
    half = (_LONGEST - len(" ... ")) // 2
    return f"{text[:half]} ... {text[-half:]}"
