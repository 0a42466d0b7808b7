"""What a great many pictures cost: thousands of pairs dropped at once into a home with a long history, with a real
sensor, a real Prefect server and no flow worker, so that what is measured is the taking and not the painting. The
sensor is stopped and started again in the middle of the burst, and a single pair is dropped after that.

python -m benchmarks.load [--pairs 10000] [--history 100000] [--idle-seconds 60] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.burst import ROOT, Answers, answer_of, asking, server
from benchmarks.history import fill
from benchmarks.service_jobs import cpu_seconds
from flows.lifeline import Lifeline
from nst_engine.images import encode_png
from nst_engine.startup import load_tensorflow
from storage.database import open_database
from storage.errors import JobNotFoundError
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.service_process import STYLE, content_of

# History as it is after years: nothing of it waits.
ENDED = {JobState.COMPLETED: 95, JobState.FAILED: 4, JobState.CANCELLED: 1}
OPEN = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")
SETTLE_SECONDS = 2
MAX_SUBMITTED = 4
PATIENCE_SECONDS = 3600
SAMPLE_SECONDS = 0.5
COMMANDS = (("jobs",), ("status",), ("inbox",), ("show", "0000000001"), ("backup", "copy.db"))


@dataclass
class Watched:
    """What was seen of a sensor: the most flow runs open at once, the most memory in bytes, and its CPU seconds."""

    open_runs: int = 0
    memory_bytes: int = 0
    cpu_seconds: float = 0.0
    recorded: list[tuple[float, int]] = field(default_factory=list)


def main() -> None:
    """Run all parts in a temporary home and print the table."""
    parser = argparse.ArgumentParser(description="Measure the service under a great many pictures.")
    parser.add_argument("--pairs", type=int, default=10_000, help="pairs dropped at once")
    parser.add_argument("--history", type=int, default=100_000, help="jobs in the database before")
    parser.add_argument("--idle-seconds", type=float, default=60, help="how long an idle sensor is watched")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    # Beside the results of jobs, not in memory, which /tmp may be.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        fill(home, options.history, states=ENDED)
        with server(home) as url:
            report = measure(home, url, pairs=options.pairs, idle_seconds=options.idle_seconds)
    report |= {"pairs": options.pairs, "history": options.history, **_machine()}
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(home: Path, url: str, *, pairs: int, idle_seconds: float) -> dict[str, Any]:
    """The figures of one home with a Prefect server at `url`."""
    _deploy(home, url)
    before = Workspace(home).database_path.stat().st_size
    with contextlib.closing(open_database(Workspace(home).database_path)) as database:
        store = JobStore(database)
        with _sensor(home, url) as sensor:
            idle = _idle_cpu(sensor, idle_seconds)
            alone = _single(home, store, "alone", number=0)
        staged = [_stage(home, f"burst-{number:05}", number) for number in range(1, pairs + 1)]
        with asking(url) as answers, _watching(home, url, store) as watched:
            with _sensor(home, url) as sensor:
                watched.follow(sensor)
                began = time.perf_counter()
                for file in (file for pair in staged for file in pair):
                    file.rename(Workspace(home).inbox / file.name)
                moved = time.perf_counter() - began
                _wait(lambda: watched.taken() >= pairs // 3)
                stopped = _seconds_to_stop(sensor)
            with _sensor(home, url) as sensor:
                watched.follow(sensor)
                _wait(lambda: watched.taken() >= 2 * pairs // 3)
                amid = _single(home, store, "amid", number=pairs + 1)
                _wait(lambda: watched.taken() >= pairs + 1)
                seconds = time.perf_counter() - began
        commands = {" ".join(command): _command(home, url, command) for command in COMMANDS}
        for number in range(pairs):
            for file in _stage(home, f"lonely-{number:05}", number)[:1]:
                file.rename(Workspace(home).inbox / file.name)
        with _sensor(home, url) as sensor:
            crowded = _idle_cpu(sensor, idle_seconds)
        pending = store.counts()[JobState.PENDING]
    return {
        "database_bytes_before": before,
        "database_bytes": Workspace(home).database_path.stat().st_size,
        "idle_cpu_a_minute": idle,
        "waiting_cpu_a_minute": crowded,
        "seconds_to_move_in": moved,
        "seconds_to_record": seconds,
        "seconds_to_stop": stopped,
        "sensor": asdict(watched.found),
        "single": {"alone": alone, "amid": amid},
        "api": asdict(answers),
        "commands": commands,
        "pending": pending,
    }


class _Watch:
    """Looks at sensors, one after the other, while they work, from a thread of its own."""

    def __init__(self, url: str, store: JobStore) -> None:
        self.found = Watched()
        self._url = url
        self._store = store
        self._before = self._pending()
        self._sensor = 0
        self._spent = 0.0
        self._began = time.perf_counter()

    def follow(self, sensor: subprocess.Popen[str]) -> None:
        self.found.cpu_seconds += self._spent
        self._sensor, self._spent = sensor.pid, 0.0

    def taken(self) -> int:
        return self._pending() - self._before

    def look(self) -> None:
        with contextlib.suppress(OSError):
            if self._sensor:
                self._spent = cpu_seconds(self._sensor)
                status = Path(f"/proc/{self._sensor}/status").read_text()
                # One that has just ended has a status, and no memory.
                if "VmHWM:" in status:
                    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
                    self.found.memory_bytes = max(self.found.memory_bytes, peak)
        runs = answer_of(f"{self._url}/flow_runs/count", {"flow_runs": {"state": {"type": {"any_": OPEN}}}})
        self.found.open_runs = max(self.found.open_runs, int(runs))
        self.found.recorded.append((time.perf_counter() - self._began, self.taken()))

    def _pending(self) -> int:
        return self._store.counts()[JobState.PENDING]


@contextmanager
def _watching(home: Path, url: str, store: JobStore) -> Iterator[_Watch]:
    watch, done = _Watch(url, store), threading.Event()

    def work() -> None:
        while not done.wait(SAMPLE_SECONDS):
            watch.look()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()
        watch.found.cpu_seconds += watch._spent


@contextmanager
def _sensor(home: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """`nst sensor` of that home, once it watches."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(home / "prefect"),
        "NST_SETTLE_SECONDS": str(SETTLE_SECONDS),
        "NST_MAX_SUBMITTED": str(MAX_SUBMITTED),
        "NST_PRESET": "default",
        "NST_NIGHTLY": "off",
    }
    with Lifeline() as lifeline:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "sensor", "--home", str(home)],
            cwd=ROOT,
            env=environment | lifeline.environment(),
            pass_fds=(lifeline.child_fd,),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        # It says what it watches when it begins to.
        while "Watching" not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit("The sensor ended before it watched; see what it said above.")
            print(line, end="", file=sys.stderr)
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _deploy(home: Path, url: str) -> None:
    make = "import sys; from pathlib import Path; from flows.deployments import ensure_deployments; "
    command = [sys.executable, "-c", f"{make}ensure_deployments(Path(sys.argv[1]))", str(home)]
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(home / "prefect")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def _idle_cpu(sensor: subprocess.Popen[str], seconds: float) -> float:
    """CPU seconds a minute of a sensor to which nothing happens."""
    # What it does at its start is over when it has looked and dispatched a few times.
    time.sleep(min(seconds, 10))
    before = cpu_seconds(sensor.pid)
    time.sleep(seconds)
    return (cpu_seconds(sensor.pid) - before) * 60 / seconds


