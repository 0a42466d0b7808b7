"""GPU workers and flows that stand still for longer than a job's lease and then go on, and workers that the kernel
kills for want of memory: real processes, stopped with SIGSTOP and bounded by a real control group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from cluster_processes import ClusterProcesses, worker_process
from numpy.typing import NDArray

from flows.errors import ClusterLostError
from flows.optimisation import RemoteOptimisation, Work
from nst_engine.images import decode
from nst_engine.pictures import Pictures, fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start
from storage.models import Job, JobState
from tests.memory_group import memory_group
from tests.service_process import STYLE, Service, content_of, files_under

if TYPE_CHECKING:
    from nst_engine.engine import Engine

MB = 10**6
LEASE_SECONDS = 10
ITERATIONS = 250
# A flow's process takes a second to start, or a minute where the machine has other things to do.
PATIENCE = 240
SETTINGS: dict[str, Any] = {
    "rows": 48,
    "iterations": ITERATIONS,
    "weights": "random",
    "precision": "float32",
    "optimizer": "adam",
    "content_layers": "block2_conv2",
    "style_layers": "block1_conv1,block2_conv1",
}
# One feature map of the whole picture takes 768 MB, of which two at the least live at once.
HUNGRY = {**SETTINGS, "rows": 1500, "content_layers": "block1_conv1", "style_layers": "block1_conv1"}
UNREAD = """
import logging, sys, threading
from pathlib import Path
from prefect.logging.configuration import setup_logging
from flows.silence import go_on_in_silence

setup_logging()
go_on_in_silence()
sys.stdin.read()
said = []

def speak(name):
    logging.getLogger("flows").warning("Nobody reads this.")
    said.append(name)

speak("main")
other = threading.Thread(target=speak, args=("other",))
other.start()
other.join()
Path(sys.argv[1]).write_text(" and ".join(said))
"""
GIVEN_UP = "Attempt 1 at {name} stood still past its lease of 10 s and was given up; it leaves the job as it is."


def test_who_stood_still_past_the_lease_doubles_nothing(tmp_path: Path, engine: Engine) -> None:
    with running(
        tmp_path, chunk_seconds=0.3, checkpoint_seconds=0.5, lease_seconds=LEASE_SECONDS, burst=100
    ) as service:
        drop(service, "held")
        at_work(service, "held")
        with stopped(*service.part("gpu-worker")):
            drop(service, "orphaned")
            os.kill(taken_up(service, "orphaned", attempt=1).attempts[-1].pid, signal.SIGKILL)
            taken_up(service, "orphaned", attempt=2)
            until = service.job("held").lease_until
            service.wait("a whole lease has gone by", lambda: beyond(service.job("held"), until), seconds=PATIENCE)
        service.wait_for_end("held", "orphaned", seconds=PATIENCE)
        # What it did late was of use to the one, whose flow has waited for it, and to nobody of the other.
        assert [len(service.job(name).attempts) for name in ("held", "orphaned")] == [1, 2]

        drop(service, "late")
        late = at_work(service, "late")
        with stopped(late.attempts[-1].pid):
            drop(service, "overtaken")
            overtaken = at_work(service, "overtaken")
            with stopped(overtaken.attempts[-1].pid):
                taken_up(service, "overtaken", attempt=2)
            service.wait_for_end("late", "overtaken", seconds=PATIENCE)
            ended(service, overtaken)
            before = everything(service)
        ended(service, late)
        assert everything(service) == before

        expected = painted(engine)
        for name in ("held", "orphaned", "late", "overtaken"):
            check(service, name, expected)
        assert sorted(path.name for path in service.workspace.outbox.iterdir()) == [
            "held",
            "late",
            "orphaned",
            "overtaken",
        ]
        log = tmp_path / "logs" / "flow-worker.log"
        for job in (late, overtaken):
            sentence = GIVEN_UP.format(name=job.name)
            # It comes from the process that has ended by way of the flow worker, which may be slower.
            service.wait("the late one has said so", lambda said=sentence: said in log.read_text(), seconds=PATIENCE)
            run: Any = service.api("GET", f"flow_runs/{job.attempts[-1].flow_run_id}")
            assert (run["state_type"], log.read_text().count(sentence)) == ("CRASHED", 1)


def test_a_job_that_the_kernel_kills_its_worker_for_fails_and_harms_no_other(tmp_path: Path, engine: Engine) -> None:
    # The engine is told that it may take what the group does not have.
    limits = {"max_memory_gigabytes": 20, "max_attempts": 2}
    with (
        memory_group(1400 * MB) as group,
        running(tmp_path, chunk_seconds=0.3, checkpoint_seconds=0.5, burst=100, **limits) as service,
    ):
        for process in (*service.processes("flows.cluster worker"), *service.part("gpu-worker")):
            group.add(process)
        drop(service, "hungry", settings=HUNGRY)
        service.wait("its worker is killed", group.kills, seconds=PATIENCE)
        drop(service, "one", "two", "three")
        hungry, *others = service.wait_for_end("hungry", "one", "two", "three", seconds=2 * PATIENCE)
        kills = group.kills()
    sentence = (
        "The GPU worker died 2 times while it computed this job; it may need more memory than there is: try a smaller "
        "picture, or look at the worker's log."
    )
    assert (hungry.state, hungry.error, [attempt.error for attempt in hungry.attempts]) == (
        JobState.FAILED,
        sentence,
        [sentence, sentence],
    )
    assert kills == 4
    expected = painted(engine)
    for job in others:
        assert (job.name, job.state, [attempt.error for attempt in job.attempts]) == (
            job.name,
            JobState.COMPLETED,
            [None],
        )
        assert np.array_equal(decode(tmp_path / "outbox" / job.name / "result.png"), expected), job.name


def test_a_worker_that_the_kernel_has_killed_goes_on_in_tiles(tmp_path: Path) -> None:
    config = find_preset("default").config.with_overrides({**HUNGRY, "iterations": 1})
    content = np.zeros((1500, 1875, 3), np.uint8)
    # As a whole it would take 2.7 GB.
    with memory_group(1700 * MB) as group, ClusterProcesses(tmp_path) as cluster:
        cluster.start_scheduler()
        worker = cluster.start_worker()
        cluster.wait_for_workers()
        for process in (worker.pid, worker_process(worker).pid):
            group.add(process)
        with optimisation(cluster, Work(config, Pictures(content, (STYLE,)), None, 0.3, None)) as remote:
            stretches = [stretch for stretch in remote.stretches() if stretch is not None]
        assert group.kills() == 1
    assert stretches[-1].finished
    assert str(stretches[-1].environment.memory).startswith("In tiles")


def test_a_flow_goes_on_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    lived = tmp_path / "lived"
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", UNREAD, lived], stdin=subprocess.PIPE, stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    assert child.communicate()[0] is None
    assert (child.returncode, lived.read_text()) == (0, "main and other")


def test_a_job_does_not_wait_for_a_thread_that_has_died(tmp_path: Path) -> None:
    config = find_preset("default").config.with_overrides(SETTINGS)
    pictures = fit_pictures(config, content_of(0), [STYLE])
    with ClusterProcesses(tmp_path) as nobody, optimisation(nobody, Work(config, pictures, None, 0.3, None)) as remote:
        stretches = remote.stretches()
        assert next(stretches) is None
        remote._loop.call_soon_threadsafe(remote._loop.stop)
        with pytest.raises(ClusterLostError, match=r"^The thread that talks to the GPU workers has died; "):
            list(stretches)


def optimisation(cluster: ClusterProcesses, work: Work) -> RemoteOptimisation:
    return RemoteOptimisation(cluster.address, work, priority=0, patience_seconds=60)


@contextmanager
def running(home: Path, **settings: object) -> Iterator[Service]:
    service = Service(home, start_seconds=PATIENCE, **settings)
    try:
        service.start(seconds=PATIENCE)
        yield service
    finally:
        service.close()


def drop(service: Service, *names: str, settings: dict[str, Any] = SETTINGS) -> None:
    """Pairs that come to the same picture, each with a setting that changes nothing but makes it a job of its own."""
    for name in names:
        own = {**settings, "seed": int.from_bytes(name.encode()[:3])}
        lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in own.items()]
        service.drop_pair(name, settings="\n".join(lines) + "\n")


def at_work(service: Service, name: str) -> Job:
    """The job, when it has been saved once."""
    taken_up(service, name, attempt=1)
    checkpoint = service.workspace.job_folder(service.job(name).id) / "checkpoint"
    service.wait(f"{name} is saved", checkpoint.exists, seconds=PATIENCE)
    job = service.job(name)
    assert job.state is JobState.RUNNING
    return job


def taken_up(service: Service, name: str, *, attempt: int) -> Job:
    """The job, when so many attempts at it have come to their optimisation."""

    def found() -> Job | None:
        jobs = [job for job in service.jobs() if job.name == name]
        return next((job for job in jobs if [each.phase for each in job.attempts] == attempt * ["optimise"]), None)

    job = service.wait(f"attempt {attempt} at {name} is at work", found, seconds=PATIENCE)
    assert job is not None
    return job


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """They stand still for the length of the block."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def beyond(job: Job, moment: datetime | None) -> bool:
    assert job.lease_until is not None
    assert moment is not None
    return (job.lease_until - moment).total_seconds() > LEASE_SECONDS


