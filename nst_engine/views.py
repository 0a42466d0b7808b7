"""How often, and where each time, a picture is summed up: once for all styles, or for each with its mask and bins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nst_engine.masks import Guide

Owned = Callable[[str], tuple[slice, slice]]
"""What a tile owns of a layer's map."""


def _everything(_layer: str) -> tuple[slice, slice]:
    return slice(None), slice(None)


@dataclass(frozen=True)
class Views:
    """The views of one picture, each with its guide and, by layer, the ends of its bins (empty without any)."""

    guides: Sequence[Guide]
    ranges: Sequence[Mapping[str, Mapping[str, Any]]]

    def wheres(self, layers: Sequence[str], owned: Owned = _everything) -> list[list[dict[str, Any]]]:
        """Where and how each view sums up what is `owned` of each layer, see `statistics.Where`."""
        return [
            [{**guide.where(layer, owned(layer)), **ranges[layer]} for layer in layers]
            for guide, ranges in zip(self.guides, self.ranges, strict=True)
        ]

    def positions(self, layers: Sequence[str]) -> list[list[float]]:
        """Over how many positions each view sums up each layer."""
        return [[guide.positions[layer] for layer in layers] for guide in self.guides]

    @property
    def picture_positions(self) -> list[float]:
        """Over how many pixels each view would sum up the picture."""
        return [guide.picture_positions for guide in self.guides]
