"""The warm part: one device with the networks, traces and targets that were needed last, so that the next
transfer or the next stretch of the same one starts at once. An Engine holds nothing that a result depends on:
a fresh one gives the same picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf

from nst_engine import weights
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig
from nst_engine.evaluation import Evaluation
from nst_engine.hardware import Device, choose_device, choose_precision
from nst_engine.images import preprocess
from nst_engine.memory import Memory, MemoryPlan, machine_memory, plan_memory
from nst_engine.objective import ContentForm, Form, Objective, StyleForm, StyleTargets, Targets, TracedObjective
from nst_engine.pictures import Pictures, digest_of
from nst_engine.recent import Recent
from nst_engine.tiled_objective import TiledObjective

_FORMS_KEPT: Final = 4
_WEIGHTS_KEPT: Final = 2
_CONTENTS_KEPT: Final = 4
# A collection's styles: those of the five usual layers take 2.4 MB each, those of all sixteen 9.6 MB.
_STYLES_KEPT: Final = 32
_STYLE_BYTES_KEPT: Final = 128_000_000


class Engine:
    """Computes losses and gradients on one device ("auto", "cpu", "gpu", "gpu:N"), in at most `max_memory` bytes.

    Without a limit, what is free now bounds a CPU; of a GPU, TensorFlow does not say. Pictures that need more are
    worked on in tiles, which differs from the whole only in the last digits. Raises DeviceError when there is no
    such device.
    """

    def __init__(self, device: str = "auto", *, max_memory: int | None = None) -> None:
        self.device: Device = choose_device(device)
        # Once, so that a picture is worked on in the same way for as long as this engine lives.
        self._memory = None if max_memory is None else Memory(free=max_memory, most=max_memory)
        if max_memory is None and self.device.name == "cpu":
            self._memory = machine_memory()
        self._weights: Recent[tuple[object, ...], weights.Weights] = Recent(_WEIGHTS_KEPT)
        self._objectives: Recent[tuple[Form, str, int | None], Objective[Any]] = Recent(_FORMS_KEPT)
        self._contents: Recent[tuple[ContentForm, str, str, int | None], Any] = Recent(_CONTENTS_KEPT)
        self._styles: Recent[tuple[StyleForm, str, str, int | None], StyleTargets] = Recent(
            _STYLES_KEPT, limit=_STYLE_BYTES_KEPT, size=lambda style: style.bytes
        )

    def weights(self, choice: str) -> weights.Weights:
        """The weights that a config's `weights` means, read once; WeightsError when they are not to be had."""
        found = None if choice == RANDOM_WEIGHTS else weights.find(choice)
        # With its time, so that a file that is replaced under a warm engine is read again.
        key = (choice, found.path, found.path.stat().st_mtime_ns) if found else (choice,)
        return self._weights.get(key, lambda: weights.load(choice))

    def precision(self, config: TransferConfig) -> str:
        """The precision that the config's `precision` means on this device."""
        return choose_precision(config.precision, self.device)

    def memory_plan(self, config: TransferConfig, pictures: Pictures, *, precision: str) -> MemoryPlan:
        """Whether these pictures are worked on in tiles here; MemoryNeededError when they fit in none."""
        sizes = [picture.shape[:2] for picture in (pictures.content, *pictures.styles)]
        return plan_memory(config, sizes, precision=precision, memory=self._memory)

    def evaluator(
        self, config: TransferConfig, pictures: Pictures, *, precision: str
    ) -> Callable[[np.ndarray], Evaluation]:
        """The loss of this transfer as a function of a preprocessed picture, its targets computed.

        Raises MemoryNeededError when it needs more memory than there is, in tiles too.
        """
        side = self.memory_plan(config, pictures, precision=precision).side
        loaded = self.weights(config.weights)
        form = Form.of(config, styles=len(pictures.styles), dtype=precision)

        def trace() -> Objective[Any]:
            on_cpu = self.device.name == "cpu"
            if side is None:
                return TracedObjective(form, loaded.kernels, on_cpu=on_cpu)
            return TiledObjective(form, loaded.kernels, on_cpu=on_cpu, side=side)

        with tf.device(self.device.tensorflow_name):
            objective = self._objectives.get((form, loaded.sha256, side), trace)
            targets = Targets(
                content=self._contents.get(
                    (form.content, loaded.sha256, digest_of(pictures.content), side),
                    lambda: objective.content_targets(preprocess(pictures.content)),
                ),
                styles=[self._style_targets(objective, loaded.sha256, style, side) for style in pictures.styles],
            )

        def evaluate(picture: np.ndarray) -> Evaluation:
            with tf.device(self.device.tensorflow_name):
                return objective.evaluate(picture, targets, config)

        return evaluate

    def _style_targets(
        self, objective: Objective[Any], weights_sha256: str, style: np.ndarray, side: int | None
    ) -> StyleTargets:
        key = (objective.form.style, weights_sha256, digest_of(style), side)
        return self._styles.get(key, lambda: objective.style_targets(preprocess(style)))
