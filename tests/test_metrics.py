"""What watches over a service is told: the figures in the form of Prometheus, and whether all is well."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import event

from flows.heartbeat import beat
from flows.metrics import registry_of
from flows.part_states import PartRecord
from flows.settings import Settings
from storage.database import open_database
from storage.figures import Figures
from storage.jobs import JobStore, NewJob, utc_now
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.gallery_home import ITERATIONS, GalleryHome, serving


@pytest.fixture
def home(tmp_path: Path) -> Iterator[GalleryHome]:
    made = GalleryHome(tmp_path / "home")
    yield made
    made.database.close()


def figures_at(address: str, **headers: str) -> dict[str, float]:
    """All that /metrics has, by name and labels, as Prometheus itself reads it."""
    answer = httpx.get(f"{address}/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200
    return {
        f"{sample.name}{sorted(sample.labels.items()) if sample.labels else ''}": sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }


def taken(store: JobStore, name: str, *, age: timedelta = timedelta()) -> Job:
    made = JobStore(store._database, clock=lambda: utc_now() - age)
    job = made.create(NewJob(name=name, preset="default", config={}, sources=[]))
    made.make_pending(job.id)
    return job


def test_the_metrics_are_the_figures_of_the_home(home: GalleryHome) -> None:
    folder = home.workspace.home
    done = home.start("done", iteration=ITERATIONS)
    home.store.record_environment(
        done.id, attempt=1, weights_name="w", weights_sha256="0", precision="float32", device="cpu X", versions={}
    )
    home.finish(done)
    home.failed("broken")
    now = JobStore(home.database)
    old = taken(now, "old", age=timedelta(minutes=10))
    now.note_submission([old.id], flow_run_id="run-7", lease_until=utc_now())
    for name in ("lake_content.png", "lake_style.png", "alone_content.png"):
        (home.workspace.inbox / name).write_bytes(b"x")
    (folder / "logs").mkdir()
    part = PartRecord(folder / "logs", "gpu-worker")
    part.note_restart()
    part.note_restart()
    backup = folder / "backups" / "nst-2026-05-01.db"
    backup.parent.mkdir()
    backup.touch()
    os.utime(backup, (time.time() - 3600, time.time() - 3600))
    beat(folder, "sensor")
    beat(folder, "dispatcher")
    with serving(folder) as address:
        found = figures_at(address)
        # What ends from now on is counted, and once.
        again = taken(now, "again")
        now.start_attempt(again.id, host="studio", pid=1, lease_until=utc_now() + timedelta(minutes=1))
        now.fail(again.id, attempt=1, error="No.")
        counts = [figures_at(address)["nst_jobs_ended_total[('state', 'failed')]"] for _ in range(2)]
        now.retry(again.id)
        counts.append(figures_at(address)["nst_jobs_ended_total[('state', 'failed')]"])
    assert counts == [1, 1, 1]
    rough = {name: found.pop(name) for name in ("nst_free_bytes", "nst_queue_age_seconds", "nst_backup_age_seconds")}
    assert rough["nst_free_bytes"] > 0
    assert 600 <= rough["nst_queue_age_seconds"] < 660
    assert 3600 <= rough["nst_backup_age_seconds"] < 3660
    states = {"pending": 1, "completed": 1, "failed": 1}
    assert found == {
        f"nst_info[('version', '{version('nst')}')]": 1,
        "nst_up": 1,
        "nst_part_restarts_total[('part', 'gpu-worker')]": 2,
        "nst_inbox_files[('state', 'ready')]": 2,
        "nst_inbox_files[('state', 'waiting')]": 1,
        "nst_database_up": 1,
        **{f"nst_jobs[('state', '{state.value}')]": states.get(state.value, 0) for state in JobState},
        "nst_open_flow_runs": 1,
        **{
            f"nst_jobs_ended_total[('state', '{state}')]": 0
            for state in ("completed", "failed", "cancelled", "rejected")
        },
        # The losses of this home are half a second apart.
        "nst_iteration_seconds[('device', 'cpu X'), ('precision', 'float32')]": 0.5,
    }


def test_both_versions_of_the_format_are_answered_and_no_registry_is_shared(home: GalleryHome) -> None:
    with serving(home.workspace.home) as address, serving(home.workspace.home) as other:
        plain = httpx.get(f"{address}/metrics")
        open_metrics = httpx.get(f"{other}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert open_metrics.text.endswith("# EOF\n")
    assert "python_info" not in plain.text


def test_health_is_one_sentence_a_problem(home: GalleryHome) -> None:
    folder = home.workspace.home
    sensor = "The sensor does not run; start the service with `nst up`."
    with serving(folder, gallery_password="hunter2", rescan_seconds=3600) as address:

        def health() -> tuple[int, dict[str, Any]]:
            answer = httpx.get(f"{address}/healthz", timeout=30)
            return answer.status_code, answer.json()

        beat(folder, "dispatcher")
        assert health() == (503, {"status": "failing", "problems": [sensor]})
        beat(folder, "sensor")
        assert health() == (200, {"status": "ok", "problems": []})
        # The sensor may be silent as long as its setting says, and so may a clock that was set back.
        for then in (time.time() - 3000, time.time() + 3000):
            os.utime(folder / "sensor.alive", (then, then))
            assert health() == (200, {"status": "ok", "problems": []})
            os.utime(folder / "dispatcher.alive", (then, then))
            code, document = health()
            assert code == 503
            (sentence,) = document["problems"]
            silent = int(sentence.removeprefix("The dispatcher has given no sign of life for ").split()[0])
            assert 2900 <= silent <= 3100
            beat(folder, "dispatcher")
        # Figures need the password, as pages do.
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/metrics", auth=("any", "hunter2")).status_code == 200


def test_a_home_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    with serving(tmp_path / "away") as address:
        found = figures_at(address)
        answer = httpx.get(f"{address}/healthz", timeout=30)
    assert found == {f"nst_info[('version', '{version('nst')}')]": 1, "nst_up": 0, "nst_database_up": 0}
    assert (answer.status_code, len(answer.json()["problems"])) == (503, 3)


@pytest.mark.parametrize("there", [False, True], ids=["no database", "a damaged database"])
def test_without_a_database_the_rest_is_told(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "nst.db").write_bytes(b"x" * 5000)
    with serving(tmp_path) as address:
        found = figures_at(address)
        answer = httpx.get(f"{address}/healthz", timeout=30)
    assert (found["nst_database_up"], found["nst_up"]) == (0, 0)
    assert not any(name.startswith("nst_jobs") for name in found)
    assert answer.status_code == 503
    assert len(answer.json()["problems"]) == 3
    assert str(tmp_path / "nst.db") in answer.json()["problems"][2]


def test_a_database_that_hangs_makes_health_fail_in_time(home: GalleryHome) -> None:
    beat(home.workspace.home, "sensor")
    beat(home.workspace.home, "dispatcher")
    home.database.close()
    with closing(sqlite3.connect(home.workspace.database_path, isolation_level=None)) as connection:
        # With the last other connection closed, this keeps out readers too.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("CREATE TABLE held (id)")
        with serving(home.workspace.home) as address:
            # The database itself would be waited for longer.
            answer = httpx.get(f"{address}/healthz", timeout=25)
            # The pages' threads are none of those that hang.
            assert httpx.get(f"{address}/static/icon.svg", timeout=5).status_code == 200
            connection.execute("ROLLBACK")
            connection.close()
    slow = "The database or the disk has not answered within 5 s."
    assert (answer.status_code, answer.json()) == (503, {"status": "failing", "problems": [slow]})


MANY = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home of 100,000 jobs that have ended or wait, written in one statement."""
    folder = tmp_path_factory.mktemp("large")
    workspace = Workspace(folder)
    workspace.create()
    with open_database(workspace.database_path) as database, database.begin() as session:
        session.connection().exec_driver_sql(
            """
            WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
            INSERT INTO jobs (id, name, state, preset, config, created_at, finished_at, device, precision)
            SELECT printf('%010d', i), 'job',
                   CASE i % 10 WHEN 0 THEN 'pending' WHEN 1 THEN 'failed' ELSE 'completed' END,
                   'default', '{}', datetime('2026-01-01', i || ' seconds') || '.000000',
                   CASE i % 10 WHEN 0 THEN NULL ELSE datetime('2026-01-01', (i + 60) || ' seconds') || '.000000' END,
                   'cpu', 'float32'
            FROM n
            """,
            (MANY - 1,),
        )
    return Settings(home=folder)


def test_with_many_jobs_every_question_reads_an_index(large: Settings) -> None:
    with open_database(Workspace(large.home).database_path) as database:
        registry: CollectorRegistry = registry_of(large, lambda: database)
        asked: list[tuple[str, Any]] = []
        event.listen(
            database.engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        families = {family.name: family for family in registry.collect()}
        figures = Figures(database)
        figures.newest_time()
        figures.oldest_in_the_queue()
        with database.session() as session:
            plans = {
                statement: [
                    row[3]
                    for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                ]
                for statement, parameters in list(asked)
                if statement.startswith("SELECT")
            }
    assert sum(sample.value for sample in families["nst_jobs"].samples) == MANY
    assert len(plans) >= 6
    whole = [step for steps in plans.values() for step in steps if step.startswith("SCAN") and "INDEX" not in step]
    assert [step for step in whole if "loss_points" in step or "jobs" in step] == []
