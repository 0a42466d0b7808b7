"""Files of settings as people write them: UTF-8 text with or without a mark, TOML, never more of it than somebody could
have meant. Whatever is wrong is one sentence with the file and the line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from nst_engine.errors import ConfigError
from storage.disk import open_file

MAX_BYTES: Final = 100_000
MAX_LINE: Final = 2000
"""Characters. The parser takes gigabytes for a key of 100,000 parts."""
_MAX_DEPTH: Final = 8
_SYNTAX_PLACE: Final = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


def read_text(path: Path, *, max_bytes: int, what: str) -> str:
    """The UTF-8 text in a file, its lines ended by \\n alone; raises ConfigError, one sentence with the file.

    A file of more than `max_bytes` is refused; `what` says what it should be instead.
    """
    try:
        with open_file(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); put a file there that this user may read."
        ) from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path}: is larger than {max_bytes / 1e6:g} MB; {what}.")
    try:
        # Editors on Windows begin UTF-8 with a mark.
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: is not UTF-8 text; save the file as UTF-8.") from error


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file of settings and what it says; raises ConfigError, one sentence with the file."""
    text = read_text(path, max_bytes=MAX_BYTES, what="a file of settings is a few lines of TOML")
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE:
            raise ConfigError(f"{path}, line {number}: is longer than {MAX_LINE} characters; break it into lines.")
    too_deep = f"{path}: is nested too deeply; settings are lines such as rows = 400."
    try:
        given = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(too_deep) from error
    except ValueError as error:
        message = str(error)
        found = _SYNTAX_PLACE.search(message)
        line = found["line"] if found and found["line"] else str(text.rstrip().count("\n") + 1)
        what = message[: found.start()] if found else message
        column = f" at column {found['column']}" if found and found["column"] else ""
        raise ConfigError(
            f"{path}, line {line}: is not valid TOML ({what[0].lower()}{what[1:]}{column}); mend that line."
        ) from error
    if _is_deeper(given, _MAX_DEPTH):
        raise ConfigError(too_deep)
    return text, given


def _is_deeper(value: object, depth: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(parts) and (depth == 0 or any(_is_deeper(part, depth - 1) for part in parts))
