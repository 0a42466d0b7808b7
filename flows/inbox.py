"""What makes a job out of dropped files: pure rules over a listing of the inbox, without disk or clock. Three
kinds of drop are known: a pair, a folder that is one job, and a picture in a style folder. Every other file
waits, with one sentence that says for what."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

_INBOX: Final = Path()
_SETTINGS_STEM: Final = "settings"
_PICTURE_SUFFIXES: Final = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_JUNK_ENDS: Final = ("~", ".crdownload", ".download", ".filepart", ".part", ".partial", ".swp", ".temp", ".tmp")
_LITTER: Final = frozenset(
    {
        ".directory",
        ".ds_store",
        ".localized",
        "$recycle.bin",
        "#recycle",
        "#snapshot",
        "@eadir",
        "@recycle",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbs.db",
    }
)
_NO_FILES: Final = {"link": "a link", "other": "a device, a pipe or a socket"}
_PART: Final = re.compile(
    r"(?:(?P<name>.+)[_.-])?(?:content|style(?P<number>[0-9]*))\.[^.]+", re.ASCII | re.IGNORECASE | re.DOTALL
)
"""A content has the number None, a style without one the number ""."""


@dataclass(frozen=True)
class Entry:
    """One thing in the inbox; `path` is relative to it, `size` in bytes. A link is not followed."""

    path: Path
    kind: Literal["file", "folder", "link", "other"]
    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Drop:
    """The files of one job, all paths relative to the inbox; `folder` is that of a folder drop."""

    name: str
    kind: Literal["pair", "folder", "style folder"]
    content: Path
    styles: tuple[Path, ...]
    settings: Path | None = None
    others: tuple[Path, ...] = ()
    folder: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that belongs to the job."""
        settings = () if self.settings is None else (self.settings,)
        return (self.content, *self.styles, *settings, *self.others)

    @property
    def taken(self) -> tuple[Path, ...]:
        """What leaves the inbox with the job; a style folder keeps its styles and settings."""
        return (self.content,) if self.kind == "style folder" else self.files


@dataclass(frozen=True)
class Waiting:
    """A file that is no drop yet; `reason` is one sentence that names it."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Assessment:
    """The drops by their content's path and the files that wait by theirs. What a style folder keeps is in neither."""

    drops: tuple[Drop, ...]
    waiting: tuple[Waiting, ...]


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name is hidden, half written, or some system's own."""
    name = name.casefold()
    return name.startswith((".", "~")) or name.endswith(_JUNK_ENDS) or name in _LITTER


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name is what systems leave in any folder: nobody's, and of no worth."""
    return name.casefold() in _LITTER or name.startswith("._")


def assess(entries: Iterable[Entry]) -> Assessment:
    """What the inbox holds; the order of the entries does not matter."""
    seen = sorted(
        (entry for entry in entries if not any(is_junk(part) for part in entry.path.parts)),
        key=lambda entry: entry.path,
    )
    waiting = [
        Waiting(entry.path, f"{_shown(entry.path)} is {_NO_FILES[entry.kind]}; drop the file itself")
        for entry in seen
        if entry.kind in _NO_FILES
    ]
    files = [entry.path for entry in seen if entry.kind == "file"]
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        by_folder[path.parent].append(path)
    folders = {folder: _Folder.of(folder, paths) for folder, paths in by_folder.items()}

    jobs: dict[Path, list[Path]] = {folder: [] for folder, found in folders.items() if found.is_job}
    for path in files:
        # The topmost takes all that is in it, other folder drops too.
        if (job := next((folder for folder in reversed(path.parents) if folder in jobs), None)) is not None:
            jobs[job].append(path)
    drops = [folders[folder].job(paths) for folder, paths in jobs.items() if paths]
    for folder, found in folders.items():
        if jobs.keys().isdisjoint((folder, *folder.parents)):
            for outcome in found.outcomes():
                if isinstance(outcome, Drop):
                    drops.append(outcome)
                else:
                    waiting.append(outcome)
    return Assessment(
        drops=tuple(sorted(drops, key=lambda drop: drop.content)),
        waiting=tuple(sorted(waiting, key=lambda each: each.path)),
    )


