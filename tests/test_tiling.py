"""The geometry of tiling: cores that partition every layer's map, and halos that reach as far as the network sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_engine.tiling import Segment, balanced_side, segments, tiles
from nst_engine.vgg19 import CONVOLUTION_NAMES, LAYERS

sizes = st.integers(16, 400)
sides = st.integers(8, 300)
layers = st.sampled_from(CONVOLUTION_NAMES)


def input_size(segment: Segment, rows: int, columns: int) -> tuple[int, int]:
    return rows // segment.stride, columns // segment.stride


@settings(deadline=None)
@given(deepest=layers, rows=sizes, columns=sizes, side=sides)
def test_owned_positions_partition_every_map(deepest: str, rows: int, columns: int, side: int) -> None:
    found_layers = []
    for segment in segments(deepest):
        down, across = input_size(segment, rows, columns)
        found = tiles(segment, down, across, side=side)
        for layer, stride in segment.layers:
            owners = np.zeros((rows // layer.stride, columns // layer.stride), int)
            assert owners.shape == (down // stride, across // stride)
            for tile in found:
                owners[tile.rows.owned(stride), tile.columns.owned(stride)] += 1
            assert (owners == 1).all()
            found_layers.append(layer.name)
    names = [layer.name for layer in LAYERS]
    assert found_layers == names[1 : names.index(deepest) + 1]


@settings(deadline=None)
@given(deepest=layers, length=sizes, side=sides)
def test_a_tile_reads_all_that_its_core_sees(deepest: str, length: int, side: int) -> None:
    for segment in segments(deepest):
        (positions, _) = input_size(segment, length, length)
        inner = max(stride for layer, stride in segment.layers if layer.kind == "convolution")
        for span in {tile.rows for tile in tiles(segment, positions, positions, side=side)}:
            # Else its poolings would not be those of the whole map.
            assert span.read_start % inner == 0
            assert 0 <= span.read_start <= span.start < span.stop <= span.read_stop <= positions
            for depth, (_, stride) in enumerate(segment.layers, 1):
                owned = span.owned(stride)
                if owned.start < owned.stop:
                    first, last = seen(segment, depth, owned.start, owned.stop - 1)
                    assert max(0, first) >= span.read_start
                    assert min(positions - 1, last) < span.read_stop


def seen(segment: Segment, depth: int, first: int, last: int) -> tuple[int, int]:
    """The first and last position of the segment's input that positions `first` to `last` behind `depth` layers see."""
    for layer, _ in reversed(segment.layers[:depth]):
        first, last = (first - 1, last + 1) if layer.kind == "convolution" else (2 * first, 2 * last + 1)
    return first, last


@pytest.mark.parametrize(
    ("deepest", "halos"),
    [
        pytest.param("block1_conv1", [1], id="one convolution"),
        pytest.param("block2_conv1", [4], id="up to block 2"),
        pytest.param("block5_conv4", [6, 4, 4, 4], id="all"),
    ],
)
def test_halos(deepest: str, halos: list[int]) -> None:
    assert [segment.halo for segment in segments(deepest)] == halos


def test_a_picture_that_one_tile_covers_is_one_tile_without_a_halo() -> None:
    (first, *_) = segments("block2_conv2")
    (tile,) = tiles(first, 61, 47, side=64)
    assert tile.core == (0, 0, 61, 47)
    assert (tile.rows.read, tile.columns.read) == (slice(0, 61), slice(0, 47))


def test_deeper_segments_take_larger_tiles() -> None:
    assert [balanced_side(segment, 512) for segment in segments("block5_conv1")] == [512, 869, 1229, 3788]
