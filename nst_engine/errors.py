"""The exceptions of the engine: every failure a caller can act on is an `EngineError`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class EngineError(Exception):
    """Base of the engine's failures; its message is one sentence for the person who asked."""


class ImageError(EngineError):
    """A picture cannot be read, is not usable, or cannot be written."""


class ConfigError(EngineError):
    """A setting is unknown, out of range or in conflict with another, or there is no such preset."""


class WeightsError(EngineError):
    """The network's weights cannot be found, fetched or read, or are not what they should be."""


class DeviceError(EngineError):
    """There is no such device on this machine."""


class MemoryNeededError(EngineError):
    """A transfer needs more memory than there is or than it may use, in tiles too."""


class OutOfMemoryError(EngineError):
    """The memory ran out in the middle of work, however little of it was asked for; another time it may be enough."""


class DiskSpaceError(EngineError):
    """There is no room on the disk for the arrays of a picture that is too large for the memory."""


class NotFiniteError(EngineError):
    """The loss became infinite or not a number.

    `best` is the picture of least loss until then, uint8 RGB (rows, columns, 3); None when there was none.
    """

    def __init__(self, message: str, *, best: np.ndarray | None) -> None:
        super().__init__(message)
        self.best = best

    def __reduce__(self) -> tuple[Callable[..., NotFiniteError], tuple[str]]:
        # It comes from a GPU worker through a pickle, which knows no keyword-only arguments.
        return functools.partial(NotFiniteError, best=self.best), (str(self),)
