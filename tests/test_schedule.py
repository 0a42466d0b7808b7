"""The schedule of the nights, on a real Prefect API and once in a whole service: made, changed, paused and kept so."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows.cron import check_cron
from flows.errors import OrchestrationError, SettingsError
from flows.settings import Settings, load_settings
from nst_engine.images import encode_png
from storage.database import open_database
from storage.models import Night, NightState
from storage.nights import NightStore
from tests.service_process import CONTENT, REPOSITORY, SMALL, STYLE, Service, running_service

if TYPE_CHECKING:
    from prefect.client.schemas.objects import DeploymentSchedule


PLANNING = """
import asyncio, json, sys
from datetime import UTC, datetime, timedelta

from prefect.server import models, schemas
from prefect.server.database import provide_database_interface
from prefect.server.database.orm_models import FlowRun
from sqlalchemy import select
from sqlalchemy.exc import InvalidRequestError

from flows.prefect_server import let_schedules_plan_runs


async def main():
    database = provide_database_interface()
    await database.create_db()
    now = datetime.now(UTC)

    async def plan(start):
        # As the server's scheduler does, with its settings.
        async with database.session_context(begin_transaction=True) as session:
            bounds = {"end_time": start + timedelta(days=100), "min_time": timedelta(hours=1)}
            bounds |= {"min_runs": 3, "max_runs": 100}
            await models.deployments.schedule_runs(session, deployment_id, start_time=start, **bounds)
            runs = (await session.execute(select(FlowRun.expected_start_time, FlowRun.state_type))).all()
        return sorted([(time - now).days, state.value] for time, state in runs)

    async with database.session_context(begin_transaction=True) as session:
        flow = await models.flows.create_flow(session, schemas.core.Flow(name="nightly"))
        cron = schemas.schedules.CronSchedule(cron=f"{now.minute} {now.hour} * * *", timezone="UTC")
        schedule = schemas.core.DeploymentSchedule(schedule=cron, active=True)
        deployment = schemas.core.Deployment(name="nightly", flow_id=flow.id, schedules=[schedule])
        deployment_id = (await models.deployments.create_deployment(session, deployment)).id
    try:
        shipped = await plan(now)
    except InvalidRequestError:
        shipped = "refused"
    let_schedules_plan_runs()
    print(json.dumps({"shipped": shipped, "before": await plan(now - timedelta(days=10)), "back": await plan(now)}))


