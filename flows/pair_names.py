"""The names of a collection's pairs: CONTENT_STYLE, a function of the two paths alone, so that a name stays the same
whatever other files come and go. Only where two of them would be one folder (names that differ in capitals, or in
what no file name may have) all of these end in a hash of their paths."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

from storage.workspace import safe_name

_USUAL_SUFFIX: Final = ".jpg"
_HASH_CHARACTERS: Final = 8
_MAX_BYTES: Final = 100
"""Of UTF-8: what safe_name keeps, less a hash."""

Paths = tuple[PurePath, PurePath]


def pair_names(pairs: Sequence[Paths]) -> list[str]:
    """A name for each pair of a content's and a style's path, relative to contents/ and styles/; no pair twice.

    `lake.jpg` and `starry.jpg` give `lake_starry`; where a name has a `_` itself, `__` is between the two. Sub-folders
    come first (`2025.lake_starry`), a suffix other than .jpg stays (`lake.png_starry`). The names are good for files,
    and differ in more than capitals.
    """
    plain = [_plain(content, style) for content, style in pairs]
    count = Counter(map(_key, plain))
    return [
        name if count[_key(name)] == 1 and len(name.encode()) <= _MAX_BYTES else _hashed(name, pair)
        for name, pair in zip(plain, pairs, strict=True)
    ]


def _plain(content: PurePath, style: PurePath) -> str:
    labels = (_label(content), _label(style))
    separator = "__" if any("_" in label for label in labels) else "_"
    # Made safe part by part: a long content must not push the style out unseen.
    return separator.join(labels)


def _label(path: PurePath) -> str:
    name = path.stem if path.suffix == _USUAL_SUFFIX else path.name
    return ".".join(safe_name(part) for part in (*path.parent.parts, name))


def _hashed(name: str, pair: Paths) -> str:
    # NUL is in no path.
    paths = b"\0".join(os.fsencode(path) for path in pair)
    digest = hashlib.sha256(paths).hexdigest()[:_HASH_CHARACTERS]
    short = name.encode()[:_MAX_BYTES].decode(errors="ignore")
    return f"{safe_name(short)}-{digest}"


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
