"""An end by Ctrl-C or SIGTERM of a command that runs jobs in its own process. Python raises KeyboardInterrupt wherever
the main thread is: in a callback or a destructor it is lost, and some libraries make another error of it. So it is
noted as well, and asked for wherever the job can stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

_interrupted: ContextVar[threading.Event | None] = ContextVar("interrupted", default=None)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is as Ctrl-C in this block, whose KeyboardInterrupt comes out of it whatever became of it within.

    To be used in the main thread. Ctrl-C of a process that ignores it, as a shell's background job does, stays ignored.
    """
    event = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        event.set()
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    token = _interrupted.set(event)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        with as_interruption():
            yield
        stop_if_interrupted()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _interrupted.reset(token)


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt where the signal has come and its exception was lost."""
    if _is_interrupted():
        raise KeyboardInterrupt


@contextmanager
def as_interruption() -> Iterator[None]:
    """What fails in this block after the signal has failed of it: KeyboardInterrupt is raised from it."""
    try:
        yield
    except Exception as error:
        if _is_interrupted():
            raise KeyboardInterrupt from error
        raise


def _is_interrupted() -> bool:
    event = _interrupted.get()
    return event is not None and event.is_set()
