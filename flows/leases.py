"""Keeping a lease while work goes on: a thread that renews it often enough that one missed renewal loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from storage.errors import DatabaseError
from storage.jobs import utc_now

RENEWALS_A_LEASE: Final = 6


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
