"""The Dask cluster with certificates: whom the scheduler and the workers speak with, and what is said to the others."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from cluster_processes import STARTED_WITHIN_SECONDS, ClusterProcesses, context_of, eventually, speaks
from distributed import Client

from flows.certificates import dask_security, make_certificates
from flows.cluster import run_scheduler
from flows.conversation import Conversation
from flows.errors import ClusterLostError, FlowError, SettingsError
from flows.optimisation import RemoteOptimisation

REFUSED_WITHIN_SECONDS = 2


class TlsCluster(ClusterProcesses):
    """A cluster whose processes have certificates of their own, and a folder of others that were made the same way."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.certificates, self.others = folder / "certs", folder / "others"
        make_certificates(self.certificates)
        make_certificates(self.others)
        self.tcp, self.address = self.address, self.address.replace("tcp://", "tls://")

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        scheduler = self.run("scheduler", "--port", str(self.port), "--certs", str(self.certificates))
        eventually(lambda: listening(scheduler.pid) != [])
        return scheduler

    def start_worker(self, device: str = "cpu") -> subprocess.Popen[bytes]:
        return self.run("worker", "--scheduler", self.address, "--device", device, "--certs", str(self.certificates))

    def client(self) -> Client:
        security = dask_security(self.address, self.certificates)
        return Client(self.address, security=security, set_as_default=False, timeout=STARTED_WITHIN_SECONDS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    with TlsCluster(tmp_path_factory.mktemp("cluster")) as started:
        started.start_scheduler()
        yield started


def listening(process: int) -> list[tuple[str, int]]:
    """The addresses that a process and its children listen on."""
    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    return [
        (open_.laddr.ip, open_.laddr.port)
        for member in family
        for open_ in member.net_connections("inet")
        if open_.status == psutil.CONN_LISTEN
    ]


def test_a_worker_and_its_scheduler_speak_by_tls_and_every_port_is_on_loopback(cluster: TlsCluster) -> None:
    worker = cluster.start_worker()
    cluster.wait_for_workers()
    with cluster.client() as client:
        [(address, identity)] = client.scheduler_info()["workers"].items()
        assert client.submit(sum, (1, 2)).result() == 3
    assert {address.partition("://")[0], identity["nanny"].partition("://")[0]} == {"tls"}
    ports = [int(place.rpartition(":")[2]) for place in (address, identity["nanny"])]
    places = listening(worker.pid)
    assert {ip for ip, _ in places} == {"127.0.0.1"}
    assert {port for _, port in places} >= set(ports)
    # The worker runs what it is sent as much as the scheduler does.
    for port in (*ports, cluster.port):
        assert speaks(("127.0.0.1", port), context_of(cluster.certificates, certificate=True))
        assert not speaks(("127.0.0.1", port), context_of(cluster.certificates, certificate=False))
    worker.terminate()
    assert worker.wait() == 0


def test_who_speaks_no_tls_is_not_answered(cluster: TlsCluster) -> None:
    with pytest.raises(OSError, match=r"Timed out|closed"):
        Client(cluster.tcp, set_as_default=False, timeout=REFUSED_WITHIN_SECONDS)


def test_a_worker_with_other_certificates_says_so_and_ends(cluster: TlsCluster) -> None:
    worker = cluster.run("worker", "--scheduler", cluster.address, "--device", "cpu", "--certs", str(cluster.others))
    assert worker.wait() == 1
    assert cluster.printed(worker) == (
        f"The scheduler at {cluster.address} has other certificates than this worker; copy certs/ of its home here.\n"
    )


def test_a_job_with_other_certificates_says_so_at_once(cluster: TlsCluster) -> None:
    work: Any = SimpleNamespace(resume=None)
    patience = 600.0
    optimisation = RemoteOptimisation(
        cluster.address, work, priority=0, patience_seconds=patience, certificates=cluster.others
    )
    with optimisation, pytest.raises(ClusterLostError, match=r"^The scheduler at .* has other certificates .*\.$"):
        list(optimisation.stretches())


def test_a_job_without_certificates_does_not_begin(tmp_path: Path) -> None:
    work: Any = SimpleNamespace(resume=None)
    with pytest.raises(SettingsError, match=r"has no certificates for tls://gpu1:8786; copy .*\.$"):
        Conversation("tls://gpu1:8786", work, priority=0, patience_seconds=1, certificates=tmp_path)


def test_a_scheduler_that_others_can_reach_needs_certificates() -> None:
    with pytest.raises(
        FlowError, match=r"^Other machines can reach 0\.0\.0\.0; give certificates \(.*\) with --certs\.$"
    ):
        asyncio.run(run_scheduler(host="0.0.0.0", port=0, certificates=None))
