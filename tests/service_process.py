"""A real `nst up` in a process of its own, for tests: dropping pictures, waiting for what the database says, killing
parts. Polling is the tests' only way to wait for another process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from nst_engine.images import encode_png
from nst_engine.samples import content_sample, style_sample
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = """
rows = 48
iterations = 6
weights = "random"
precision = "float32"
# Few layers: what a new process needs to trace the network with all is most of what such a job takes.
content_layers = ["block2_conv2"]
style_layers = ["block1_conv1", "block2_conv1"]
"""
ENDED = {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.REJECTED}

CONTENT: NDArray[np.uint8] = content_sample(64, 80)
STYLE: NDArray[np.uint8] = style_sample(64, 64)

Value = TypeVar("Value")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def content_of(seed: int) -> NDArray[np.uint8]:
    """A small content picture, another one for each seed: uint8 RGB (64, 80, 3)."""
    content = CONTENT.copy()
    content[:8, :8] = (seed % 256, seed // 256 % 256, 7)
    return content


class Service:
    """One home and the `nst up` that runs for it, from one start to the next."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.home = home
        self.workspace = Workspace(home)
        self.workspace.create()
        self.port, self.scheduler_port, self.gallery_port = free_port(), free_port(), free_port()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "NST_"))},
            "NST_PREFECT_PORT": str(self.port),
            "NST_SCHEDULER_PORT": str(self.scheduler_port),
            "NST_GALLERY_PORT": str(self.gallery_port),
            "NST_DEVICE": "cpu",
            "NST_SETTLE_SECONDS": "0.5",
            "NST_LEASE_SECONDS": "15",
            "NST_START_SECONDS": "30",
            **{f"NST_{key.upper()}": str(value) for key, value in settings.items()},
        }
        self._database = open_database(str(settings.get("database_url") or self.workspace.database_path))
        self.store = JobStore(self._database)
        self._process: subprocess.Popen[bytes] | None = None
        self._output = home / "up.log"

    def start(self, *, seconds: float = 120) -> None:
        """Start `nst up` and wait until it is ready."""
        before = self.output().count("Dashboard")
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "up", "--home", str(self.home)],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=output,
                stderr=output,
                # A shell's background jobs ignore Ctrl-C; a service of a test must not.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.wait("nst up is ready", lambda: self.output().count("Dashboard") > before, seconds=seconds)

    def stop(self) -> int:
        """End it with SIGTERM; returns its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def kill(self) -> None:
        """End it with SIGKILL, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop it, if it runs, and all that is left of it."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        for process in self.processes(""):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._database.close()

    @property
    def process_id(self) -> int:
        """The process of `nst up` itself."""
        assert self._process is not None
        return self._process.pid

    def output(self) -> str:
        """What `nst up` has said so far."""
        return self._output.read_text() if self._output.exists() else ""

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `nst` command for this home."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments, "--home", str(self.home)],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def processes(self, word: str) -> list[int]:
        """The processes of this service (by its home or its scheduler's port) whose command line has `word`."""
        found = []
        marks = (f"NST_SCHEDULER_PORT={self.scheduler_port}".encode(), str(self.home).encode())
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                if word.encode() in command and marks[0] in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return sorted(found)

    def part(self, name: str) -> list[int]:
        """The processes of a part: prefect, scheduler, gpu-worker, flow-worker, sensor, flow (one a run)."""
        match name:
            case "prefect":
                return self.processes("flows.prefect_server")
            case "scheduler":
                return self.processes("flows.cluster scheduler")
            case "gpu-worker":
                # Not the nanny: its child, which Python's multiprocessing has started.
                return self.processes("multiprocessing.spawn")
            case "flow-worker":
                return self.processes("flows.flow_worker")
            case "sensor":
                return self.processes("flows.cli sensor")
            case "flow":
                return self.processes("prefect.engine")
            case _:
                raise ValueError(name)

    def drop_pair(self, name: str, *, seed: int = 0, settings: str | None = SMALL) -> None:
        """Move a pair of small pictures into the inbox, each appearing whole."""
        staging = self.home / "staging"
        staging.mkdir(exist_ok=True)
        if settings is not None:
            (staging / f"{name}.toml").write_text(settings)
        encode_png(content_of(seed), staging / f"{name}_content.png")
        encode_png(STYLE, staging / f"{name}_style.png")
        for file in sorted(staging.iterdir(), key=lambda path: path.suffix != ".toml"):
            file.rename(self.workspace.inbox / file.name)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        return self.store.recent(limit=5000)

    def job(self, name: str) -> Job:
        """The one job of that name; the beginning of another's id may be the same."""
        (found,) = [job for job in self.jobs() if job.name == name]
        return found

    def wait_for_end(self, *names: str, seconds: float = 120) -> list[Job]:
        """Wait until the jobs of these names have ended; returns them."""
        self.wait(
            f"{', '.join(names[:5])} ended",
            lambda: {job.name for job in self.jobs() if job.state in ENDED} >= set(names),
            seconds=seconds,
        )
        return [self.job(name) for name in names]

    def wait(self, what: str, condition: Callable[[], Value], *, seconds: float = 60, pause: float = 0.05) -> Value:
        """Wait until `condition` gives something true, which is returned; else fail with all that is known.

        It looks again after `pause` seconds.
        """
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"Not within {seconds} s: {what}.\n{self.report()}")
            time.sleep(pause)
        return value

    def report(self) -> str:
        """What a failed test should show: jobs, output and the ends of the log files."""
        lines = [f"{job.id} {job.name} {job.state} {job.error or ''}" for job in self.jobs()[:30]]
        for log in sorted((self.home / "logs").glob("*.log")):
            lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join([*lines, "--- nst up", *self.output().splitlines()[-40:]])

    def api(self, method: str, path: str, body: object = None) -> object:
        """Ask Prefect's API."""
        answer = httpx.request(method, f"http://127.0.0.1:{self.port}/api/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None


@contextlib.contextmanager
def running_service(home: Path, **settings: object) -> Iterator[Service]:
    """A service that runs for the length of the block."""
    service = Service(home, **settings)
    try:
        service.start()
        yield service
    finally:
        service.close()


def files_under(folder: Path) -> set[str]:
    """The files in a folder and below, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def names_of(jobs: Sequence[Job]) -> list[str]:
    """The jobs' names, sorted."""
    return sorted(job.name for job in jobs)
