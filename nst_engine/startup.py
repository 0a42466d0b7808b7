"""TensorFlow's import with the settings that suit it here and without its start-up messages, which it prints before
anything can turn them off."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

_M_ARENA_MAX: Final = -8
"""glibc's number for the option, from malloc.h."""


def load_tensorflow() -> None:
    """Import TensorFlow for the modules that use it; what it prints meanwhile is shown only if that fails.

    TF_CPP_MIN_LOG_LEVEL, where it is set, decides about the messages from there on.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    # One operation after another, each on all cores: side by side they only get in each other's way.
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    _share_one_heap()
    with _without_matplotlib(), tempfile.TemporaryFile() as messages:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(messages.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            messages.seek(0)
            os.write(kept, messages.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _share_one_heap() -> None:
    """Let all threads take memory from one heap, where that can be said to the C library (glibc).

    Else TensorFlow's threads have heaps of their own, and what one has freed is of no use to another: 30 MB at
    400 x 533 pixels. They take memory for whole feature maps, too seldom to wait for each other.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Give the system back what is free in the heap, where the C library can (glibc).

    Of maps of up to 33 MB it keeps the room for the next ones.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def _without_matplotlib() -> Iterator[None]:
    """Keep Keras from importing matplotlib, 28 MB and 0.3 s, for plots that nobody here makes with it."""
    if "matplotlib" in sys.modules:
        yield
        return
    # What Python takes for a module that cannot be imported.
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["matplotlib"]
