"""An end by Ctrl-C or SIGTERM of a process that runs jobs itself. Python raises the signal's exception wherever the
main thread is: in a callback or a destructor it is lost, and an import or a library makes another error of it. So the
signal is noted as well, and asked for wherever the job can stop."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)


class _Noted:
    """The last of the signals that have come. Python writes the number of each that has a handler into a socket,
    whosever the handler is: that of SIGTERM stays Prefect's while a flow runs, as its cancelling needs."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._number: int | None = None

    def number(self) -> int | None:
        try:
            while came := self._reader.recv(4096):
                self._number = next((number for number in reversed(came) if number in _NUMBERS), self._number)
        except BlockingIOError:
            pass
        return self._number

    @contextmanager
    def listening(self) -> Iterator[None]:
        previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            self._reader.close()
            self._writer.close()


_noted: ContextVar[_Noted | None] = ContextVar("noted", default=None)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM is as Ctrl-C in this block, unless Prefect or another has a handler for it; and what the handler of
    either raises comes out of the block whatever became of it within.

    Another thread than the main one, where Python runs no handler, hears only of what is noted already. Ctrl-C of a
    process that ignores it, as a shell's background job does, stays ignored.
    """
    if _noted.get() is not None or threading.current_thread() is not threading.main_thread():
        with _as_interruption():
            yield
        return
    noted = _Noted()
    token = _noted.set(noted)
    ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with noted.listening(), _as_interruption():
            yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _noted.reset(token)


def stop_if_interrupted() -> None:
    """Raise what the signal's handler raises where the signal has come and its exception was lost."""
    noted = _noted.get()
    number = noted.number() if noted is not None else None
    if number is not None:
        signal.raise_signal(number)


@contextmanager
def _as_interruption() -> Iterator[None]:
    """What fails in this block after the signal has failed of it, and what ends well ends there all the same."""
    try:
        yield
    except Exception:
        stop_if_interrupted()
        raise
    stop_if_interrupted()
