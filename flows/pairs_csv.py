"""A collection's list of pairs, pairs.csv: a header with `content`, `style` and any settings, and a row for each pair,
as a spreadsheet saves it (commas or semicolons, with or without a byte order mark)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flows.errors import CollectionError
from flows.toml_file import read_text
from nst_engine.config import TransferConfig, did_you_mean
from nst_engine.errors import ConfigError

ROW_KEYS: Final = ("preset", "priority", "snapshot_every")
"""What a row may set beside a transfer's settings."""
_PATHS: Final = ("content", "style")
_MAX_BYTES: Final = 20_000_000


@dataclass(frozen=True)
class Row:
    """One row: its line from 1, its paths as written, and its cells that are not blank by their column."""

    line: int
    content: str
    style: str
    settings: Mapping[str, str]
    problem: str | None = None


def read_rows(path: Path) -> list[Row]:
    """The rows that are not blank. Raises CollectionError when the file or its header cannot be used."""
    try:
        text = read_text(path, max_bytes=_MAX_BYTES, what="divide the collection")
    except ConfigError as error:
        raise CollectionError(str(error)) from error
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in head else ",", strict=True)
    try:
        header = [cell.strip().casefold() for cell in next(reader, [])]
        _check_header(header, path)
        # A quoted cell may have several lines; the number is that of the row's last.
        return [_row(header, cells, reader.line_num) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise CollectionError(f"{path}, line {reader.line_num}: is not valid CSV ({error}); mend that line.") from error


def _check_header(header: list[str], path: Path) -> None:
    known = (*_PATHS, *ROW_KEYS, *TransferConfig.model_fields)
    place = f"{path}, line 1"
    for column in filter(None, header):
        if column not in known:
            raise CollectionError(f"{place}: there is no column '{column}'{did_you_mean(column, known)}")
        if header.count(column) > 1:
            raise CollectionError(f"{place}: has the column '{column}' twice; keep one.")
    if missing := [column for column in _PATHS if column not in header]:
        raise CollectionError(
            f"{place}: has no column {' and no column '.join(missing)}; begin the file with the line content,style."
        )


def _row(header: list[str], cells: list[str], line: int) -> Row:
    values = {column: cell.strip() for column, cell in zip(header, cells, strict=False)}
    settings = {key: value for key, value in values.items() if key not in (*_PATHS, "") and value}
    extra = [cell for column, cell in zip([*header, *[""] * len(cells)], cells, strict=False) if not column]
    problem = "has a cell without a column; put text with a separator in it in quotes." if any(extra) else None
    return Row(line, values.get("content", ""), values.get("style", ""), settings, problem)
