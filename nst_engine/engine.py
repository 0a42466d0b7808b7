"""The warm part: one device with the networks, traces and targets that were needed last, so that the next
transfer or the next stretch of the same one starts at once. An Engine holds nothing that a result depends on:
a fresh one gives the same picture."""

from __future__ import annotations

import sys
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
import tensorflow as tf

from nst_engine import weights
from nst_engine.acceleration import Acceleration, choose_acceleration
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig, check_styles
from nst_engine.errors import OutOfMemoryError
from nst_engine.evaluation import Evaluation
from nst_engine.form import ContentForm, Form, StyleForm
from nst_engine.gpu_memory import memory_of
from nst_engine.hardware import Device, choose_device, choose_precision
from nst_engine.images import preprocess
from nst_engine.masks import Guide
from nst_engine.memory import PROCESS_BYTES, Memory, MemoryPlan, machine_memory, plan_memory
from nst_engine.objective import Objective, StyleTargets, Targets, TracedObjective
from nst_engine.out_of_memory import Evaluate, FallingBack
from nst_engine.pictures import Pictures, digest_of
from nst_engine.recent import Recent
from nst_engine.startup import give_back_memory
from nst_engine.tiled_objective import TiledObjective
from nst_engine.tiling import Tiling
from nst_engine.vgg19 import Network

# Forms of one precision share their weights, so one more costs little; and of a trace that is made again TensorFlow
# keeps some 5 MB of the one before.
_FORMS_KEPT: Final = 16
_WEIGHTS_KEPT: Final = 2
_CONTENTS_KEPT: Final = 4
# A collection's styles: those of the five usual layers take 2.4 MB each, those of all sixteen 9.6 MB.
_STYLES_KEPT: Final = 32
_STYLE_BYTES_KEPT: Final = 128_000_000
_CLEARLY_LESS: Final = 0.9
"""What is tried next when the memory has run out needs at most this share of what was tried."""
_KEPT_TO: Final = 2 * PROCESS_BYTES
"""What an engine does not keep other pictures below, however little there was once: small ones need hardly less in
tiles, and what made the memory run out may have gone."""


