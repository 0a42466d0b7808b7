"""What a collection asks for: the pairs of its contents and styles, each with its settings, and what no pair can be
made of. A collection is the folder collections/NAME with contents/, styles/ and, if wanted, settings.toml and
pairs.csv."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from flows.drop_settings import ALL_PAIRS, read_settings_file, setting_problem, snapshots_problem
from flows.errors import CollectionError, InboxMissingError
from flows.inbox import is_junk
from flows.listing import Listing, scan
from flows.pair_names import pair_names
from flows.pairs_csv import ROW_KEYS, Row, read_rows
from flows.plain_text import one_line
from nst_engine.config import TransferConfig, check_styles, did_you_mean
from nst_engine.errors import ConfigError
from nst_engine.presets import find_preset

CONTENTS: Final = "contents"
STYLES: Final = "styles"
SETTINGS: Final = "settings.toml"
PAIRS_CSV: Final = "pairs.csv"
_OWN_KEYS: Final = (*ROW_KEYS, "pairs")
_WHOLE_NUMBERS: Final = ("priority", "snapshot_every")
_MOST_HINTED: Final = 500
"""File names among which the nearest is looked for, which takes long among many."""

Role = Literal["content", "style"]
_FOLDERS: Final[Mapping[Role, str]] = {"content": CONTENTS, "style": STYLES}


@dataclass(frozen=True)
class Pair:
    """One picture to paint: absolute paths, the name of its job, and its settings; `priority` is -10..10."""

    content: Path
    style: Path
    name: str
    preset: str
    config: TransferConfig
    priority: int
    snapshot_every: int | None = None


@dataclass(frozen=True)
class Problem:
    """What no pair can be made of: the file or line in the collection, one sentence, and how many pairs it costs."""

    file: str
    reason: str
    pairs: int


@dataclass(frozen=True)
class Collection:
    """All pairs, by content and then style, and what is wrong with the rest."""

    name: str
    folder: Path
    pairs: tuple[Pair, ...]
    problems: tuple[Problem, ...]


def collection_names(folder: Path) -> list[str]:
    """The collections in `folder`, sorted; none where there is no such folder.

    One with a name that is no UTF-8 is left out: see misnamed_collections(). Raises CollectionError when the folder
    cannot be read.
    """
    return [name for name in _folders_in(folder) if _is_utf8(name)]


def misnamed_collections(folder: Path) -> list[str]:
    """One sentence about each folder that is no collection for its name alone, which cannot be stored."""
    names = [name for name in _folders_in(folder) if not _is_utf8(name)]
    return [f"{shown(folder / name)}: has a name that is no UTF-8; rename that folder." for name in names]


def _folders_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_junk(path.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CollectionError(f"{folder}: cannot be read ({error.strerror}); mend its permissions.") from error


def read_collection(folder: Path, *, preset: str) -> Collection:
    """The collection in `folder`; `preset` is what counts where its settings name none.

    Whether a file is a picture shows when it is decoded. Raises CollectionError when nothing can be done: a folder is
    missing or empty, or settings.toml, or pairs.csv as a whole, is wrong.
    """
    found = _entries_of(folder)
    base = _settings(found.get(SETTINGS), preset=preset)
    sides: dict[Role, _Side] = {role: _Side.of(found, folder, role) for role in _FOLDERS}
    rows = _rows_of(found.get(PAIRS_CSV), folder, wanted=base.pairs)
    if rows is None:
        problems = [
            *sides["content"].problems(partners=len(sides["style"].files)),
            *sides["style"].problems(partners=len(sides["content"].files)),
        ]
        asked = [(content, style, base) for content in sides["content"].files for style in sides["style"].files]
    else:
        asked, problems = _listed(rows, sides, base)
    asked.sort(key=lambda each: each[:2])
    names = pair_names([(content, style) for content, style, _ in asked])
    pairs = tuple(
        Pair(
            content=sides["content"].folder / content,
            style=sides["style"].folder / style,
            name=name,
            preset=settings.preset,
            config=settings.config,
            priority=settings.priority,
            snapshot_every=settings.snapshot_every,
        )
        for name, (content, style, settings) in zip(names, asked, strict=True)
    )
    return Collection(folder.name, folder, pairs, tuple(problems))


@dataclass(frozen=True)
class _Settings:
    """What counts for all pairs, or for one; `overrides` are the settings of a transfer that the file gives."""

    preset: str
    config: TransferConfig
    overrides: Mapping[str, Any]
    priority: int = 0
    snapshot_every: int | None = None
    pairs: str | None = None

    def for_row(self, row: Row) -> _Settings:
        """With a row's cells over them; raises ConfigError with a sentence without its line."""
        if not row.settings:
            return self
        own: dict[str, Any] = {}
        overrides: dict[str, str] = {}
        for key, cell in row.settings.items():
            value = _value(key, cell)
            if problem := setting_problem(key, value, own_keys=ROW_KEYS):
                raise ConfigError(f"{key}{problem}")
            (own if key in ROW_KEYS else overrides)[key] = value
        base = find_preset(own["preset"]).config.with_overrides(self.overrides) if "preset" in own else self.config
        settings = replace(self, config=_for_a_pair(base.with_overrides(overrides)), **own)
        if settings.snapshot_every is not None:
            problem = snapshots_problem(settings.snapshot_every, iterations=settings.config.iterations)
            if problem:
                raise ConfigError(f"snapshot_every = {problem}")
        return settings


