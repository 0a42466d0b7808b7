"""The folders of one service and the files in them; what a reader finds under its final name is whole."""

import errno
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Final

from storage.disk import copy_file, make_folder, move_file, numbered, open_file, part_of, sync, write_bytes
from storage.errors import WorkspaceError
from storage.refusal import refusal

_BLOCK: Final = 1 << 20
_MAX_NAME_BYTES: Final = 120
_PUNCTUATION: Final = frozenset(" ._-")

Guard = Callable[[], AbstractContextManager[None]]
"""Makes a block inside which something stays as it is."""


class Workspace:
    """The folders under one home. All methods raise WorkspaceError where the disk refuses."""

    def __init__(self, home: Path) -> None:
        self.home: Final = home.absolute()

    @property
    def inbox(self) -> Path:
        """Where users drop pictures."""
        return self.home / "inbox"

    @property
    def outbox(self) -> Path:
        """Where results appear, one folder a job."""
        return self.home / "outbox"

    @property
    def rejected(self) -> Path:
        """Where drops go that can never work."""
        return self.home / "rejected"

    @property
    def collections(self) -> Path:
        """Where folders for bulk work lie."""
        return self.home / "collections"

    @property
    def work(self) -> Path:
        """Where jobs keep their files until they end."""
        return self.home / "work"

    @property
    def database_path(self) -> Path:
        """The database when no other is named."""
        return self.home / "nst.db"

    def create_home(self) -> None:
        """Make the home, for its owner alone, if it is missing; one that is there stays as it is."""
        with refusal(f"The folder {self.home} cannot be made", "name another home with NST_HOME"):
            make_folder(self.home, mode=0o700)

    def create(self) -> None:
        """Make the folders that are missing."""
        self.create_home()
        for folder in (self.inbox, self.outbox, self.rejected, self.collections, self.work):
            with refusal(f"The folder {folder} cannot be made", "name another home with NST_HOME"):
                make_folder(folder)

    def job_folder(self, job_id: str) -> Path:
        """The folder of a job's files until it ends; `result/` in it is what publish() moves."""
        return self.work / _plain(job_id)

    def copy_source(self, job_id: str, source: Path, file_name: str) -> Path:
        """Copy a picture into the job's folder under `file_name`, its mtime kept; returns the copy."""
        folder = self.job_folder(job_id)
        copy = folder / _plain(file_name)
        part = part_of(copy)
        with refusal(f"{source} cannot be copied to {copy}", "check both places"):
            make_folder(folder)
            try:
                copy_file(source, part)
                part.replace(copy)
            finally:
                part.unlink(missing_ok=True)
            sync(folder)
        return copy

    def publish(self, job_id: str, destination: Path, *, guard: Guard = nullcontext) -> None:
        """Move `result/` of the job's folder to `destination`, which must not exist or be an empty folder.

        A destination that is new or lies in the outbox appears whole, in one step. An empty folder elsewhere
        is the user's and stays the same folder, with its owner and rights (or its volume); the complete files
        are renamed into it one by one. The one step is made inside a `guard`, which may refuse it.
        """
        result = self.job_folder(job_id) / "result"
        destination = destination.resolve()
        if not result.is_dir():
            raise WorkspaceError(f"Job {job_id} has no finished files in {result}; run it again.")
        with refusal(f"The result cannot be moved to {destination}", "choose another folder with -o"):
            inside = destination / f".{job_id}.part"
            require_free(destination, but_for=inside)
            _sync_tree(result)
            make_folder(destination.parent)
            if destination.exists() and destination.parent != self.outbox.resolve():
                _fill(destination, result, part=inside)
            else:
                _replace(
                    destination, result, part=destination.with_name(f".{destination.name}.{job_id}.part"), guard=guard
                )

    def take_back(self, job_id: str, folder: Path) -> None:
        """Remove a folder that publish() has made and that nobody may have; the job's own files are under work/."""
        with refusal(f"The folder {folder} cannot be taken back", "remove it by hand"):
            part = folder.with_name(f".{folder.name}.{job_id}.part")
            folder.rename(part)
            _remove(part)

    def recover(self, job_id: str) -> Path:
        """Move the folder of a job that nobody knows whole into the inbox, as a dropped folder; returns that."""
        source, target = self.job_folder(job_id), self.inbox / f"recovered-{job_id}"
        with refusal(f"{source}, of which the database knows nothing, cannot be moved to {target}", "move it by hand"):
            _replace(target, source, part=part_of(target))
            sync(self.work)
        return target

    def candidates(self, name: str, collection: str | None = None) -> Iterator[Path]:
        """Folders for a result of this name in the outbox: NAME, NAME-2, NAME-3, ..., taken or not.

        Those of a collection lie in outbox/COLLECTION.
        """
        return _numbered_folders((self.outbox_of(collection) if collection else self.outbox) / safe_name(name))

    def outbox_of(self, collection: str) -> Path:
        """Where the results of a collection appear, and its contact sheets."""
        return self.outbox / safe_name(collection)

    def take(self, job_id: str, moves: Mapping[Path, str]) -> None:
        """Move dropped files into the job's folder under these names, or finish doing so.

        A file that is there already is not replaced: what has its old path now is a later drop. Raises
        WorkspaceError, before anything is moved, when a file is neither here nor there.
        """
        folder = self.job_folder(job_id)
        with refusal(f"The dropped files cannot be moved to {folder}", "check both places"):
            _move_all(moves, folder)

    def put_back(self, job_id: str, moves: Mapping[Path, str]) -> None:
        """Move the files that take() has moved back to where they were, or finish doing so.

        A file whose old path has been taken gets a new name, NAME-2.EXT, NAME-3.EXT, ... The job's folder is
        removed when nothing else is in it.
        """
        folder = self.job_folder(job_id)
        with refusal(f"The files in {folder} cannot be moved back", "move them by hand"):
            for path, file_name in moves.items():
                held = folder / _plain(file_name)
                part_of(held).unlink(missing_ok=True)
                if os.path.lexists(held):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _move_to_first_free(held, numbered(path))
            for parent in {path.parent for path in moves if path.parent.is_dir()}:
                sync(parent)
            _remove_empty(folder)
            sync(self.work)

    def reject(self, moves: Mapping[Path, str], *, to: Path, reason: str) -> None:
        """Move dropped files into the folder `to` as take() does, and say why in TO.reason.txt beside them.

        Where one of the files has that name, the reason is in TO.reason-2.txt.
        """
        with refusal(f"The dropped files cannot be moved to {to}", "check both places"):
            _move_all(moves, to)
            names = numbered(to / f"{to.name}.reason.txt")
            place = next(path for path in names if path.name not in moves.values())
            write_bytes(place, f"{reason}\n".encode(errors="replace"))

    def rejected_folder(self, name: str) -> Path:
        """A folder for a rejected drop that does not exist yet: rejected/NAME, NAME-2, NAME-3, ..."""
        folders = _numbered_folders(self.rejected / safe_name(name))
        return next(folder for folder in folders if not os.path.lexists(folder))

    def remove_dropped_folder(self, folder: Path, *, is_junk: Callable[[str], bool]) -> None:
        """Remove a dropped folder in which nothing but junk and empty folders is left; leave it otherwise.

        `is_junk` judges the name of a file or folder. A file that arrives meanwhile stays, with its folder.
        """
        with refusal(f"The folder {folder} cannot be removed", "remove it by hand"):
            if _is_folder(folder) and not _holds_files(folder, is_junk):
                _remove_junk(folder, is_junk)
                sync(folder.parent)

    def jobs_with_folders(self) -> list[str]:
        """The ids of the jobs that have a folder under work/; none where somebody removed that."""
        with refusal(f"The folder {self.work} cannot be read", "check its permissions"), suppress(FileNotFoundError):
            return sorted(folder.name for folder in self.work.iterdir())
        return []

    def discard(self, job_id: str) -> None:
        """Remove the job's folder, if there is one."""
        folder = self.job_folder(job_id)
        with refusal(f"The folder {folder} cannot be removed", "remove it by hand"):
            if folder.exists():
                shutil.rmtree(folder)
                sync(self.work)


