"""The network's weights: where they are found, how they are fetched and checked, and the seeded random ones
for machines that have none. A weight file is Keras' HDF5 file of VGG19 without top: one group a convolution,
kernels (3, 3, in, out) for BGR input, float32. TensorFlow is only imported to download."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from nst_engine.config import RANDOM_WEIGHTS
from nst_engine.errors import WeightsError
from nst_engine.startup import load_tensorflow
from nst_engine.vgg19 import CONVOLUTION_NAMES, CONVOLUTIONS, Layer

if TYPE_CHECKING:
    from nst_engine.vgg19 import Kernels

ENVIRONMENT_VARIABLE = "NST_VGG19_WEIGHTS"
OFFICIAL_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/"
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
OFFICIAL_MD5 = "253f8cb515780f3b799900260a226db6"
"""Both as in keras/src/applications/vgg19.py; a test compares them."""

RANDOM_SEED = 19
MEAN_ACTIVATION = 100.0
"""About that of the ImageNet weights in blocks 1 to 3, so that the presets' loss weights fit both networks."""
_INPUT_RMS = 60.0
"""Root mean square of a mean-centred photograph: about a quarter of the 255 levels."""
_POOLING_GAIN = 1.15
"""How much 2 x 2 max pooling raises the root mean square of rectified noise-filtered pictures."""
_BLOCK_BYTES = 1 << 20
_LAYERS = {layer.name: layer for layer in CONVOLUTIONS}


@dataclass(frozen=True)
class Weights:
    """The weights of all sixteen convolutions, and what they are.

    `name` is "imagenet" for Keras' official file (known by its MD5), "random" for the seeded ones, else the
    file's name. `sha256` is the file's, or that of the arrays where there is no file. `kernels` holds no arrays: it
    reads or draws a layer's each time that they are asked for.
    """

    name: str
    sha256: str
    path: Path | None
    kernels: Kernels = field(repr=False)


@dataclass(frozen=True)
class WeightFile:
    """Where a weight file is, and which rule found it."""

    path: Path
    found_by: str


def cache_path() -> Path:
    """Where Keras keeps the official file."""
    keras_home = os.environ.get("KERAS_HOME")
    folder = Path(keras_home) if keras_home else Path.home() / ".keras"
    return folder / "models" / OFFICIAL_URL.rpartition("/")[2]


def find(choice: str) -> WeightFile | None:
    """The file that `choice` ("imagenet" or a path) means on this machine, None when it must be downloaded.

    "imagenet" is looked for in NST_VGG19_WEIGHTS, then in Keras' cache. Raises WeightsError when a file that
    was named is not there.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE) if choice == "imagenet" else choice
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            by = f"{ENVIRONMENT_VARIABLE} names" if choice == "imagenet" else "you named"
            raise WeightsError(
                f"{path}: {by} this weight file, but there is no such file; give the path of Keras' VGG19 file "
                "without top, or 'random'."
            )
        return WeightFile(path, ENVIRONMENT_VARIABLE if choice == "imagenet" else "the path given")
    path = cache_path()
    return WeightFile(path, "Keras' cache") if path.is_file() else None


def download() -> Path:
    """Fetch the official file (80 MB) into Keras' cache, with progress on the screen, and check its MD5.

    Raises WeightsError when it cannot be fetched or is not what it should be.
    """
    load_tensorflow()
    import keras

    target = cache_path()
    # Fetched beside its place and moved there whole, so that a broken download is never taken for the file.
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        # Keras prints its progress on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr):
            fetched = keras.utils.get_file(
                partial.name, OFFICIAL_URL, cache_subdir=str(partial.parent), file_hash=OFFICIAL_MD5
            )
        Path(fetched).replace(target)
    except Exception as error:  # Keras raises a bare Exception when a URL cannot be opened
        raise WeightsError(
            f"The VGG19 weights could not be downloaded ({error}); fetch that file elsewhere and set "
            f"{ENVIRONMENT_VARIABLE} to it, or use --weights random."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def load(choice: str) -> Weights:
    """The weights that `choice` means: "imagenet", "random" or the path of a weight file.

    "imagenet" comes from NST_VGG19_WEIGHTS, Keras' cache or Keras' download, in this order; nothing else is
    ever taken in its place. Raises WeightsError with a sentence for whatever is wrong with the file.
    """
    if choice == RANDOM_WEIGHTS:
        return random_weights()
    found = find(choice)
    return read(found.path if found else download())


def read(path: Path) -> Weights:
    """Check a weight file: its layout, every shape and that every number is finite."""
    # Before it is read: a file that is replaced meanwhile must not pass for the one that was checked.
    kernels = _FileKernels(path, version(path))
    for _ in kernels.values():
        """Each is checked as it is read."""
    sha256, md5 = _digests(path)
    if path == cache_path() and md5 != OFFICIAL_MD5:
        raise WeightsError(
            f"{path}: is not Keras' official file (its MD5 is {md5}, not {OFFICIAL_MD5}); delete it and run "
            f"'nst weights --fetch', or set {ENVIRONMENT_VARIABLE} to use a file of your own."
        )
    name = "imagenet" if md5 == OFFICIAL_MD5 else path.name
    return Weights(name, sha256, path, kernels)


class _LayerArrays(Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """Each convolution's kernel and bias, made when they are asked for."""

    def __iter__(self) -> Iterator[str]:
        return iter(CONVOLUTION_NAMES)

    def __len__(self) -> int:
        return len(CONVOLUTION_NAMES)


