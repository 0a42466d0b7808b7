"""When the collections' night begins: a cron schedule of the deployment nightly/nightly in Prefect, kept as the
settings say. Whether it is paused is the user's, who decides that in the dashboard or with `nst schedule`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import tzlocal
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from flows.collection import collection_names
from flows.errors import OrchestrationError
from flows.prefect_names import NIGHTLY
from flows.runs import prefect_client
from flows.settings import OFF, Settings
from storage.workspace import Workspace

_SLUG: Final = "nst-nightly"
"""By which ours is known among schedules that a user has added."""
_LOOK_SECONDS: Final = 600.0
_NEXT: Final = 3

logger = logging.getLogger("nst")


@dataclass(frozen=True)
class Schedule:
    """The schedule as Prefect has it. `upcoming` are the next times on its own clock, none while it is paused."""

    cron: str
    time_zone: str
    active: bool
    upcoming: tuple[datetime, ...]


def ensure_schedule(settings: Settings) -> None:
    """Let Prefect's schedule be what the settings say, once there is a collection; `active` stays as it is.

    Raises OrchestrationError when Prefect is away or does not know the deployment, CollectionError when the folder of
    collections cannot be read.
    """
    with prefect_client() as client:
        deployment, ours = _find(client)
        if settings.nightly == OFF:
            if ours is not None:
                client.delete_deployment_schedule(deployment.id, ours.id)
            return
        wanted = CronSchedule(cron=settings.nightly, timezone=zone_of(settings))
        if ours is None:
            if collection_names(Workspace(settings.home).collections):
                made = DeploymentScheduleCreate(schedule=wanted, active=True, slug=_SLUG)
                client.create_deployment_schedules(deployment.id, [made])
                _plan_now(client, deployment)
        elif ours.schedule != wanted:
            client.update_deployment_schedule(deployment.id, ours.id, active=ours.active, schedule=wanted)
            _plan_now(client, deployment)


def read_schedule() -> Schedule | None:
    """The schedule, None when there is none; raises OrchestrationError when Prefect is away."""
    with prefect_client() as client:
        deployment, ours = _find(client)
    return None if ours is None else _shown(ours, deployment)


def set_active(active: bool) -> Schedule:
    """Pause or resume the schedule; raises OrchestrationError when there is none or Prefect is away."""
    with prefect_client() as client:
        deployment, ours = _find(client)
        if ours is None:
            raise OrchestrationError(
                "There is no schedule yet; it is made when the service runs, `nightly` is not off and there is a "
                "collection."
            )
        client.update_deployment_schedule(deployment.id, ours.id, active=active)
        if active:
            _plan_now(client, deployment, paused=False)
        deployment, ours = _find(client)
    assert ours is not None
    return _shown(ours, deployment)


def zone_of(settings: Settings) -> str:
    """The name of the time zone that counts: that of the settings, else this machine's, else UTC."""
    if settings.time_zone is not None:
        return settings.time_zone
    try:
        name = tzlocal.get_localzone_name()
    except ZoneInfoNotFoundError:
        # Its files contradict each other.
        name = None
    if name in available_timezones():
        return name
    logger.warning("This machine's time zone has no name, so nights begin by UTC; set time_zone to one.")
    return "UTC"


class ScheduleKeeper:
    """Keeps the schedule as the settings say: asks Prefect when there is a first collection, and now and then."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._folder = Workspace(settings.home).collections
        self._kept_at: float | None = None

    def keep(self) -> None:
        """Cheap while nothing has changed. Raises what ensure_schedule raises, and then asks again next time."""
        if self._settings.nightly != OFF and not collection_names(self._folder):
            # The next one to come is planned at once.
            self._kept_at = None
            return
        now = self._clock()
        if self._kept_at is None or now - self._kept_at >= _LOOK_SECONDS:
            ensure_schedule(self._settings)
            self._kept_at = now


def _find(client: SyncPrefectClient) -> tuple[DeploymentResponse, DeploymentSchedule | None]:
    try:
        deployment = client.read_deployment_by_name(NIGHTLY)
    except ObjectNotFound as error:
        raise OrchestrationError(
            f"Prefect does not know the deployment {NIGHTLY}; the flow worker makes it when it starts."
        ) from error
    schedules = client.read_deployment_schedules(deployment.id)
    return deployment, next((schedule for schedule in schedules if schedule.slug == _SLUG), None)


def _plan_now(client: SyncPrefectClient, deployment: DeploymentResponse, *, paused: bool | None = None) -> None:
    """Let the server plan the next runs within seconds: it looks at deployments that have changed, not at schedules."""
    paused = deployment.paused if paused is None else paused
    client.update_deployment(deployment.id, DeploymentUpdate(paused=paused))


def _shown(schedule: DeploymentSchedule, deployment: DeploymentResponse) -> Schedule:
    cron = schedule.schedule
    if not isinstance(cron, CronSchedule):
        raise OrchestrationError(
            "The schedule was changed in Prefect to one that is no cron expression; the service changes it back within "
            "ten minutes."
        )
    active = schedule.active and not deployment.paused
    zone = cron.timezone or "UTC"
    return Schedule(cron.cron, zone, active, _upcoming(cron) if active else ())


def _upcoming(cron: CronSchedule) -> tuple[datetime, ...]:
    """The next times, as the server will compute them; the client's own class cannot."""
    from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule

    dates = asyncio.run(ServerCronSchedule(cron=cron.cron, timezone=cron.timezone, day_or=cron.day_or).get_dates(_NEXT))
    zone = ZoneInfo(cron.timezone or "UTC")
    return tuple(datetime.fromtimestamp(date.timestamp(), zone) for date in dates)
