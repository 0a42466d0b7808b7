"""A whole service whose jobs a PostgreSQL server keeps: pairs are painted, also where the server goes away meanwhile,
and nobody sees its password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.models import JobState
from tests.postgresql_server import PostgresqlServer, running_server
from tests.service_process import SMALL, Service, running_service

PASSWORD = "Xk7hunter2"
LONG = SMALL.replace("iterations = 6", "iterations = 400")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A server of this module's own, which it stops and starts again."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(server: PostgresqlServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    url = server.new_database().set(password=PASSWORD).render_as_string(hide_password=False)
    with running_service(tmp_path_factory.mktemp("home"), database_url=url, chunk_seconds=0.3) as service:
        yield service


def test_pairs_are_painted_and_no_file_remembers_them(service: Service) -> None:
    service.drop_pair("lake", seed=1)
    service.drop_pair("boat", seed=2)
    jobs = service.wait_for_end("lake", "boat")
    assert [job.state for job in jobs] == [JobState.COMPLETED, JobState.COMPLETED]
    assert all((Path(str(job.result_folder)) / "result.png").is_file() for job in jobs)
    assert list(service.home.glob("nst.db*")) == []
    listed = service.command("jobs")
    assert "lake" in listed.stdout
    assert "boat" in listed.stdout
    found = service.command("doctor")
    assert "which answers" in found.stdout, found.stdout + found.stderr
    assert PASSWORD not in found.stdout + found.stderr
    refused = service.command("backup", "copy.db")
    assert refused.stderr == (
        "nst: The jobs of this home are kept by a PostgreSQL server; back them up with pg_dump.\n"
    )


def test_a_server_that_goes_away_in_the_middle_of_a_job_costs_nothing(
    service: Service, server: PostgresqlServer
) -> None:
    service.drop_pair("river", seed=3, settings=LONG)
    service.wait(
        "river has begun",
        lambda: any(service.store.losses(job.id) for job in service.jobs() if job.name == "river"),
        seconds=120,
    )
    server.stop()
    service.drop_pair("late", seed=4)
    log = service.home / "logs" / "sensor.log"
    service.wait("the sensor says so", lambda: "cannot be reached" in log.read_text(), seconds=60)
    server.start()
    river, late = service.wait_for_end("river", "late", seconds=240)
    assert (river.state, late.state) == (JobState.COMPLETED, JobState.COMPLETED)
    assert [point.iteration for point in service.store.losses(river.id)] == list(range(401))
    assert list(service.workspace.inbox.iterdir()) == []
    assert list(service.workspace.work.iterdir()) == []


def test_nobody_sees_the_password(service: Service) -> None:
    seen = [*service.home.rglob("*.log"), *service.home.rglob("job.json"), *service.home.rglob("*.db*")]
    assert len(seen) > 5
    for file in seen:
        assert PASSWORD.encode() not in file.read_bytes(), file
    for process in service.processes(""):
        assert PASSWORD.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
    assert PASSWORD not in service.output()


def test_a_service_does_not_start_without_its_server(tmp_path: Path) -> None:
    service = Service(tmp_path / "home")
    service.environment["NST_DATABASE_URL"] = f"postgresql://nst:{PASSWORD}@127.0.0.1:9/nst"
    done = service.command("up")
    service.close()
    assert done.returncode == 3
    assert done.stderr.startswith("nst: The database postgresql+psycopg://nst:***@127.0.0.1:9/nst cannot be reached (")
    assert len(done.stderr.splitlines()) == 1
