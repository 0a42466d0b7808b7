"""Leases while work goes on: a thread that renews one often enough that one missed renewal loses nothing; and how long
one has stood still, by a clock that nobody sets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from storage.errors import DatabaseError
from storage.jobs import utc_now

RENEWALS_A_LEASE: Final = 6
LOCK_PATIENCE_SECONDS: Final = 600.0
"""A flow waits so long for the lock of the database rather than lose what it has computed."""


class Standstill:
    """Since when the leases that are asked for have not moved. `clock` counts seconds and is never set."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, tuple[datetime | None, float]] = {}

    def seconds(self, holder: str, lease_until: datetime | None) -> float:
        """For how long this holder's lease has had this end; 0 when it is asked for the first time."""
        now = self._clock()
        known = self._since.get(holder)
        if known is None or known[0] != lease_until:
            known = self._since[holder] = (lease_until, now)
        return now - known[1]

    def forget(self, holder: str) -> None:
        """Count anew from the next question on."""
        self._since.pop(holder, None)

    def forget_all_but(self, holders: Collection[str]) -> None:
        """Forget those that hold no lease any more."""
        self._since = {holder: known for holder, known in self._since.items() if holder in holders}


@contextmanager
def keeping(
    renew: Callable[[datetime], None], *, seconds: float, warn: Callable[[DatabaseError], None]
) -> Iterator[None]:
    """Call `renew` with the end of a lease of so many seconds again and again for the length of the block.

    A database that does not work meanwhile is warned of and tried again.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(seconds / RENEWALS_A_LEASE):
            try:
                renew(utc_now() + timedelta(seconds=seconds))
            except DatabaseError as error:
                warn(error)

    keeper = threading.Thread(target=keep, name="leases", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
