"""What is counted, for Prometheus: jobs and their pace, the loops and parts of the service, disk, inbox and backups.
All is read when it is asked for, from the database and the files of the home, by a collector in a registry of its
own."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.errors import InboxMissingError
from flows.heartbeat import silent_loops
from flows.inbox import assess
from flows.listing import scan
from flows.part_states import read_part_states
from flows.settings import Settings
from storage.database import Database
from storage.database_copy import newest_backup
from storage.errors import DatabaseError
from storage.figures import Figures
from storage.jobs import JobStore, utc_now
from storage.models import JobState
from storage.workspace import Workspace

_PACES_OF: Final = 50
_ENDS: Final = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.REJECTED)
# A job is written down up to so long after the time that its end has.
_LATE: Final = timedelta(minutes=2)


def registry_of(settings: Settings, database: Callable[[], Database]) -> CollectorRegistry:
    """A registry with the metrics of one home, whose `database` raises DatabaseError where there is none."""
    registry = CollectorRegistry()
    registry.register(_Metrics(settings, database))
    return registry


class _Metrics(Collector):
    def __init__(self, settings: Settings, database: Callable[[], Database]) -> None:
        self._settings = settings
        self._workspace = Workspace(settings.home)
        self._database_file = settings.database_file
        self._database = database
        self._ends = _Ends(utc_now())

    def describe(self) -> list[Metric]:
        # Else the registry would ask for all figures to learn their names.
        return []

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("nst", "The version of nst.", {"version": version("nst")})
        yield from self._service()
        yield from self._files()
        works = GaugeMetricFamily("nst_database_up", "1 while the database answers.")
        try:
            # All or nothing: half of the figures would look like a service that has nothing to do.
            figures = list(self._jobs(self._database()))
        except DatabaseError:
            works.add_metric([], 0)
            yield works
            return
        works.add_metric([], 1)
        yield works
        yield from figures

    def _service(self) -> Iterator[Metric]:
        silent = GaugeMetricFamily("nst_up", "1 while the sensor and the dispatcher come round.")
        silent.add_metric([], 0 if silent_loops(self._settings) else 1)
        yield silent
        restarts = CounterMetricFamily(
            "nst_part_restarts", "How often a part of the service was started again since `nst up`.", labels=["part"]
        )
        for part in read_part_states(self._workspace.home / "logs"):
            restarts.add_metric([part.name], part.restarts)
        yield restarts

    def _files(self) -> Iterator[Metric]:
        free = GaugeMetricFamily("nst_free_bytes", "What is free on the disk of the home.")
        # Where the disk is away, or a backup is just being removed, a number would be a lie; `absent()` finds it.
        with suppress(OSError):
            free.add_metric([], shutil.disk_usage(self._workspace.home).free)
        yield free
        drops = GaugeMetricFamily(
            "nst_inbox_files", "Files in the inbox: ready to become a job, or waiting for something.", labels=["state"]
        )
        with suppress(InboxMissingError):
            assessment = assess(scan(self._workspace.inbox).entries)
            drops.add_metric(["ready"], sum(len(drop.taken) for drop in assessment.drops))
            drops.add_metric(["waiting"], len(assessment.waiting))
        yield drops
        age = GaugeMetricFamily("nst_backup_age_seconds", "How long ago the newest backup was made.")
        backup = newest_backup(self._database_file) if self._database_file else None
        with suppress(OSError):
            if backup is not None:
                age.add_metric([], max(0.0, time.time() - backup.stat().st_mtime))
        yield age

    def _jobs(self, database: Database) -> Iterator[Metric]:
        store, figures, now = JobStore(database), Figures(database), utc_now()
        jobs = GaugeMetricFamily("nst_jobs", "Jobs in each state.", labels=["state"])
        for state, count in store.counts().items():
            jobs.add_metric([state.value], count)
        yield jobs
        oldest = figures.oldest_pending()
        age = GaugeMetricFamily("nst_queue_age_seconds", "How long the oldest pending job has waited; 0 without any.")
        age.add_metric([], 0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()))
        yield age
        runs = GaugeMetricFamily("nst_open_flow_runs", "Flow runs of Prefect that have jobs which have not ended.")
        runs.add_metric([], len(store.open_runs()))
        yield runs
        ended = CounterMetricFamily(
            "nst_jobs_ended", "Jobs that ended since the gallery was started, by how.", labels=["state"]
        )
        for state, count in self._ends.count(figures, now).items():
            ended.add_metric([state.value], count)
        yield ended
        pace = GaugeMetricFamily(
            "nst_iteration_seconds",
            f"The median of the last jobs' seconds an iteration, among the {_PACES_OF} that ended last.",
            labels=["device", "precision"],
        )
        seconds = defaultdict[tuple[str, str], list[float]](list)
        for each in figures.paces(of_last=_PACES_OF):
            seconds[each.device, each.precision].append(each.seconds)
        for place, values in seconds.items():
            pace.add_metric(place, statistics.median(values))
        yield pace


class _Ends:
    """Counts the jobs that end, each once; one that is retried and ends again is counted again."""

    def __init__(self, since: datetime) -> None:
        self._since = since
        self._counts = Counter[JobState]()
        self._seen = set[tuple[str, datetime]]()
        self._looked = since
        self._lock = threading.Lock()

    def count(self, figures: Figures, now: datetime) -> dict[JobState, int]:
        with self._lock:
            # A clock that was set back must not end the counting for as long.
            self._since = min(self._since, now)
            found = figures.ended_since(max(self._since, min(self._looked, now) - _LATE))
            ends = {(end.job_id, end.finished_at): end.state for end in found}
            self._counts.update(state for end, state in ends.items() if end not in self._seen)
            self._seen, self._looked = set(ends), now
            return {state: self._counts[state] for state in _ENDS}