class Engine:
    """Computes losses and gradients on one device ("auto", "cpu", "gpu", "gpu:N"), in at most `max_memory` bytes.

    Without a limit, what is free now is the limit, of the machine or of the GPU. Pictures that need more are worked
    on in tiles, which differs from the whole only in the last digits. `xla` and `deterministic` are for those who
    compute on a GPU, see `acceleration`. Raises DeviceError when there is no such device.
    """

    def __init__(
        self,
        device: str = "auto",
        *,
        max_memory: int | None = None,
        xla: bool = False,
        deterministic: bool = True,
    ) -> None:
        self.device: Device = choose_device(device)
        self._xla = xla
        self._deterministic = deterministic
        # Once, so that a picture is worked on in the same way for as long as this engine lives and has enough.
        self._memory = memory_of(self.device) if max_memory is None else Memory(free=max_memory, most=max_memory)
        # Of a GPU's process, what is in the machine's memory.
        self._host = None if self.device.name == "cpu" else machine_memory()
        # By the content's digest, what pictures may take with which the memory has run out.
        self._ran_out = dict[str, int]()
        self._weights: Recent[tuple[object, ...], weights.Weights] = Recent(_WEIGHTS_KEPT)
        # Each for as long as an objective uses it: forms of one precision share the weights.
        self._networks = WeakValueDictionary[tuple[str, str], Network]()
        self._objectives: Recent[tuple[Form, str, Tiling | None, Acceleration], Objective[Any]] = Recent(_FORMS_KEPT)
        self._contents: Recent[tuple[ContentForm, str, str, Tiling | None, Acceleration], Any] = Recent(_CONTENTS_KEPT)
        self._styles: Recent[tuple[StyleForm, str, str, str, Tiling | None, Acceleration], StyleTargets] = Recent(
            _STYLES_KEPT, limit=_STYLE_BYTES_KEPT, size=lambda style: style.bytes
        )

    def weights(self, choice: str) -> weights.Weights:
        """The weights that a config's `weights` means, read once; WeightsError when they are not to be had."""
        found = None if choice == RANDOM_WEIGHTS else weights.find(choice)
        # With its version, so that a file that is replaced under a warm engine is read again.
        key = (choice, found.path, weights.version(found.path)) if found else (choice,)
        return self._weights.get(key, lambda: weights.load(choice))

    def precision(self, config: TransferConfig) -> str:
        """The precision that the config's `precision` means on this device."""
        return choose_precision(config.precision, self.device)

    def memory_plan(self, config: TransferConfig, pictures: Pictures, *, precision: str) -> MemoryPlan:
        """Whether these pictures are worked on in tiles here; MemoryNeededError when they fit in none."""
        sizes = [picture.shape[:2] for picture in (pictures.content, *pictures.styles)]
        memory = self._memory
        if self._ran_out:
            memory = _at_most(self._ran_out.get(digest_of(pictures.content), sys.maxsize), memory)
        return plan_memory(
            config, sizes, masks=len(pictures.masks), precision=precision, memory=memory, host=self._host
        )

    def evaluator(self, config: TransferConfig, pictures: Pictures, *, precision: str) -> Evaluate:
        """The loss of this transfer as a function of a preprocessed picture, its targets computed.

        When the memory runs out, here or in a call, it goes on in tiles that need less, and for as long as this engine
        lives it keeps to less with this content, and to at most that or 2 GB with others. Raises OutOfMemoryError when
        nothing needs clearly less, MemoryNeededError when it needs more memory than there is, in tiles too, ConfigError
        as `check_styles`, and ImageError when a mask has nothing inside at a layer.
        """
        check_styles(config, styles=len(pictures.styles))

        def plan() -> MemoryPlan:
            return self.memory_plan(config, pictures, precision=precision)

        def next_plan(failed: MemoryPlan) -> MemoryPlan:
            clearly_less = round(_CLEARLY_LESS * failed.bytes)
            self._ran_out[digest_of(pictures.content)] = clearly_less
            self._keep_to(max(clearly_less, _KEPT_TO))
            less = plan()
            if less.bytes > clearly_less:
                rows, columns = pictures.content.shape[:2]
                raise OutOfMemoryError(
                    f"The memory ran out on {rows} x {columns} pixels ({failed}), and nothing needs clearly less; ask "
                    "for fewer rows, or let other programs leave more memory."
                )
            return less

        return FallingBack(
            plan(),
            size=pictures.content.shape[:2],
            prepare=lambda chosen: self._prepared(config, pictures, chosen, precision=precision),
            next_plan=next_plan,
        )

    def _keep_to(self, free: int) -> None:
        """Take at most `free` bytes from now on where that can be, and forget the contents, which are large."""
        self._memory = _at_most(free, self._memory)
        self._contents.clear()

    def _prepared(self, config: TransferConfig, pictures: Pictures, plan: MemoryPlan, *, precision: str) -> Evaluate:
        tiling = plan.tiling
        loaded = self.weights(config.weights)
        form = Form.of(
            config,
            styles=len(pictures.styles),
            dtype="float32" if precision == "tf32" else precision,
            masked=bool(pictures.masks),
        )
        acceleration = choose_acceleration(
            self.device, precision=precision, xla=self._xla, deterministic=self._deterministic
        )
        acceleration.switch_on()
        known = self._networks.get((loaded.sha256, form.dtype))
        if known is not None:
            # The same numbers, but from the file as it is now, also for layers that are yet to be built.
            known.kernels = loaded.kernels

        def network() -> Network:
            if known is not None:
                return known
            made = Network(loaded.kernels, dtype=form.dtype, on_cpu=acceleration.on_cpu)
            self._networks[loaded.sha256, form.dtype] = made
            return made

        def trace() -> Objective[Any]:
            if tiling is None:
                return TracedObjective(form, network(), acceleration=acceleration)
            return TiledObjective(form, network(), tiling=tiling)

        with tf.device(self.device.tensorflow_name):
            objective = self._objectives.get((form, loaded.sha256, tiling, acceleration), trace)

            def guide(place: int, mask: np.ndarray) -> Guide:
                return Guide.of(
                    form.style_layers,
                    mask.shape,
                    sampled=form.sampled,
                    mask=mask,
                    name=f"style {place + 1}",
                )

            def style_targets(place: int, style: np.ndarray) -> StyleTargets:
                mask = pictures.style_masks[place] if pictures.style_masks else None
                masked = "" if mask is None else digest_of(mask)
                key = (form.style, loaded.sha256, digest_of(style), masked, tiling, acceleration)
                return self._styles.get(
                    key,
                    lambda: objective.style_targets(preprocess(style), None if mask is None else guide(place, mask)),
                )

            targets = Targets(
                content=self._contents.get(
                    (form.content, loaded.sha256, digest_of(pictures.content), tiling, acceleration),
                    lambda: objective.content_targets(preprocess(pictures.content)),
                ),
                styles=[style_targets(place, style) for place, style in enumerate(pictures.styles)],
                guides=[guide(place, mask) for place, mask in enumerate(pictures.masks)],
            )

        if tiling is not None:
            give_back_memory()

        def evaluate(picture: np.ndarray) -> Evaluation:
            # The engine may have served a transfer in another precision since.
            acceleration.switch_on()
            with tf.device(self.device.tensorflow_name):
                evaluation = objective.evaluate(picture, targets, config)
            if tiling is not None:
                give_back_memory()
            return evaluation

        return evaluate


def _at_most(free: int, memory: Memory | None) -> Memory:
    """`memory` of which at most `free` bytes are free; that much, and any at the most, where nothing is known of it."""
    known = memory or Memory(free=sys.maxsize, most=sys.maxsize)
    return Memory(free=min(free, known.free), most=known.most)