class _FileKernels(_LayerArrays):
    """Those of a weight file, as long as it is the one that was checked."""

    def __init__(self, path: Path, version: tuple[int, ...]) -> None:
        self._path = path
        self._version = version

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        layer = _LAYERS[name]
        try:
            with h5py.File(self._path, "r") as file:
                arrays = _read_layer(file, layer, self._path)
        except OSError as error:
            raise WeightsError(
                f"{self._path}: is not a whole HDF5 file ({error}); delete it and run 'nst weights --fetch'."
            ) from error
        if version(self._path) != self._version:
            raise WeightsError(f"{self._path}: this weight file was changed while it was in use; try again.")
        return arrays


def version(path: Path) -> tuple[int, ...]:
    """What is another after a weight file was replaced or written to; WeightsError when it cannot be read."""
    try:
        found = path.stat()
    except OSError as error:
        raise WeightsError(f"{path}: this weight file cannot be read ({error.strerror}).") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_layer(file: h5py.File, layer: Layer, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and bias of one layer, found as Keras finds them: by the group's list of array names.

    The names themselves differ between the Keras versions that wrote such files.
    """
    group = file.get(layer.name)
    names = list(group.attrs.get("weight_names", ())) if isinstance(group, h5py.Group) else []
    shapes = ((3, 3, layer.input_channels, layer.channels), (layer.channels,))
    if len(names) != len(shapes):
        raise WeightsError(
            f"{path}: has no kernel and bias of {layer.name}; it must be Keras' VGG19 weight file without top."
        )
    arrays = []
    for name, shape in zip(names, shapes, strict=True):
        data = group.get(name)
        found = data.shape if isinstance(data, h5py.Dataset) else None
        if found != shape:
            raise WeightsError(
                f"{path}: {layer.name} has an array of shape {found} instead of {shape}; it must be Keras' VGG19 "
                "weight file without top."
            )
        array = np.asarray(data[()], dtype=np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{path}: {layer.name} has numbers that are not finite; run 'nst weights --fetch' for a good file."
            )
        arrays.append(array)
    return arrays[0], arrays[1]


def _digests(path: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


def random_weights(seed: int = RANDOM_SEED) -> Weights:
    """A seeded network whose feature maps have a mean activation near MEAN_ACTIVATION in every layer.

    Gaussian kernels with variance 2 / (9 in) keep the mean square through a rectified layer (He et al.,
    arXiv:1502.01852); the first layer is scaled so that photographs come out with that mean activation, and each
    layer behind a pooling undoes what max pooling adds. Zero biases.
    """
    generator = np.random.default_rng(seed)
    states: dict[str, Any] = {}
    digest = hashlib.sha256()
    for layer in CONVOLUTIONS:
        states[layer.name] = generator.bit_generator.state
        digest.update(_random_kernel(generator, layer).data)
    return Weights(RANDOM_WEIGHTS, digest.hexdigest(), None, _RandomKernels(states))


class _RandomKernels(_LayerArrays):
    """The seeded ones, each drawn again from where the generator stood before it."""

    def __init__(self, states: dict[str, Any]) -> None:
        self._states = states

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        generator, layer = np.random.default_rng(), _LAYERS[name]
        generator.bit_generator.state = self._states[name]
        return _random_kernel(generator, layer), np.zeros(layer.channels, dtype=np.float32)


def _random_kernel(generator: np.random.Generator, layer: Layer) -> np.ndarray:
    kernel = generator.standard_normal((3, 3, layer.input_channels, layer.channels), dtype=np.float32)
    gain = np.sqrt(2.0 / (9 * layer.input_channels))
    if layer.name == "block1_conv1":
        # The rectified half of a Gaussian of deviation sqrt(2 pi) has mean 1.
        gain *= MEAN_ACTIVATION * np.sqrt(np.pi) / _INPUT_RMS
    elif layer.name.endswith("_conv1"):
        gain /= _POOLING_GAIN
    kernel *= np.float32(gain)
    return kernel
