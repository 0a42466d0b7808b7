"""The life of jobs as one machine: the service's own code on a real database and real folders, its processes as
greenlets that stop, stall and die at any call that changes something. Two things stand in for the real ones. Prefect
is a few runs in memory: the service talks to it through `flows.runs.Runs` alone, whose real form test_dispatch.py
shows, and what matters here is what the database and the files say after any interleaving, thousands of them a minute.
And the optimisation writes a ready-made picture, since no loss decides what becomes of a job."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import numpy as np
import pytest
from prefect.exceptions import TerminationSignal
from prefect.logging import disable_run_logger

from flows import attempt as attempt_module
from flows import dispatch, published, reuse, stylize, tasks
from flows.attempt import Attempt, Watch, watching
from flows.checked_picture import CheckedPicture
from flows.claim import copy_dropped_files
from flows.dispatch import Dispatcher
from flows.errors import OrchestrationError
from flows.intake import Intake
from flows.report import LOSS_PLOT, RECORD, result_document
from flows.retention import Retention
from flows.runs import RunState
from flows.settings import Settings
from nst_engine.images import encode_png
from storage import database as database_module
from storage.database import Database, open_database
from storage.disk import write_bytes
from storage.errors import StorageError
from storage.jobs import JobStore, NewLossPoint
from storage.models import Job, JobState
from storage.nights import NightStore
from storage.retention import RetentionStore
from storage.workspace import Workspace
from tests.stoppable import Acting, Fault, Process, acting, at_point, counted_begin, spawn

LEASE_SECONDS, KEEP_SECONDS, MAX_ATTEMPTS, ITERATIONS = 60.0, 864.0, 2, 3
RESULT: Final = np.full((16, 16, 3), 17, np.uint8)
# What the kernel does at once, with all other calls of the product between two of these.
DISK_CALLS: Final = ("rename", "replace", "link", "unlink", "mkdir", "rmdir", "fsync")


@dataclass
class Run:
    """A flow run: what it was given, and where it stands in Prefect."""

    submissions: dict[str, int]
    state: RunState = RunState.WAITING
    count: int = 1


class PrefectInMemory:
    """In place of `flows.runs.Runs`; see the module."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.away = False
        self._keys: dict[str, str] = {}

    def submit_job(self, job: Job) -> str:
        return self._submit(f"{job.id}:{job.submission}", {job.id: job.submission})

    def submit_burst(self, jobs: Sequence[Job]) -> str:
        key = f"burst:{jobs[0].id}:{jobs[0].submission}:{len(jobs)}:{jobs[-1].id}"
        return self._submit(key, {job.id: job.submission for job in jobs})

    def states(self, run_ids: Collection[str]) -> dict[str, RunState]:
        self._answer()
        return {run_id: self.runs[run_id].state if run_id in self.runs else RunState.MISSING for run_id in run_ids}

    def mark_crashed(self, run_id: str, _message: str) -> None:
        self._answer()
        if run_id in self.runs:
            self.runs[run_id].state = RunState.ENDED

    def is_cancelled(self, run_id: str) -> bool:
        return not self.away and run_id in self.runs and self.runs[run_id].state is RunState.CANCELLED

    def _submit(self, key: str, submissions: dict[str, int]) -> str:
        self._answer()
        run_id = self._keys.setdefault(key, f"run-{len(self._keys) + 1}")
        self.runs.setdefault(run_id, Run(submissions))
        return run_id

    def _answer(self) -> None:
        if self.away:
            raise OrchestrationError("Prefect's API does not answer.")


@dataclass(frozen=True)
class Seen:
    """A job as the database has it; `names` are those of its pictures, with their SHA-256, and of its other files."""

    id: str
    state: JobState
    result_folder: str | None
    manifest: str | None
    attempts_before_retry: int
    has_ended: bool
    has_lease: bool
    has_run: bool
    names: dict[str, str | None] = field(default_factory=dict)
    open_attempts: dict[int, bool] = field(default_factory=dict)
    iterations: list[int] = field(default_factory=list)


_SEEN = """SELECT id, state, result_folder, manifest, attempts_before_retry, finished_at IS NOT NULL,
lease_until IS NOT NULL, flow_run_id IS NOT NULL FROM jobs ORDER BY created_at, id"""


