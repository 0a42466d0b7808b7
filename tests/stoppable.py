"""Processes that stand still and die at any call that changes something: each is a greenlet, so that one goes on at a
time and what happens is the same every time."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet

from storage.database import Database
from storage.errors import DatabaseError


class CrashError(BaseException):
    """The end of a process, which nothing in it can catch; whatever it tries afterwards does not happen."""


@dataclass
class Fault:
    """What befalls a process at its call of number `at`, counted from now: it dies, stalls, or the call is refused."""

    at: int
    kind: str


@dataclass(eq=False)
class Process:
    """A process of the service; what it runs is a greenlet, so that it can stand still while others go on."""

    name: str
    pid: int
    body: Callable[[], object]
    run_id: str | None = None
    run_count: int = 1
    fault: Fault | None = None
    dead: bool = False
    in_transaction: int = 0
    order: BaseException | None = None
    thread: greenlet = field(init=False)

    def __post_init__(self) -> None:
        self.thread = greenlet(self._run)

    @property
    def id(self) -> str | None:
        """What Prefect's runtime tells a flow of its run."""
        return self.run_id

    @property
    def ended(self) -> bool:
        return self.dead or self.thread.dead

    def go_on(self, fault: Fault | None = None, order: BaseException | None = None) -> Any:
        """Run until it stands still or ends; CrashError in it is its death."""
        self.fault, self.order = fault, order
        try:
            return self.thread.switch()
        except CrashError:
            return None

    def kill(self) -> None:
        self.dead = True
        if not self.thread.dead and self.thread:
            with contextlib.suppress(CrashError):
                self.thread.throw(CrashError())

    def stand_still(self) -> None:
        """Let others go on; then do as ordered."""
        assert self.thread.parent is not None
        self.thread.parent.switch(self)
        if self.order is not None:
            order, self.order = self.order, None
            raise order

    def point(self, refusal: Callable[[], Exception]) -> None:
        """A call that changes something is about to be made, or has been."""
        if self.dead:
            raise CrashError
        if self.fault is None:
            return
        self.fault.at -= 1
        if self.fault.at > 0 or (self.fault.kind == "stall" and self.in_transaction):
            return
        kind, self.fault = self.fault.kind, None
        if kind == "crash":
            self.dead = True
            raise CrashError
        if kind == "refuse":
            raise refusal()
        self.stand_still()

    def _run(self) -> object:
        return self.body()


def acting() -> Process | None:
    """The process whose code runs; None in the machine itself."""
    return getattr(getcurrent(), "process", None)


def spawn(name: str, pid: int, body: Callable[[], object], **more: Any) -> Process:
    process = Process(name, pid, body, **more)
    process.thread.process = process
    return process


class Acting:
    """What differs from process to process, read from the one that runs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(acting(), name)


def at_point(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A call that changes something on the disk, which may be where the process that makes it dies."""
    if (process := acting()) is not None:
        process.point(lambda: OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0])))
    return call(*arguments, **named)


def counted_begin(begin: Callable[[Database], Any]) -> Callable[[Database], Any]:
    """Database.begin with a point before and after each transaction."""

    @contextlib.contextmanager
    def counted(database: Database) -> Iterator[Any]:
        process = acting()
        if process is None:
            with begin(database) as session:
                yield session
            return
        process.point(lambda: DatabaseError("The database stayed locked."))
        process.in_transaction += 1
        try:
            with begin(database) as session:
                yield session
        finally:
            process.in_transaction -= 1
        # Done, and nobody has been told.
        process.point(lambda: DatabaseError("The database does not answer."))

    return counted
