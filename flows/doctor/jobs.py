"""What `nst doctor` looks at in the jobs: those that wait for long, those whose worker is gone, and those that fail."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from flows.doctor.database import opened
from flows.doctor.finding import Finding
from flows.doctor.running import runs
from flows.settings import Settings
from storage.figures import Figures
from storage.jobs import JobStore, utc_now
from storage.models import JobState

_LONG: Final = timedelta(minutes=5)
_LAST: Final = 20
_OFTEN: Final = 3
_DAY: Final = timedelta(days=1)


def queue(settings: Settings) -> list[Finding]:
    """Jobs that have waited for long while none runs."""
    with opened(settings) as database:
        if database is None:
            return [Finding("queue", "no jobs yet")]
        counts, oldest = JobStore(database).counts(), Figures(database).oldest_in_the_queue()
    waiting, running = counts[JobState.PENDING], counts[JobState.RUNNING]
    said = f"{waiting} wait, {running} run"
    if oldest is None or running or utc_now() - oldest < _LONG:
        return [Finding("queue", said)]
    minutes = (utc_now() - oldest).total_seconds() / 60
    remedy = (
        "see what is said above of Prefect and the sensor, and logs/flow-worker.log in the home"
        if runs(settings.home)
        else "start the service with `nst up`"
    )
    return [Finding("queue", f"{said}; the first has waited for {minutes:.0f} minutes", remedy)]


def leases(settings: Settings) -> list[Finding]:
    """Jobs that count as running and give no sign of life."""
    with opened(settings) as database:
        late = utc_now() - timedelta(seconds=settings.lease_seconds)
        dead = [] if database is None else JobStore(database).overdue(late)
    goes_on = (
        "see logs/sensor.log: the dispatcher takes it up again" if runs(settings.home) else "`nst up` goes on with it"
    )
    return [
        Finding("leases", f"{job.name} (job {job.id}) runs and gives no sign of life", goes_on) for job in dead
    ] or [Finding("leases", "all that runs gives signs of life")]


def failures(settings: Settings) -> list[Finding]:
    """Whether most of the day's last jobs failed."""
    with opened(settings) as database:
        if database is None:
            return [Finding("failures", "no jobs yet")]
        last = Figures(database).ended_since(utc_now() - _DAY, limit=_LAST)
    failed = [end for end in last if end.state is JobState.FAILED]
    said = f"{len(failed)} of the last {len(last)} jobs of a day failed" if last else "no job ended within a day"
    if len(failed) < _OFTEN or 2 * len(failed) < len(last):
        return [Finding("failures", said)]
    why = f"{said}, the newest: {failed[0].name}: {failed[0].error}"
    return [Finding("failures", why, "mend that; nst retry JOB tries one again")]