def ended(service: Service, job: Job) -> None:
    """Wait until the process of the job's attempt has ended."""
    service.wait(f"the flow of {job.name} has ended", lambda: not psutil.pid_exists(job.attempts[-1].pid))


def everything(service: Service) -> dict[str, Any]:
    """All that is remembered of the jobs, and all their files."""
    places = (service.workspace.work, service.workspace.outbox, service.workspace.rejected)
    files = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
    jobs = {}
    for job in service.jobs():
        rows = [job, *job.sources, *job.attempts, *service.store.losses(job.id)]
        jobs[job.name] = [{column.key: getattr(row, column.key) for column in row.__table__.columns} for row in rows]
    return {"files": files, "jobs": jobs}


def check(service: Service, name: str, expected: NDArray[np.uint8]) -> None:
    """One whole result, the expected picture bit for bit, and each loss once."""
    job = service.job(name)
    last = job.attempts[-1]
    assert (job.state, job.error, last.outcome, last.error) == (JobState.COMPLETED, None, JobState.COMPLETED, None)
    assert all(attempt.outcome is JobState.FAILED for attempt in job.attempts[:-1])
    folder = service.workspace.outbox / name
    assert files_under(folder) == {"result.png", "loss.png", "job.json", "content.png", "style.png", "settings.toml"}
    assert np.array_equal(decode(folder / "result.png"), expected), name
    assert [point.iteration for point in service.store.losses(job.id)] == list(range(ITERATIONS + 1)), name


def painted(engine: Engine) -> NDArray[np.uint8]:
    config = find_preset("default").config.with_overrides(SETTINGS)
    state, _ = start(engine, config, fit_pictures(config, content_of(0), [STYLE]))
    state, _ = advance(engine, state, Budget())
    result: NDArray[np.uint8] = state.result()
    return result
