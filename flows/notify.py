"""Tells people of jobs that failed and of nights that ended, by the services that Apprise knows. A thread of its own
sends, so that a receiver that hangs holds up no job; what happens within a minute is one message."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from pydantic import SecretStr

from storage.models import Job, JobState

if TYPE_CHECKING:
    from apprise import Apprise

FAILED: Final = "failed"
NIGHT: Final = "night"
_GATHER_SECONDS: Final = 60.0
_PAUSES: Final = (10.0, 60.0)
"""Before the second and the third try at a message."""
_CLOSE_SECONDS: Final = 8.0
_NAMED: Final = 5

logger = logging.getLogger("nst")


@dataclass(frozen=True)
class Receiver:
    """One address, which is a secret; `label` names it without: address 1 (mailto)."""

    label: str
    service: Apprise

    def send(self, title: str, body: str) -> bool:
        """Send a message; False when the receiver has not taken it. Takes a few seconds at most."""
        return bool(self.service.notify(body=body, title=title))


def receivers_of(addresses: Sequence[SecretStr]) -> tuple[list[Receiver], list[str]]:
    """The receivers, and the labels of those addresses that Apprise does not know."""
    # Its import costs as much as the rest of the sensor's, and what it logs names addresses.
    from apprise import Apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    receivers, unknown = [], []
    for number, address in enumerate(addresses, 1):
        url, service = address.get_secret_value(), Apprise()
        label = f"address {number} ({url.partition('://')[0]})"
        if service.add(url):
            receivers.append(Receiver(label, service))
        else:
            unknown.append(label)
    return receivers, unknown


@dataclass
class _Gathered:
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    nights: list[str] = field(default_factory=list)

    def message(self) -> tuple[str, str] | None:
        """Title and body, None where nothing happened."""
        what, lines = [], list[str]()
        if self.failed:
            what.append("a job failed" if self.failed == 1 else f"{self.failed} jobs failed")
            lines += self.failures
            if more := self.failed - len(self.failures):
                lines.append(f"and {more} more; `nst jobs --state failed` lists them.")
        if self.nights:
            what.append("a night has ended" if len(self.nights) == 1 else f"{len(self.nights)} nights have ended")
            lines += self.nights
        return (f"nst on {socket.gethostname()}: {', '.join(what)}", "\n".join(lines)) if what else None


class Notifier:
    """Sends what it is told for the length of the `with` block; without an address it does nothing.

    `on` says what counts: FAILED, NIGHT or both. Messages are tried once more after each of the `pauses`, in seconds.
    """

    def __init__(
        self,
        addresses: Sequence[SecretStr],
        *,
        on: Collection[str],
        gather_seconds: float = _GATHER_SECONDS,
        pauses: Sequence[float] = _PAUSES,
    ) -> None:
        self._addresses = addresses
        self._on = on
        self._gather_seconds = gather_seconds
        self._pauses = pauses
        self._gathered = _Gathered()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        # A receiver that hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def job_ended(self, job: Job) -> None:
        """Tell of a job that failed; one of a night counts in the message about that."""
        if job.state is not JobState.FAILED or not self._tells(FAILED) or (job.night_id and self._tells(NIGHT)):
            return
        with self._lock:
            self._gathered.failed += 1
            if len(self._gathered.failures) < _NAMED:
                self._gathered.failures.append(f"{job.name}: {job.error}")
        self._wake.set()

    def night_ended(self, sentence: str) -> None:
        """Tell of a night that ended, in the sentence that says how."""
        if not self._tells(NIGHT):
            return
        with self._lock:
            self._gathered.nights.append(sentence)
        self._wake.set()

    def _tells(self, what: str) -> bool:
        return bool(self._addresses) and what in self._on

    def __enter__(self) -> Self:
        if self._addresses:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._wake.set()
        if self._addresses:
            # What is gathered is sent, unless its receiver hangs.
            self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        receivers, unknown = receivers_of(self._addresses)
        for label in unknown:
            logger.warning("notify: Apprise does not know what %s is; correct it in nst.toml or NST_NOTIFY.", label)
        while True:
            self._wake.wait()
            self._wake.clear()
            self._stop.wait(self._gather_seconds)
            with self._lock:
                message, self._gathered = self._gathered.message(), _Gathered()
            if message is not None:
                self._send(receivers, *message)
            if self._stop.is_set():
                return

    def _send(self, receivers: list[Receiver], title: str, body: str) -> None:
        tries = 0
        for pause in (0.0, *self._pauses):
            if pause and self._stop.wait(pause):
                break
            tries += 1
            receivers = [receiver for receiver in receivers if not receiver.send(title, body)]
            if not receivers:
                return
        for receiver in receivers:
            logger.warning(
                "notify: %s did not take a message (%d tries); `nst notify` tries it.", receiver.label, tries
            )
