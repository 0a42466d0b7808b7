"""What makes a job out of dropped files: pure rules over a listing of the inbox, without disk or clock. Three
kinds of drop are known: a pair, a folder that is one job, and a picture in a style folder. Every other file
waits, with one sentence that says for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from flows.drop_group import Group, Part, key, shown
from flows.roles import in_order
from storage.models import Role

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
_OF_A_PAIR: Final[tuple[Role, ...]] = ("style_mask", "mask", "initial")
_NO_FILES: Final = {"link": "a link", "other": "a device, a pipe or a socket"}


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
    """The files of one job, all paths relative to the inbox; `folder` is that of a folder drop.

    There are no `style_masks` or one a style, None for one that has none. `problem` says, without a full stop, why the
    masks do not go with the styles.
    """

    name: str
    kind: Literal["pair", "folder", "style folder"]
    content: Path
    styles: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    style_masks: tuple[Path | None, ...] = ()
    initial: Path | None = None
    settings: Path | None = None
    others: tuple[Path, ...] = ()
    folder: Path | None = None
    problem: str | None = None

    @property
    def pictures(self) -> tuple[tuple[Role, Path], ...]:
        """Each picture with its role, in the order of a job's sources."""
        return tuple(
            in_order(self.content, self.styles, masks=self.masks, style_masks=self.style_masks, initial=self.initial)
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """All that belongs to the job."""
        settings = () if self.settings is None else (self.settings,)
        return (*(path for _, path in self.pictures), *settings, *self.others)

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
        Waiting(entry.path, f"{shown(entry.path)} is {_NO_FILES[entry.kind]}; drop the file itself")
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


@dataclass(frozen=True)
class _Folder:
    """The files directly in one folder, by what they could become."""

    path: Path
    own: Group
    pairs: list[Group]
    rest: list[Path]

    @classmethod
    def of(cls, folder: Path, files: Sequence[Path]) -> _Folder:
        own = Group(folder, "")
        pairs: dict[str, Group] = {}
        rest = []
        settings = []
        for path in files:
            if part := Part.of(path.name):
                group = pairs.setdefault(key(part.name), Group(folder, part.name)) if part.name else own
                group.add(path, part)
            elif path.suffix.casefold() == ".toml":
                settings.append(path)
            else:
                rest.append(path)
        for path in settings:
            stem = key(path.stem)
            is_own = folder != _INBOX and stem == _SETTINGS_STEM and (bool(own.files) or stem not in pairs)
            group = own if is_own else pairs.setdefault(stem, Group(folder, path.stem))
            group.settings.append(path)
        return cls(folder, own, list(pairs.values()), rest)

    @property
    def is_job(self) -> bool:
        """Whether it is taken whole; the inbox itself never is."""
        return self.path != _INBOX and not (self.own.conflict() or self.own.missing())

    @property
    def is_style_folder(self) -> bool:
        return self.path != _INBOX and bool(self.own.paths("style")) and not self.own.paths("content")

    def job(self, members: Sequence[Path]) -> Drop:
        """The folder as one job; `members` are all files in and below it."""
        named = set(self.own.files)
        return _drop(
            self.own,
            name=self.path.name,
            kind="folder",
            others=tuple(path for path in members if path not in named),
            folder=self.path,
        )

    def outcomes(self) -> Iterator[Drop | Waiting]:
        """What becomes of each file of a folder that is not taken whole, but for what a style folder keeps."""
        if self.path == _INBOX:
            yield from (_alone(path, needs="style") for path in self.own.paths("content"))
            yield from (_alone(path, needs="content") for path in self.own.paths("style"))
            for role in _OF_A_PAIR:
                yield from (_alone(path, needs="content and style") for path in self.own.paths(role))
        elif not self.is_style_folder:
            yield from _waiting(self.own, self.own.files)
        else:
            # The folder may be one job whose content is still on its way.
            yield from _waiting(self.own, [*self.own.paths("mask"), *self.own.paths("initial")])
        for group in self.pairs:
            if group.conflict() or group.missing():
                yield from _waiting(group, group.files)
            else:
                yield _drop(group, name=group.name, kind="pair")
        for path in self.rest:
            yield self._picture(path) if self.is_style_folder and _is_picture(path) else _stray(path)

    def _picture(self, path: Path) -> Drop | Waiting:
        if conflict := self.own.conflict():
            return Waiting(path, f"{shown(path)} {conflict}")
        if problem := self.own.problem():
            return Waiting(path, f"{shown(path)} waits because {problem}")
        return Drop(
            name=f"{path.stem}_{self.path.name}",
            kind="style folder",
            content=path,
            styles=self.own.paths("style"),
            style_masks=self.own.by_style("style_mask"),
            settings=self.own.settings_path,
        )


def _drop(
    group: Group,
    *,
    name: str,
    kind: Literal["pair", "folder"],
    others: Sequence[Path] = (),
    folder: Path | None = None,
) -> Drop:
    drop = Drop(
        name=name,
        kind=kind,
        content=group.paths("content")[0],
        styles=group.paths("style"),
        masks=tuple(mask for mask in group.by_style("mask") if mask is not None),
        style_masks=group.by_style("style_mask"),
        initial=next(iter(group.paths("initial")), None),
        settings=group.settings_path,
        folder=folder,
        problem=group.problem(),
    )
    # A mask that goes with no style is refused together with the rest.
    taken = set(drop.files)
    return replace(drop, others=(*(path for path in group.files if path not in taken), *others))


def _waiting(group: Group, paths: Iterable[Path]) -> Iterator[Waiting]:
    for path in paths:
        yield Waiting(path, f"{shown(path)} {group.conflict() or group.missing()}")


def _alone(path: Path, *, needs: str) -> Waiting:
    name = shown(path)
    return Waiting(
        path, f"{name} waits: put it into a folder of its own together with its {needs}, or name it NAME_{name}"
    )


def _stray(path: Path) -> Waiting:
    return Waiting(
        path,
        f"{shown(path)} is not part of a pair; name it NAME_content.EXT or NAME_style.EXT, or see README.txt in "
        "the home folder",
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.casefold() in _PICTURE_SUFFIXES
