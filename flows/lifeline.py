"""A child process that ends with the process that started it, also when that one is killed with -9: the child reads
a pipe whose only other end the parent holds, so the kernel tells it of the parent's end, however that came."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from types import TracebackType

from flows.errors import FlowError

VARIABLE = "NST_LIFELINE"


class Lifeline:
    """The parent's end: children started with `environment()` and `pass_fds=(child_fd,)` end when it is closed.

    One serves any number of children, also later ones. It is closed by close(), by the end of a `with` block, and
    by the kernel when the process ends.
    """

    def __init__(self) -> None:
        # Python's pipes are closed on exec, so that no child can hold the end that keeps the others alive.
        self.child_fd, self._held = os.pipe()

    def environment(self) -> dict[str, str]:
        """The variable that tells a child of its end."""
        return {VARIABLE: str(self.child_fd)}

    def close(self) -> None:
        """Let go: every child that holds on to it receives SIGTERM. A second call does nothing."""
        if self._held != -1:
            os.close(self._held)
            os.close(self.child_fd)
            self._held = self.child_fd = -1

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def end_with_parent(*, grace: float = 10.0) -> None:
    """Send this process SIGTERM when the one that started it has ended, and end it `grace` seconds after that.

    Does nothing where the environment names no lifeline. What this process starts does not inherit it.
    Raises FlowError when what the environment names is no pipe of this process.
    """
    value = os.environ.pop(VARIABLE, None)
    if value is None:
        return
    try:
        fd = int(value)
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except (ValueError, OSError) as error:
        raise _no_pipe(value) from error
    if not is_pipe:
        raise _no_pipe(value)
    os.set_inheritable(fd, False)
    threading.Thread(target=_follow, args=(fd, grace), name="lifeline", daemon=True).start()


def _no_pipe(value: str) -> FlowError:
    return FlowError(f"{VARIABLE}={value} names no pipe of this process; unset it or start the process with nst up.")


def _follow(fd: int, grace: float) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # There is no event to wait for: if the process ends in time, this thread ends with it.
    time.sleep(grace)
    os._exit(1)
