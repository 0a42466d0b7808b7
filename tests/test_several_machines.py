"""The service on several machines: PostgreSQL remembers the jobs and Prefect's runs, the service computes nothing
itself, and GPU workers on machines of their own (network namespaces with addresses of their own, on the CPU) come by
TLS, die, are cut off and join while the pairs are worked on. Every pair ends exactly once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from flows.certificates import dask_security
from nst_engine.engine import Engine
from nst_engine.images import decode
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start
from storage.models import JobState
from tests.network import Network, several_machines
from tests.postgresql_server import PostgresqlServer, running_server
from tests.service_process import REPOSITORY, SMALL, STYLE, Service, content_of, free_port

PAIRS = 60
ITERATIONS = 150
SETTINGS = SMALL.replace("iterations = 6", f'iterations = {ITERATIONS}\noptimizer = "adam"')
LEASE_SECONDS = 10
CUT_SECONDS = LEASE_SECONDS + 60
PATIENCE = 600
WORD = "nst:Pr3fectOfSeveral"


class GpuMachines:
    """The machines of the GPU workers, each with `nst worker` and a copy of the certificates."""

    def __init__(self, network: Network, service: Service) -> None:
        self._network = network
        self._service = service
        self._address = f"tls://{network.address}:{service.scheduler_port}"
        self._at: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self._at:
            self.lose_power(machine)
        for process in self._processes:
            process.wait()

    def add(self, machine: str) -> None:
        """Connect a machine and start its worker, without waiting for it."""
        self._at[machine] = self._network.add(machine)
        home = self._service.home.parent / machine
        home.mkdir()
        command = ["-m", "flows.cli", "worker", "--scheduler", self._address, "--device", "cpu", "--home", str(home)]
        with (home / "worker.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [
                        *self._network.on(machine),
                        sys.executable,
                        *command,
                        "--certs",
                        str(self._service.home / "certs"),
                    ],
                    cwd=REPOSITORY,
                    env={
                        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "NST_"))
                    },
                    stdout=log,
                    stderr=log,
                )
            )

    def lose_power(self, machine: str) -> None:
        """End all that runs there at once."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self._network.namespace(machine)], capture_output=True, text=True, check=True
        )
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def joined(self) -> set[str]:
        """The machines whose worker the scheduler knows."""
        with self._client() as client:
            return {self._machine(address) for address in client.scheduler_info(n_workers=-1)["workers"]}

    def at_work(self) -> set[str]:
        """The machines whose worker has something of a job to compute."""
        with self._client() as client:
            return {self._machine(address) for address, keys in client.processing().items() if keys}

    def _client(self) -> Client:
        security = dask_security(self._address, self._service.home / "certs")
        return Client(self._address, security=security, set_as_default=False, timeout=60)

    def _machine(self, address: str) -> str:
        host = address.partition("://")[2].rpartition(":")[0]
        (machine,) = [machine for machine, at in self._at.items() if at == host]
        return machine


@contextlib.contextmanager
def prefect_on(server: PostgresqlServer, *, host: str, log: Path) -> Iterator[str]:
    """Prefect's own server on a database of PostgreSQL; yields its API's address."""
    database = server.new_database()
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "NST_"))},
        "PREFECT_HOME": str(log.parent / "prefect"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": (
            f"postgresql+asyncpg://nst@/{database.database}?host={database.query['host']}"
        ),
        "PREFECT_SERVER_API_AUTH_STRING": WORD,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"http://{host}:{port}/api/health"):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://{host}:{port}/api"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, auth=tuple(WORD.split(":")), timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def service_on(network: Network, server: PostgresqlServer, home: Path, *, api: str) -> Iterator[Service]:
    """The service, without GPU workers of its own, for others on the network."""
    service = Service(
        home,
        host=network.address,
        own_workers=False,
        database_url=server.new_database().render_as_string(hide_password=False),
        prefect_auth=WORD,
        gallery_password="g4llery",
        lease_seconds=LEASE_SECONDS,
        chunk_seconds=0.3,
        checkpoint_seconds=1,
    )
    service.environment["PREFECT_API_URL"] = api
    try:
        made = service.command("cluster", "certs")
        assert made.returncode == 0, made.stderr
        service.start()
        yield service
    finally:
        service.close()


def test_every_pair_ends_once_whatever_becomes_of_the_machines(tmp_path: Path, engine: Engine) -> None:
    with (
        several_machines() as network,
        running_server() as server,
        prefect_on(server, host=network.address, log=tmp_path / "prefect.log") as api,
        service_on(network, server, tmp_path / "home", api=api) as service,
        GpuMachines(network, service) as machines,
    ):
        assert service.part("gpu-worker") == []
        for machine in ("one", "two", "three"):
            machines.add(machine)
        service.wait("the workers have joined", lambda: machines.joined() == {"one", "two", "three"}, seconds=PATIENCE)

        names = [f"pair-{number:02}" for number in range(PAIRS)]
        for number, name in enumerate(names):
            service.drop_pair(name, seed=number, settings=SETTINGS)
        service.wait("one is at work", lambda: "one" in machines.at_work(), seconds=PATIENCE)
        machines.lose_power("one")
        service.wait("two is at work", lambda: "two" in machines.at_work(), seconds=PATIENCE)
        network.cut("two")
        began = time.monotonic()
        machines.add("four")
        service.wait(
            "the scheduler has let go of both", lambda: machines.joined() == {"three", "four"}, seconds=PATIENCE
        )
        service.wait("four is at work", lambda: "four" in machines.at_work(), seconds=PATIENCE)
        service.wait(
            "two was away for long", lambda: time.monotonic() >= began + CUT_SECONDS, seconds=PATIENCE, pause=1
        )
        network.mend("two")
        jobs = service.wait_for_end(*names, seconds=PATIENCE)
        service.wait("two is there again", lambda: machines.joined() == {"two", "three", "four"}, seconds=PATIENCE)
        service.drop_pair("afterwards", seed=PAIRS, settings=SETTINGS)
        jobs += service.wait_for_end("afterwards", seconds=PATIENCE)
        losses = {job.name: [point.iteration for point in service.store.losses(job.id)] for job in jobs}

        assert [(job.name, job.state, job.error) for job in jobs] == [
            (name, JobState.COMPLETED, None) for name in [*names, "afterwards"]
        ]
        assert losses == {job.name: list(range(ITERATIONS + 1)) for job in jobs}
        assert len(service.jobs()) == PAIRS + 1
        for job in jobs:
            assert [attempt.outcome for attempt in job.attempts].count(JobState.COMPLETED) == 1
        outbox = service.workspace.outbox
        assert sorted(path.name for path in outbox.iterdir()) == sorted(job.name for job in jobs)
        assert list(service.workspace.inbox.iterdir()) == list(service.workspace.rejected.iterdir()) == []
        assert not list(service.home.glob("nst.db*"))
        # Those that were at work when machines went, some that came later, and the last.
        for number in (0, 1, 2, 3, 4, 5, 30, PAIRS):
            assert np.array_equal(decode(outbox / jobs[number].name / "result.png"), painted(engine, seed=number))


def painted(engine: Engine, *, seed: int) -> NDArray[np.uint8]:
    """What comes of a pair without any service."""
    config = find_preset("default").config.with_overrides(tomllib.loads(SETTINGS))
    state, _ = start(engine, config, fit_pictures(config, content_of(seed), [STYLE]))
    state, _ = advance(engine, state, Budget())
    return state.result()
