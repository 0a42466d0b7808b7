"""Several machines' network on this one: each machine is a network namespace with an address of its own, on one bridge.
Processes of this machine itself reach them all, and its own address there is `address`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest


class Network:
    """A bridge with an address, and the machines that were added to it; all of it needs root."""

    def __init__(self) -> None:
        # Of the process, so that tests which run side by side have each its own.
        self._mark = f"{os.getpid():x}"
        self._prefix = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._bridge = f"nstb{self._mark}"
        self._numbers = count(2)
        self._machines: dict[str, int] = {}
        self.address = f"{self._prefix}.1"
        _ip("link", "add", self._bridge, "type", "bridge")
        try:
            _ip("address", "add", f"{self.address}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
        except BaseException:
            self.remove()
            raise

    def add(self, machine: str) -> str:
        """Connect another machine; returns its address."""
        number = self._machines[machine] = next(self._numbers)
        address = f"{self._prefix}.{number}"
        _ip("netns", "add", self.namespace(machine))
        _ip(
            "link",
            "add",
            self._cable(machine),
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace(machine),
        )
        _ip("link", "set", self._cable(machine), "master", self._bridge, "up")
        inside = ("-n", self.namespace(machine))
        _ip(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")
        return address

    def on(self, machine: str) -> list[str]:
        """What to put before a command for it to run on that machine."""
        return ["ip", "netns", "exec", self.namespace(machine)]

    def cut(self, machine: str) -> None:
        """Pull its cable: what is sent to it and by it is lost, and nobody is told."""
        _ip("link", "set", self._cable(machine), "down")

    def mend(self, machine: str) -> None:
        """Put its cable in again."""
        _ip("link", "set", self._cable(machine), "up")

    def remove(self) -> None:
        """Take all of it away."""
        for machine in self._machines:
            subprocess.run(["ip", "netns", "delete", self.namespace(machine)], check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], check=False)

    def namespace(self, machine: str) -> str:
        """What the system calls that machine."""
        return f"nst-{self._mark}-{machine}"

    def _cable(self, machine: str) -> str:
        return f"nst{self._mark}v{self._machines[machine]}"


@contextmanager
def several_machines() -> Iterator[Network]:
    """A network for the length of the block; the test is skipped where this machine allows none."""
    if shutil.which("ip") is None:
        pytest.skip("this machine has no `ip`; Debian's package is iproute2")
    try:
        network = Network()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
    try:
        yield network
    finally:
        network.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
