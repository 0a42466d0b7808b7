"""How a large picture is cut up, so that its loss and gradient can be computed exactly in bounded memory: the network
is worked on in segments of one or two blocks, and each segment in tiles of its input map; from some block on, where the
maps are small, the rest is one segment that is worked on as a whole. A tile *owns* a core, and carries a halo around it
that covers what the core's units see through the segment; the cores of all tiles partition every layer's map. Pure
geometry."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Final

from nst_engine.vgg19 import BLOCKS, CONVOLUTIONS, LAYERS, Layer

_SEGMENTS: Final = ((1, 2), (3,), (4,), (5,))
"""The blocks of each segment in tiles. A map between two of them is kept for the whole picture, and that behind block 1
would be as large as the others together; the deeper blocks see far and would need wide halos, were they not on their
own."""

WHOLE_FROM: Final = (2, 3, 4, 5)
"""The blocks from which on the rest of the network can be worked on as a whole."""


@dataclass(frozen=True)
class Segment:
    """Consecutive layers of the network, from a picture or a pooled map to the next pooled map or the deepest layer.

    `layers` are its convolutions and poolings in order, each with its stride, in positions of the segment's input.
    `stride` is the distance of two such positions in pixels of the picture, and `channels` their number. `whole` says
    that it is worked on in one tile.
    """

    layers: tuple[tuple[Layer, int], ...]
    stride: int
    channels: int
    whole: bool

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

    @property
    def products_a_pixel(self) -> float:
        """The multiplications of its convolutions, for each pixel of the picture."""
        return sum(
            9 * layer.input_channels * layer.channels / layer.stride**2
            for layer, _ in self.layers
            if layer.kind == "convolution"
        )


@dataclass(frozen=True)
class Span:
    """A tile along one axis: the half-open interval that it owns, and the one that it reads, clipped at the borders."""

    start: int
    stop: int
    read_start: int
    read_stop: int

    @property
    def read(self) -> slice:
        """What it reads."""
        return slice(self.read_start, self.read_stop)

    def owned(self, stride: int) -> slice:
        """What it owns where `stride` positions become one."""
        return slice(self.start // stride, self.stop // stride)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a segment's input, in its positions."""

    rows: Span
    columns: Span

    @property
    def read(self) -> tuple[slice, slice]:
        """What it reads of the segment's input."""
        return self.rows.read, self.columns.read

    def owned(self, stride: int) -> tuple[slice, slice]:
        """What it owns of the map of a layer with that stride in the segment."""
        return self.rows.owned(stride), self.columns.owned(stride)

    @property
    def core(self) -> tuple[int, int, int, int]:
        """The core in the tile: its first row and column, and its numbers of rows and columns."""
        return (
            self.rows.start - self.rows.read_start,
            self.columns.start - self.columns.read_start,
            self.rows.stop - self.rows.start,
            self.columns.stop - self.columns.start,
        )


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: in tiles of about `side` pixels, from block `whole_from` of the network on as a whole.

    With `whole_from` None, everything is in tiles. Deeper segments need less memory a pixel and take larger tiles.
    """

    side: int
    whole_from: int | None

    def __str__(self) -> str:
        rest = "" if self.whole_from is None else f", from block {self.whole_from} on as a whole"
        return f"tiles of {self.side} x {self.side} pixels{rest}"

    def segments(self, deepest: str) -> tuple[Segment, ...]:
        """The segments of the network from the picture to the convolution `deepest`."""
        if self.whole_from is None:
            return _segments(deepest, _SEGMENTS)
        first = self.whole_from
        tiled = (tuple(block for block in blocks if block < first) for blocks in _SEGMENTS)
        return _segments(deepest, tuple(filter(None, tiled)), whole=tuple(range(first, len(BLOCKS) + 1)))

    def tiles(self, segment: Segment, rows: int, columns: int) -> list[list[Tile]]:
        """The tiles of a segment whose input is (rows, columns) large, a list for each row of tiles."""
        across = self._spans(columns, segment)
        return [[Tile(down, beside) for beside in across] for down in self._spans(rows, segment)]

    def tile_side(self, segment: Segment) -> int:
        """The side, in pixels of the picture, of the segment's tiles; they hold as many numbers as the first's."""
        return round(self.side * math.sqrt(_LARGEST.numbers_a_pixel / segment.numbers_a_pixel))

    def work(self, deepest: str, rows: int, columns: int) -> float:
        """The multiplications of the convolutions in one evaluation of a picture of that size, halos included."""
        total = 0.0
        for segment in self.segments(deepest):
            area = 1
            for pixels in (rows, columns):
                length = pixels // segment.stride
                area *= length + 2 * segment.halo * (len(self._starts(length, segment)) - 1)
            # Forward and back, and forward before that for Gram matrices and maps, where there are tiles.
            passes = 2 if segment.whole else 3
            total += passes * segment.products_a_pixel * area * segment.stride**2
        return total

    def _starts(self, length: int, segment: Segment) -> list[int]:
        """Where the cores begin along an axis."""
        if segment.whole:
            return [0]
        count = math.ceil(length * segment.stride / self.tile_side(segment))
        step = -(-math.ceil(length / count) // segment.alignment) * segment.alignment
        return [start for start in range(0, length, step) if start == 0 or length - start >= segment.alignment]

    def _spans(self, length: int, segment: Segment) -> list[Span]:
        starts = self._starts(length, segment)
        return [
            Span(start, stop, max(0, start - segment.halo), min(length, stop + segment.halo))
            for start, stop in zip(starts, [*starts[1:], length], strict=True)
        ]


@functools.cache
def _segments(deepest: str, tiled: tuple[tuple[int, ...], ...], *, whole: tuple[int, ...] = ()) -> tuple[Segment, ...]:
    last = CONVOLUTIONS[[layer.name for layer in CONVOLUTIONS].index(deepest)]
    depth = LAYERS.index(last)
    found = []
    for blocks in filter(None, (*tiled, whole)):
        names = tuple(f"block{block}_" for block in blocks)
        layers = [layer for layer in LAYERS[: depth + 1] if layer.name.startswith(names)]
        if layers:
            first = layers[0]
            found.append(
                Segment(
                    layers=tuple((layer, layer.stride // first.stride) for layer in layers),
                    stride=first.stride,
                    channels=first.input_channels,
                    whole=blocks == whole,
                )
            )
    return tuple(found)


_LARGEST: Final = _segments(CONVOLUTIONS[-1].name, _SEGMENTS)[0]
