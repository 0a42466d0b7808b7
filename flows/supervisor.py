"""Keeps a number of child processes running: starts them in order, restarts what ends, with a growing pause, and stops
them in the opposite order. Each ends with this process, however that ends, and each writes to a log file of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flows.errors import FlowError
from flows.lifeline import Lifeline
from flows.logs import line_file
from flows.part_states import PartRecord

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
# One that ran so long starts with the shortest pause again.
_STEADY_SECONDS: Final = 60.0
# What a process started may hold its output open for longer.
_LAST_LINES_SECONDS: Final = 1.0

logger = logging.getLogger("nst")


@dataclass(frozen=True)
class Part:
    """A process to keep running. `ready` waits, after each start, until it can be used; it may raise FlowError.

    The lines of a part that `speaks` are also this process's. It has `stop_seconds` to end when told to. A line with
    `restart_sign` says that the part has started a process of its own again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[Callable[[], bool]], None] | None = None
    speaks: bool = False
    restart_sign: str | None = None
    stop_seconds: float = 20.0


class Supervisor:
    """Runs the parts until `stop` is set. `logs` is the folder of their log files.

    They are ended one after the other, the last first, or all at once where they need not be `in_order`.
    """

    def __init__(self, parts: Sequence[Part], *, logs: Path, stop: threading.Event, in_order: bool = True) -> None:
        self._parts = parts
        self._logs = logs
        self._stop = stop
        self._in_order = in_order
        self._children: dict[str, _Child] = {}

    def run(self, *, started: Callable[[], None]) -> None:
        """Start all parts, call `started`, keep them running until told to stop, stop them.

        What a part's `ready` raises at the first start ends it all.
        """
        with Lifeline() as lifeline:
            try:
                for part in self._parts:
                    if self._stop.is_set():
                        return
                    child = self._children[part.name] = _Child(part, lifeline, self._logs, self._stop)
                    child.start()
                started()
                self._stop.wait()
            except FlowError:
                # A part that is stopped while it starts never gets ready.
                if not self._stop.is_set():
                    raise
            finally:
                self._stop.set()
                if not self._in_order:
                    for child in self._children.values():
                        child.tell_to_end()
                for child in reversed(self._children.values()):
                    child.end()

    def process_ids(self) -> dict[str, int]:
        """The process of each part, by its name."""
        return {name: child.pid for name, child in self._children.items()}


class _Child:
    def __init__(self, part: Part, lifeline: Lifeline, logs: Path, stop: threading.Event) -> None:
        self._part = part
        self._lifeline = lifeline
        self._log = line_file(logs / f"{part.name}.log")
        self._record = PartRecord(logs, part.name)
        self._stop = stop
        self._process: subprocess.Popen[str] | None = None
        self._writer: threading.Thread | None = None
        self._keeper = threading.Thread(target=self._keep, name=part.name)
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> None:
        self._spawn()
        self._wait_until_ready()
        self._keeper.start()

    def tell_to_end(self) -> None:
        """Send SIGTERM."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """SIGTERM, and SIGKILL when it does not listen."""
        self.tell_to_end()
        process = self._process
        if process is not None:
            try:
                process.wait(self._part.stop_seconds)
            except subprocess.TimeoutExpired:
                logger.warning("%s does not end; it is killed", self._part.name)
                process.kill()
                process.wait()
        if self._keeper.is_alive():
            self._keeper.join()
        if self._writer is not None:
            self._writer.join(_LAST_LINES_SECONDS)
        self._log.close()
        self._record.end()

    def _spawn(self) -> None:
        with self._lock:
            # Whoever ends this one sets the event first: it either sees the new process or prevents it.
            if self._stop.is_set():
                return
            process = self._process = subprocess.Popen(  # noqa: S603
                self._part.command,
                env={**os.environ, **self._part.environment, **self._lifeline.environment(), "PYTHONUNBUFFERED": "1"},
                pass_fds=(self._lifeline.child_fd,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Ctrl-C on the terminal is for this process, which stops the others in their order.
                start_new_session=True,
            )
        self._record.note_process(process.pid)
        self._writer = threading.Thread(
            target=self._write_down, args=(process,), name=f"{self._part.name} log", daemon=True
        )
        self._writer.start()

    def _wait_until_ready(self) -> None:
        process = self._process
        if self._part.ready is not None and process is not None:
            self._part.ready(lambda: process.poll() is None and not self._stop.is_set())

    def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            process, began = self._process, time.monotonic()
            if process is None:
                return
            code = process.wait()
            if self._stop.is_set():
                return
            if time.monotonic() - began >= _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            logger.warning(
                "%s ended (%s); it starts again in %g s, see %s",
                self._part.name,
                _how(code),
                pause,
                self._log.baseFilename,
            )
            if self._stop.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._record.note_restart()
            self._restart()

    def _restart(self) -> None:
        try:
            self._spawn()
            self._wait_until_ready()
        except (OSError, FlowError) as error:
            logger.warning("%s: %s", self._part.name, error)

    def _write_down(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip("\n")
            self._log.handle(logging.makeLogRecord({"msg": text}))
            if self._part.restart_sign is not None and self._part.restart_sign in text:
                self._record.note_restart()
            if self._part.speaks:
                print(text, flush=True)  # noqa: T201


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
