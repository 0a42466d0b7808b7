"""Which jobs a sweep is made of: the values of one or two settings, and every combination of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flows.contact_sheet import MAX_COLUMNS
from flows.errors import SettingsError
from flows.grid_report import Variant

MAX_JOBS: Final = 200
"""More than anybody would look at, and what a slip of the keyboard soon comes to."""


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes, at least two."""

    key: str
    values: tuple[str, ...]


def parse_settings(settings: Sequence[str]) -> tuple[list[Axis], dict[str, str]]:
    """One or two axes, and the settings that have one value, from KEY=A,B and KEY=VALUE.

    A value that has commas stands in brackets. Raises SettingsError with one sentence for what cannot be read, for no
    axis and for more than two.
    """
    axes, fixed = list[Axis](), dict[str, str]()
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise SettingsError(f"--set {setting}: give KEY=A,B for values to sweep, or KEY=VALUE.")
        if key in fixed or any(axis.key == key for axis in axes):
            raise SettingsError(f"--set {setting}: {key} is given twice; give all its values at once.")
        values = _values(setting, text)
        if len(values) == 1:
            fixed[key] = values[0]
        else:
            axes.append(Axis(key, values))
    if not axes:
        raise SettingsError("There is nothing to sweep; give --set KEY=A,B with at least two values.")
    if len(axes) > 2:
        raise SettingsError(
            f"A sweep is of one or two settings, but {', '.join(axis.key for axis in axes)} have several values; put a "
            "value that has commas in brackets."
        )
    return axes, fixed


def variants(axes: Sequence[Axis]) -> list[Variant]:
    """A job for each combination, the first axis down and the second across; a single axis goes across.

    Raises SettingsError when there are more than MAX_JOBS.
    """
    down, across = axes if len(axes) > 1 else (None, axes[0])
    count = len(across.values) * (len(down.values) if down else 1)
    if count > MAX_JOBS:
        raise SettingsError(f"These are {count} jobs, and a sweep has at most {MAX_JOBS}; give fewer values.")
    if down is not None:
        return [
            Variant(
                row=_label(down.key, first),
                column=_label(across.key, second),
                name=f"{first}_{second}",
                overrides={down.key: first, across.key: second},
            )
            for first in down.values
            for second in across.values
        ]
    if len(across.values) > MAX_COLUMNS:
        return [Variant(_label(across.key, value), "", value, {across.key: value}) for value in across.values]
    return [Variant(across.key, _spaced(value), value, {across.key: value}) for value in across.values]


def _values(setting: str, text: str) -> tuple[str, ...]:
    parts, depth = [""], 0
    for char in text:
        depth += {"[": 1, "]": -1}.get(char, 0)
        if depth not in (0, 1):
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise SettingsError(f"--set {setting}: its brackets do not match; write [a,b],[c] for the values a,b and c.")
    values = tuple(_without_brackets(part.strip()) for part in parts)
    if "" in values:
        raise SettingsError(f"--set {setting}: a value is empty; give KEY=A,B.")
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise SettingsError(f"--set {setting}: {twice} is given twice; give each value once.")
    return values


def _without_brackets(value: str) -> str:
    return value[1:-1].strip() if value.startswith("[") and value.endswith("]") else value


def _label(key: str, value: str) -> str:
    return f"{key} = {_spaced(value)}"


def _spaced(value: str) -> str:
    # So that a long list can be wrapped.
    return ", ".join(part.strip() for part in value.split(","))
