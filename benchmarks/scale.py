"""Jobs an hour by the number of GPU workers, until something else than they is what there is not enough of: a real
`nst up` without GPU workers of its own, and workers that sleep (`benchmarks.sleeping_workers`) as long as a GPU would
compute. All else is done: pictures are decoded, resized and written, losses and runs are recorded.

python -m benchmarks.scale [--workers 1,2,4,8,16,32] [--job-seconds 10] [--seconds 60] [--rows 400] [--iterations 100]
    [--at-once N] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.service_jobs import (
    cpu_seconds_with_ended,
    moment_of,
    move_in,
    parts_of,
    stage_pairs,
    wait_until_completed,
)
from benchmarks.sleeping_workers import READY
from flows.lifeline import Lifeline
from nst_engine.startup import load_tensorflow
from tests.service_process import REPOSITORY, Service, running_service

# More than the setting `burst`, so that all of a step are worked on by one flow run.
FEWEST_PAIRS = 12
PARTS = ("flow runs", "prefect", "scheduler", "sensor")
AHEAD = 2
"""Jobs that are read and written while others are computed, for each number of workers."""


@dataclass(frozen=True)
class Step:
    """What so many workers came to. `cpu_seconds` are those of each part of the service for one job."""

    workers: int
    at_once: int
    pairs: int
    seconds: float
    cpu_seconds: dict[str, float]
    database_bytes_a_job: float

    @property
    def jobs_an_hour(self) -> float:
        """From the first job's beginning to the last one's end."""
        return 3600 * self.pairs / self.seconds


def main() -> None:
    """Measure each number of workers and print the table."""
    parser = argparse.ArgumentParser(description="Measure jobs an hour by the number of GPU workers.")
    parser.add_argument("--workers", default="1,2,4,8,16,32", help="the numbers of workers, with commas")
    parser.add_argument("--job-seconds", type=float, default=10, help="how long a worker sleeps for a job")
    parser.add_argument("--seconds", type=float, default=60, help="how long the workers of a step should be busy")
    parser.add_argument("--rows", type=int, default=400, help="rows of the pictures; the columns are 5/4 of them")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of a job, each with its losses")
    parser.add_argument("--at-once", type=int, help=f"the setting bulk_at_once; by default the workers and {AHEAD}")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    steps = [measure(int(number), options) for number in options.workers.split(",")]
    print(table(steps, options))
    if options.json:
        report = {name: value for name, value in vars(options).items() if name not in ("json", "workers")}
        report["steps"] = [asdict(step) | {"jobs_an_hour": step.jobs_an_hour} for step in steps]
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(workers: int, options: argparse.Namespace) -> Step:
    """One number of workers, in a home of its own."""
    at_once = options.at_once or workers + AHEAD
    pairs = max(FEWEST_PAIRS, round(workers * options.seconds / options.job_seconds))
    # Beside the results of jobs, not in memory, which /tmp may be.
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        running_service(Path(folder) / "home", own_workers=False, bulk_at_once=at_once, settle_seconds=2) as service,
        sleeping(service, workers=workers, job_seconds=options.job_seconds),
    ):
        names = [f"pair{number:04}" for number in range(pairs)]
        files = stage_pairs(service, names, rows=options.rows, iterations=options.iterations)
        before, bytes_before = _spent(service), _database_bytes(service)
        move_in(service, files)
        jobs = wait_until_completed(service, names)
        after = _spent(service)
        began = min(moment_of(job.started_at) for job in jobs)
        seconds = (max(moment_of(job.finished_at) for job in jobs) - began).total_seconds()
        return Step(
            workers=workers,
            at_once=at_once,
            pairs=pairs,
            seconds=seconds,
            cpu_seconds={part: (after[part] - before[part]) / pairs for part in PARTS},
            database_bytes_a_job=(_database_bytes(service) - bytes_before) / pairs,
        )


@contextmanager
def sleeping(service: Service, *, workers: int, job_seconds: float) -> Iterator[None]:
    """So many sleeping workers for the service."""
    command = [sys.executable, "-m", "benchmarks.sleeping_workers", "--workers", str(workers)]
    address = f"tcp://127.0.0.1:{service.scheduler_port}"
    with Lifeline() as lifeline:
        process = subprocess.Popen(
            [*command, "--scheduler", address, "--job-seconds", str(job_seconds)],
            cwd=REPOSITORY,
            env={**os.environ, **lifeline.environment()},
            pass_fds=(lifeline.child_fd,),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise SystemExit("The workers did not join; see what they said above.")
            yield
        finally:
            process.kill()
            process.wait()


def table(steps: list[Step], options: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    load_tensorflow()
    from nst_engine.hardware import cpu_model

    rows = [
        f"| {step.workers} | {step.at_once} | {step.pairs} | {step.jobs_an_hour:,.0f} | "
        f"{step.workers * 3600 / options.job_seconds:,.0f} | {sum(step.cpu_seconds.values()):.2f} | "
        + " | ".join(f"{step.cpu_seconds[part]:.2f}" for part in PARTS)
        + f" | {step.database_bytes_a_job / 1e3:.0f} |"
        for step in steps
    ]
    return "\n".join(
        [
            f"{cpu_model()}, {os.cpu_count()} cores; Python {platform.python_version()}, Prefect {version('prefect')}, "
            f"Distributed {version('distributed')}; {options.rows} rows, {options.iterations} iterations, "
            f"{options.job_seconds:g} s of a worker a job.",
            "",
            "| workers | `bulk_at_once` | pairs | jobs an hour | as many as the workers could | CPU seconds a job | "
            + " | ".join(PARTS)
            + " | KB of nst.db a job |",
            "|" + "---|" * (7 + len(PARTS)),
            *rows,
        ]
    )


def _spent(service: Service) -> dict[str, float]:
    """CPU seconds of each part until now; a flow run that has ended counts with its flow worker."""
    spent = dict.fromkeys(PARTS, 0.0)
    for part, pids in parts_of(service).items():
        column = "flow runs" if part == "flow-worker" else part
        if column in spent:
            for pid in pids:
                with contextlib.suppress(OSError):
                    spent[column] += cpu_seconds_with_ended(pid)
    return spent


def _database_bytes(service: Service) -> int:
    """With what is still in the write-ahead log."""
    with contextlib.closing(sqlite3.connect(service.workspace.database_path)) as database:
        (pages,), (size,) = (database.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size"))
        return int(pages * size)


if __name__ == "__main__":
    main()
