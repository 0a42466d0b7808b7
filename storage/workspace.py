"""The folders of one service and the files in them; what a reader finds under its final name is whole."""

import errno
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from storage.errors import WorkspaceError

_BLOCK: Final = 1 << 20
_MAX_NAME_BYTES: Final = 120
_PUNCTUATION: Final = frozenset(" ._-")


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

    def create(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.inbox, self.outbox, self.rejected, self.collections, self.work):
            with _refusal(f"The folder {folder} cannot be made", "name another home with NST_HOME"):
                folder.mkdir(parents=True, exist_ok=True)

    def job_folder(self, job_id: str) -> Path:
        """The folder of a job's files until it ends; `result/` in it is what publish() moves."""
        return self.work / _plain(job_id)

    def copy_source(self, job_id: str, source: Path, file_name: str) -> Path:
        """Copy a picture into the job's folder under `file_name`, its mtime kept; returns the copy."""
        folder = self.job_folder(job_id)
        copy = folder / _plain(file_name)
        part = folder / f".{file_name}.part"
        with _refusal(f"{source} cannot be copied to {copy}", "check both places"):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                _copy_file(source, part)
                part.replace(copy)
            finally:
                part.unlink(missing_ok=True)
            _sync(folder)
        return copy

    def publish(self, job_id: str, destination: Path) -> None:
        """Move `result/` of the job's folder to `destination`, which must not exist or be an empty folder.

        A destination that is new or lies in the outbox appears whole, in one step. An empty folder elsewhere
        is the user's and stays the same folder, with its owner and rights (or its volume); the complete files
        are renamed into it one by one.
        """
        result = self.job_folder(job_id) / "result"
        destination = destination.resolve()
        if not result.is_dir():
            raise WorkspaceError(f"Job {job_id} has no finished files in {result}; run it again.")
        with _refusal(f"The result cannot be moved to {destination}", "choose another folder with -o"):
            inside = destination / f".{job_id}.part"
            require_free(destination, but_for=inside)
            _sync_tree(result)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if destination.exists() and destination.parent != self.outbox.resolve():
                _fill(destination, result, part=inside)
            else:
                _replace(destination, result, part=destination.with_name(f".{destination.name}.{job_id}.part"))

    def free_name(self, name: str) -> Path:
        """Make an empty folder of this name in the outbox, or of name-2, name-3, ...: the caller's alone."""
        stem = safe_name(name)
        number = 1
        while True:
            folder = self.outbox / (stem if number == 1 else f"{stem}-{number}")
            with _refusal(f"The folder {folder} cannot be made", "check the outbox"):
                try:
                    folder.mkdir()
                except FileExistsError:
                    number += 1
                else:
                    return folder

    def discard(self, job_id: str) -> None:
        """Remove the job's folder, if there is one."""
        folder = self.job_folder(job_id)
        with _refusal(f"The folder {folder} cannot be removed", "remove it by hand"):
            _remove(folder)


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
        _refusal(f"Cannot write to {folder}", "choose another folder with -o"),
        tempfile.TemporaryFile(dir=nearest),
    ):
        pass


def require_free(folder: Path, *, but_for: Path | None = None) -> None:
    """Raise WorkspaceError unless `folder` does not exist or is an empty folder, `but_for` aside."""
    with _refusal(f"Cannot look into {folder}", "choose another folder with -o"):
        if folder.exists() and not (folder.is_dir() and all(entry == but_for for entry in folder.iterdir())):
            raise WorkspaceError(f"{folder} is already there and not an empty folder; choose another folder with -o.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; raises WorkspaceError when it cannot be read."""
    digest = hashlib.sha256()
    with _refusal(f"{path} cannot be read", "check that it is there and readable"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _refusal(what: str, advice: str) -> Iterator[None]:
    """Turn the refusal of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise WorkspaceError(f"{what} ({error.strerror or error}); {advice}.") from error


def _plain(name: str) -> str:
    if name in ("", ".", "..") or Path(name).name != name:
        raise WorkspaceError(f"{name!r} is not the name of a file in a folder; leave out the folders.")
    return name


def _replace(destination: Path, result: Path, *, part: Path) -> None:
    """Let `destination` appear whole: the rename refuses a folder that has been filled meanwhile."""
    try:
        result.rename(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _staged(result, part):
            part.rename(destination)
        shutil.rmtree(result)
    _sync(destination.parent)


def _fill(destination: Path, result: Path, *, part: Path) -> None:
    """Rename each file into `destination` from a complete copy in a hidden folder inside it."""
    with _staged(result, part):
        for entry in sorted(part.iterdir()):
            entry.rename(destination / entry.name)
    _sync(destination)
    shutil.rmtree(result)


@contextmanager
def _staged(source: Path, part: Path) -> Iterator[None]:
    """A synced copy of a folder for the length of a block, in place of one that a crash left."""
    _remove(part)
    try:
        shutil.copytree(source, part)
        _sync_tree(part)
        yield
    finally:
        _remove(part)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _copy_file(source: Path, part: Path) -> None:
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
        writer.flush()
        os.fsync(writer.fileno())
    times = source.stat()
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
