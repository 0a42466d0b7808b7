"""What is known of each supervised part from outside: its process and how often it had to be started again, in a small
file beside its log. The supervisor writes them, `nst doctor` and the metrics read them."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from storage.disk import write_bytes
from storage.jobs import utc_now

_SUFFIX: Final = ".state.json"
_TIMES_KEPT: Final = 20

logger = logging.getLogger("nst")


@dataclass(frozen=True)
class PartState:
    """A part of a running supervisor. `latest` are the times of its last restarts, the newest last."""

    name: str
    supervisor: int
    process: int
    restarts: int
    latest: tuple[datetime, ...]


class PartRecord:
    """Writes the state of one part; for all threads of its supervisor."""

    def __init__(self, logs: Path, name: str) -> None:
        self._path = logs / f"{name}{_SUFFIX}"
        self._lock = threading.Lock()
        self._process = 0
        self._restarts = 0
        self._latest: list[datetime] = []
        self._ended = False

    def note_process(self, process: int) -> None:
        """The part runs in this process now."""
        with self._lock:
            self._process = process
            self._write()

    def note_restart(self) -> None:
        """The part, or a process that it keeps itself, is started again."""
        with self._lock:
            self._restarts += 1
            self._latest = [*self._latest, utc_now()][-_TIMES_KEPT:]
            self._write()

    def end(self) -> None:
        """The part has ended for good."""
        with self._lock:
            self._ended = True
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._ended:
            return
        document = {
            "supervisor": os.getpid(),
            "process": self._process,
            "restarts": self._restarts,
            "latest": [time.isoformat() for time in self._latest],
        }
        try:
            write_bytes(self._path, json.dumps(document).encode())
        except OSError as error:
            # A disk that is full must not keep a part from being started again.
            logger.warning("%s cannot be written (%s); free some space.", self._path, error.strerror or error)


def read_part_states(logs: Path) -> list[PartState]:
    """The states of all parts with a file, by name; also those that a supervisor which was killed has left."""
    states = []
    for path in sorted(logs.glob(f"*{_SUFFIX}")):
        try:
            document = json.loads(path.read_bytes())
            latest = tuple(datetime.fromisoformat(time) for time in document.pop("latest"))
            states.append(PartState(name=path.name.removesuffix(_SUFFIX), latest=latest, **document))
        except (FileNotFoundError, ValueError):
            # Removed since it was listed, or written by hand: nothing of ours to tell.
            continue
    return states
