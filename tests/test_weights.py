"""The weight files: the official one's address, where it is looked for, its download, its layouts, its checks."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine import weights
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import WeightsError
from nst_engine.images import preprocess
from nst_engine.pictures import Pictures
from nst_engine.samples import content_sample, style_sample
from nst_engine.transfer import start
from nst_engine.vgg19 import CONVOLUTION_NAMES, CONVOLUTIONS, Network
from nst_engine.weights import Weights, cache_path, download, find, load, random_weights, read

FILE_NAME = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"


@pytest.fixture(autouse=True)
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Keras folder for each test, and no weights named by the environment."""
    home = tmp_path / "keras"
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.delenv("NST_VGG19_WEIGHTS", raising=False)
    return home


def write_layout(path: Path, change: Callable[[h5py.File], None] = lambda file: None) -> Path:
    """A file of the right layout that is small on disk, since its arrays have one value each; then changed."""
    with h5py.File(path, "w") as file:
        for index, layer in enumerate(CONVOLUTIONS, 1):
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = [b"kernel:0", b"bias:0"]
            shape = (3, 3, layer.input_channels, layer.channels)
            group.create_dataset("kernel:0", shape, "f4", fillvalue=index)
            group.create_dataset("bias:0", (layer.channels,), "f4", fillvalue=-index)
        change(file)
    return path


