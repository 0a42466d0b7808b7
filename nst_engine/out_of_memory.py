"""What is done when the memory runs out in the middle of work: the evaluation goes on under a plan that needs less."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
import tensorflow as tf

from nst_engine.evaluation import Evaluation
from nst_engine.memory import MemoryPlan

logger = logging.getLogger(__name__)

_SAID_OTHERWISE: Final = (
    # By a copy to a GPU without room for it (https://github.com/tensorflow/tensorflow/issues/7025).
    (tf.errors.InternalError, "Dst tensor is not initialized"),
    # By oneDNN, whose status 1 is dnnl_out_of_memory.
    (tf.errors.AbortedError, "Status:1,"),
    # By cuDNN, which gets no room to work in (https://github.com/tensorflow/tensorflow/issues/60713).
    (tf.errors.NotFoundError, "CUDNN_STATUS_ALLOC_FAILED"),
)

Evaluate = Callable[[np.ndarray], Evaluation]
Value = TypeVar("Value")


def is_out_of_memory(error: Exception) -> bool:
    """Whether TensorFlow or NumPy says with this error that the memory, a GPU's or the machine's, has run out."""
    if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
        return True
    return any(isinstance(error, kind) and words in str(error) for kind, words in _SAID_OTHERWISE)


class FallingBack:
    """The evaluation of one transfer, which begins under `plan` and takes another whenever the memory runs out.

    `size` is the content's, (rows, columns), for those who read of it.
    `prepare` gives the evaluation under a plan, its targets computed. `next_plan` is told under which plan the memory
    ran out and gives the one to try next, or raises OutOfMemoryError.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        *,
        size: tuple[int, ...],
        prepare: Callable[[MemoryPlan], Evaluate],
        next_plan: Callable[[MemoryPlan], MemoryPlan],
    ) -> None:
        self._plan = plan
        self._size = size
        self._prepare = prepare
        self._next_plan = next_plan
        self._evaluate: Evaluate | None = None
        self._fitting(lambda evaluate: evaluate)

    def __call__(self, picture: np.ndarray) -> Evaluation:
        """The losses of a preprocessed picture, and their gradient."""
        return self._fitting(lambda evaluate: evaluate(picture))

    def _fitting(self, work: Callable[[Evaluate], Value]) -> Value:
        first = self._plan
        while True:
            try:
                if self._evaluate is None:
                    self._evaluate = self._prepare(self._plan)
                done = work(self._evaluate)
                break
            except (tf.errors.OpError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._plan = self._next_plan(self._plan)
            self._evaluate = None
            # The error's frames hold each other, and with them what filled the memory.
            gc.collect()
        if self._plan is not first:
            logger.warning(
                "The memory did not suffice for %d x %d pixels: %s. From now on: %s.", *self._size, first, self._plan
            )
        return done
