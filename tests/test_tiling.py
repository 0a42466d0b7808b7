"""The geometry of tiling: cores that partition every layer's map, and halos that reach as far as the network sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_engine.tiling import WHOLE_FROM, Segment, Tiling
from nst_engine.vgg19 import CONVOLUTION_NAMES, LAYERS

sizes = st.integers(16, 400)
tilings = st.builds(Tiling, side=st.integers(8, 300), whole_from=st.sampled_from([None, *WHOLE_FROM]))
layers = st.sampled_from(CONVOLUTION_NAMES)


def input_size(segment: Segment, rows: int, columns: int) -> tuple[int, int]:
    return rows // segment.stride, columns // segment.stride


@settings(deadline=None)
@given(deepest=layers, rows=sizes, columns=sizes, tiling=tilings)
def test_owned_positions_partition_every_map(deepest: str, rows: int, columns: int, tiling: Tiling) -> None:
    found_layers = []
    for segment in tiling.segments(deepest):
        down, across = input_size(segment, rows, columns)
        found = tiling.tiles(segment, down, across)
        for layer, stride in segment.layers:
            owners = np.zeros((rows // layer.stride, columns // layer.stride), int)
            assert owners.shape == (down // stride, across // stride)
            for tile in (tile for row in found for tile in row):
                owners[tile.owned(stride)] += 1
            assert (owners == 1).all()
            found_layers.append(layer.name)
    names = [layer.name for layer in LAYERS]
    assert found_layers == names[1 : names.index(deepest) + 1]


@settings(deadline=None)
@given(deepest=layers, length=sizes, tiling=tilings)
def test_a_tile_reads_all_that_its_core_sees(deepest: str, length: int, tiling: Tiling) -> None:
    for segment in tiling.segments(deepest):
        (positions, _) = input_size(segment, length, length)
        inner = max(stride for layer, stride in segment.layers if layer.kind == "convolution")
        for span in {row[0].rows for row in tiling.tiles(segment, positions, positions)}:
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
    ("whole_from", "deepest", "blocks", "whole"),
    [
        pytest.param(None, "block5_conv4", ["12", "3", "4", "5"], False, id="all in tiles"),
        pytest.param(None, "block2_conv2", ["12"], False, id="all in tiles, few layers"),
        pytest.param(2, "block5_conv4", ["1", "2345"], True, id="from 2"),
        pytest.param(3, "block5_conv1", ["12", "345"], True, id="from 3"),
        pytest.param(4, "block4_conv2", ["12", "3", "4"], True, id="from 4"),
        pytest.param(5, "block5_conv1", ["12", "3", "4", "5"], True, id="from 5"),
        pytest.param(5, "block4_conv4", ["12", "3", "4"], False, id="from a block that is not there"),
    ],
)
def test_segments(whole_from: int | None, deepest: str, blocks: list[str], whole: bool) -> None:
    found = Tiling(64, whole_from).segments(deepest)
    assert ["".join(sorted({name[len("block")] for name in segment.names})) for segment in found] == blocks
    assert [segment.whole for segment in found] == [False] * (len(found) - 1) + [whole]


@pytest.mark.parametrize(
    ("deepest", "halos"),
    [
        pytest.param("block1_conv1", [1], id="one convolution"),
        pytest.param("block2_conv1", [4], id="up to block 2"),
        pytest.param("block5_conv4", [6, 4, 4, 4], id="all"),
    ],
)
def test_halos(deepest: str, halos: list[int]) -> None:
    assert [segment.halo for segment in Tiling(64, None).segments(deepest)] == halos


def test_a_picture_that_one_tile_covers_is_one_tile_without_a_halo() -> None:
    tiling = Tiling(64, None)
    (first, *_) = tiling.segments("block2_conv2")
    ((tile,),) = tiling.tiles(first, 61, 47)
    assert tile.core == (0, 0, 61, 47)
    assert tile.read == (slice(0, 61), slice(0, 47))


def test_deeper_segments_take_larger_tiles() -> None:
    tiling = Tiling(512, None)
    assert [tiling.tile_side(segment) for segment in tiling.segments("block5_conv1")] == [512, 869, 1229, 3788]


@settings(deadline=None)
@given(deepest=layers, rows=sizes, columns=sizes, tiling=tilings)
def test_work_counts_all_positions_that_are_read(deepest: str, rows: int, columns: int, tiling: Tiling) -> None:
    """A halo that a border clips is counted whole, so that the count is at most that of one more halo a side."""
    least = most = 0.0
    for segment in tiling.segments(deepest):
        down, across = input_size(segment, rows, columns)
        found = tiling.tiles(segment, down, across)
        each = segment.products_a_pixel * segment.stride**2 * (2 if segment.whole else 3)
        height, width = (
            [span.read_stop - span.read_start for span in spans]
            for spans in ([row[0].rows for row in found], [tile.columns for tile in found[0]])
        )
        least += each * sum(height) * sum(width)
        most += each * (sum(height) + 2 * segment.halo * len(height)) * (sum(width) + 2 * segment.halo * len(width))
    assert least <= tiling.work(deepest, rows, columns) <= most


def test_the_rest_as_a_whole_saves_work() -> None:
    """Ever less of the network is computed twice, the earlier the rest begins, and each halo costs."""
    tilings = [Tiling(512, first) for first in (2, 3, 4, 5, None)] + [Tiling(256, None)]
    work = [tiling.work("block5_conv1", 1080, 1920) for tiling in tilings]
    assert work == sorted(work)
    once = 1080 * 1920 * sum(segment.products_a_pixel for segment in tilings[0].segments("block5_conv1"))
    assert [round(each / (2 * once), 2) for each in work] == [1.06, 1.15, 1.36, 1.56, 1.57, 1.69]


@pytest.mark.parametrize(
    ("tiling", "text"),
    [
        pytest.param(Tiling(512, None), "tiles of 512 x 512 pixels", id="all"),
        pytest.param(Tiling(256, 4), "tiles of 256 x 256 pixels, from block 4 on as a whole", id="from block 4"),
    ],
)
def test_in_words(tiling: Tiling, text: str) -> None:
    assert str(tiling) == text
