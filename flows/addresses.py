"""Addresses and names of hosts: which only this machine can reach, and which are its own."""

from __future__ import annotations

import functools
import ipaddress
import socket
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address to listen on or to call is this machine's alone: 127.0.0.0/8, ::1 or localhost.

    Any other name counts as one that others can reach, as what it stands for may change.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def checked_scheduler(address: str) -> str:
    """The address of a Dask scheduler; ValueError unless it is encrypted or on this machine."""
    try:
        parts = urlsplit(address)
        complete = parts.scheme in ("tcp", "tls") and parts.hostname is not None and parts.port is not None
    except ValueError:
        complete = False
    if not complete:
        raise ValueError("give an address such as tls://gpu1:8786, or tcp://127.0.0.1:8786 on this machine")
    if parts.scheme == "tcp" and not is_loopback(parts.hostname or ""):
        raise ValueError(
            "is not encrypted, and Dask runs what anyone sends it; make certificates with `nst cluster certs` and give "
            "tls:// in place of tcp://"
        )
    return address


def may_ask(asked: str, host: str) -> bool:
    """Whether a Host header names this machine, so that no other name can be made to point here unnoticed.

    `host` is the address that is listened on; who listens on all of them is also asked under any address and by the
    machine's name.
    """
    name = asked.rsplit(":", 1)[0] if not asked.endswith("]") and ":" in asked else asked
    name = name.strip("[]").lower()
    if name in {"localhost", "127.0.0.1", "::1", host.lower()}:
        return True
    if host not in ("0.0.0.0", "::"):  # noqa: S104
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in _own_names()
    return True


@functools.cache
def _own_names() -> frozenset[str]:
    # Asked once: to find the full name may take as long as a name server that does not answer.
    return frozenset({socket.gethostname().lower(), socket.getfqdn().lower()})
