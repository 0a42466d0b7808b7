"""`nst features`: the maps are the network's own, each is drawn over its whole range, and the files are where they
should be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.mosaic import TILE, draw_mosaic
from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError, ImageError, MemoryNeededError
from nst_engine.feature_maps import FeatureMaps, feature_maps
from nst_engine.hardware import Device
from nst_engine.images import encode_png, preprocess, resize
from nst_engine.vgg19 import CONVOLUTIONS
from nst_engine.weights import Weights
from tests.test_cli import NST, environment, refused

CPU = Device("cpu", "/CPU:0", "this one")
CONFIG = TransferConfig(rows=48, weights="random")
MARGIN, LINE, GAP = 24, 17, 8


@pytest.fixture(scope="module")
def found(content: NDArray[np.uint8], random_network: Weights) -> list[FeatureMaps]:
    return feature_maps(CONFIG, content, ["block3_conv1", "block1_conv1"], weights=random_network, device=CPU)


def test_the_first_layer_is_the_convolution_of_the_preprocessed_picture(
    found: list[FeatureMaps], content: NDArray[np.uint8], random_network: Weights
) -> None:
    kernel, bias = random_network.kernels["block1_conv1"]
    padded = np.pad(preprocess(resize(content, rows=48, columns=64)).astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    maps = np.maximum(np.einsum("yxiab,abio->yxo", windows, kernel, optimize=True) + bias, 0)
    assert found[1].layer.name == "block1_conv1"
    np.testing.assert_allclose(found[1].maps, maps, rtol=1e-4, atol=1e-4 * maps.max())


def test_the_layers_come_in_the_order_asked_for_each_at_its_size(found: list[FeatureMaps]) -> None:
    assert [(each.layer.name, each.maps.shape, each.maps.dtype) for each in found] == [
        ("block3_conv1", (12, 16, 256), np.float32),
        ("block1_conv1", (48, 64, 64), np.float32),
    ]
    assert all(each.maps.min() == 0 for each in found)


def test_the_strongest_channels_are_those_of_the_greatest_mean(found: list[FeatureMaps]) -> None:
    means = found[0].maps.astype(np.float64).mean(axis=(0, 1))
    assert found[0].strongest(5) == list(np.argsort(means)[::-1][:5])
    assert sorted(found[1].strongest(1000)) == list(range(64))


def test_pooling_is_the_config_s(found: list[FeatureMaps], content: NDArray[np.uint8], random_network: Weights) -> None:
    average = CONFIG.with_overrides({"pooling": "average"})
    pooled = feature_maps(average, content, ["block3_conv1", "block1_conv1"], weights=random_network, device=CPU)
    assert np.array_equal(pooled[1].maps, found[1].maps)
    assert pooled[0].maps.mean() < 0.9 * found[0].maps.mean()


@pytest.mark.parametrize(
    ("overrides", "layer", "kind", "sentence"),
    [
        pytest.param(
            {},
            "block3_conv5",
            ConfigError,
            "VGG19 has no convolution 'block3_conv5'; did you mean 'block3_conv4'?",
            id="no such layer",
        ),
        pytest.param({"rows": "none", "long_edge": 20}, "block1_conv1", ImageError, "too narrow", id="narrow"),
        pytest.param({"rows": 20000}, "block1_conv1", MemoryNeededError, "20000 x 26666 pixels need", id="memory"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    content: NDArray[np.uint8],
    random_network: Weights,
    overrides: dict[str, object],
    layer: str,
    kind: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(kind, match=sentence):
        feature_maps(CONFIG.with_overrides(overrides), content, [layer], weights=random_network, device=CPU)


def test_a_mosaic_shows_each_map_from_black_to_white(tmp_path: Path) -> None:
    maps = np.zeros((2, 4, 3), np.float32)
    maps[..., 0] = np.arange(8).reshape(2, 4) * 100
    maps[..., 2] = [[0, 0, 0, 0], [5, 0, 0, 0]]
    path = tmp_path / "mosaic.png"
    draw_mosaic(maps, [2, 0, 1], title=["first", "second"], path=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mosaic.png"]
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        grey = np.asarray(sheet.convert("L"))
    top, height = MARGIN + 2 * LINE + GAP, TILE // 2
    tiles = [grey[top : top + height, x : x + TILE] for x in (MARGIN + number * (TILE + GAP) for number in range(3))]
    units = [tile[16::32, 16::32].tolist() for tile in tiles]
    assert units == [
        [[0, 0, 0, 0], [255, 0, 0, 0]],
        [[0, 36, 73, 109], [146, 182, 219, 255]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    # Its number and range under each.
    for number in range(3):
        x = MARGIN + number * (TILE + GAP)
        assert (grey[top + height : top + height + LINE, x : x + TILE] < 200).any()


def test_a_large_map_is_made_smaller(tmp_path: Path) -> None:
    maps = np.random.default_rng(0).random((300, 200, 20), np.float32)
    draw_mosaic(maps, range(20), title=["x" * 500], path=tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as sheet:
        assert sheet.size == (2 * MARGIN + 5 * (TILE + GAP), MARGIN + LINE + GAP + 4 * (TILE + LINE + GAP) + MARGIN)


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, content: NDArray[np.uint8]) -> Path:
    made = tmp_path_factory.mktemp("features")
    encode_png(content, made / "lake.png")
    return made


def nst_features(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NST, "features", *arguments],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = ["--rows", "48", "--weights", "random", "--device", "cpu"]


def test_several_layers_are_one_file_each_beside_where_it_runs(folder: Path) -> None:
    (folder / "lake-block2_conv1.png").write_text("somebody's")
    layers = ["--layer", "block1_conv2", "--layer", "block2_conv1"]
    done = nst_features(folder, "lake.png", *layers, "--channels", "9", "--json", *SMALL)
    assert done.returncode == 0, done.stderr
    documents = json.loads(done.stdout)
    shown = [document.pop("shown") for document in documents]
    fields = {layer.name: layer.receptive_field for layer in CONVOLUTIONS}
    assert documents == [
        {
            "layer": "block1_conv2",
            "file": str(folder / "lake-block1_conv2.png"),
            "rows": 48,
            "columns": 64,
            "channels": 64,
            "receptive_field": fields["block1_conv2"],
            "weights": "random",
        },
        {
            "layer": "block2_conv1",
            "file": str(folder / "lake-block2_conv1-2.png"),
            "rows": 24,
            "columns": 32,
            "channels": 128,
            "receptive_field": fields["block2_conv1"],
            "weights": "random",
        },
    ]
    for channels in shown:
        means = [channel["mean"] for channel in channels]
        assert (len(means), means) == (9, sorted(means, reverse=True))
        assert all(channel["least"] <= channel["mean"] <= channel["greatest"] for channel in channels)
    assert (folder / "lake-block2_conv1.png").read_text() == "somebody's"
    for document in documents:
        with Image.open(document["file"]) as sheet:
            assert sheet.size[0] == 2 * MARGIN + 4 * (TILE + GAP)
    # There are no jobs in this.
    assert not (folder / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lake.png", "--out", "m.jpg"], "--out m.jpg: a PNG file is drawn; give a name that ends in .png."),
        (["lake.png", "--out", "lake.png"], "--out lake.png: is there already; choose another name."),
        (["gone.png"], "gone.png does not exist; check the name."),
        (["lake.png", "--set", "rows"], "--set rows: give KEY=VALUE, such as --set style_weight=2."),
        (["lake.png", "--rows", "5"], "rows = 5: "),
    ],
    ids=["no PNG", "there already", "no picture", "no value", "too few rows"],
)
def test_what_is_wrong_is_said_before_tensorflow_starts(folder: Path, arguments: list[str], sentence: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert refused(nst_features(folder, *arguments), code=2).startswith(sentence)
    assert sorted(path.name for path in folder.iterdir()) == before
