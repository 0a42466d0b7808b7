"""Arrays that may be larger than the memory: ordinary NumPy arrays, some of them on disk, that is views of a mapped
file without a name, whose pages the system writes out and reads back as it needs. What is made from an array on disk
is on disk, so whoever computes need not know; work goes block by block and lets go of each block's pages."""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from nst_engine.errors import DiskSpaceError

BLOCK_NUMBERS: Final = 1 << 22
"""Numbers of a block: 17 MB in float32. A sum over more is a sum of the blocks' sums."""

MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
"""Where Linux lists what is mounted, see proc_pid_mountinfo(5)."""

_USUAL_FOLDER: Final = Path("/var/tmp")  # noqa: S108
_KEPT_IN_MEMORY: Final = ("tmpfs", "ramfs")


def on_disk(array: np.ndarray) -> bool:
    """Whether `array` is one of this module's arrays on disk, or a view of one."""
    return _mapping(array) is not None


def empty(shape: tuple[int, ...], dtype: DTypeLike, *, on_disk: bool) -> np.ndarray:
    """A new array of that shape, of zeros on disk and of anything in memory; raises DiskSpaceError."""
    if not on_disk:
        return np.empty(shape, dtype)
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    if count == 0:
        return np.empty(shape, kind)
    return np.frombuffer(_reserve(count * kind.itemsize), kind).reshape(shape)


def empty_like(array: np.ndarray, shape: tuple[int, ...] | None = None, dtype: DTypeLike | None = None) -> np.ndarray:
    """A new array, on disk if `array` is, of its shape and type unless others are given; raises DiskSpaceError."""
    return empty(
        array.shape if shape is None else shape, array.dtype if dtype is None else dtype, on_disk=on_disk(array)
    )


def zeros_like(array: np.ndarray) -> np.ndarray:
    """Zeros of the shape and type of `array`, on disk if it is; raises DiskSpaceError."""
    # A new file reads as zeros.
    return empty_like(array) if on_disk(array) else np.zeros_like(array)


def placed(array: np.ndarray, *, on_disk: bool) -> np.ndarray:
    """`array` itself where it already is in the place wanted, else a copy there, its pages let go of.

    Raises DiskSpaceError.
    """
    if (_mapping(array) is not None) == on_disk:
        release(array)
        return array
    copy = empty(array.shape, array.dtype, on_disk=on_disk)
    for block in blocks(array):
        copy[block] = array[block]
        release(array, copy)
    return copy


def release(*arrays: np.ndarray) -> None:
    """Let go of the memory that the pages of arrays on disk take in this process; their contents stay.

    The whole file of each is let go of, also where only a view of it is given. Arrays in memory are left alone.
    """
    for array in arrays:
        mapping = _mapping(array)
        if mapping is not None:
            mapping.madvise(mmap.MADV_DONTNEED)


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Slices along the first axis that cut `array` into blocks of about BLOCK_NUMBERS; one where it has no more.

    They depend on the shape alone, not on where the array is.
    """
    length = len(array)
    step = max(1, BLOCK_NUMBERS * length // max(array.size, 1))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def blockwise(compute: Callable[..., np.ndarray], *arrays: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """What the elementwise `compute` makes of arrays of one length, block by block along the first axis.

    The result is `out`, which may be one of the arrays, or new and on disk if the first array is. Raises
    DiskSpaceError.
    """
    first = arrays[0]
    if first.size <= BLOCK_NUMBERS and not on_disk(first):
        if out is None:
            return compute(*arrays)
        out[...] = compute(*arrays)
        return out
    for block in blocks(first):
        part = compute(*(array[block] for array in arrays))
        if out is None:
            out = empty_like(first, (len(first), *part.shape[1:]), part.dtype)
        out[block] = part
        release(*arrays, out)
    assert out is not None
    return out


def blockwise_sum(compute: Callable[..., np.ndarray], *arrays: np.ndarray) -> float:
    """The sum of what the elementwise `compute` makes of arrays of one length, over blocks in their order.

    It is the same, bit for bit, wherever the arrays are and whatever the number of threads.
    """
    sums = list[float]()
    for block in blocks(arrays[0]):
        # Not np.dot: BLAS splits a sum by the number of threads.
        sums.append(float(compute(*(array[block] for array in arrays)).sum()))
        release(*arrays)
    return sum(sums)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    owner: Any = array
    while True:
        match owner:
            case np.ndarray():
                owner = owner.base
            case memoryview():
                owner = owner.obj
            case _:
                return owner if isinstance(owner, mmap.mmap) else None


def _reserve(size: int) -> mmap.mmap:
    """A mapping of `size` bytes of a new file, which has no name and goes with the mapping."""
    folder = scratch_folder()
    if _file_system(folder) in _KEPT_IN_MEMORY:
        raise DiskSpaceError(f"{folder} is kept in memory; set TMPDIR to a folder on a disk.")
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            # A file with holes would let the disk fill up later, and the process die of a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"Unable to map {size / 1e9:.2f} GB of a file in {folder}") from error
        raise DiskSpaceError(
            f"A large picture needs {size / 1e9:.2f} GB more in {folder}{_free_space(folder)} ({error.strerror}); "
            "set TMPDIR to a folder with more room."
        ) from error


def scratch_folder() -> Path:
    """TMPDIR, or a folder that is kept on disk: /tmp is in memory on many machines."""
    chosen = os.environ.get("TMPDIR")
    if chosen:
        return Path(chosen)
    return _USUAL_FOLDER if os.access(_USUAL_FOLDER, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _file_system(folder: Path) -> str | None:
    """The type of the file system that a folder is on, None where the system does not tell."""
    if not MOUNT_TABLE.exists():
        return None
    place, depth, found = folder.resolve(), -1, None
    for line in MOUNT_TABLE.read_text(errors="surrogateescape").splitlines():
        mount, kind = line.split(" - ", 1)
        # A space and the like are written as their octal codes.
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split(" ")[4]))
        # Of two at the same place, the later one hides the earlier.
        if len(point.parts) >= depth and place.is_relative_to(point):
            depth, found = len(point.parts), kind.split(" ")[0]
    return found


def _free_space(folder: Path) -> str:
    try:
        status = os.statvfs(folder)
    except OSError:
        return ""
    return f", which has {status.f_bavail * status.f_frsize / 1e9:.2f} GB free"
