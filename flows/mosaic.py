"""A layer's feature maps as one picture: channel beside channel, each over its whole range, with its number and that
range under it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from flows.contact_sheet import write_sheet
from flows.lettering import LINE, cut, font

TILE: Final = 128
"""About the pixels of a map's longer side; a smaller map is enlarged by a whole number, so that its units stay seen."""
_GAP: Final = 8
_MARGIN: Final = 24
_PAPER: Final = (255, 255, 255)
_INK: Final = (34, 34, 34)
_FAINT: Final = (120, 120, 120)
_LEAST_COLUMNS: Final = 4


def draw_mosaic(maps: np.ndarray, channels: Sequence[int], *, title: Sequence[str], path: Path) -> None:
    """Draw `channels` of the maps, float32 (rows, columns, channels), under the lines of `title` into a PNG file.

    Black is a map's least value and white its greatest; one that is the same everywhere is black. Raises
    WorkspaceError where the disk refuses.
    """
    tiles = [_tile(maps[..., channel]) for channel in channels]
    width, height = tiles[0].size
    cell_width, cell_height = max(width, TILE) + _GAP, height + LINE + _GAP
    columns = max(min(len(tiles), _LEAST_COLUMNS), ceil(sqrt(len(tiles))))
    top = _MARGIN + LINE * len(title) + _GAP
    size = (2 * _MARGIN + columns * cell_width, top + ceil(len(tiles) / columns) * cell_height + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        lettering = font("bold" if number == 0 else "plain", 13)
        text = cut(line, lettering, size[0] - 2 * _MARGIN)
        draw.text((_MARGIN, _MARGIN + LINE * number), text, font=lettering, fill=_INK)
    for number, (channel, tile) in enumerate(zip(channels, tiles, strict=True)):
        x, y = _MARGIN + number % columns * cell_width, top + number // columns * cell_height
        sheet.paste(tile, (x, y))
        least, greatest = range_of(maps[..., channel])
        label = cut(f"{channel}: {least:.4g} to {greatest:.4g}", font("plain", 13), cell_width - _GAP)
        draw.text((x, y + height + 1), label, font=font("plain", 13), fill=_FAINT)
    write_sheet(sheet, path)


def range_of(feature_map: np.ndarray) -> tuple[float, float]:
    """The least and the greatest value of a map."""
    return float(feature_map.min()), float(feature_map.max())


def _tile(feature_map: np.ndarray) -> Image.Image:
    least, greatest = range_of(feature_map)
    spread = greatest - least
    grey = (feature_map - least) / spread if spread > 0 else np.zeros_like(feature_map)
    image = Image.fromarray(np.rint(255 * grey).astype(np.uint8))
    longer = max(image.size)
    if longer > TILE:
        image.thumbnail((TILE, TILE), Image.Resampling.BOX)
        return image
    factor = round(TILE / longer)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
