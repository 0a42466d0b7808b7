"""How far a job is, from the flow to whoever watches it in the same process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from nst_engine.config import TransferConfig
from nst_engine.scales import iterations_left


@dataclass(frozen=True)
class Progress:
    """The optimisation of a job of that config after `iteration` iterations, the last of them at `scale`.

    `seconds_an_iteration` is the mean at this scale since this process took the job up, without start-up; None
    at the scale's start.
    """

    config: TransferConfig
    iteration: int
    scale: int
    loss: float
    seconds_an_iteration: float | None

    @property
    def position(self) -> str:
        """How far it is, in words."""
        scale = f" (scale {self.scale} of {self.config.scales})" if self.config.scales > 1 else ""
        return f"iteration {self.iteration} of {self.config.iterations}{scale}"

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this pace, which goes with the number of pixels."""
        if self.seconds_an_iteration is None:
            return None
        left = iterations_left(self.config, iteration=self.iteration, scale=self.scale)
        return left * self.seconds_an_iteration


Watcher = Callable[[Progress], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the progress of the jobs that run in this context."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def publish(progress: Progress) -> None:
    """Tell the watcher of this context, if there is one."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(progress)