asyncio.run(main())
"""


def test_nights_are_planned_and_none_for_the_days_that_the_service_was_away(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANNING],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/prefect.db",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    planned = json.loads(done.stdout.splitlines()[-1])
    # As shipped Prefect plans nothing with this SQLAlchemy: else ours has no use any more.
    assert planned.pop("shipped") == "refused"
    assert planned == {
        "before": [[day, "SCHEDULED"] for day in (-10, -9, -8)],
        # The three that were planned ahead are late; the six days after them are not made up for.
        "back": [[day, "SCHEDULED"] for day in (-10, -9, -8, 0, 1, 2)],
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0 1 * * *", "0 1 * * *"),
        (" */15  8-17 * * MON-fri ", "*/15 8-17 * * mon-fri"),
        ("0,30 0 1,15 jan-mar/2 *", "0,30 0 1,15 jan-mar/2 *"),
        ("0 0 31 2 sun", "0 0 31 2 sun"),
        ("0 0 29 feb *", "0 0 29 feb *"),
        ("OFF", "off"),
    ],
)
def test_what_cron_allows_is_a_setting(tmp_path: Path, given: str, kept: str) -> None:
    assert Settings(home=tmp_path, nightly=given).nightly == kept


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("nightly", "every day", "it has 2 fields and needs five: minute hour day month weekday, as in 0 1 * * *"),
        ("nightly", "60 1 * * *", "the minute is 60; give one from 0 to 59"),
        ("nightly", "0 1 * * 8", "the day of the week is 8; give one from 0 to 7"),
        ("nightly", "0 1 * * mo", "the day of the week is mo; give one from 0 to 7"),
        ("nightly", "0 1- * * *", "the hour is 1-; give a number, *, a range such as 1-5, or */2"),
        ("nightly", "0 5-1 * * *", "the hour is 5-1; give the smaller number first"),
        ("nightly", "*/0 1 * * *", "the step of the minute is 0; give one from 1 to 59"),
        ("nightly", "0 1 31 4,jun *", "no month 4,jun has a day 31"),
        ("nightly", "0 1 ,2 * *", "the day of the month is empty; give a number, *, a range such as 1-5, or */2"),
        ("time_zone", "Mars/Phobos", "there is no such time zone; give a name such as Europe/Berlin"),
        ("time_zone", "../../etc/passwd", "there is no such time zone; give a name such as Europe/Berlin"),
    ],
)
def test_any_other_is_refused_with_one_sentence(tmp_path: Path, key: str, value: str, said: str) -> None:
    (tmp_path / "nst.toml").write_text(f"{key} = {value!r}")
    with pytest.raises(SettingsError) as failure:
        load_settings(home=tmp_path)
    mend = f"mend NST_{key.upper()} or {tmp_path}/nst.toml."
    assert str(failure.value) == f"{key} = {value}: {said}; {mend}"


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.lists(st.text("0123456789*/-,?LWH#@ jan", min_size=1, max_size=5), min_size=5, max_size=5))
def test_what_is_allowed_is_a_schedule_for_prefect(fields: list[str]) -> None:
    from prefect.server.schemas.schedules import CronSchedule

    try:
        cron = check_cron(" ".join(fields))
    except ValueError:
        return
    (date,) = CronSchedule(cron=cron, timezone="UTC")._get_dates_generator(n=1)
    assert date > datetime.now(UTC) - timedelta(minutes=1)


class Scene:
    """A home, and the schedule that Prefect has for the deployment of the nights."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "collections").mkdir(parents=True)
        self.now = 0.0

    def settings(self, **given: Any) -> Settings:
        return Settings(home=self.home, **{"time_zone": "Europe/Berlin", **given})

    def ensure(self, **given: Any) -> None:
        from flows.schedule import ensure_schedule

        ensure_schedule(self.settings(**given))

    def add_collection(self) -> None:
        (self.home / "collections" / "wedding").mkdir()

    def schedules(self) -> list[DeploymentSchedule]:
        from flows.prefect_names import NIGHTLY
        from flows.runs import prefect_client

        with prefect_client() as client:
            return client.read_deployment_schedules(client.read_deployment_by_name(NIGHTLY).id)

    def shown(self) -> list[tuple[object, object, bool]]:
        return [(entry.schedule.cron, entry.schedule.timezone, entry.active) for entry in self.schedules()]  # type: ignore[union-attr]

    def change(self, **values: Any) -> None:
        """What a user does in the dashboard."""
        from flows.prefect_names import NIGHTLY
        from flows.runs import prefect_client

        (schedule,) = self.schedules()
        with prefect_client() as client:
            client.update_deployment_schedule(client.read_deployment_by_name(NIGHTLY).id, schedule.id, **values)


@pytest.fixture
def scene(prefect_api: None, tmp_path: Path) -> Iterator[Scene]:
    from flows.deployments import ensure_deployments

    ensure_deployments(tmp_path)
    scene = Scene(tmp_path / "home")
    yield scene
    scene.ensure(nightly="off")


def test_the_schedule_is_made_with_the_first_collection(scene: Scene) -> None:
    scene.ensure()
    assert scene.shown() == []
    scene.add_collection()
    scene.ensure()
    assert scene.shown() == [("0 1 * * *", "Europe/Berlin", True)]
    (made,) = scene.schedules()
    scene.ensure()
    assert scene.schedules() == [made]


@pytest.mark.parametrize("active", [True, False])
def test_a_change_of_the_settings_leaves_a_paused_schedule_paused(scene: Scene, active: bool) -> None:
    scene.add_collection()
    scene.ensure()
    scene.change(active=active)
    scene.ensure(nightly="30 2 * * *")
    assert scene.shown() == [("30 2 * * *", "Europe/Berlin", active)]
    scene.ensure(nightly="30 2 * * *", time_zone="Asia/Tokyo")
    assert scene.shown() == [("30 2 * * *", "Asia/Tokyo", active)]


def test_a_schedule_that_was_changed_in_the_dashboard_is_as_the_settings_say_again(scene: Scene) -> None:
    from prefect.client.schemas.schedules import IntervalSchedule

    from flows.schedule import read_schedule

    scene.add_collection()
    scene.ensure()
    scene.change(active=False, schedule=IntervalSchedule(interval=timedelta(hours=1)))
    with pytest.raises(OrchestrationError, match="no cron expression"):
        read_schedule()
    scene.ensure()
    assert scene.shown() == [("0 1 * * *", "Europe/Berlin", False)]


