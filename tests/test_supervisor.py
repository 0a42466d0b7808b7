"""Child processes that are kept running, on real ones: small Python programs."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from flows import supervisor
from flows.errors import FlowError, OrchestrationError
from flows.part_states import read_part_states
from flows.supervisor import Part, Supervisor
from storage.jobs import utc_now

SLEEPER = "import time; print('begun', flush=True); time.sleep(600)"
# Says what it hears to a file that all share, in the order of their ends.
LISTENER = """
import signal, sys
def end(number, frame):
    with open(sys.argv[1], "a") as file:
        file.write(sys.argv[2] + "\\n")
    print("ended " + sys.argv[2], flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("begun", flush=True)
signal.pause()
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun', flush=True); time.sleep(600)"
SHORT = "print('begun', flush=True)"


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Running:
    """A supervisor at work in a thread, and what its logger said."""

    def __init__(self, parts: Sequence[Part], logs: Path) -> None:
        self.logs = logs
        self.stop = threading.Event()
        self.started = threading.Event()
        self.error: BaseException | None = None
        self.supervisor = Supervisor(parts, logs=logs, stop=self.stop)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run(started=self.started.set)
        except FlowError as error:
            self.error = error

    def pid(self, name: str) -> int:
        return self.supervisor.process_ids()[name]

    def log(self, name: str) -> list[str]:
        path = self.logs / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def kill(self, name: str) -> None:
        """End a part with SIGKILL and wait until another one has begun."""
        begun = self.log(name).count("begun")
        os.kill(self.pid(name), signal.SIGKILL)
        wait_until(f"{name} has begun again", lambda: self.log(name).count("begun") > begun)

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

    def end(self) -> None:
        self.stop.set()
        self.join()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Runs a supervisor with these parts; when all have begun, unless told otherwise, it returns."""
    made: list[Running] = []

    def start(*parts: Part, begun: bool = True) -> Running:
        running = Running(parts, tmp_path / "logs")
        made.append(running)
        if begun:
            assert running.started.wait(30)
            for part in parts:
                wait_until(f"{part.name} has begun", lambda name=part.name: "begun" in running.log(name))  # type: ignore[misc]
        return running

    yield start
    for running in made:
        running.end()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the logger of the service says, whatever other tests have made of its handlers."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collector = Collector()
    logging.getLogger("nst").addHandler(collector)
    yield lines
    logging.getLogger("nst").removeHandler(collector)


def test_a_part_that_is_killed_starts_again_after_a_growing_pause(run: Callable[..., Running], said: list[str]) -> None:
    running = run(Part("sleeper", python(SLEEPER)))
    pids = [running.pid("sleeper")]
    began = time.monotonic()
    for _ in range(2):
        running.kill("sleeper")
        pids.append(running.pid("sleeper"))
    assert time.monotonic() - began >= 1.5
    log = running.logs / "sleeper.log"
    assert said == [
        f"sleeper ended (signal SIGKILL); it starts again in {pause} s, see {log}" for pause in ("0.5", "1")
    ]
    assert [lives(pid) for pid in pids] == [False, False, True]
    assert len(set(pids)) == 3


def test_what_is_known_of_the_parts_can_be_read_from_outside(run: Callable[..., Running]) -> None:
    # As Dask's nanny says it of its own process.
    nanny = f"print('WARNING Restarting worker (status=running)', flush=True); {SLEEPER}"
    running = run(Part("nanny", python(nanny), restart_sign="Restarting worker"), Part("sleeper", python(SLEEPER)))
    running.kill("sleeper")
    before = utc_now()
    states = {state.name: state for state in read_part_states(running.logs)}
    assert {name: (state.supervisor, state.process, state.restarts) for name, state in states.items()} == {
        "nanny": (os.getpid(), running.pid("nanny"), 1),
        "sleeper": (os.getpid(), running.pid("sleeper"), 1),
    }
    assert all(timedelta() <= before - at < timedelta(minutes=1) for state in states.values() for at in state.latest)
    running.end()
    assert read_part_states(running.logs) == []


def test_a_part_that_ran_for_long_starts_again_after_the_shortest_pause(
    run: Callable[..., Running], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_STEADY_SECONDS", 0.0)
    running = run(Part("sleeper", python(SLEEPER)))
    running.kill("sleeper")
    running.kill("sleeper")
    assert [line.split(";")[1].split(",")[0] for line in said] == [" it starts again in 0.5 s"] * 2


def test_a_part_that_ends_by_itself_is_started_again_and_the_others_are_left_alone(
    run: Callable[..., Running], said: list[str]
) -> None:
    running = run(Part("sleeper", python(SLEEPER)), Part("short", python(f"{SHORT}; raise SystemExit(3)")))
    sleeper = running.pid("sleeper")
    wait_until("short has begun twice", lambda: running.log("short").count("begun") == 2)
    assert said[0].startswith("short ended (exit code 3); it starts again in 0.5 s, ")
    assert running.pid("sleeper") == sleeper
    assert lives(sleeper)


def test_parts_are_started_in_order_and_stopped_in_the_opposite_one(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    names, order = ["first", "second", "third"], tmp_path / "order"
    seen: list[str] = []

    def ready_as(name: str) -> Callable[[Callable[[], bool]], None]:
        def ready(alive: Callable[[], bool]) -> None:
            assert alive()
            wait_until(f"{name} has begun", lambda: (tmp_path / "logs" / f"{name}.log").read_text() == "begun\n")
            seen.append(name)

        return ready

    parts = [Part(name, python(LISTENER, str(order), name), ready=ready_as(name)) for name in names]
    running = run(*parts)
    pids = running.supervisor.process_ids()
    assert (seen, list(pids)) == (names, names)
    running.end()
    assert order.read_text().split() == names[::-1]
    assert [lives(pid) for pid in pids.values()] == [False] * 3
    # The last words too.
    assert {name: running.log(name) for name in names} == {name: ["begun", f"ended {name}"] for name in names}


def test_a_part_has_its_environment_and_writes_both_its_streams_to_its_file(
    run: Callable[..., Running], capfd: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import os, sys, time; print(os.environ['NST_WORD']); sys.stderr.write('100 % wrong\\n'); "
        "sys.stdout.buffer.write(b'caf\\xe9\\n'); sys.stdout.flush(); print(repr(sys.stdin.read())); print('begun'); "
        "time.sleep(600)"
    )
    running = run(Part("quiet", python(program), {"NST_WORD": "psst"}), Part("loud", python(SLEEPER), speaks=True))
    assert sorted(running.log("quiet")) == sorted(["psst", "100 % wrong", "caf\ufffd", "''", "begun"])
    assert running.log("loud") == ["begun"]
    running.end()
    assert capfd.readouterr().out == "begun\n"


def test_a_part_that_does_not_listen_is_killed(run: Callable[..., Running], said: list[str]) -> None:
    running = run(Part("sleeper", python(SLEEPER)), Part("deaf", python(DEAF), stop_seconds=0.3))
    pids = running.supervisor.process_ids()
    running.end()
    assert said == ["deaf does not end; it is killed"]
    assert [lives(pid) for pid in pids.values()] == [False, False]


def never_ready(alive: Callable[[], bool]) -> None:
    raise OrchestrationError("It did not get ready.")


def test_a_part_that_does_not_get_ready_at_first_ends_all(run: Callable[..., Running]) -> None:
    running = run(
        Part("sleeper", python(SLEEPER)),
        Part("bad", python(SLEEPER), ready=never_ready),
        Part("late", python(SLEEPER)),
        begun=False,
    )
    running.join()
    assert (type(running.error), str(running.error)) == (OrchestrationError, "It did not get ready.")
    assert not running.started.is_set()
    pids = running.supervisor.process_ids()
    assert list(pids) == ["sleeper", "bad"]
    assert [lives(pid) for pid in pids.values()] == [False, False]


def test_a_program_that_there_is_not_ends_all(tmp_path: Path) -> None:
    parts = [Part("sleeper", python(SLEEPER)), Part("none", [str(tmp_path / "none")])]
    made = Supervisor(parts, logs=tmp_path / "logs", stop=threading.Event())
    with pytest.raises(FileNotFoundError):
        made.run(started=lambda: None)
    assert not lives(made.process_ids()["sleeper"])


def test_readiness_is_waited_for_again_after_a_restart(run: Callable[..., Running], said: list[str]) -> None:
    calls: list[bool] = []

    def ready(alive: Callable[[], bool]) -> None:
        calls.append(alive())
        if len(calls) == 2:
            raise OrchestrationError("Slow today.")

    running = run(Part("sleeper", python(SLEEPER), ready=ready))
    running.kill("sleeper")
    running.kill("sleeper")
    wait_until("it was waited for three times", lambda: len(calls) == 3)
    assert calls == [True, True, True]
    assert said[1] == "sleeper: Slow today."


def test_a_stop_while_a_part_gets_ready_is_no_failure(run: Callable[..., Running]) -> None:
    waiting = threading.Event()

    def ready(alive: Callable[[], bool]) -> None:
        waiting.set()
        wait_until("it is no longer wanted", lambda: not alive())
        raise OrchestrationError("It ended while it started.")

    running = run(Part("slow", python(SLEEPER), ready=ready), begun=False)
    assert waiting.wait(30)
    running.end()
    assert (running.error, running.started.is_set()) == (None, False)
    assert not lives(running.pid("slow"))


def test_a_stop_in_the_moment_of_a_restart_leaves_nothing_behind(run: Callable[..., Running]) -> None:
    class Environment(UserDict[str, str]):
        """Read when a process is about to be started: the second time, the stop comes just then."""

        reads = 0

        def __iter__(self) -> Iterator[str]:
            self.reads += 1
            if self.reads == 2:
                running.stop.set()
                time.sleep(0.3)
            return super().__iter__()

    environment = Environment()
    running = run(Part("sleeper", python(SLEEPER), environment))
    first = running.pid("sleeper")
    os.kill(first, signal.SIGKILL)
    running.join()
    assert (environment.reads, lives(first), lives(running.pid("sleeper"))) == (2, False, False)