class TestOfficialFile:
    def test_address_and_md5_are_those_of_keras(self) -> None:
        from keras.src.applications import vgg19

        assert vgg19.WEIGHTS_PATH_NO_TOP == weights.OFFICIAL_URL
        source = Path(vgg19.__file__).read_text()
        _, _, after = source.partition("WEIGHTS_PATH_NO_TOP,\n")
        assert f'file_hash="{weights.OFFICIAL_MD5}"' in after.partition(")")[0]

    def test_cache_is_that_of_keras(self, keras_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert cache_path() == keras_home / "models" / FILE_NAME
        monkeypatch.delenv("KERAS_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_path() == tmp_path / ".keras" / "models" / FILE_NAME


class TestFind:
    def test_nothing(self) -> None:
        assert find("imagenet") is None

    def test_the_cache(self) -> None:
        cache_path().parent.mkdir(parents=True)
        cache_path().touch()
        found = find("imagenet")
        assert found == weights.WeightFile(cache_path(), "Keras' cache")

    def test_the_environment_comes_before_the_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache_path().parent.mkdir(parents=True)
        cache_path().touch()
        mine = tmp_path / "mine.h5"
        mine.touch()
        monkeypatch.setenv("NST_VGG19_WEIGHTS", str(mine))
        assert find("imagenet") == weights.WeightFile(mine, "NST_VGG19_WEIGHTS")

    def test_a_path_comes_before_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = tmp_path / "mine.h5"
        mine.touch()
        monkeypatch.setenv("NST_VGG19_WEIGHTS", "/not/there.h5")
        assert find(str(mine)) == weights.WeightFile(mine, "the path given")

    def test_what_the_environment_names_must_be_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cache_path().parent.mkdir(parents=True)
        cache_path().touch()
        monkeypatch.setenv("NST_VGG19_WEIGHTS", "/not/there.h5")
        with pytest.raises(WeightsError) as failure:
            find("imagenet")
        assert str(failure.value) == (
            "/not/there.h5: NST_VGG19_WEIGHTS names this weight file, but there is no such file; give the path of "
            "Keras' VGG19 file without top, or 'random'."
        )

    def test_what_is_named_must_be_there(self) -> None:
        with pytest.raises(WeightsError) as failure:
            load("/not/there.h5")
        assert str(failure.value) == (
            "/not/there.h5: you named this weight file, but there is no such file; give the path of Keras' VGG19 "
            "file without top, or 'random'."
        )


class TestDownload:
    @pytest.fixture
    def served(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
        """A small weight file on a server of this machine, in the official one's place but for its MD5."""
        folder = tmp_path / "served"
        folder.mkdir()
        write_layout(folder / FILE_NAME)
        handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
        server = HTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(weights, "OFFICIAL_URL", f"http://127.0.0.1:{server.server_port}/{FILE_NAME}")
        yield server
        server.shutdown()
        thread.join()
        server.server_close()

    @pytest.fixture
    def md5(self, served: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        digest = hashlib.md5((tmp_path / "served" / FILE_NAME).read_bytes()).hexdigest()
        monkeypatch.setattr(weights, "OFFICIAL_MD5", digest)
        return digest

    def test_into_the_cache(self, md5: str, tmp_path: Path) -> None:
        loaded = load("imagenet")
        content = (tmp_path / "served" / FILE_NAME).read_bytes()
        assert (loaded.name, loaded.path) == ("imagenet", cache_path())
        assert loaded.sha256 == hashlib.sha256(content).hexdigest()
        assert cache_path().read_bytes() == content
        assert list(cache_path().parent.iterdir()) == [cache_path()]

    def test_only_once(self, md5: str, served: HTTPServer) -> None:
        first = load("imagenet")
        served.shutdown()
        second = load("imagenet")
        assert (second.name, second.sha256) == ("imagenet", first.sha256)

    def test_nothing_is_printed_on_standard_output(self, md5: str, capsys: pytest.CaptureFixture[str]) -> None:
        download()
        assert capsys.readouterr().out == ""

    def test_another_file_is_not_taken(self, served: HTTPServer) -> None:
        with pytest.raises(WeightsError) as failure:
            load("imagenet")
        sentence = str(failure.value)
        assert sentence.startswith("The VGG19 weights could not be downloaded (Incomplete or corrupted file detected.")
        assert sentence.endswith("fetch that file elsewhere and set NST_VGG19_WEIGHTS to it, or use --weights random.")
        assert list(cache_path().parent.iterdir()) == []

    def test_no_server(self, served: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
        # Port 9 of this machine, where nothing listens.
        monkeypatch.setattr(weights, "OFFICIAL_URL", f"http://127.0.0.1:9/{FILE_NAME}")
        with pytest.raises(WeightsError) as failure:
            load("imagenet")
        assert f"URL fetch failure on http://127.0.0.1:9/{FILE_NAME}" in str(failure.value)
        assert list(cache_path().parent.iterdir()) == []

    def test_no_such_file_there(self, served: HTTPServer, tmp_path: Path) -> None:
        (tmp_path / "served" / FILE_NAME).unlink()
        with pytest.raises(WeightsError, match="404"):
            load("imagenet")
        assert list(cache_path().parent.iterdir()) == []


def keras_1_layout(file: h5py.File, name: str, kernel: Any, bias: Any) -> None:
    """As the official file has it."""
    group = file.create_group(name)
    group.attrs["weight_names"] = [f"{name}_W_1:0".encode(), f"{name}_b_1:0".encode()]
    group.create_dataset(f"{name}_W_1:0", data=kernel)
    group.create_dataset(f"{name}_b_1:0", data=bias)


def keras_2_layout(file: h5py.File, name: str, kernel: Any, bias: Any) -> None:
    """As `save_weights` of Keras 2 writes it: the arrays in a second group of the layer's name."""
    group = file.create_group(name)
    group.attrs["weight_names"] = [f"{name}/kernel:0", f"{name}/bias:0"]
    inner = group.create_group(name)
    inner.create_dataset("bias:0", data=bias)
    inner.create_dataset("kernel:0", data=kernel)


class TestRead:
    @pytest.mark.parametrize("layout", [keras_1_layout, keras_2_layout])
    def test_layouts(self, tmp_path: Path, random_network: Weights, layout: Any) -> None:
        path = tmp_path / "weights.h5"
        with h5py.File(path, "w") as file:
            for name, (kernel, _) in random_network.kernels.items():
                layout(file, name, kernel, kernel[0, 0, 0])
        loaded = read(path)
        assert (loaded.name, loaded.path) == ("weights.h5", path)
        assert list(loaded.kernels) == list(CONVOLUTION_NAMES)
        for name, (kernel, _) in random_network.kernels.items():
            assert [array.dtype for array in loaded.kernels[name]] == [np.float32] * 2
            np.testing.assert_array_equal(loaded.kernels[name][0], kernel)
            np.testing.assert_array_equal(loaded.kernels[name][1], kernel[0, 0, 0])
        path.unlink()

    def test_the_stand_in_reads_as_keras_reads_it(self, standin_weights: Path) -> None:
        import keras

        network = keras.applications.VGG19(include_top=False, weights=str(standin_weights))
        loaded = load(str(standin_weights))
        assert loaded.name == "standin.h5"
        assert loaded.sha256 == hashlib.sha256(standin_weights.read_bytes()).hexdigest()
        for layer in CONVOLUTIONS:
            for ours, theirs in zip(
                loaded.kernels[layer.name], network.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)

    def test_small_layout(self, tmp_path: Path) -> None:
        """The files below are good but for the one change that is made to each."""
        loaded = read(write_layout(tmp_path / "good.h5"))
        for index, name in enumerate(CONVOLUTION_NAMES, 1):
            assert [set(array.ravel().tolist()) for array in loaded.kernels[name]] == [{index}, {-index}]

    CHANGES = (
        pytest.param(
            lambda file: file.__delitem__("block3_conv2"),
            "has no kernel and bias of block3_conv2; it must be Keras' VGG19 weight file without top.",
            id="missing layer",
        ),
        pytest.param(
            lambda file: file["block3_conv2"].attrs.__setitem__("weight_names", [b"kernel:0"]),
            "has no kernel and bias of block3_conv2; it must be Keras' VGG19 weight file without top.",
            id="no bias",
        ),
        pytest.param(
            lambda file: file["block3_conv2"].__delitem__("bias:0"),
            "block3_conv2 has an array of shape None instead of (256,); it must be Keras' VGG19 weight file without "
            "top.",
            id="missing array",
        ),
        pytest.param(
            lambda file: (
                file["block1_conv2"].__delitem__("kernel:0"),
                file["block1_conv2"].create_dataset("kernel:0", (64, 64, 3, 3), "f4"),
            ),
            "block1_conv2 has an array of shape (64, 64, 3, 3) instead of (3, 3, 64, 64); it must be Keras' VGG19 "
            "weight file without top.",
            id="wrong shape",
        ),
        pytest.param(
            lambda file: file["block1_conv1/kernel:0"].__setitem__((2, 2, 2, 63), np.nan),
            "block1_conv1 has numbers that are not finite; run 'nst weights --fetch' for a good file.",
            id="not finite",
        ),
    )

    @pytest.mark.parametrize(("change", "sentence"), CHANGES)
    def test_wrong_content(self, tmp_path: Path, change: Callable[[h5py.File], None], sentence: str) -> None:
        path = write_layout(tmp_path / "bad.h5", change)
        with pytest.raises(WeightsError) as failure:
            read(path)
        text = str(failure.value)
        assert text.startswith(str(path))
        assert text.removeprefix(str(path)).lstrip(": ") == sentence

    @pytest.mark.parametrize("kind", ["not HDF5", "empty", "truncated"])
    def test_no_whole_file(self, tmp_path: Path, kind: str) -> None:
        path = write_layout(tmp_path / "bad.h5")
        data = path.read_bytes()
        path.write_bytes({"not HDF5": b"<html>Sign in</html>", "empty": b"", "truncated": data[: len(data) // 2]}[kind])
        with pytest.raises(WeightsError) as failure:
            read(path)
        sentence = str(failure.value)
        assert sentence.startswith(f"{path}: is not a whole HDF5 file (")
        assert sentence.endswith("); delete it and run 'nst weights --fetch'.")
        assert "\n" not in sentence

    def test_a_file_that_was_changed_after_it_was_checked_is_not_read(self, tmp_path: Path) -> None:
        path = write_layout(tmp_path / "weights.h5")
        loaded = read(path)
        with h5py.File(path, "r+") as file:
            file["block1_conv1/bias:0"][0] = 7
        os.utime(path, ns=(0, 0))
        with pytest.raises(WeightsError) as failure:
            loaded.kernels["block1_conv1"]
        assert str(failure.value) == f"{path}: this weight file was changed while it was in use; try again."

    def test_another_file_in_the_cache_is_not_taken_for_the_official_one(self) -> None:
        cache_path().parent.mkdir(parents=True)
        md5 = hashlib.md5(write_layout(cache_path()).read_bytes()).hexdigest()
        with pytest.raises(WeightsError) as failure:
            load("imagenet")
        assert str(failure.value) == (
            f"{cache_path()}: is not Keras' official file (its MD5 is {md5}, not {weights.OFFICIAL_MD5}); delete it "
            "and run 'nst weights --fetch', or set NST_VGG19_WEIGHTS to use a file of your own."
        )


def touch(path: Path) -> None:
    time = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(time, time))


def copy_again(path: Path) -> None:
    """With its time, as `cp --archive` does."""
    Path(shutil.copy2(path, path.with_name("copy.h5"))).replace(path)


class TestWarmEngine:
    @pytest.mark.parametrize("change", [touch, copy_again])
    def test_an_equal_file_in_the_place_of_the_one_it_knows(
        self, tmp_path: Path, weight_file: Path, change: Callable[[Path], None]
    ) -> None:
        """Layers that were not needed before are read from the file as it is now."""
        path = Path(shutil.copy(weight_file, tmp_path / "weights.h5"))
        pictures = Pictures(content_sample(32, 40), (style_sample(32, 32),))
        engine = Engine("cpu", max_memory=10**12)

        def loss(engine: Engine, content_layer: str) -> float:
            settings = {"content_layers": content_layer, "style_layers": "block1_conv1", "weights": str(path)}
            config = TransferConfig().with_overrides({"precision": "float32", "rows": 32, **settings})
            return start(engine, config, pictures)[0].losses.total

        first = loss(engine, "block1_conv1")
        change(path)
        assert loss(engine, "block1_conv1") == first
        change(path)
        again = loss(engine, "block2_conv1")
        assert again == loss(Engine("cpu", max_memory=10**12), "block2_conv1")


@pytest.fixture(scope="module")
def activations(random_network: Weights) -> dict[str, NDArray[np.float32]]:
    network = Network(random_network.kernels, dtype="float32", on_cpu=True)
    maps = network.features(preprocess(content_sample(96, 128))[np.newaxis], CONVOLUTION_NAMES, pooling="max")
    return {name: np.asarray(found) for name, found in maps.items()}


class TestRandom:
    def test_the_same_each_time(self, random_network: Weights) -> None:
        again = load("random")
        assert (again.name, again.sha256, again.path) == ("random", random_network.sha256, None)
        for name in CONVOLUTION_NAMES:
            np.testing.assert_array_equal(again.kernels[name][0], random_network.kernels[name][0])
        assert random_weights(seed=20).sha256 != again.sha256

    def test_the_same_on_every_machine(self, random_network: Weights) -> None:
        assert random_network.sha256 == "a74ae1358efff82f8a0992401988457b1d4d8cb793e8b4422c9172b07ed098b9"

    @pytest.mark.parametrize("layer", CONVOLUTION_NAMES)
    def test_activations_are_near_their_aim(self, activations: dict[str, NDArray[np.float32]], layer: str) -> None:
        assert 0.4 < float(activations[layer].mean()) / weights.MEAN_ACTIVATION < 2.5
