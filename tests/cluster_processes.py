"""A Dask cluster of real processes for the tests, each of which may be killed and started again."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import psutil
from distributed import Client

from flows.certificates import AUTHORITY, CERTIFICATE, KEY

STARTED_WITHIN_SECONDS = 60
ANSWERS_WITHIN_SECONDS = 10
# Without what the tests set for their own TensorFlow: what these processes print is their own affair.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


class ClusterProcesses:
    """A scheduler on a free port and workers on the CPU; leaving it kills what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.kill()
            process.wait()

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None, pass_fds: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start `python -m flows.cluster` with these arguments; what it prints is kept for `printed()`."""
        with (self.folder / f"{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.cluster", *arguments],
                stdout=log,
                stderr=log,
                env={**_ENVIRONMENT, **(environment or {})},
                pass_fds=pass_fds,
            )
        self._started.append(process)
        return process

    def printed(self, process: subprocess.Popen[bytes]) -> str:
        """All that a process of this cluster has printed."""
        return (self.folder / f"{self._started.index(process)}.log").read_text()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start the scheduler; it listens when this returns."""
        process = self.run("scheduler", "--port", str(self.port))
        eventually(lambda: _accepts(self.port))
        return process

    def start_worker(self, device: str = "cpu") -> subprocess.Popen[bytes]:
        """Start a worker, without waiting for it."""
        return self.run("worker", "--scheduler", self.address, "--device", device)

    def wait_for_workers(self, number: int = 1) -> None:
        """Return when exactly so many workers are registered."""
        with self.client() as client:
            eventually(lambda: len(client.scheduler_info()["workers"]) == number)

    def client(self) -> Client:
        """A client of Dask's own, to look at the cluster."""
        return Client(self.address, set_as_default=False, timeout=STARTED_WITHIN_SECONDS)


def worker_process(nanny: subprocess.Popen[bytes]) -> psutil.Process:
    """The process under the nanny that holds the engine, once it is there."""
    eventually(lambda: _forked(nanny))
    return _forked(nanny)[0]


def eventually(condition: Callable[[], object], *, seconds: float = STARTED_WITHIN_SECONDS) -> None:
    """Return when the condition is true; an assertion fails when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def speaks(address: tuple[str, int], context: ssl.SSLContext) -> bool:
    """Whether somebody who listens at an address answers over TLS."""
    with socket.create_connection(address, timeout=ANSWERS_WITHIN_SECONDS) as plain:
        try:
            with context.wrap_socket(plain) as encrypted:
                # With TLS 1.3 a client hears that it is refused when it reads.
                return encrypted.recv(1) != b""
        except (ssl.SSLError, ConnectionError):
            return False


def context_of(folder: Path, *, certificate: bool) -> ssl.SSLContext:
    """TLS that trusts the authority in a folder of certificates, with or without a certificate of its own."""
    context = ssl.create_default_context(cafile=folder / AUTHORITY)
    context.check_hostname = False
    if certificate:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


def _forked(nanny: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return [
            child
            for child in psutil.Process(nanny.pid).children()
            if "multiprocessing-fork" in " ".join(child.cmdline())
        ]
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
