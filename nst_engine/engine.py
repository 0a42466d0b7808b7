"""The warm part: one device with the networks, traces and targets that were needed last, so that the next
transfer or the next stretch of the same one starts at once. An Engine holds nothing that a result depends on:
a fresh one gives the same picture."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

import numpy as np
import tensorflow as tf

from nst_engine import weights
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig
from nst_engine.evaluation import Evaluation
from nst_engine.hardware import Device, choose_device, choose_precision
from nst_engine.images import preprocess
from nst_engine.objective import Form, Targets, TracedObjective
from nst_engine.pictures import Pictures

_FORMS_KEPT: Final = 4
_TARGETS_KEPT: Final = 4
_WEIGHTS_KEPT: Final = 2

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Recent(Generic[Key, Value]):
    """The values that were used last, at most `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


class Engine:
    """Computes losses and gradients on one device ("auto", "cpu", "gpu", "gpu:N").

    Raises DeviceError when there is no such device.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device: Device = choose_device(device)
        self._weights: _Recent[tuple[object, ...], weights.Weights] = _Recent(_WEIGHTS_KEPT)
        self._objectives: _Recent[tuple[Form, str], TracedObjective] = _Recent(_FORMS_KEPT)
        self._targets: _Recent[tuple[Form, str, str], Targets] = _Recent(_TARGETS_KEPT)

    def weights(self, choice: str) -> weights.Weights:
        """The weights that a config's `weights` means, read once; WeightsError when they are not to be had."""
        found = None if choice == RANDOM_WEIGHTS else weights.find(choice)
        # With its time, so that a file that is replaced under a warm engine is read again.
        key = (choice, found.path, found.path.stat().st_mtime_ns) if found else (choice,)
        return self._weights.get(key, lambda: weights.load(choice))

    def precision(self, config: TransferConfig) -> str:
        """The precision that the config's `precision` means on this device."""
        return choose_precision(config.precision, self.device)

    def evaluator(
        self, config: TransferConfig, pictures: Pictures, *, precision: str
    ) -> Callable[[np.ndarray], Evaluation]:
        """The loss of this transfer as a function of a preprocessed picture, its targets computed."""
        loaded = self.weights(config.weights)
        form = Form.of(config, styles=len(pictures.styles), dtype=precision)

        def trace() -> TracedObjective:
            return TracedObjective(form, loaded.kernels, on_cpu=self.device.name == "cpu")

        def compute_targets() -> Targets:
            return objective.targets(preprocess(pictures.content), [preprocess(style) for style in pictures.styles])

        with tf.device(self.device.tensorflow_name):
            objective = self._objectives.get((form, loaded.sha256), trace)
            targets = self._targets.get((form, loaded.sha256, pictures.digest()), compute_targets)

        def evaluate(picture: np.ndarray) -> Evaluation:
            with tf.device(self.device.tensorflow_name):
                return objective.evaluate(picture, targets, config)

        return evaluate
