"""One process holds a lock; the system gives it back however that process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.errors import ServiceError
from flows.locks import holder_of, only_one

HOLDER = """
import sys
from pathlib import Path
from flows.locks import only_one
with only_one(Path(sys.argv[1]), what="nst up"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "home" / "service.lock"


@contextmanager
def holding(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_told_of_the_first(lock: Path) -> None:
    with holding(lock) as process:
        assert holder_of(lock) == process.pid
        with pytest.raises(ServiceError) as caught, only_one(lock, what="nst up"):
            pytest.fail("held twice")
        assert str(caught.value) == (
            f"nst up already runs for {lock.parent} (process {process.pid}); stop it first, or name another home with "
            "--home."
        )
        assert holder_of(lock) == process.pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_gives_the_lock_back(lock: Path, number: signal.Signals) -> None:
    with holding(lock) as process:
        process.send_signal(number)
        assert process.wait() == -number
        assert holder_of(lock) is None
        with only_one(lock, what="nst up"):
            assert holder_of(lock) == os.getpid()


def test_a_lock_is_free_before_the_block_and_after_it_also_after_an_error(lock: Path) -> None:
    assert holder_of(lock) is None
    with pytest.raises(ZeroDivisionError), only_one(lock, what="nst up"):
        int(lock.read_text()) // 0
    assert holder_of(lock) is None
    with only_one(lock, what="nst up"):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert (holder_of(lock), lock.read_text()) == (None, "")


def test_the_locks_of_two_homes_are_two(tmp_path: Path) -> None:
    with only_one(tmp_path / "a" / "service.lock", what="nst up"):
        assert holder_of(tmp_path / "b" / "service.lock") is None
        with only_one(tmp_path / "b" / "service.lock", what="nst up"):
            assert holder_of(tmp_path / "b" / "service.lock") == os.getpid()
