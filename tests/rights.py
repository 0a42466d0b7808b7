"""The rights of root put down for a while: root may read and write whatever the modes of files say."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION_3 = 0x20080522
# CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
_OVERRIDE = 1 << 1 | 1 << 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def modes_count() -> Iterator[None]:
    """Let the modes of files bind this thread, and those it starts, for the length of a block."""
    if os.geteuid() != 0:
        yield
        return
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Effective, permitted and inheritable, of the first 32 capabilities and of the others.
    held = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, held):
        pytest.skip("this machine does not tell what root may do")
    less = (ctypes.c_uint32 * 6)(*held)
    less[0] &= ~_OVERRIDE
    if _libc.capset(header, less):
        pytest.skip("this machine lets root put down no rights")
    try:
        yield
    finally:
        _libc.capset(header, held)