@dataclass
class _Group:
    """The files in one folder that make one job, as far as they are there: those of a NAME; "" for content.* and
    style.* themselves."""

    folder: Path
    name: str
    contents: list[Path] = field(default_factory=list)
    styles: list[tuple[int, Path]] = field(default_factory=list)
    settings: list[Path] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return [*self.contents, *self.style_paths, *self.settings]

    @property
    def style_paths(self) -> tuple[Path, ...]:
        return tuple(path for _, path in sorted(self.styles))

    @property
    def settings_path(self) -> Path | None:
        return self.settings[0] if self.settings else None

    def add(self, path: Path, *, name: str, number: str | None) -> None:
        if number is None:
            self.contents.append(path)
            self.name = name
        else:
            self.styles.append((int(number or -1), path))

    def conflict(self) -> str | None:
        """Why nobody could say which files the job is made of."""
        if len(self.contents) > 1:
            return self._more_than_one("content", self.contents, remedy="keep one")
        if len(self.settings) > 1:
            return self._more_than_one("file of settings", self.settings, remedy="keep one")
        if self.name:
            by_number: dict[int, list[Path]] = defaultdict(list)
            for number, path in self.styles:
                by_number[number].append(path)
            for number, paths in sorted(by_number.items()):
                if len(paths) > 1:
                    role = "style" if number < 0 else f"style{number}"
                    remedy = f"keep one, or number them {self._pattern('style1')} and {self._pattern('style2')}"
                    return self._more_than_one(role, paths, remedy=remedy)
        return None

    def missing(self) -> str | None:
        """What the job still needs."""
        roles = [role for role, there in (("content", self.contents), ("style", self.styles)) if not there]
        return f"waits for {' and '.join(self._pattern(role) for role in roles)}" if roles else None

    def _pattern(self, role: str) -> str:
        return _shown(self.folder / (f"{self.name}_{role}.*" if self.name else f"{role}.*"))

    def _more_than_one(self, what: str, paths: Sequence[Path], *, remedy: str) -> str:
        names = ", ".join(_shown(Path(path.name)) for path in paths)
        return f"waits because {_shown(self.folder / self.name)} has more than one {what} ({names}); {remedy}"


@dataclass(frozen=True)
class _Folder:
    """The files directly in one folder, by what they could become."""

    path: Path
    own: _Group
    pairs: list[_Group]
    rest: list[Path]

    @classmethod
    def of(cls, folder: Path, files: Sequence[Path]) -> _Folder:
        own = _Group(folder, "")
        pairs: dict[str, _Group] = {}
        rest = []
        settings = []
        for path in files:
            if match := _PART.fullmatch(path.name):
                name = match["name"] or ""
                group = pairs.setdefault(_key(name), _Group(folder, name)) if name else own
                group.add(path, name=name, number=match["number"])
            elif path.suffix.casefold() == ".toml":
                settings.append(path)
            else:
                rest.append(path)
        for path in settings:
            key = _key(path.stem)
            is_own = folder != _INBOX and key == _SETTINGS_STEM and (bool(own.files) or key not in pairs)
            group = own if is_own else pairs.setdefault(key, _Group(folder, path.stem))
            group.settings.append(path)
        return cls(folder, own, list(pairs.values()), rest)

    @property
    def is_job(self) -> bool:
        """Whether it is taken whole; the inbox itself never is."""
        return self.path != _INBOX and not (self.own.conflict() or self.own.missing())

    @property
    def is_style_folder(self) -> bool:
        return self.path != _INBOX and bool(self.own.styles) and not self.own.contents

    def job(self, members: Sequence[Path]) -> Drop:
        """The folder as one job; `members` are all files in and below it."""
        named = set(self.own.files)
        return Drop(
            name=self.path.name,
            kind="folder",
            content=self.own.contents[0],
            styles=self.own.style_paths,
            settings=self.own.settings_path,
            others=tuple(path for path in members if path not in named),
            folder=self.path,
        )

    def outcomes(self) -> Iterator[Drop | Waiting]:
        """What becomes of each file of a folder that is not taken whole, but for what a style folder keeps."""
        if self.path == _INBOX:
            yield from (_alone(path, needs="style") for path in self.own.contents)
            yield from (_alone(path, needs="content") for path in self.own.style_paths)
        elif not self.is_style_folder:
            yield from _waiting(self.own)
        for group in self.pairs:
            if group.conflict() or group.missing():
                yield from _waiting(group)
            else:
                yield Drop(
                    name=group.name,
                    kind="pair",
                    content=group.contents[0],
                    styles=group.style_paths,
                    settings=group.settings_path,
                )
        for path in self.rest:
            yield self._picture(path) if self.is_style_folder and _is_picture(path) else _stray(path)

    def _picture(self, path: Path) -> Drop | Waiting:
        if conflict := self.own.conflict():
            return Waiting(path, f"{_shown(path)} {conflict}")
        return Drop(
            name=f"{path.stem}_{self.path.name}",
            kind="style folder",
            content=path,
            styles=self.own.style_paths,
            settings=self.own.settings_path,
        )


def _waiting(group: _Group) -> Iterator[Waiting]:
    for path in group.files:
        yield Waiting(path, f"{_shown(path)} {group.conflict() or group.missing()}")


def _alone(path: Path, *, needs: str) -> Waiting:
    name = _shown(path)
    return Waiting(
        path, f"{name} waits: put it into a folder of its own together with its {needs}, or name it NAME_{name}"
    )


def _stray(path: Path) -> Waiting:
    return Waiting(
        path,
        f"{_shown(path)} is not part of a pair; name it NAME_content.EXT or NAME_style.EXT, or see README.txt in "
        "the home folder",
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.casefold() in _PICTURE_SUFFIXES


def _key(name: str) -> str:
    # A Mac sends decomposed letters where others send composed ones.
    return unicodedata.normalize("NFC", name.casefold())


def _shown(path: Path) -> str:
    # A name that is not UTF-8 can be neither printed nor stored.
    return path.as_posix().encode(errors="replace").decode()