def test_off_deletes_ours_and_leaves_a_users_own(scene: Scene) -> None:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    from flows.prefect_names import NIGHTLY
    from flows.runs import prefect_client

    scene.add_collection()
    scene.ensure()
    with prefect_client() as client:
        deployment = client.read_deployment_by_name(NIGHTLY).id
        own = DeploymentScheduleCreate(
            schedule=CronSchedule(cron="0 12 * * sat", timezone="UTC"), active=True, slug="own"
        )
        (made,) = client.create_deployment_schedules(deployment, [own])
        scene.ensure(nightly="off")
        assert scene.shown() == [("0 12 * * sat", "UTC", True)]
        client.delete_deployment_schedule(deployment, made.id)


def test_a_restart_of_the_service_keeps_the_schedule_and_its_pause(scene: Scene, tmp_path: Path) -> None:
    from flows.deployments import ensure_deployments
    from flows.prefect_names import NIGHTLY
    from flows.runs import prefect_client

    scene.add_collection()
    scene.ensure()
    scene.change(active=False)
    with prefect_client() as client:
        client.pause_deployment(client.read_deployment_by_name(NIGHTLY).id)
    before = scene.schedules()
    ensure_deployments(tmp_path)
    scene.ensure()
    assert [(entry.id, entry.active) for entry in scene.schedules()] == [(before[0].id, False)]
    with prefect_client() as client:
        assert client.read_deployment_by_name(NIGHTLY).paused
        client.resume_deployment(client.read_deployment_by_name(NIGHTLY).id)


def test_the_next_times_are_on_the_clock_of_the_schedule_and_none_while_it_is_paused(scene: Scene) -> None:
    from flows.schedule import read_schedule, set_active

    scene.add_collection()
    scene.ensure(nightly="30 7 * * *")
    found = read_schedule()
    assert found is not None
    assert (found.cron, found.time_zone, found.active) == ("30 7 * * *", "Europe/Berlin", True)
    assert [time.strftime("%H:%M") for time in found.upcoming] == ["07:30"] * 3
    days = [time.date() for time in found.upcoming]
    assert [days[1] - days[0], days[2] - days[1]] == [timedelta(days=1)] * 2
    assert set_active(False) == type(found)("30 7 * * *", "Europe/Berlin", False, ())
    assert read_schedule() == set_active(False)
    assert set_active(True).active


def test_pausing_what_is_not_there_is_refused(scene: Scene) -> None:
    from flows.schedule import read_schedule, set_active

    assert read_schedule() is None
    with pytest.raises(OrchestrationError, match="There is no schedule yet"):
        set_active(False)


def test_the_keeper_asks_at_once_for_a_first_collection_and_then_every_ten_minutes(scene: Scene) -> None:
    from flows.schedule import ScheduleKeeper

    keeper = ScheduleKeeper(scene.settings(), clock=lambda: scene.now)
    keeper.keep()
    assert scene.shown() == []
    scene.add_collection()
    keeper.keep()
    (made,) = scene.shown()
    scene.ensure(nightly="off")
    scene.now = 599.0
    keeper.keep()
    assert scene.shown() == []
    scene.now = 600.0
    keeper.keep()
    assert scene.shown() == [made]


def test_the_keeper_switched_off_deletes_also_where_no_collection_is_left(scene: Scene) -> None:
    from flows.schedule import ScheduleKeeper

    scene.add_collection()
    scene.ensure()
    (scene.home / "collections" / "wedding").rmdir()
    ScheduleKeeper(scene.settings(nightly="off"), clock=lambda: 0.0).keep()
    assert scene.shown() == []


def test_without_prefect_the_keeper_says_so_and_asks_again(scene: Scene) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.schedule import ScheduleKeeper

    scene.add_collection()
    keeper = ScheduleKeeper(scene.settings(), clock=lambda: 0.0)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{bound.getsockname()[1]}/api"
        with (
            temporary_settings({PREFECT_API_URL: nobody}),
            pytest.raises(OrchestrationError, match="Prefect's API does not answer"),
        ):
            keeper.keep()
    keeper.keep()
    assert len(scene.shown()) == 1


