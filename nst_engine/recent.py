"""A cache of what was used last, bounded by number and by size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The values that were used last: at most `entries` of them, and no more than `limit` by what `size` says of each.

    The one just asked for is always kept, however large.
    """

    def __init__(
        self, entries: int, *, limit: int | None = None, size: Callable[[Value], int] = lambda _value: 0
    ) -> None:
        self._entries = entries
        self._limit = limit
        self._size = size
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value under `key`, made when it is not there."""
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > 1 and self._is_full():
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()

    def _is_full(self) -> bool:
        if len(self._values) > self._entries:
            return True
        return self._limit is not None and sum(map(self._size, self._values.values())) > self._limit
