"""Whether a text is a cron expression that Prefect takes, told without Prefect, whose import costs seconds."""

from __future__ import annotations

import re
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS: Final = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
_FIELDS: Final = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_PART: Final = re.compile(r"(?:(?P<all>\*)|(?P<first>[0-9a-z]+)(?:-(?P<last>[0-9a-z]+))?)(?:/(?P<step>[0-9]+))?")


def check_cron(text: str) -> str:
    """The expression with single spaces: minute, hour, day of the month, month, day of the week.

    A field is `*`, numbers, ranges, lists, steps, or the English names of months and days. Raises ValueError with one
    sentence for anything else, and for a day that no month has.
    """
    fields = text.casefold().split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"it has {len(fields)} fields and needs five: minute hour day month weekday, as in 0 1 * * *")
    values = [
        _values(field, name=name, low=low, high=high, names=names)
        for field, (name, low, high, names) in zip(fields, _FIELDS, strict=True)
    ]
    _, _, days, months, _ = values
    # With both days given, cron takes what fits either.
    if fields[4] == "*" and not any(day <= _LONGEST_MONTHS[month] for day in days for month in months):
        raise ValueError(f"no month {fields[3]} has a day {fields[2]}")
    return " ".join(fields)


def _values(field: str, *, name: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    values: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"the {name} is {part or 'empty'}; give a number, *, a range such as 1-5, or */2")
        first, last = (low, high) if match["all"] else _range(match, name=name, low=low, high=high, names=names)
        step = int(match["step"]) if match["step"] else 1
        if not 1 <= step <= high:
            raise ValueError(f"the step of the {name} is {step}; give one from 1 to {high}")
        values.update(range(first, last + 1, step))
    return values


def _range(match: re.Match[str], *, name: str, low: int, high: int, names: tuple[str, ...]) -> tuple[int, int]:
    first = _number(match["first"], name=name, low=low, high=high, names=names)
    if match["last"]:
        last = _number(match["last"], name=name, low=low, high=high, names=names)
        if last < first:
            raise ValueError(f"the {name} is {match[0]}; give the smaller number first")
        return first, last
    return first, high if match["step"] else first


def _number(word: str, *, name: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if word in names:
        return names.index(word) + low
    if not word.isdecimal() or not low <= int(word) <= high:
        raise ValueError(f"the {name} is {word}; give one from {low} to {high}")
    return int(word)