def _stage(home: Path, name: str, number: int) -> tuple[Path, Path]:
    """A pair of its own for each number, on the same disk as the inbox; returns its two files."""
    staging = home / "staging"
    staging.mkdir(exist_ok=True)
    content, style = (staging / f"{name}_{role}.png" for role in ("content", "style"))
    encode_png(content_of(number), content)
    encode_png(STYLE, style)
    return content, style


def _single(home: Path, store: JobStore, name: str, *, number: int) -> dict[str, float]:
    """Drop one pair; the seconds until it is a job, and until Prefect has a run for it."""
    began = time.perf_counter()
    for file in _stage(home, name, number):
        file.rename(Workspace(home).inbox / file.name)
    found = {"recorded": _wait(lambda: _job(store, name) is not None) - began}
    return found | {"submitted": _wait(lambda: getattr(_job(store, name), "flow_run_id", None) is not None) - began}


def _job(store: JobStore, name: str) -> Job | None:
    with contextlib.suppress(JobNotFoundError):
        return store.find(name)
    return None


def _wait(condition: Callable[[], bool]) -> float:
    """Wait until the condition holds; returns when that was."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Nothing came of it within {PATIENCE_SECONDS} s.")
        # Another process's work offers no event to wait for.
        time.sleep(0.2)
    return time.perf_counter()


def _seconds_to_stop(sensor: subprocess.Popen[str]) -> float:
    began = time.perf_counter()
    sensor.send_signal(signal.SIGTERM)
    sensor.wait()
    return time.perf_counter() - began


def _command(home: Path, url: str, command: tuple[str, ...]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flows.cli", *command, "--home", str(home)],
        cwd=home,
        env={**os.environ, "PREFECT_API_URL": url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def _machine() -> dict[str, Any]:
    load_tensorflow()
    from nst_engine.hardware import cpu_model

    # What else ran meanwhile makes all of it slower.
    return {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[2], 1),
    }


def _table(report: dict[str, Any]) -> str:
    sensor, api, single = report["sensor"], Answers(**report["api"]), report["single"]
    slowest = sorted(api.seconds)
    rows = {
        "pairs dropped at once": f"{report['pairs']:,}, in {report['seconds_to_move_in']:.1f} s",
        "all recorded, their files in `work/`": f"{report['seconds_to_record']:.0f} s "
        f"({report['pairs'] / report['seconds_to_record']:.0f} pairs a second)",
        "CPU seconds of the sensor for that": f"{sensor['cpu_seconds']:.0f}",
        "most memory of the sensor": f"{sensor['memory_bytes'] / 1e6:.0f} MB",
        "sensor told to stop in the middle of it": f"ended after {report['seconds_to_stop']:.1f} s",
        "most flow runs open at once": f"{sensor['open_runs']} (`max_submitted` is {MAX_SUBMITTED})",
        "a single pair dropped before": _in_words(single["alone"]),
        "a single pair dropped when two thirds were recorded": _in_words(single["amid"]),
        "Prefect's API meanwhile: median, 95 %, slowest": f"{1e3 * statistics.median(slowest):.0f}, "
        f"{1e3 * slowest[int(0.95 * len(slowest))]:.0f}, {1e3 * slowest[-1]:.0f} ms of {len(slowest)} answers",
        "answers that were errors": str(len(api.errors)),
        "idle sensor": f"{report['idle_cpu_a_minute']:.2f} CPU seconds a minute",
        f"idle sensor, {report['pairs']:,} files waiting for a partner, {report['pending']:,} jobs for a worker": (
            f"{report['waiting_cpu_a_minute']:.2f} CPU seconds a minute"
        ),
        "database": f"{report['database_bytes_before'] / 1e6:.0f} MB, then {report['database_bytes'] / 1e6:.0f} MB",
    }
    rows |= {f"`nst {name}`": f"{seconds:.2f} s" for name, seconds in report["commands"].items()}
    return "\n".join(
        [
            f"{report['machine']}; Python {report['python']}; {report['history']:,} jobs of history; the load average "
            f"of the last 15 minutes was {report['load_average']}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
        ]
    )


def _in_words(single: dict[str, float]) -> str:
    return f"a job after {single['recorded']:.1f} s, submitted after {single['submitted']:.1f} s"


if __name__ == "__main__":
    main()
