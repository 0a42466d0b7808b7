"""Which of the flow runs in this process have been cancelled through Prefect's API. It is asked for all of them at
once, since every question costs its server time that a burst would rather compute in, and in a thread of its own, since
it may be slow or away."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from flows.errors import OrchestrationError
from flows.runs import Asker, RunState

_ASK_SECONDS: Final = 2.0


@dataclass
class _Watched:
    """A run that is watched: its event, and whom to tell once when Prefect goes away."""

    warn: Callable[[str], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    away: bool = False


class _Questions:
    """The runs that are watched, and the one thread that asks for them while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = dict[str, _Watched]()
        self._none_left = threading.Event()
        self._asking = False

    def add(self, run_id: str, run: _Watched) -> None:
        with self._lock:
            self._runs[run_id] = run
            self._none_left.clear()
            if not self._asking:
                self._asking = True
                threading.Thread(target=self._keep_asking, name="prefect-cancel", daemon=True).start()

    def remove(self, run_id: str) -> None:
        with self._lock:
            del self._runs[run_id]
            if not self._runs:
                self._none_left.set()

    def _keep_asking(self) -> None:
        with contextlib.closing(Asker()) as asker:
            while True:
                self._none_left.wait(_ASK_SECONDS)
                with self._lock:
                    runs = dict(self._runs)
                    if not runs:
                        self._asking = False
                        return
                _ask(asker, runs)


_questions: Final = _Questions()


@contextmanager
def watched(run_id: str, *, warn: Callable[[str], None]) -> Iterator[threading.Event]:
    """An event that is set when the run is cancelled in Prefect, for the length of a block.

    `warn` gets a sentence when Prefect does not answer, once until it does again.
    """
    run = _Watched(warn)
    _questions.add(run_id, run)
    try:
        yield run.cancelled
    finally:
        _questions.remove(run_id)


def _ask(asker: Asker, runs: Mapping[str, _Watched]) -> None:
    try:
        states = asker.states(runs)
    except OrchestrationError as error:
        for run in runs.values():
            if not run.away:
                run.warn(f"{error} The job goes on; `nst cancel` still works.")
            run.away = True
        return
    for run_id, run in runs.items():
        run.away = False
        if states[run_id] is RunState.CANCELLED:
            run.cancelled.set()
