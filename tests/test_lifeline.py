"""A child ends with its parent. What a child writes goes to the parent's stdout, which it shares: the test reads it
to the end, which comes when the last process that holds it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.errors import FlowError
from flows.lifeline import VARIABLE, Lifeline, end_with_parent

PARENT = """
import os, subprocess, sys, threading
from flows.lifeline import Lifeline
lifeline = Lifeline()
environment = {**os.environ, **lifeline.environment()}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment, pass_fds=(lifeline.child_fd,))
# One that inherits whatever can be inherited and outlives everyone; it must not keep the child alive.
sleeper = subprocess.Popen(["sleep", "30"], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"sleeper {sleeper.pid}", flush=True)
threading.Event().wait()
"""

OBEDIENT = """
import os, signal, subprocess, sys, threading
from flows.lifeline import end_with_parent
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
fd = int(os.environ["NST_LIFELINE"])
end_with_parent()
print("inherits", "NST_LIFELINE" in os.environ, os.get_inheritable(fd), flush=True)
print("ready", flush=True)
ended.wait()
print("terminated", flush=True)
"""

STUBBORN = """
import os, signal, threading
from flows.lifeline import end_with_parent
# Not print: the signal may come while "ready" is being printed.
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"refused\\n"))
end_with_parent(grace=2)
print("ready", flush=True)
threading.Event().wait()
"""


def test_child_ends_when_parent_is_killed() -> None:
    output, _ = _after_kill(OBEDIENT)
    assert output == ["inherits False False", "ready", "terminated"]


def test_child_that_refuses_ends_after_the_grace() -> None:
    output, seconds = _after_kill(STUBBORN)
    assert output == ["ready", "refused"]
    assert seconds >= 2


def _after_kill(child: str) -> tuple[list[str], float]:
    """What the child of a parent that is killed with -9 writes, and the seconds from the kill to the child's end."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, child], cwd=_root(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines: list[str] = []
    while "ready" not in lines or not any(line.startswith("sleeper") for line in lines):
        line = parent.stdout.readline()
        assert line, f"the processes ended after {lines}"
        lines.append(line.strip())
    sleeper = next(line for line in lines if line.startswith("sleeper"))
    lines.remove(sleeper)
    parent.kill()
    began = time.monotonic()
    try:
        rest, _ = parent.communicate(timeout=10)
        return [*lines, *rest.split("\n")[:-1]], time.monotonic() - began
    finally:
        # It lived to the end, so the child ended while others of the parent's children were there.
        os.kill(int(sleeper.split()[1]), signal.SIGKILL)


def test_closing_ends_all_children() -> None:
    with Lifeline() as lifeline:
        children = [
            subprocess.Popen(
                [sys.executable, "-c", "from flows.lifeline import end_with_parent as e; e(); print(); input()"],
                cwd=_root(),
                env={**os.environ, **lifeline.environment()},
                pass_fds=(lifeline.child_fd,),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        assert [child.poll() for child in children] == [None, None]
    lifeline.close()
    assert [child.wait(timeout=5) for child in children] == [-signal.SIGTERM, -signal.SIGTERM]
    for child in children:
        child.communicate()


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = threading.enumerate()
    end_with_parent()
    assert threading.enumerate() == before


@pytest.mark.parametrize("kind", ["no number", "closed", "file"])
def test_what_is_no_pipe_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w") as file:
        value = {"no number": "seven", "closed": "987654", "file": str(file.fileno())}[kind]
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(FlowError, match=f"NST_LIFELINE={value} names no pipe"):
            end_with_parent()


def _root() -> Path:
    return Path(__file__).resolve().parents[1]