@dataclass(frozen=True)
class _Side:
    """The contents or the styles: files and links by their path in `folder`."""

    role: Role
    folder: Path
    files: tuple[Path, ...]
    links: tuple[Path, ...]
    unreadable: tuple[Path, ...]

    @classmethod
    def of(cls, found: Mapping[str, Path], collection: Path, role: Role) -> _Side:
        folder = found.get(_FOLDERS[role], collection / _FOLDERS[role])
        try:
            listing: Listing = scan(folder)
        except InboxMissingError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
            raise CollectionError(f"{folder}: cannot be read ({reason}); {_remedy(role)}.") from error
        side = cls(
            role,
            folder,
            tuple(entry.path for entry in listing.entries if entry.kind == "file"),
            tuple(entry.path for entry in listing.entries if entry.kind in ("link", "other")),
            listing.unreadable,
        )
        if not side.files:
            raise CollectionError(f"{folder}: holds no pictures; {_remedy(role)}.")
        return side

    @cached_property
    def known(self) -> dict[str, Path]:
        """The files by how a row may write them."""
        return {_normal(path.as_posix()): path for path in self.files}

    def problems(self, *, partners: int) -> Iterator[Problem]:
        """What is no file, when all pairs are wanted."""
        for path in self.links:
            yield Problem(self._shown(path), "is a link or no file; put the file itself there.", partners)
        for path in self.unreadable:
            # How many pictures are in it cannot be known.
            yield Problem(self._shown(path), "cannot be read; mend its permissions.", partners)

    def find(self, written: str) -> Path:
        """The file that a row names; raises ConfigError with a sentence without its line."""
        if not written:
            raise ConfigError(f"names no {self.role}; give its path in {self.folder.name}/.")
        # Windows writes backslashes; elsewhere they may be part of a name.
        for name in (_normal(written), _normal(written.replace("\\", "/"))):
            if name in self.known:
                return self.known[name]
        if Path(written) in self.links:
            raise ConfigError(f"{written} in {self.folder.name}/ is a link or no file; put the file itself there.")
        hint = did_you_mean(written, self.known) if len(self.known) <= _MOST_HINTED else "."
        raise ConfigError(f"there is no {written} in {self.folder.name}/{hint}")

    def _shown(self, path: Path) -> str:
        return shown(Path(self.folder.name) / path)


