"""All checks of `nst doctor`, in the order in which a job meets what they look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flows.doctor import cluster, database, files, jobs, machine, prefect, service
from flows.doctor.finding import Check, Finding
from flows.settings import Settings

_CHECKS: Final[tuple[Check, ...]] = (
    machine.versions_here,
    machine.device,
    machine.precision,
    machine.gpu,
    machine.weights_here,
    machine.scratch,
    files.home,
    files.secrets,
    files.disk,
    files.inbox,
    files.inotify,
    files.leftovers,
    database.database,
    database.backup,
    database.clock,
    service.parts,
    service.loops,
    service.ports,
    service.access,
    prefect.prefect,
    cluster.scheduler,
    jobs.queue,
    jobs.leases,
    jobs.failures,
)


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all checks of the service at `settings.home`; none waits for another program longer than a few seconds."""
    for check in _CHECKS:
        yield from check(settings)
