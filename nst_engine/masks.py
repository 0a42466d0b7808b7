"""Where in a picture a style counts: masks with soft edges, made smaller as the network's poolings make its maps, and
the positions from which samples are taken. Pure NumPy and Pillow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image, ImageFilter

from nst_engine.errors import ImageError
from nst_engine.vgg19 import CONVOLUTIONS

SAMPLES: Final = 512
"""Positions of a map, at the most, from which samples are taken."""

_STRIDES: Final = {layer.name: layer.stride for layer in CONVOLUTIONS}


@dataclass(frozen=True)
class Guide:
    """Where one picture (rows, columns) counts, for some layers.

    `positions` are the sums of the weights of each layer's positions, and `picture_positions` that of its pixels;
    `weights`, 0 to 1, are float32 (rows, columns) by stride, none where every position weighs 1. `places` are the flat
    positions of each layer's samples, where there are any.
    """

    size: tuple[int, int]
    positions: dict[str, float]
    picture_positions: float
    weights: dict[int, np.ndarray]
    places: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        layers: Iterable[str],
        size: tuple[int, ...],
        *,
        sampled: bool,
        mask: np.ndarray | None = None,
        name: str = "the picture",
    ) -> Guide:
        """The guide of a picture of that size under a uint8 mask (rows, columns), 255 inside, or without any.

        `name` says whose mask it is when ImageError is raised, since nothing of it is inside at some layer.
        """
        names = tuple(layers)
        rows, columns = size[:2]
        if mask is None:
            shapes = {layer: (rows // _STRIDES[layer], columns // _STRIDES[layer]) for layer in names}
            return cls(
                size=(rows, columns),
                positions={layer: float(down * across) for layer, (down, across) in shapes.items()},
                picture_positions=float(rows * columns),
                weights={},
                places={layer: _places(np.prod(shape)) for layer, shape in shapes.items()} if sampled else {},
            )
        inside = np.asarray(mask, np.float32) / np.float32(255)
        weights = _halved(inside, max(_STRIDES[layer] for layer in names))
        totals = {stride: float(part.sum(dtype=np.float64)) for stride, part in weights.items()}
        for layer in names:
            if totals[_STRIDES[layer]] <= 0:
                raise ImageError(
                    f"The mask of {name} has nothing inside at {layer}, whose map has "
                    f"{rows // _STRIDES[layer]} x {columns // _STRIDES[layer]} positions; give it a larger area or ask "
                    "for more rows."
                )
        return cls(
            size=(rows, columns),
            positions={layer: totals[_STRIDES[layer]] for layer in names},
            picture_positions=totals[1],
            weights=weights,
            places={layer: _places(weights[_STRIDES[layer]].size, weights[_STRIDES[layer]]) for layer in names}
            if sampled
            else {},
        )

    def where(self, layer: str, owned: tuple[slice, slice] = (slice(None), slice(None))) -> dict[str, Any]:
        """The weights and places of what is owned of a layer's map, see `statistics.Where`."""
        found: dict[str, Any] = {}
        stride = _STRIDES[layer]
        if self.weights:
            found["weights"] = self.weights[stride][owned]
        if self.places:
            (top, bottom, _), (left, right, _) = (
                part.indices(length // stride) for part, length in zip(owned, self.size, strict=True)
            )
            row, column = np.divmod(self.places[layer], self.size[1] // stride)
            inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
            local = (row - top) * (right - left) + column - left
            found["places"] = np.where(inside, local, -1).astype(np.int32)
        return found


def feathered(mask: np.ndarray, feather: float) -> np.ndarray:
    """A uint8 mask with its edges blurred by a Gaussian with a deviation of feather / 2 pixels; itself without any."""
    if not feather:
        return mask
    return np.asarray(Image.fromarray(np.ascontiguousarray(mask)).filter(ImageFilter.GaussianBlur(feather / 2)))


def _halved(weights: np.ndarray, last: int) -> dict[int, np.ndarray]:
    """The weights at strides 1, 2, ... `last`: means of 2 x 2, without a last odd row or column, as poolings take."""
    found = {1: weights}
    stride = 1
    while stride < last:
        stride *= 2
        before = found[stride // 2]
        rows, columns = before.shape[0] // 2, before.shape[1] // 2
        found[stride] = before[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3), dtype=np.float32)
    return found


def _places(count: Any, weights: np.ndarray | None = None) -> np.ndarray:
    """The flat positions of samples: in every equal share of the positions (of their weights) one, seeded."""
    total = int(count)
    number = min(SAMPLES, total)
    shares = (np.arange(number) + np.random.default_rng(0).random(number)) / number
    if weights is None:
        return np.minimum((shares * total).astype(np.int64), total - 1)
    ranks = np.cumsum(weights, dtype=np.float64)
    places = np.searchsorted(ranks, shares * ranks[-1], side="right")
    inside: np.ndarray = np.minimum(places, np.flatnonzero(weights)[-1])
    return inside
