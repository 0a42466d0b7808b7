"""The files in one folder that make one job, as far as they are there, told by what their names say they are for; and
why nobody could make a job of them."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from flows.plain_text import printable
from storage.models import Role

_PART: Final = re.compile(
    r"(?:(?P<name>.+?)[_.-])??"
    r"(?:(?P<content>content)|(?P<initial>init(?:ial)?)"
    r"|(?:(?P<style_mask>style[_.-]?mask)|(?P<style>style)|(?P<mask>mask))(?P<number>[0-9]*))"
    r"\.[^.]+",
    re.ASCII | re.IGNORECASE | re.DOTALL,
)
_ROLES: Final[tuple[Role, ...]] = get_args(Role)
_NUMBERED: Final[tuple[Role, ...]] = ("style", "mask", "style_mask")
_UNNUMBERED: Final = -1
_WORDS: Final[dict[Role, str]] = {
    "content": "content",
    "style": "style",
    "style_mask": "stylemask",
    "mask": "mask",
    "initial": "init",
}
"""What a file's name calls a role."""


@dataclass(frozen=True)
class Part:
    """What a file's name says: NAME, or "" for a folder's own; the role; and the number, -1 where there is none."""

    name: str
    role: Role
    number: int

    @classmethod
    def of(cls, file_name: str) -> Part | None:
        """None for a name that says nothing of the kind."""
        match = _PART.fullmatch(file_name)
        if match is None:
            return None
        role = next(role for role in _ROLES if match[role])
        return cls(match["name"] or "", role, int(match["number"] or _UNNUMBERED))


@dataclass
class Group:
    """The files of a NAME; "" for content.*, style.* and so on, the folder's own."""

    folder: Path
    name: str
    parts: dict[Role, list[tuple[int, Path]]] = field(default_factory=lambda: {role: [] for role in _ROLES})
    settings: list[Path] = field(default_factory=list)

    def add(self, path: Path, part: Part) -> None:
        """The content says how the name is written."""
        self.parts[part.role].append((part.number, path))
        if part.role == "content":
            self.name = part.name

    @property
    def files(self) -> list[Path]:
        """All of them, settings last."""
        return [*(path for role in _ROLES for path in self.paths(role)), *self.settings]

    @property
    def settings_path(self) -> Path | None:
        """The file of settings, if there is one."""
        return self.settings[0] if self.settings else None

    def paths(self, role: Role) -> tuple[Path, ...]:
        """The files of a role by their numbers."""
        return tuple(path for _, path in sorted(self.parts[role]))

    def by_style(self, role: Role) -> tuple[Path | None, ...]:
        """The masks of a role, one a style; None where a style has none. () where no style has one."""
        found, _ = self._beside_styles(role)
        return tuple(found) if any(found) else ()

    def conflict(self) -> str | None:
        """Why nobody could say which files the job is made of."""
        for what, paths in (
            ("content", self.paths("content")),
            ("initial picture", self.paths("initial")),
            ("file of settings", self.settings),
        ):
            if len(paths) > 1:
                return self._more_than_one(what, paths, remedy="keep one")
        for role in _NUMBERED:
            # A folder's own styles are all taken; of masks only one can go with a style.
            if self.name or role != "style":
                by_number: dict[int, list[Path]] = defaultdict(list)
                for number, path in self.parts[role]:
                    by_number[number].append(path)
                for number, paths in sorted(by_number.items()):
                    if len(paths) > 1:
                        word = _WORDS[role]
                        what = word if number == _UNNUMBERED else f"{word}{number}"
                        first, second = self.pattern(f"{word}1"), self.pattern(f"{word}2")
                        return self._more_than_one(what, paths, remedy=f"keep one, or number them {first} and {second}")
        return None

    def missing(self) -> str | None:
        """What the job still needs."""
        roles = [role for role in ("content", "style") if not self.parts[role]]
        return f"waits for {' and '.join(self.pattern(role) for role in roles)}" if roles else None

    def problem(self) -> str | None:
        """Why the masks do not go with the styles; a sentence without its full stop."""
        place = shown(self.folder / self.name)
        for role in ("mask", "style_mask"):
            _, lost = self._beside_styles(role)
            if lost:
                return (
                    f"{place} has a {_WORDS[role]} that belongs to none of its styles ({_names(lost)}); give it the "
                    "number of its style, or take it away"
                )
        masks = self.by_style("mask")
        without = [style for style, mask in zip(self.paths("style"), masks, strict=False) if mask is None]
        if without and without != [self.paths("style")[-1]]:
            return (
                f"{place} has masks, but none for {_names(without)}; only the last style can go without one, and takes "
                "what the others leave"
            )
        return None

    def pattern(self, word: str) -> str:
        """What files of that role are called here."""
        return shown(self.folder / (f"{self.name}_{word}.*" if self.name else f"{word}.*"))

    def _beside_styles(self, role: Role) -> tuple[list[Path | None], list[Path]]:
        """The masks of a role in the order of the styles, and those that belong to none."""
        numbers = [number for number, _ in sorted(self.parts["style"])]
        found: list[Path | None] = [None] * len(numbers)
        lost = []
        for number, path in sorted(self.parts[role]):
            place = _place(number, numbers)
            if place is None or found[place] is not None:
                lost.append(path)
            else:
                found[place] = path
        return found, lost

    def _more_than_one(self, what: str, paths: Sequence[Path], *, remedy: str) -> str:
        return f"waits because {shown(self.folder / self.name)} has more than one {what} ({_names(paths)}); {remedy}"


def key(name: str) -> str:
    """What two names share that people take for one."""
    # A Mac sends decomposed letters where others send composed ones.
    return unicodedata.normalize("NFC", name.casefold())


def shown(path: Path) -> str:
    """A path as text that can be printed and stored; whatever cannot is a question mark."""
    return printable(path.as_posix())


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(shown(Path(path.name)) for path in paths)


def _place(number: int, styles: Sequence[int]) -> int | None:
    """Which of the styles' numbers, in order, a mask's number means: the same one, and without a number the first."""
    if number in styles:
        return styles.index(number)
    first = number == _UNNUMBERED or (number == 1 and styles[:1] == [_UNNUMBERED])
    return 0 if first and styles else None
