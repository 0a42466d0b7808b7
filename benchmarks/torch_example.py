"""The preset keras-2016 written down for PyTorch, as whoever has PyTorch would write it: targets once, weights that are
not trained, ReLU in place, one product a Gram matrix. It is the measure of what another framework makes of the same
machine, and runs in a Python that has PyTorch and NumPy and nothing of nst: kernels, pictures and numbers come in a
file.

    python -m benchmarks.torch_example FILE.npz --dtype float32|bfloat16 --layout channels_last|contiguous
        --device cpu|cuda --repeats N
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.timing import timed

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# What the names of the file's arrays begin with; a layer's name follows, and the layers in the network's order.
KERNEL, BIAS = "kernel/", "bias/"
# Of the preset, each an array of one number.
SETTINGS = (
    "content_weight",
    "style_weight",
    "tv_weight",
    "learning_rate",
    "decay_rate",
    "decay_steps",
)


class TorchExample:
    """One transfer of a preprocessed content and style, float32 (rows, columns, 3) BGR mean-centred, of one size.

    `given` has them with Keras' kernels (3, 3, in, out) and biases (out,) and the preset's settings. Each call of
    `iterate` makes one iteration and returns the loss of the picture before its update.
    """

    def __init__(self, given: dict[str, Any], *, dtype: torch.dtype, layout: torch.memory_format, device: str) -> None:
        self._dtype, self._layout = dtype, layout
        self._convolutions = [
            (
                name.removeprefix(KERNEL),
                torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).to(device, dtype, memory_format=layout),
                torch.from_numpy(given[name.replace(KERNEL, BIAS)]).to(device, dtype),
            )
            for name, kernel in given.items()
            if name.startswith(KERNEL)
        ]
        self._settings = {name: float(given[name]) for name in SETTINGS}
        self._styles, self._content_layer = list(given["style_layers"]), str(given["content_layer"])
        content, style = (self._batch_of_one(given[name]).to(device) for name in ("content", "style"))
        with torch.no_grad():
            self._content = self._features(content)[self._content_layer]
            style_features = self._features(style)
            self._grams = {name: _gram(style_features[name]) for name in self._styles}
        self.picture = content.clone().requires_grad_()
        self._iteration = 0

    def _batch_of_one(self, picture: np.ndarray) -> torch.Tensor:
        batch = torch.from_numpy(picture.transpose(2, 0, 1)[np.newaxis].copy())
        return batch.to(memory_format=self._layout)

    def iterate(self) -> float:
        """One iteration; the loss before its update."""
        loss = self._loss()
        (gradient,) = torch.autograd.grad(loss, self.picture)
        settings = self._settings
        rate = settings["learning_rate"] * settings["decay_rate"] ** (self._iteration / settings["decay_steps"])
        with torch.no_grad():
            self.picture -= rate * gradient
        self._iteration += 1
        return float(loss.detach())

    def _features(self, picture: torch.Tensor) -> dict[str, torch.Tensor]:
        wanted = {self._content_layer, *self._styles}
        features, maps = {}, picture.to(self._dtype)
        for name, kernel, bias in self._convolutions:
            # Each block but the first begins behind a pooling.
            if name.endswith("_conv1") and name != "block1_conv1":
                maps = functional.max_pool2d(maps, 2)
            maps = functional.relu_(functional.conv2d(maps, kernel, bias, padding=1))
            if name in wanted:
                features[name] = maps
        return features

    def _loss(self) -> torch.Tensor:
        settings, features = self._settings, self._features(self.picture)
        pixels = self.picture.shape[2] * self.picture.shape[3]
        content = (features[self._content_layer] - self._content).float().square().sum()
        style = sum(
            (_gram(features[name]) - self._grams[name]).square().sum() / (4.0 * 3**2 * pixels**2)
            for name in self._styles
        ) / len(self._styles)
        return (
            settings["content_weight"] * content
            + settings["style_weight"] * style
            + settings["tv_weight"] * self._total_variation()
        )

    def _total_variation(self) -> torch.Tensor:
        here = self.picture[:, :, :-1, :-1]
        down = (here - self.picture[:, :, 1:, :-1]).square()
        right = (here - self.picture[:, :, :-1, 1:]).square()
        return (down + right).pow(1.25).sum()


def _gram(features: torch.Tensor) -> torch.Tensor:
    # A view in either layout.
    channels = features[0].flatten(1)
    return (channels @ channels.T).float()


def main() -> None:
    """Measure one dtype and layout and print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure one iteration in PyTorch.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    # float32 is to be float32, as it is in nst; by itself PyTorch rounds what goes into a GPU's convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with np.load(options.file) as file:
        given = dict(file)
    example = TorchExample(
        given, dtype=getattr(torch, options.dtype), layout=LAYOUTS[options.layout], device=options.device
    )
    losses: list[float] = []
    found = timed(lambda: losses.append(example.iterate()), options.repeats)
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__}
    print(json.dumps({**found, "losses": losses, "layout": options.layout, "versions": versions}))


if __name__ == "__main__":
    main()