def safe_name(text: str) -> str:
    """A name good for a file on any system: at most 120 bytes of UTF-8, not empty, not hidden, no option.

    Letters, digits, marks on letters, space, `.`, `_` and `-` stay; anything else becomes `_`.
    """
    composed = unicodedata.normalize("NFC", text)
    kept = "".join(char if char in _PUNCTUATION or unicodedata.category(char)[0] in "LMN" else "_" for char in composed)
    # Windows and SMB drop spaces and dots at the end.
    short = kept.lstrip(" .-").encode()[:_MAX_NAME_BYTES].decode(errors="ignore").rstrip(" .")
    return short or "untitled"


def check_writable(folder: Path) -> None:
    """Raise WorkspaceError unless `folder`, or the nearest folder above that exists, takes a new file."""
    nearest = folder.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    with (
        refusal(f"Cannot write to {folder}", "choose another folder with -o"),
        tempfile.TemporaryFile(dir=nearest),
    ):
        pass


def require_free(folder: Path, *, but_for: Path | None = None) -> None:
    """Raise WorkspaceError unless `folder` does not exist or is an empty folder, `but_for` aside."""
    with refusal(f"Cannot look into {folder}", "choose another folder with -o"):
        if folder.exists() and not (folder.is_dir() and all(entry == but_for for entry in folder.iterdir())):
            raise WorkspaceError(f"{folder} is already there and not an empty folder; choose another folder with -o.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; raises WorkspaceError when it cannot be read."""
    digest = hashlib.sha256()
    with refusal(f"{path} cannot be read", "check that it is there and readable"), open_file(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _plain(name: str) -> str:
    if name in ("", ".", "..") or Path(name).name != name:
        raise WorkspaceError(f"{name!r} is not the name of a file in a folder; leave out the folders.")
    return name


def _numbered_folders(first: Path) -> Iterator[Path]:
    yield first
    for number in count(2):
        yield first.with_name(f"{first.name}-{number}")


def _move_all(moves: Mapping[Path, str], folder: Path) -> None:
    targets = {path: folder / _plain(file_name) for path, file_name in moves.items()}
    for path, target in targets.items():
        if not os.path.lexists(path) and not os.path.lexists(target):
            raise WorkspaceError(f"{path} is gone and not in {folder} either; drop it again.")
    make_folder(folder)
    # Also the folder that a crash has cut off between the two.
    sync(folder.parent)
    for path, target in targets.items():
        part_of(target).unlink(missing_ok=True)
        if os.path.lexists(path):
            with suppress(FileExistsError):
                move_file(path, target)
    for changed in {folder, *(path.parent for path in moves if path.parent.is_dir())}:
        sync(changed)


def _move_to_first_free(source: Path, targets: Iterable[Path]) -> None:
    for target in targets:
        with suppress(FileExistsError):
            move_file(source, target)
            return


def _holds_files(folder: Path, is_junk: Callable[[str], bool]) -> bool:
    # Not by recursion: folders may lie deeper in each other than Python may.
    below = [folder]
    while below:
        for entry in below.pop().iterdir():
            if not is_junk(entry.name):
                if not _is_folder(entry):
                    return True
                below.append(entry)
    return False


def _remove_junk(folder: Path, is_junk: Callable[[str], bool]) -> None:
    below, found = [(folder, False)], list[Path]()
    while below:
        parent, is_in_junk = below.pop()
        found.append(parent)
        for entry in parent.iterdir():
            junk = is_in_junk or is_junk(entry.name)
            if _is_folder(entry):
                below.append((entry, junk))
            elif junk:
                entry.unlink(missing_ok=True)
    for emptied in reversed(found):
        _remove_empty(emptied)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _replace(destination: Path, result: Path, *, part: Path, guard: Guard = nullcontext) -> None:
    """Let `destination` appear whole: the rename refuses a folder that has been filled meanwhile."""
    try:
        with guard():
            result.rename(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _staged(result, part), guard():
            part.rename(destination)
        sync(destination.parent)
        shutil.rmtree(result)
    else:
        sync(destination.parent)


def _fill(destination: Path, result: Path, *, part: Path) -> None:
    """Rename each file into `destination` from a complete copy in a hidden folder inside it."""
    with _staged(result, part):
        for entry in sorted(part.iterdir()):
            entry.rename(destination / entry.name)
    sync(destination)
    shutil.rmtree(result)


@contextmanager
def _staged(source: Path, part: Path) -> Iterator[None]:
    """A synced copy of a folder for the length of a block, in place of one that a crash left."""
    _remove(part)
    try:
        _copy_folder(source, part)
        yield
    finally:
        _remove(part)


def _copy_folder(source: Path, to: Path) -> None:
    """A synced copy of a folder and all below it; unlike copytree's, its errors say what the disk refused."""
    to.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            _copy_folder(entry, to / entry.name)
        else:
            sync(Path(shutil.copy2(entry, to / entry.name)))
    sync(to)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
