"""GPU workers that are told to end while a job is computed there: real `nst worker` processes, which get the signals
that Ctrl-C, systemd and a spot machine's end send."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster_processes import ClusterProcesses, eventually

from flows.optimisation import RemoteOptimisation, Work
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start
from tests.service_process import REPOSITORY, STYLE, content_of

ITERATIONS = 400
SETTINGS = {
    "rows": 48,
    "weights": "random",
    "precision": "float32",
    "optimizer": "adam",
    "iterations": ITERATIONS,
    "content_layers": "block2_conv2",
    "style_layers": "block1_conv1,block2_conv1",
}


class Machines(ClusterProcesses):
    """A scheduler, and `nst worker` as often as asked."""

    def add(self) -> subprocess.Popen[bytes]:
        """Start `nst worker`, without waiting for it."""
        home = self.folder / f"machine{len(self._started)}"
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "worker", "--scheduler", self.address, "--home", str(home)],
            cwd=REPOSITORY,
            env={**os.environ, "NST_DEVICE": "cpu", "NST_GRACE_SECONDS": "60"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A shell's background jobs ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._started.append(process)
        return process

    def logs(self) -> str:
        """What all GPU workers have said."""
        return "".join(path.read_text() for path in self.folder.glob("machine*/logs/*.log"))

    def at_work(self, machines: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """The machine whose worker holds a chunk."""
        with self.client() as client:
            pids = client.run(os.getpid)
            (holding,) = [address for address, keys in client.has_what().items() if keys]
        (machine,) = [machine for machine in machines if pids[holding] in [child.pid for child in family(machine.pid)]]
        return machine


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path) as machines:
        machines.start_scheduler()
        yield machines


@pytest.fixture(scope="module")
def config() -> TransferConfig:
    return find_preset("default").config.with_overrides(SETTINGS)


def optimisation(machines: Machines, config: TransferConfig) -> RemoteOptimisation:
    pictures = fit_pictures(config, content_of(0), [STYLE])
    work = Work(config, pictures, resume=None, chunk_seconds=0.2, snapshot_every=None)
    return RemoteOptimisation(machines.address, work, priority=0, patience_seconds=60)


def painted(engine: Engine, config: TransferConfig) -> bytes:
    state, _ = start(engine, config, fit_pictures(config, content_of(0), [STYLE]))
    state, _ = advance(engine, state, Budget())
    return state.picture.tobytes()


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]], ids=["systemd", "Ctrl-C"])
def test_a_worker_that_has_to_end_hands_its_job_to_another(
    machines: Machines,
    config: TransferConfig,
    engine: Engine,
    caplog: pytest.LogCaptureFixture,
    signals: list[signal.Signals],
) -> None:
    both = [machines.add(), machines.add()]
    machines.wait_for_workers(2)
    points: list[int] = []
    ended: subprocess.Popen[bytes] | None = None
    with optimisation(machines, config) as running:
        for stretch in running.stretches():
            if stretch is None:
                continue
            points += [point.iteration for point in stretch.points]
            if ended is None and stretch.iteration >= 20:
                ended = machines.at_work(both)
                children = family(ended.pid)
                for number in signals:
                    # Ctrl-C comes to all processes of a terminal, and whoever started the others ends them too.
                    for process in (ended, *children) if number == signal.SIGINT else (ended,):
                        process.send_signal(number)
        state = running.state()
    assert ended is not None
    assert ended.wait(60) == 0
    # Not one was computed twice, though none but the first state was ever fetched.
    assert points == list(range(ITERATIONS + 1))
    assert state.picture.tobytes() == painted(engine, config)
    assert [record.message for record in caplog.records if record.name.startswith("flows")] == []
    assert "Traceback" not in machines.logs()
    assert "handed over" not in machines.logs()
    machines.wait_for_workers(1)


def test_the_only_worker_says_that_there_is_no_other_and_the_job_goes_on_later(
    machines: Machines, config: TransferConfig, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    machine = machines.add()
    machines.wait_for_workers(1)
    points: list[int] = []
    with optimisation(machines, config) as running:
        stretches = running.stretches()
        for stretch in stretches:
            points += [point.iteration for point in stretch.points] if stretch else []
            if points[-1:] >= [20]:
                break
        fetched = running.state().iteration
        machine.terminate()
        assert machine.wait(60) == 0
        machines.add()
        again = [point.iteration for stretch in stretches if stretch is not None for point in stretch.points]
        state = running.state()
    assert again == list(range(fetched + 1, ITERATIONS + 1))
    assert state.picture.tobytes() == painted(engine, config)
    assert any(f"going on from iteration {fetched}." in record.message for record in caplog.records)
    assert "There is no other GPU worker to hand the jobs here over to." in machines.logs()
    eventually(lambda: "Traceback" not in machines.logs())
