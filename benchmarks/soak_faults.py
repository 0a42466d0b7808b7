"""The faults of a soak: parts of the service killed, stopped and gone on with, its database locked, its disk filled,
its inbox taken away, its jobs cancelled and tried again, and Prefect's database wiped. Each returns when it is over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.soak_load import OPEN, Ledger
from storage.errors import StorageError
from storage.models import Job, JobState
from tests.service_process import Service

PARTS: Final = ("gpu-worker", "scheduler", "flow", "flow-worker", "sensor", "gallery", "prefect")
START_SECONDS: Final = 600
"""A machine under load takes its time to start all parts."""
_FILL_BLOCK: Final = bytes(1 << 20)


class Faults:
    """All faults of one service, each a method that makes it, holds it and mends it; each says what it did, or None
    where there was nothing to do it to.

    `broken` gathers what must never happen. `fill_disk` is left out where the home has no disk of its own.
    """

    def __init__(self, service: Service, ledger: Ledger, *, seed: int, own_disk: bool) -> None:
        self._service = service
        self._ledger = ledger
        self._random = random.Random(seed)
        self._waits = threading.Event()
        self.broken: list[str] = []
        self._all: dict[str, tuple[int, Callable[[], str | None]]] = {
            "kill a part": (8, self._kill_part),
            "stop a part for a while": (8, self._stop_part),
            "kill the service": (1, self._kill_service),
            "restart the service": (1, self._restart_service),
            "lock the database": (2, self._lock_database),
            "take the inbox away": (2, self._take_inbox_away),
            "cancel a job": (3, self._cancel_job),
            "retry a job": (3, self._retry_job),
            "wipe Prefect's database": (1, self._wipe_prefect),
        }
        if own_disk:
            self._all["fill the disk"] = (2, self._fill_disk)

    @property
    def names(self) -> list[str]:
        """The kinds of faults."""
        return list(self._all)

    def draw(self, among: list[str]) -> tuple[str, str | None]:
        """Make one of these kinds of fault, drawn by their weights; returns its kind and what it did."""
        (kind,) = self._random.choices(among, [self._all[name][0] for name in among])
        return kind, self._all[kind][1]()

    def _kill_part(self) -> str | None:
        part, processes = self._draw_part()
        return f"{part}: {len(self._signal(processes, signal.SIGKILL))} processes" if processes else None

    def _stop_part(self) -> str | None:
        part, processes = self._draw_part()
        if not processes:
            return None
        # Some longer than a lease of the soak's service, some shorter.
        seconds = self._random.uniform(1, 20)
        stopped = self._signal(processes, signal.SIGSTOP)
        try:
            self._waits.wait(seconds)
        finally:
            self._signal(stopped, signal.SIGCONT)
        return f"{part} for {seconds:.0f} s"

    def _kill_service(self) -> str:
        self._service.kill()
        self._start()
        return "with -9"

    def _restart_service(self) -> str:
        try:
            code = self._service.stop()
        except subprocess.TimeoutExpired as error:
            self.broken.append(f"nst up did not end within {error.timeout:g} s when it was told to stop.")
            self._service.kill()
        else:
            if code != 0:
                self.broken.append(f"nst up ended with exit code {code} when it was told to stop.")
        self._start()
        return "with SIGTERM"

    def _lock_database(self) -> str | None:
        seconds = self._random.uniform(5, 35)
        path = self._service.workspace.database_path
        with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                # The service has kept it from us.
                return None
            self._waits.wait(seconds)
        return f"for {seconds:.0f} s"

    def _take_inbox_away(self) -> str:
        inbox, away = self._service.workspace.inbox, self._service.home / "inbox.away"
        seconds = self._random.uniform(0.5, 5)
        inbox.rename(away)
        self._waits.wait(seconds)
        # The sensor may have made one meanwhile.
        inbox.mkdir(exist_ok=True)
        for entry in away.iterdir():
            entry.rename(inbox / entry.name)
        away.rmdir()
        return f"for {seconds:.0f} s"

    def _cancel_job(self) -> str | None:
        jobs = [job for job in self._jobs() if job.state in OPEN and job.collection is None]
        if not jobs:
            return None
        job = self._random.choice(jobs)
        self._ledger.cancelled.add(job.id)
        done = self._service.command("cancel", job.id)
        return f"{job.name}: exit code {done.returncode}"

    def _retry_job(self) -> str | None:
        jobs = [job for job in self._jobs() if job.state in (JobState.CANCELLED, JobState.FAILED)]
        if not jobs:
            return None
        job = self._random.choice(jobs)
        done = self._service.command("retry", job.id)
        return f"{job.name}: exit code {done.returncode}"

    def _wipe_prefect(self) -> str:
        self._signal(self._service.part("prefect"), signal.SIGKILL)
        for file in (self._service.home / "prefect").glob("prefect.db*"):
            file.unlink(missing_ok=True)
        return "and killed it"

    def _fill_disk(self) -> str:
        seconds = self._random.uniform(3, 15)
        with _filled(self._service):
            self._waits.wait(seconds)
        return f"for {seconds:.0f} s"

    def _draw_part(self) -> tuple[str, list[int]]:
        part = self._random.choice(PARTS)
        return part, self._processes(part)

    def _processes(self, part: str) -> list[int]:
        if part == "gallery":
            return self._service.processes("flows.cli gallery")
        processes = self._service.part(part)
        # There is one flow a job.
        return [self._random.choice(processes)] if part == "flow" and processes else processes

    def _jobs(self) -> list[Job]:
        try:
            return self._service.jobs()
        except StorageError:
            return []

    def _start(self) -> None:
        try:
            self._service.start(seconds=START_SECONDS)
        except AssertionError as error:
            self.broken.append(f"nst up did not start: {error}")

    @staticmethod
    def _signal(processes: list[int], number: signal.Signals) -> list[int]:
        reached = []
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
                reached.append(process)
        return reached


@contextmanager
def _filled(service: Service) -> Iterator[None]:
    """No byte is free on the disk of the home for the length of the block."""
    filler = service.home / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                # What does not fit whole is written as far as it does, and the next write refused.
                file.write(_FILL_BLOCK)
        yield
    finally:
        filler.unlink(missing_ok=True)