class World:
    """One home, its processes and its clock. All methods that let a process act return when it stands still."""

    def __init__(self, home: Path, template: Path) -> None:
        self.home = home
        self.workspace = Workspace(home)
        self.workspace.create()
        shutil.copy(template, self.workspace.database_path)
        (home / "nst.toml").write_text(
            f"lease_seconds = {LEASE_SECONDS}\nstart_seconds = 60\nmax_attempts = {MAX_ATTEMPTS}\n"
            f"burst = 2\nmax_submitted = 3\nkeep_work_days = {KEEP_SECONDS / 86_400}\n"
        )
        self.settings = Settings(home=home)
        self.time = datetime(2027, 1, 1, tzinfo=UTC)
        self.prefect = PrefectInMemory()
        self.processes: list[Process] = []
        self.service: dict[str, Process] = {}
        self._pids = self._ids = 0
        self._patch = pytest.MonkeyPatch()
        self._quiet = disable_run_logger()
        self._quiet.__enter__()
        # The machine's own eyes, which no fault touches.
        self._eyes = sqlite3.connect(self.workspace.database_path, isolation_level=None)
        self._database = open_database(self.workspace.database_path)
        self.store = self.new_store(self._database)
        self._service_database: Database | None = None
        self._install()
        self.restart()

    def close(self) -> None:
        for process in [*self.processes, *self.service.values()]:
            process.kill()
        self._patch.undo()
        self._quiet.__exit__(None, None, None)
        self._eyes.close()
        self._database.close()
        if self._service_database is not None:
            self._service_database.close()

    def jobs(self) -> list[Seen]:
        """All jobs, the oldest first; read without the product, which would take most of the time."""
        jobs = {row[0]: Seen(row[0], JobState(row[1]), *row[2:]) for row in self._eyes.execute(_SEEN)}
        for job in jobs.values():
            if job.manifest:
                job.names.update(dict.fromkeys(json.loads(job.manifest)["moves"].values()))
        for job_id, name, sha256 in self._eyes.execute("SELECT job_id, file_name, sha256 FROM sources"):
            jobs[job_id].names[name] = sha256
        for job_id, number, is_open in self._eyes.execute(
            "SELECT job_id, number, finished_at IS NULL FROM attempts ORDER BY number"
        ):
            jobs[job_id].open_attempts[number] = bool(is_open)
        for job_id, iteration in self._eyes.execute("SELECT job_id, iteration FROM loss_points ORDER BY iteration"):
            jobs[job_id].iterations.append(iteration)
        return list(jobs.values())

    def new_arrows(self) -> list[tuple[str | None, str | None]]:
        """The changes of jobs' states since the last call, as the triggers of the template have noted them."""
        rows = self._eyes.execute("SELECT old, new FROM seen").fetchall()
        if rows:
            self._eyes.execute("DELETE FROM seen")
        return rows

    def clock(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    def new_store(self, database: Database) -> JobStore:
        return JobStore(database, clock=self.clock, make_id=self._make_id)

    def restart(self) -> None:
        """What a new process of the service does; the one before, if it still lives, is killed."""
        for process in self.service.values():
            process.kill()
        self.service = {}
        if self._service_database is not None:
            self._service_database.close()
        self._service_database = open_database(self.workspace.database_path)
        store = self.new_store(self._service_database)
        self._pids += 1
        self.pid = self._pids
        self.intake = Intake(
            store,
            self.workspace,
            self.settings,
            check=functools.partial(CheckedPicture.of, max_pixels=self.settings.max_pixels),
            clock=lambda: self.time.timestamp(),
            on_job=lambda _job: None,
        )
        self.dispatcher = Dispatcher(
            store,
            self.workspace,
            self.settings,
            self.prefect,  # type: ignore[arg-type]
            nights=NightStore(self._service_database, clock=self.clock),
            on_end=lambda _job: None,
            clock=self.clock,
            ticks=lambda: self.time.timestamp(),
        )
        kept = RetentionStore(self._service_database, clock=self.clock)
        self.retention = Retention(kept, self.workspace, self.settings, clock=self.clock)

    def serve(self, name: str, body: Callable[[], object], fault: Fault | None = None) -> None:
        """Let a thread of the service do something, or go on with what it has not ended; its death is the service's."""
        process = self.service.get(name)
        if process is None or process.ended:
            process = self.service[name] = spawn(name, self.pid, functools.partial(self._serve, body))
        process.go_on(fault)
        if process.dead:
            self.restart()

    @staticmethod
    def _serve(body: Callable[[], object]) -> None:
        # What the sensor's two threads log and go on after.
        with contextlib.suppress(OrchestrationError, StorageError):
            body()

    def start_run(self, run_id: str, fault: Fault | None = None) -> None:
        self.prefect.runs[run_id].state = RunState.RUNNING
        self._pids += 1
        process = spawn(
            run_id,
            self._pids,
            functools.partial(self._work_off, run_id),
            run_id=run_id,
            run_count=self.prefect.runs[run_id].count,
        )
        self.processes.append(process)
        self.go_on(process, fault)

    def go_on(self, process: Process, fault: Fault | None = None, order: BaseException | None = None) -> None:
        process.go_on(fault, order)
        if process.ended:
            self.processes.remove(process)

    def kill(self, process: Process) -> None:
        process.kill()
        self.processes.remove(process)

    def _work_off(self, run_id: str) -> None:
        """What the flow worker's process does with a run: `stylize`, or one after another as `bulk`."""
        run = self.prefect.runs[run_id]
        end = RunState.ENDED
        try:
            for job_id, submission in run.submissions.items():
                with contextlib.suppress(Exception):
                    self._work_off_job(run, job_id, submission)
        except (KeyboardInterrupt, TerminationSignal):
            pass
        if run.state is RunState.RUNNING:
            run.state = end

    def _work_off_job(self, run: Run, job_id: str, submission: int) -> None:
        if len(run.submissions) > 1:
            job = self.store.get(job_id)
            if job.state != "pending" or job.submission != submission:
                return
            with open_database(self.workspace.database_path) as database:
                if reuse.reuse_or_fail(self.new_store(database), self.workspace, job):
                    return
        stylize.stylize.fn(job_id, str(self.home), submission=submission)

    def _make_id(self) -> str:
        self._ids += 1
        return f"job{self._ids:07d}"

    def _install(self) -> None:
        """Put what is counted, and what stands in, in the place of the real."""
        patch = self._patch.setattr
        for name in DISK_CALLS:
            patch(os, name, functools.partial(at_point, getattr(os, name)))
        patch(shutil, "copy2", functools.partial(at_point, shutil.copy2))
        patch(database_module.Database, "begin", counted_begin(database_module.Database.begin))
        patch(attempt_module, "utc_now", self.clock)
        patch(stylize, "utc_now", self.clock)
        patch(stylize, "JobStore", self.new_store)
        patch(stylize, "flow_run", Acting())
        patch(published, "utc_now", self.clock)
        patch(stylize, "os", SimpleNamespace(getpid=lambda: Acting().pid))
        patch(stylize, "socket", SimpleNamespace(gethostname=_host))
        patch(stylize, "is_service_run", lambda: True)
        patch(stylize, "cancelled_in_prefect", self.prefect.is_cancelled)
        patch(stylize, "preprocess", _preprocess)
        patch(stylize, "optimise", _optimise)
        patch(stylize, "deprocess", _deprocess)
        patch(stylize, "publish", tasks.publish.fn)
        for module, name in ((tasks, "publish_report"), (stylize, "failure_report"), (reuse, "plot_losses")):
            patch(module, name, _write_nothing)
        patch(dispatch, "_alive", self._is_alive)

    def _is_alive(self, pid: int) -> bool:
        return any(process.pid == pid and not process.ended for process in self.processes)


def _host() -> str:
    # Every other run is on a machine of its own: of those nothing but the lease is known.
    return "elsewhere" if Acting().pid % 2 else socket.gethostname()


def _write_nothing(*_arguments: object, **_named: object) -> None:
    """A picture or a page that no job's fate hangs on."""


def _pause(watch: Watch) -> None:
    process = acting()
    assert process is not None
    process.stand_still()
    watch.look()


def _preprocess(attempt: Attempt) -> None:
    attempt.enter("preprocess")
    for source in attempt.job.sources:
        if not (attempt.folder / source.file_name).is_file():
            raise FileNotFoundError(errno.ENOENT, "gone", source.file_name)


def _optimise(attempt: Attempt, _pictures: None) -> int:
    """A loss point for each iteration, a checkpoint after the second."""
    attempt.enter("optimise")
    saved = int(attempt.checkpoint.read_bytes()) if attempt.checkpoint.exists() else 0
    attempt.store.note_first_iteration(attempt.job.id, attempt=attempt.number, iteration=saved)
    with watching(attempt, run_id=None, warn=print) as watch:
        for iteration in range(saved, ITERATIONS + 1):
            _pause(watch)
            attempt.renew()
            point = NewLossPoint(
                iteration=iteration, total=1, content=0, style=1, tv=0, layers={}, learning_rate=None, seconds=iteration
            )
            attempt.store.add_loss_points(attempt.job.id, attempt=attempt.number, points=[point])
            if iteration == 1:
                write_bytes(attempt.checkpoint, b"2")
        return ITERATIONS


def _deprocess(attempt: Attempt, _state: int) -> None:
    attempt.enter("deprocess")
    folder = attempt.folder / "result"
    folder.mkdir(exist_ok=True)
    job, losses = attempt.store.get(attempt.job.id), attempt.store.losses(attempt.job.id)
    encode_png(RESULT, folder / "result.png")
    copy_dropped_files(job, attempt.folder, folder)
    (folder / LOSS_PLOT).write_bytes(b"a curve")
    (folder / RECORD).write_text(json.dumps(result_document(job, losses)), encoding="utf-8")
