"""How far a job is, from the flow to whoever watches it in the same process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A job's optimisation after so many iterations.

    `seconds_an_iteration` is the mean since this process took the job up, without start-up; None at its start.
    """

    iteration: int
    iterations: int
    loss: float
    seconds_an_iteration: float | None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this pace."""
        if self.seconds_an_iteration is None:
            return None
        return (self.iterations - self.iteration) * self.seconds_an_iteration


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
