from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_processes import ClusterProcesses, eventually, worker_process

from flows.edition import edition
from flows.lifeline import Lifeline

ENDS_WITHIN_SECONDS = 5


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[ClusterProcesses]:
    with ClusterProcesses(tmp_path) as started:
        yield started


def test_a_worker_waits_for_its_scheduler_and_ends_with_its_process(processes: ClusterProcesses) -> None:
    worker = processes.start_worker()
    scheduler = processes.start_scheduler()
    processes.wait_for_workers()
    with processes.client() as client:
        [identity] = client.scheduler_info()["workers"].values()
        [modules] = client.run(lambda: set(sys.modules)).values()
    assert (identity["resources"], identity["nthreads"], identity["memory_limit"]) == ({"GPU": 1, edition(): 1}, 2, 0)
    assert "tensorflow" in modules
    assert modules & {"prefect", "sqlalchemy", "typer"} == set()
    child = worker_process(worker)
    began = time.monotonic()
    worker.terminate()
    assert worker.wait() == 0
    assert not child.is_running()
    scheduler.send_signal(signal.SIGINT)
    assert scheduler.wait() == 0
    assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    # Dask may warn that a process took its time.
    assert not any("Traceback" in processes.printed(process) for process in (worker, scheduler))


def test_a_worker_s_engine_is_made_as_it_was_told(processes: ClusterProcesses) -> None:
    def options() -> tuple[str, bool, bool]:
        from flows import gpu

        engine = gpu._turns[0]._engine
        return engine.device.name, engine._xla, engine._deterministic

    processes.start_scheduler()
    processes.run("worker", "--scheduler", processes.address, "--device", "cpu", "--xla", "--not-deterministic")
    processes.wait_for_workers()
    with processes.client() as client:
        assert list(client.run(options).values()) == [("cpu", True, False)]


def test_a_worker_dies_with_its_nanny(processes: ClusterProcesses) -> None:
    processes.start_scheduler()
    nanny = processes.start_worker()
    processes.wait_for_workers()
    child = worker_process(nanny)
    nanny.kill()
    nanny.wait()
    eventually(lambda: not child.is_running(), seconds=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_worker_that_is_still_starting_ends_too(processes: ClusterProcesses, number: signal.Signals) -> None:
    processes.start_scheduler()
    nanny = processes.start_worker()
    child = worker_process(nanny)
    began = time.monotonic()
    nanny.send_signal(number)
    assert nanny.wait() == 0
    assert "Traceback" not in processes.printed(nanny)
    assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    eventually(lambda: not child.is_running(), seconds=2)


def test_both_end_with_the_process_that_started_them(processes: ClusterProcesses) -> None:
    with Lifeline() as lifeline:
        arguments = [
            ("scheduler", "--port", str(processes.port)),
            ("worker", "--scheduler", processes.address, "--device", "cpu"),
        ]
        started = [
            processes.run(*line, environment=lifeline.environment(), pass_fds=(lifeline.child_fd,))
            for line in arguments
        ]
        child = worker_process(started[1])
        began = time.monotonic()
    assert [process.wait() for process in started] == [0, 0]
    assert time.monotonic() - began < ENDS_WITHIN_SECONDS
    eventually(lambda: not child.is_running(), seconds=2)


def test_a_worker_without_its_device_says_so_and_ends(processes: ClusterProcesses) -> None:
    processes.start_scheduler()
    worker = processes.start_worker(device="gpu:7")
    assert worker.wait() == 1
    why, what = processes.printed(worker).splitlines()
    assert why.startswith("There is no device 'gpu:7' here; this machine has ")
    assert what == "The GPU worker's process could not start."


def test_a_scheduler_whose_port_is_taken_says_so_and_ends(processes: ClusterProcesses) -> None:
    processes.start_scheduler()
    second = processes.run("scheduler", "--port", str(processes.port))
    assert second.wait() == 1
    [sentence] = processes.printed(second).splitlines()
    assert sentence.startswith(f"The scheduler cannot listen on 127.0.0.1:{processes.port} (")
