"""What a layer knows of a picture, as in figure 1 of Gatys, Ecker and Bethge (arXiv:1508.06576): from noise, a picture
with the same feature maps (content) or the same Gram matrices (style). Each is a job like any other, of the preset
gatys-2015 with one of the two weights at 0 and the picture as content and style at once: so it has a report, is listed,
can be compared and is not computed twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from flows.grid import Grid
from flows.grid_report import Variant

PRESET: Final = "gatys-2015"
ROWS: Final = 256
ITERATIONS: Final = 200

FIGURE_CONTENT: Final = tuple(f"block{block}_conv2" for block in range(1, 6))
FIGURE_STYLE: Final = tuple(f"block{block}_conv1" for block in range(1, 6))
_CHEAPEST: Final = "block1_conv1"
"""The network is computed down to the deepest layer of both kinds, also where its weight is 0."""


def content_only(layers: str) -> dict[str, Any]:
    """The settings that reconstruct from the feature maps of `layers`, given as in content_layers."""
    return {"content_layers": layers, "style_layers": _CHEAPEST, "style_weight": 0}


def style_only(layers: str) -> dict[str, Any]:
    """The settings that reconstruct from the Gram matrices of `layers`, given as in style_layers."""
    return {"style_layers": layers, "content_layers": _CHEAPEST, "content_weight": 0}


def figure_grid(picture: Path, fixed: Mapping[str, Any]) -> Grid:
    """The jobs of figure 1 for a picture, under `fixed` settings, in a folder figure1-NAME."""
    return Grid(
        kind="figure1",
        name=picture.stem,
        title=f"{picture.name}, from noise",
        preset=PRESET,
        content=picture,
        styles=[picture],
        fixed=fixed,
        variants=figure_variants(),
    )


def figure_variants() -> list[Variant]:
    """The ten reconstructions of figure 1: each content layer, and the style layers down to each."""
    columns = "abcde"
    content = [
        Variant("content", column, f"content_{layer}", content_only(layer), remark=_short(layer))
        for column, layer in zip(columns, FIGURE_CONTENT, strict=True)
    ]
    style = [
        Variant(
            "style",
            column,
            f"style_to_{FIGURE_STYLE[number]}",
            style_only(",".join(FIGURE_STYLE[: number + 1])),
            remark=_short(FIGURE_STYLE[0]) + (f" to {_short(FIGURE_STYLE[number])}" if number else ""),
        )
        for number, column in enumerate(columns)
    ]
    return [*content, *style]


def _short(layer: str) -> str:
    """The paper's name of a layer: conv1_2 for block1_conv2."""
    block, convolution = layer.removeprefix("block").split("_conv")
    return f"conv{block}_{convolution}"
