"""Single steps on the disk that a crash cannot leave half done: copies, writes and moves that replace nothing."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

_BLOCK: Final = 1 << 20
# What file systems without hard links answer, and Linux for a file of another user.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def copy_file(source: Path, part: Path) -> None:
    """Copy a file's bytes and mtime to a place that nobody looks at yet, and sync it."""
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
        writer.flush()
        os.fsync(writer.fileno())
    times = source.stat()
    os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_bytes(path: Path, data: bytes) -> None:
    """Let a file appear whole under its name, in place of what is there: at every moment it is the old or the new."""
    with writing(path) as writer:
        writer.write(data)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that appears whole as in `write_bytes` once it is left, and not at all after an error."""
    part = part_of(path)
    with part.open("wb") as writer:
        try:
            yield writer
            writer.flush()
            os.fsync(writer.fileno())
        except BaseException:
            part.unlink()
            raise
    part.replace(path)
    sync(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Move a file, also to another file system; FileExistsError where the name is taken.

    Once begun it may be called again: it finishes what a crash has cut off.
    """
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = part_of(target)
        try:
            copy_file(source, part)
            _rename(part, target)
            sync(target.parent)
        finally:
            part.unlink(missing_ok=True)
        source.unlink()


def part_of(path: Path) -> Path:
    """The hidden name of a file that is not whole yet."""
    return path.with_name(f".{path.name}.nst.part")


def numbered(path: Path) -> Iterator[Path]:
    """NAME.EXT, NAME-2.EXT, NAME-3.EXT, ..."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    # A rename would replace a file that has just been put there; a link does not.
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        # Linked, then cut off.
        if not os.path.samestat(target.lstat(), source.lstat()):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
        return
    source.unlink()
