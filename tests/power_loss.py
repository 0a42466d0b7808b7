"""What a power loss may leave of a folder, as ALICE and CrashMonkey find it out: a disk on which operations are done,
and the states that it may be in after any first part of them.

The disk is as bad as POSIX allows: the bytes of a file are there for certain once the file was synced, a name once a
folder in which it is was synced; of all others each may be there or not, whatever came first. One thing is assumed
beyond POSIX, as all journaling file systems promise it: a rename happens in both folders or in neither.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple


class Node(NamedTuple):
    """A file or a folder, whatever its names are."""

    number: int
    is_folder: bool


ROOT = Node(0, is_folder=True)
Place = tuple[Node, str]
"""A name in a folder."""


@dataclass(frozen=True)
class Names:
    """Names that change in one step; None is a name that goes away."""

    changes: Mapping[Place, Node | None]


@dataclass(frozen=True)
class Write:
    """Bytes that are written into a file."""

    node: Node
    offset: int
    data: bytes


@dataclass(frozen=True)
class Cut:
    """A file that gets another length."""

    node: Node
    size: int


@dataclass(frozen=True)
class Sync:
    """A file or folder that is made sure of."""

    node: Node


@dataclass(frozen=True)
class Mark:
    """Where the traced process said that something begins."""

    name: str


Operation = Names | Write | Cut | Sync | Mark


@dataclass
class _File:
    """The bytes of a file: those that are on the disk for certain, and what has been done since."""

    safe: bytes = b""
    since: list[Write | Cut] = field(default_factory=list)

    def whole(self) -> bytes:
        return _changed(self.safe, self.since)

    def kept(self) -> bytes:
        return self.safe

    def half(self) -> bytes:
        """The first half of what was done since, the last of it torn."""
        count = len(self.since) // 2
        torn = [
            Write(each.node, each.offset, each.data[: len(each.data) // 2]) if isinstance(each, Write) else each
            for each in self.since[count : count + 1]
        ]
        return _changed(self.safe, [*self.since[:count], *torn])

    def zeros(self) -> bytes:
        """The right length, with nothing in it that was not there before."""
        blank = [
            Write(each.node, each.offset, bytes(len(each.data))) if isinstance(each, Write) else each
            for each in self.since
        ]
        return _changed(self.safe, blank)


_DAMAGES: tuple[Callable[[_File], bytes], ...] = (_File.kept, _File.half, _File.zeros)


@dataclass(frozen=True)
class State:
    """What is on the disk after a power loss, by path; `after` says when it was and how it came."""

    after: str
    paths: Mapping[str, Node]
    contents: Mapping[Node, bytes]

    def digest(self) -> bytes:
        """Equal for states of which nothing can tell that they are not the same."""
        digest = hashlib.sha256()
        for path, node in sorted(self.paths.items()):
            content = hashlib.sha256(self.contents.get(node, b"")).hexdigest()
            digest.update(f"{path}\0{node.number}\0{content}\0".encode(errors="surrogateescape"))
        return digest.digest()

    def lay_out(self, folder: Path) -> None:
        """Put it into a folder in place of what is there; several names of one file are hard links."""
        shutil.rmtree(folder)
        folder.mkdir()
        first: dict[Node, Path] = {}
        for path, node in sorted(self.paths.items()):
            place = folder / path
            if node.is_folder:
                place.mkdir()
            elif node in first:
                place.hardlink_to(first[node])
            else:
                place.write_bytes(self.contents[node])
                first[node] = place


class Disk:
    """A disk on which operations are done one after another."""

    def __init__(self) -> None:
        self.names: dict[Place, Node] = {}
        self._safe_names: dict[Place, Node] = {}
        self._since: list[Names] = []
        self._files: defaultdict[Node, _File] = defaultdict(_File)

    def do(self, operation: Operation) -> None:
        """Do the next operation."""
        match operation:
            case Names(changes):
                _apply(self.names, changes)
                self._since.append(operation)
            case Write(node) | Cut(node):
                self._files[node].since.append(operation)
            case Sync(node) if node.is_folder:
                for each in self._since:
                    if any(folder == node for folder, _ in each.changes):
                        _apply(self._safe_names, each.changes)
                self._since = [each for each in self._since if all(folder != node for folder, _ in each.changes)]
            case Sync(node):
                self._files[node] = _File(self.content(node))

    def content(self, node: Node) -> bytes:
        """The bytes of a file as a process reads them."""
        return self._files[node].whole()

    def states(self, random: Random, *, mixed: int) -> Iterator[State]:
        """What a power loss may leave now: all, none of what is not certain, one of the two, and mixtures by chance."""
        yield self._state("all is there", self.names, _File.whole)
        if self._since:
            yield self._state("no uncertain name is there", self._safe_names, _File.whole)
        if any(file.since for file in self._files.values()):
            for damage in _DAMAGES:
                yield self._state(f"of uncertain bytes: {damage.__name__}", self.names, damage)
                if self._since:
                    yield self._state(f"no uncertain name, of bytes: {damage.__name__}", self._safe_names, damage)
        for _ in range(mixed if self._since else 0):
            names, there = dict(self._safe_names), []
            for number, each in enumerate(self._since):
                if random.random() < 0.5:
                    _apply(names, each.changes)
                    there.append(number)
            whole = random.random() < 0.5
            how = "whole" if whole else "damaged"
            yield self._state(
                f"of {len(self._since)} uncertain names those are there: {there}, bytes {how}",
                names,
                _File.whole if whole else lambda file: random.choice((_File.whole, *_DAMAGES))(file),
            )

    def _state(self, how: str, names: Mapping[Place, Node], content: Callable[[_File], bytes]) -> State:
        inside = defaultdict[Node, list[tuple[str, Node]]](list)
        for (folder, name), node in names.items():
            inside[folder].append((name, node))
        paths: dict[str, Node] = {}
        pending = [("", ROOT)]
        while pending:
            place, folder = pending.pop()
            for name, node in inside[folder]:
                paths[f"{place}{name}"] = node
                if node.is_folder:
                    pending.append((f"{place}{name}/", node))
        files = sorted({node for node in paths.values() if not node.is_folder})
        return State(how, paths, {node: content(self._files[node]) for node in files})


def states_of(operations: Sequence[Operation], *, begin: str, end: str, seed: int, mixed: int) -> Iterator[State]:
    """The different states that a power loss after any operation between two marks may leave, each once."""
    disk, random, seen = Disk(), Random(seed), set[bytes]()
    first, last = operations.index(Mark(begin)), operations.index(Mark(end))
    for number, (operation, following) in enumerate(pairwise(operations[: last + 1])):
        disk.do(operation)
        if number < first:
            continue
        # What writes in a row have in doubt is in doubt after the last of them too.
        in_a_row = isinstance(operation, Write) and isinstance(following, Write) and operation.node == following.node
        found = disk.states(random, mixed=mixed)
        for state in [next(found)] if in_a_row else found:
            if (digest := state.digest()) not in seen:
                seen.add(digest)
                yield State(
                    f"after operation {number}, {_shown(operation)}: {state.after}", state.paths, state.contents
                )


def _apply(names: dict[Place, Node], changes: Mapping[Place, Node | None]) -> None:
    for place, node in changes.items():
        if node is None:
            names.pop(place, None)
        else:
            names[place] = node


def _changed(content: bytes, changes: Sequence[Write | Cut]) -> bytes:
    changed = bytearray(content)
    for change in changes:
        if isinstance(change, Cut):
            changed = changed[: change.size].ljust(change.size, b"\0")
        else:
            changed.extend(bytes(max(change.offset - len(changed), 0)))
            changed[change.offset : change.offset + len(change.data)] = change.data
    return bytes(changed)


def _shown(operation: Operation) -> str:
    match operation:
        case Names(changes):
            return "names " + ", ".join(f"{'-' if node is None else '+'}{name}" for (_, name), node in changes.items())
        case Write(node, offset, data):
            return f"{len(data)} bytes at {offset} of file {node.number}"
        case _:
            return str(operation)