def test_a_deployment_that_is_not_there_is_told_of(scene: Scene) -> None:
    from flows.prefect_names import NIGHTLY
    from flows.runs import prefect_client
    from flows.schedule import ensure_schedule

    with prefect_client() as client:
        client.delete_deployment(client.read_deployment_by_name(NIGHTLY).id)
    with pytest.raises(OrchestrationError, match="does not know the deployment nightly/nightly"):
        ensure_schedule(scene.settings())
    # What comes after this test needs it.
    from flows.deployments import ensure_deployments

    ensure_deployments(scene.home)


@pytest.mark.parametrize(("found", "said"), [("Europe/Rome", "Europe/Rome"), ("Nowhere/At/All", "UTC")])
def test_without_a_setting_the_machines_zone_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, said: str
) -> None:
    import tzlocal.unix

    from flows.schedule import zone_of

    # What it has found before.
    monkeypatch.setattr(tzlocal.unix, "_cache_tz_name", found)
    assert zone_of(Settings(home=tmp_path)) == said
    assert zone_of(Settings(home=tmp_path, time_zone="Asia/Tokyo")) == "Asia/Tokyo"


def put_collection(service: Service) -> None:
    """One content and one style, small enough for a second of work."""
    folder = service.workspace.collections / "wedding"
    for name, picture in (("contents/lake.png", CONTENT), ("styles/starry.png", STYLE)):
        (folder / name).parent.mkdir(parents=True)
        encode_png(picture, folder / name)
    (folder / "settings.toml").write_text(SMALL)


def schedule_in(service: Service) -> dict[str, Any]:
    """The one schedule that Prefect's API tells of."""
    deployment: Any = service.api("GET", "deployments/name/nightly/nightly")
    (schedule,) = deployment["schedules"]
    return dict(schedule)


def planned(service: Service) -> list[str]:
    """The times for which Prefect has planned runs that have not begun."""
    wanted = {"deployments": {"name": {"any_": ["nightly"]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs: Any = service.api("POST", "flow_runs/filter", wanted)
    return sorted(run["expected_start_time"] for run in runs)


def nights(service: Service) -> list[Night]:
    with open_database(service.workspace.database_path) as database:
        last = NightStore(database).last("wedding")
    return [] if last is None else [last]


def test_a_night_begins_by_itself_and_a_pause_outlives_the_service(tmp_path: Path) -> None:
    with running_service(tmp_path / "home", nightly="* * * * *", time_zone="Europe/Berlin") as service:
        told = json.loads(service.command("schedule", "--json").stdout)
        assert told == {"schedule": None, "collections": []}
        put_collection(service)
        schedule = service.wait(
            "the schedule is there", lambda: json.loads(service.command("schedule", "--json").stdout)["schedule"]
        )
        assert (schedule["cron"], schedule["time_zone"], schedule["active"]) == ("* * * * *", "Europe/Berlin", True)
        assert len(schedule["next"]) == 3
        assert schedule_in(service)["schedule"] == {"cron": "* * * * *", "timezone": "Europe/Berlin", "day_or": True}
        service.wait("runs are planned", lambda: planned(service), seconds=20)

        service.wait(
            "a night is done",
            lambda: [night for night in nights(service) if night.state is not NightState.RUNNING],
            seconds=100,
        )
        (night,) = nights(service)
        assert (night.state, night.pairs) == (NightState.COMPLETED, 1)
        assert (service.workspace.outbox / "wedding" / "lake.png_starry.png" / "result.png").is_file()
        (shown,) = json.loads(service.command("collections", "--json").stdout)
        assert (shown["pairs"], shown["done"], shown["failed"]) == (1, 1, 0)
        assert shown["last_night"]["state"] == "completed"
        assert shown["next_night"] is not None

        deployment: Any = service.api("GET", "deployments/name/nightly/nightly")
        place = f"deployments/{deployment['id']}/schedules/{schedule_in(service)['id']}"
        service.api("PATCH", place, {"active": False})
        assert planned(service) == []
        assert json.loads(service.command("schedule", "--json").stdout)["schedule"]["next"] == []

        service.stop()
        service.start()
        service.wait("the sensor works", lambda: service.part("sensor"))
        kept = schedule_in(service)
        assert (kept["active"], kept["schedule"]["cron"]) == (False, "* * * * *")
        assert planned(service) == []

        before = datetime.now(UTC)
        resumed = service.command("schedule", "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert "active" in resumed.stdout
        # What was missed is not made up for.
        assert all(
            datetime.fromisoformat(time) >= before - timedelta(seconds=1)
            for time in service.wait("new runs are planned", lambda: planned(service), seconds=20)
        )
