"""What the benchmark of the service does to it: drops pairs, waits for what happens to their jobs, and reads what its
processes use."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from flows.attempt import Phase
from nst_engine.images import encode_png
from nst_engine.samples import content_sample, style_sample
from storage.jobs import utc_now
from storage.models import Job, JobState
from tests.service_process import ENDED, Service

ROWS, ITERATIONS = 64, 40
PATIENCE_SECONDS = 900
# On top of that for each of several jobs: on two cores one of 400 rows and 40 iterations takes more than half a minute.
PATIENCE_SECONDS_A_JOB = 300
PHASES: tuple[Phase, ...] = ("preprocess", "optimise", "deprocess", "publish")
# A GPU worker that takes less of a core for so long computes nothing.
STILL_CORES, STILL_SECONDS, SAMPLE_SECONDS = 0.2, 1.0, 0.1
_seeds = itertools.count()


def settings_of(rows: int, iterations: int) -> dict[str, object]:
    """The settings of a job; the seed does nothing here but make each job another one, so that none is reused."""
    return {
        "rows": rows,
        "iterations": iterations,
        "optimizer": "adam",
        "precision": "float32",
        "weights": "random",
        "seed": next(_seeds),
    }


def drop_pairs(service: Service, names: Sequence[str], *, iterations: int = ITERATIONS) -> Sequence[str]:
    """Move pairs of these names into the inbox at once; returns the names."""
    move_in(service, stage_pairs(service, names, rows=ROWS, iterations=iterations))
    return names


def stage_pairs(service: Service, names: Sequence[str], *, rows: int, iterations: int) -> list[Path]:
    """Write the pairs' files beside the inbox, on the same disk."""
    staging = service.home / "staging"
    staging.mkdir(exist_ok=True)
    pictures = {"content": content_sample(rows, rows * 5 // 4), "style": style_sample(rows, rows)}
    for role, picture in pictures.items():
        encode_png(picture, staging / f"{role}.png")
    data = {role: (staging / f"{role}.png").read_bytes() for role in pictures}
    files = []
    for name in names:
        settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings_of(rows, iterations).items())
        contents = {f"{name}.toml": settings.encode()} | {f"{name}_{role}.png": data[role] for role in pictures}
        for file, content in contents.items():
            (staging / file).write_bytes(content)
            files.append(staging / file)
    return files


def move_in(service: Service, files: Sequence[Path]) -> None:
    """Rename the files into the inbox, one after the other."""
    for file in files:
        file.rename(service.workspace.inbox / file.name)


def run_alone(service: Service, name: str) -> Job:
    """One completed job, dropped into an idle service."""
    (job,) = wait_until_completed(service, drop_pairs(service, [name]))
    wait_until_idle(service)
    return job


def wait_until_completed(service: Service, names: Sequence[str]) -> list[Job]:
    """Wait until these jobs, the newest ones, are completed."""

    def look() -> list[Job]:
        require_no_failure(service)
        # The counts cost the machine next to nothing; the jobs themselves would.
        if service.store.counts()[JobState.COMPLETED] < len(names):
            return []
        jobs = service.store.recent(limit=len(names))
        done = sorted(job.name for job in jobs if job.state is JobState.COMPLETED) == sorted(names)
        return jobs if done else []

    patience = PATIENCE_SECONDS + PATIENCE_SECONDS_A_JOB * len(names)
    # When they ended is read from the database: to look more often would only take time from them.
    return service.wait(f"{names[0]} and those with it are completed", look, seconds=patience, pause=1.0)


def require_no_failure(service: Service) -> None:
    """AssertionError, with all that is known, when a job has failed or was rejected."""
    counts = service.store.counts()
    if counts[JobState.FAILED] or counts[JobState.REJECTED]:
        raise AssertionError(f"A job has failed, which none should.\n{service.report()}")


def wait_when(service: Service, name: str, condition: Callable[[Job], bool]) -> datetime:
    """Wait until the newest job has this name and fulfils the condition; returns when that was seen."""

    def look() -> datetime | None:
        newest = service.store.recent(limit=1)[0]
        require_no_failure(service)
        return utc_now() if newest.name == name and condition(newest) else None

    return moment_of(service.wait(f"{name} has got so far", look, seconds=PATIENCE_SECONDS))


def in_phase(phase: Phase) -> Callable[[Job], bool]:
    """Whether a job has come to that phase."""
    later = PHASES[PHASES.index(phase) :]
    return lambda job: bool(job.attempts) and job.attempts[-1].phase in later


def has_loss(job: Job) -> bool:
    """Whether a job has its first loss."""
    # Noted with the loss of iteration 0, which itself is written later.
    return bool(job.attempts) and job.attempts[-1].device is not None


def at_work(service: Service, names: Sequence[str]) -> Job:
    """Wait until the oldest running one of these jobs, which goes first, is optimised; returns it."""

    def look() -> Job | None:
        require_no_failure(service)
        running = [job for job in service.store.recent(limit=100, state=JobState.RUNNING) if job.name in names]
        return running[-1] if running and has_loss(running[-1]) else None

    job = service.wait(f"one of {names[0]} and those with it is optimised", look, seconds=PATIENCE_SECONDS)
    assert job is not None
    return job


def cancel_by_command(service: Service, job: Job) -> None:
    """`nst cancel`."""
    done = service.command("cancel", job.id)
    if done.returncode != 0:
        raise AssertionError(done.stderr)


def cancel_by_api(service: Service, job: Job) -> None:
    """What the dashboard's button does."""
    service.api("POST", f"flow_runs/{job.attempts[-1].flow_run_id}/set_state", {"state": {"type": "CANCELLING"}})


def cancelled_at(service: Service, job: Job) -> datetime:
    """When the job was cancelled, once it is."""
    service.wait(f"{job.name} is cancelled", lambda: service.store.state_of(job.id) is JobState.CANCELLED)
    return moment_of(service.store.get(job.id).finished_at)


def wait_until_still(service: Service) -> datetime:
    """Wait until the GPU worker computes nothing any more; returns when it was last seen to."""
    (worker,) = service.part("gpu-worker")
    busy, spent = utc_now(), cpu_seconds(worker)
    while (now := utc_now()).timestamp() - busy.timestamp() < STILL_SECONDS:
        # The system offers no event to wait for.
        time.sleep(SAMPLE_SECONDS)
        before, spent = spent, cpu_seconds(worker)
        if spent - before > STILL_CORES * SAMPLE_SECONDS:
            busy = now
    return busy


def end_jobs(service: Service, names: Sequence[str]) -> None:
    """Cancel those of the jobs that have not ended, and wait until the service is idle."""
    for job in service.jobs():
        if job.name in names and job.state not in ENDED:
            service.store.ask_cancel(job.id)
    service.wait_for_end(*names)
    wait_until_idle(service)


def wait_until_idle(service: Service) -> None:
    """Wait until no flow run has a process."""
    service.wait("no flow runs", lambda: not service.part("flow"))


def engine_seconds(service: Service, job_id: str) -> float:
    """The seconds that the engine spent on a job, by its last loss point."""
    return service.store.losses(job_id)[-1].seconds


def parts_of(service: Service) -> dict[str, list[int]]:
    """The processes of a service that runs, by the part that they are."""
    parts = {
        "up": [service.process_id],
        "prefect": service.part("prefect"),
        "scheduler": service.part("scheduler"),
        "gpu-worker nanny": service.processes("flows.cluster worker"),
        "gpu-worker": service.part("gpu-worker"),
        "flow-worker": service.part("flow-worker"),
        "sensor": service.part("sensor"),
        "flow runs": service.part("flow"),
    }
    known = {pid for pids in parts.values() for pid in pids}
    return parts | {"other processes": [pid for pid in service.processes("") if pid not in known]}


def cpu_seconds_of(pids: Sequence[int]) -> dict[int, float]:
    """The `cpu_seconds` of those of the processes that still run."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = cpu_seconds(pid)
    return found


def cpu_seconds(pid: int) -> float:
    """Seconds of the CPU that a process has used, in user and system mode."""
    return sum(_cpu_times(pid)[:2])


def cpu_seconds_with_ended(pid: int) -> float:
    """As `cpu_seconds`, with those of its child processes that have ended, and of theirs."""
    return sum(_cpu_times(pid))


def _cpu_times(pid: int) -> list[float]:
    """In user and in system mode, and the same of the child processes that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15]]


def memory_of(pid: int) -> int:
    """Bytes of memory of a process; what it shares with others is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def moment_of(moment: datetime | None) -> datetime:
    """A moment that must be known."""
    assert moment is not None
    return moment