def _is_utf8(name: str) -> bool:
    # A byte that is none is a lone surrogate in Python's text.
    return not any("\ud800" <= char <= "\udfff" for char in name)


def shown(path: Path) -> str:
    """A path as text that can be printed and stored: a byte that is no UTF-8 is a question mark."""
    return path.as_posix().encode(errors="replace").decode()


def _entries_of(folder: Path) -> dict[str, Path]:
    """What lies in the collection's folder, by its name in small letters."""
    try:
        return {path.name.casefold(): path for path in sorted(folder.iterdir())}
    except OSError as error:
        raise CollectionError(
            f"{folder}: cannot be read ({error.strerror}); make that folder, with {CONTENTS}/ and {STYLES}/ in it."
        ) from error


def _settings(path: Path | None, *, preset: str) -> _Settings:
    try:
        if path is None:
            return _Settings(preset, find_preset(preset).config, {})
        given = read_settings_file(path, preset=preset, own_keys=_OWN_KEYS, may_name_weights=True)
    except ConfigError as error:
        raise CollectionError(one_line(str(error))) from error
    try:
        _for_a_pair(given.config)
    except ConfigError as error:
        raise CollectionError(f"{path}: {error}") from error
    return replace(_Settings(preset, given.config, given.overrides), **given.own)


def _for_a_pair(config: TransferConfig) -> TransferConfig:
    """The config itself, when a pair has all the pictures that it asks for; raises ConfigError."""
    check_styles(config, styles=1)
    if config.init == "picture":
        raise ConfigError(
            "init = picture: a pair of a collection has no picture to start from; set init to content, style, grey or "
            "noise."
        )
    return config


def _rows_of(path: Path | None, folder: Path, *, wanted: str | None) -> list[Row] | None:
    """The rows of pairs.csv; None when all pairs are wanted."""
    if wanted == ALL_PAIRS or (wanted is None and path is None):
        return None
    if path is None:
        raise CollectionError(f"{folder / PAIRS_CSV}: is not there; make it, or set pairs = 'all' in {SETTINGS}.")
    rows = read_rows(path)
    if not rows:
        raise CollectionError(f"{path}: names no pair; add a row for each, or delete the file for all pairs.")
    return rows


def _listed(
    rows: Sequence[Row], sides: Mapping[Role, _Side], base: _Settings
) -> tuple[list[tuple[Path, Path, _Settings]], list[Problem]]:
    """The pairs that the rows name, and the rows that name none."""
    asked: dict[tuple[Path, Path], _Settings] = {}
    lines: dict[tuple[Path, Path], int] = {}
    problems = []
    for row in rows:
        try:
            pair = _pair_of(row, sides, lines)
            asked[pair] = base.for_row(row)
            lines[pair] = row.line
        except ConfigError as error:
            problems.append(Problem(f"{PAIRS_CSV}, line {row.line}", str(error), 1))
    return [(*pair, settings) for pair, settings in asked.items()], problems


def _pair_of(row: Row, sides: Mapping[Role, _Side], lines: Mapping[tuple[Path, Path], int]) -> tuple[Path, Path]:
    """The files that a row names, which no row before it has named; raises ConfigError."""
    if row.problem:
        raise ConfigError(row.problem)
    pair = sides["content"].find(row.content), sides["style"].find(row.style)
    if pair in lines:
        raise ConfigError(f"names the same pair as line {lines[pair]}; keep one of them.")
    return pair


def _value(key: str, cell: str) -> Any:
    """A cell as setting_problem expects it; a number that is none stays text, which it refuses."""
    if key in _WHOLE_NUMBERS:
        try:
            return int(cell)
        except ValueError:
            return cell
    return cell


def _remedy(role: Role) -> str:
    what = "pictures to paint" if role == "content" else "pictures to paint like"
    return f"put the {what} there"


def _normal(text: str) -> str:
    # A Mac writes decomposed letters where others write composed ones.
    return unicodedata.normalize("NFC", text)
