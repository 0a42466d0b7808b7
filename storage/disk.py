"""Single steps on the disk that a crash cannot leave half done: copies, writes and moves that replace nothing."""

import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final

_BLOCK: Final = 1 << 20
# What file systems without hard links answer, and Linux for a file of another user.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
# Of the time of a file, in seconds: FAT's.
_COARSEST_TIME: Final = 2.0


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading; OSError for anything else.

    Opening a pipe that somebody has put in its place would wait for ever.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no regular file")
    return file


def copy_file(source: Path, part: Path) -> None:
    """Copy a file's bytes and mtime to a place that nobody looks at yet, and sync it."""
    with open_file(source) as reader, part.open("wb") as writer:
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
    writer = part.open("wb")
    try:
        with writer:
            yield writer
            writer.flush()
            os.fsync(writer.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # A write that is refused does not say of which file.
            error.filename = str(path)
        raise
    sync(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Move a file, also to another file system; FileExistsError where the name is taken.

    Once begun it may be called again: it finishes what a crash has cut off. The new name and what was in the file
    survive a power cut; that the old name is gone does so once its folder is synced.
    """
    _sync_bytes(source)
    try:
        _rename(source, target)
    except FileExistsError:
        # Copied to another file system, then cut off.
        if not _is_copy(target, of=source):
            raise
        sync(target.parent)
        source.unlink()
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            _move_copy(source, target)
        sync(target.parent)
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


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and those above it, where they are missing; a power cut does not take them away again."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


def _sync_bytes(path: Path) -> None:
    """Sync what somebody else has written into a file; what may not be read, or is no file, is moved as it is."""
    if stat.S_ISREG(path.lstat().st_mode):
        with suppress(PermissionError), open_file(path) as file:
            os.fsync(file.fileno())


def _move_copy(source: Path, target: Path) -> None:
    part = part_of(target)
    try:
        copy_file(source, part)
        _rename(part, target)
    finally:
        part.unlink(missing_ok=True)


def _is_copy(path: Path, *, of: Path) -> bool:
    """Whether a file is what move_file makes of another on another file system."""
    copy, original = path.lstat(), of.lstat()
    if copy.st_dev == original.st_dev or stat.S_IFMT(copy.st_mode) != stat.S_IFMT(original.st_mode):
        return False
    if path.is_symlink():
        return path.readlink() == of.readlink()
    # The same picture dropped anew has another time; one file system may keep it less exactly than the other.
    same_time = abs(copy.st_mtime - original.st_mtime) <= _COARSEST_TIME
    return same_time and filecmp.cmp(path, of, shallow=False)


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
    # Of two names in two folders the later may reach the disk before the earlier, and the file be left without any.
    sync(target.parent)
    source.unlink()
