"""What `nst doctor` looks at in the running service: its parts, its loops, its ports, and who else can reach them."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil

from flows.access import missing
from flows.doctor.finding import Finding, of_sentence
from flows.doctor.running import runs, service_process
from flows.errors import SettingsError
from flows.heartbeat import silent_loops
from flows.part_states import PartState, read_part_states
from flows.settings import Settings
from storage.jobs import utc_now

_OVER_AND_OVER: Final = 3
_LATELY: Final = timedelta(minutes=10)
_CONNECT_SECONDS: Final = 2.0


def parts(settings: Settings) -> list[Finding]:
    """Whether `nst up` runs, which of its parts live, and which die over and over."""
    supervisor = service_process(settings.home)
    if supervisor is None:
        return [Finding("service", "does not run; `nst up` starts it")]
    logs = settings.home / "logs"
    states = [state for state in read_part_states(logs) if state.supervisor == supervisor]
    found = []
    for state in states:
        log = logs / f"{state.name}.log"
        lately = [time for time in state.latest if utc_now() - time < _LATELY]
        if len(lately) >= _OVER_AND_OVER:
            minutes = f"{_LATELY.total_seconds() / 60:.0f} minutes"
            finding = f"{state.name} was started again {len(lately)} times within {minutes}"
            found.append(Finding("service", finding, f"{log} says why it ends"))
        elif not _lives(state):
            found.append(Finding("service", f"{state.name} does not run", f"{log} says why it ended"))
    living = ", ".join(state.name for state in states if _lives(state))
    return found or [Finding("service", f"runs (process {supervisor}): {living}")]


def loops(settings: Settings) -> list[Finding]:
    """Whether the sensor and the dispatcher come round, where they run."""
    if not runs(settings.home):
        return [Finding("sensor", "does not run")]
    found = [of_sentence("sensor", sentence) for sentence in silent_loops(settings)]
    return found or [Finding("sensor", "it and the dispatcher come round")]


def ports(settings: Settings) -> list[Finding]:
    """Whether the service's ports are its own, or free while it does not run."""
    named = {
        "prefect_port": settings.prefect_port,
        "gallery_port": settings.gallery_port,
        "scheduler_port": settings.scheduler_port,
    }
    own = _family(service_process(settings.home))
    listeners = _listeners(set(named.values()))
    found = []
    for setting, port in named.items():
        if port not in listeners or listeners[port] in own:
            continue
        process = listeners[port]
        program = _program(process)
        if setting == "gallery_port" and "gallery" in program:
            continue
        who = f"{program} (process {process})" if process is not None else "another user's program"
        found.append(
            Finding("ports", f"port {port} is taken by {who}", f"end that program, or set {setting} to another port")
        )
    return found or [Finding("ports", f"{', '.join(map(str, named.values()))} are the service's or free")]


def access(settings: Settings) -> list[Finding]:
    """What is missing before other machines may reach the service, where `host` lets them."""
    try:
        lacking = missing(settings, prefect=True, gallery=True, scheduler=settings.scheduler is None)
    except SettingsError as error:
        return [of_sentence("access", str(error))]
    return [
        Finding("access", f"other machines can reach host = {settings.host}, and the service does not start so", what)
        for what in lacking
    ] or [Finding("access", f"{settings.host}, with all that this asks for")]


def _lives(state: PartState) -> bool:
    try:
        return bool(psutil.Process(state.process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _family(process: int | None) -> set[int]:
    """A process and all that it has started, directly or not."""
    if process is None:
        return set()
    try:
        return {process, *(child.pid for child in psutil.Process(process).children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def _listeners(wanted: set[int]) -> dict[int, int | None]:
    """The ports among those wanted that somebody listens on, with the process where the system tells."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        # Some systems tell only root: then it is tried who answers.
        return {port: None for port in wanted if _answers(port)}
    return {
        each.laddr.port: each.pid
        for each in connections
        if each.status == psutil.CONN_LISTEN and each.laddr.port in wanted
    }


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _program(process: int | None) -> str:
    """The command line of a process, as short as it says what it is."""
    try:
        words = psutil.Process(process).cmdline()[:4] if process is not None else []
    except psutil.Error:
        return "a program that has just ended"
    return " ".join([Path(words[0]).name, *words[1:]]) if words else ""
