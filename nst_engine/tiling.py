"""How a large picture is cut up, so that its loss and gradient can be computed exactly in bounded memory: the network
is worked on in segments of one or two blocks, and each segment in tiles of its input map. A tile *owns* a core, and
carries a halo around it that covers what the core's units see through the segment; the cores of all tiles partition
every layer's map. Pure geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from nst_engine.vgg19 import BLOCKS, CONVOLUTIONS, LAYERS, Layer

_SEGMENTS: Final = ((1, 2), (3,), (4,), (5,))
"""The blocks of each segment. A map between two of them is kept for the whole picture, and that behind block 1 would be
as large as the others together; the deeper blocks see far and would need wide halos, were they not on their own."""


@dataclass(frozen=True)
class Segment:
    """Consecutive layers of the network, from a picture or a pooled map to the next pooled map or the deepest layer.

    `layers` are its convolutions and poolings in order, each with its stride, in positions of the segment's input.
    `stride` is the distance of two such positions in pixels of the picture, and `channels` their number.
    """

    layers: tuple[tuple[Layer, int], ...]
    stride: int
    channels: int

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names, in order."""
        return tuple(layer.name for layer, _ in self.layers)

    @property
    def pools(self) -> bool:
        """Whether it ends in a pooling, behind which another segment goes on."""
        return self.layers[-1][0].kind == "pooling"

    @property
    def alignment(self) -> int:
        """Cores begin at multiples of this, so that no pooling window lies in two of them."""
        return self.layers[-1][1]

    @property
    def halo(self) -> int:
        """So many positions beyond the core are enough for all that it owns, in multiples of a pooling window."""
        reach = sum(stride for layer, stride in self.layers if layer.kind == "convolution")
        inner = max(stride for layer, stride in self.layers if layer.kind == "convolution")
        return -(-reach // inner) * inner

    @property
    def numbers_a_pixel(self) -> float:
        """The numbers in the input and all outputs, for each pixel of the picture."""
        outputs = sum(layer.channels / stride**2 for layer, stride in self.layers)
        return (self.channels + outputs) / self.stride**2


@dataclass(frozen=True)
class Span:
    """A tile along one axis: the half-open interval that it owns, and the one that it reads, clipped at the borders."""

    start: int
    stop: int
    read_start: int
    read_stop: int

    @property
    def read(self) -> slice:
        """What it reads of the segment's input."""
        return slice(self.read_start, self.read_stop)

    def owned(self, stride: int) -> slice:
        """What it owns of the map of a layer with that stride in the segment."""
        return slice(self.start // stride, self.stop // stride)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a segment's input, in its positions."""

    rows: Span
    columns: Span

    @property
    def core(self) -> tuple[int, int, int, int]:
        """The core in the tile: its first row and column, and its numbers of rows and columns."""
        return (
            self.rows.start - self.rows.read_start,
            self.columns.start - self.columns.read_start,
            self.rows.stop - self.rows.start,
            self.columns.stop - self.columns.start,
        )


def segments(deepest: str) -> tuple[Segment, ...]:
    """The segments of the network from the picture to the convolution `deepest`."""
    last = CONVOLUTIONS[[layer.name for layer in CONVOLUTIONS].index(deepest)]
    depth = LAYERS.index(last)
    found = []
    for blocks in _SEGMENTS:
        names = tuple(f"block{block}_" for block in blocks)
        layers = [layer for layer in LAYERS[: depth + 1] if layer.name.startswith(names)]
        if layers:
            first = layers[0]
            found.append(
                Segment(
                    layers=tuple((layer, layer.stride // first.stride) for layer in layers),
                    stride=first.stride,
                    channels=first.input_channels,
                )
            )
    return tuple(found)


def tiles(segment: Segment, rows: int, columns: int, *, side: int) -> list[Tile]:
    """The tiles of a segment whose input is (rows, columns) large, with cores of about `side` pixels of the picture."""
    across = _spans(columns, segment, side)
    return [Tile(down, beside) for down in _spans(rows, segment, side) for beside in across]


def balanced_side(segment: Segment, side: int) -> int:
    """The side, in pixels of the picture, of tiles that hold as many numbers as the first segment's do at `side`."""
    first = segments(f"block{len(BLOCKS)}_conv1")[0]
    return round(side * math.sqrt(first.numbers_a_pixel / segment.numbers_a_pixel))


def _spans(length: int, segment: Segment, side: int) -> list[Span]:
    alignment, halo = segment.alignment, segment.halo
    count = math.ceil(length * segment.stride / side)
    step = -(-math.ceil(length / count) // alignment) * alignment
    starts = [start for start in range(0, length, step) if start == 0 or length - start >= alignment]
    return [
        Span(start, stop, max(0, start - halo), min(length, stop + halo))
        for start, stop in zip(starts, [*starts[1:], length], strict=True)
    ]
