"""Troubles that last: what fails again and again for the same reason is logged once, until it has gone well."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("nst")


class SaidOnce:
    """The troubles of one thing that is done again and again."""

    def __init__(self) -> None:
        self._said = ""

    @contextmanager
    def logged(self, *kinds: type[Exception], more: str = "") -> Iterator[None]:
        """Log errors of these kinds as a warning, with what more is to be said, and go on after the block."""
        try:
            yield
        except kinds as error:
            if str(error) != self._said:
                logger.warning("%s%s", error, more)
            self._said = str(error)
        else:
            self._said = ""
