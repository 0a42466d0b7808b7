"""A home of some years for the benchmarks: a database of many jobs with sources, attempts, loss points and nights."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from nst_engine.samples import content_sample
from storage.database import Database, open_database
from storage.models import Attempt, Job, JobState, LossPoint, Night, NightState, Source
from storage.workspace import Workspace

PRESETS = ("default", "gatys-2015", "keras-2016")
COLLECTIONS = (None, *(f"collection {number:02}" for number in range(20)))
WORDS = ("lake", "harbour", "portrait", "alley", "bridge", "tower", "meadow", "river", "night", "street")
STATES = {JobState.COMPLETED: 95, JobState.FAILED: 3, JobState.CANCELLED: 1, JobState.PENDING: 1}
BATCH = 2000
LONG_CURVE = 20_000
NIGHTS = 200


def fill(home: Path, jobs: int, *, states: Mapping[JobState, int] = STATES) -> None:
    """Make a home with a database of that many jobs, of which `states` says how many of a hundred are in which, and
    of some nights. Their pictures are not there, but for one."""
    Workspace(home).create()
    folder = Workspace(home).outbox / "picture"
    folder.mkdir()
    encode_png(content_sample(400, 533), folder / "result.png")
    database = open_database(Workspace(home).database_path)
    numbers = random.Random(1)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    config, versions = TransferConfig().model_dump(), dict.fromkeys(("python", "nst", "tensorflow", "keras"), "1.2.3")
    for first in range(0, jobs, BATCH):
        batch = range(first, min(first + BATCH, jobs))
        moments = {number: start + timedelta(seconds=90 * number) for number in batch}
        _insert(
            database,
            Job,
            [_job(number, moments[number], config, versions, folder, numbers, states) for number in batch],
        )
        _insert(database, Source, [_source(number, role) for number in batch for role in ("content", "style")])
        _insert(database, Attempt, [_attempt(number, moments[number]) for number in batch])
    _insert(database, LossPoint, [_point(0, iteration) for iteration in range(LONG_CURVE + 1)])
    _insert(database, LossPoint, [_point(1, iteration) for iteration in range(101)])
    nights = [
        {
            "id": f"{collection[-2:]}{number:08}",
            "collection": collection,
            "state": NightState.COMPLETED,
            "started_at": start + timedelta(days=number),
            "finished_at": start + timedelta(days=number, hours=6),
            "pairs": 500,
            "done_before": 400,
            "completed": 99,
            "failed": 1,
            "cancelled": 0,
        }
        for collection in COLLECTIONS
        if collection
        for number in range(NIGHTS)
    ]
    _insert(database, Night, nights)
    database.close()


def _job(
    number: int,
    moment: datetime,
    config: dict[str, Any],
    versions: dict[str, str],
    folder: Path,
    numbers: random.Random,
    states: Mapping[JobState, int],
) -> dict[str, Any]:
    (state,) = numbers.choices([*states], [*states.values()]) if number > 1 else [JobState.COMPLETED]
    moves = {f"/home/user/nst/inbox/{number}_{role}.jpg": f"{role}.jpg" for role in ("content", "style")}
    return {
        "id": f"{number:010}",
        "name": f"{numbers.choice(WORDS)}_{numbers.choice(WORDS)}-{number}-",
        "state": state,
        "preset": numbers.choices(PRESETS, (80, 15, 5))[0],
        "collection": numbers.choice(COLLECTIONS),
        "config": config,
        "versions": versions,
        "weights_name": "imagenet",
        "weights_sha256": "a" * 64,
        "precision": "float32",
        "device": "cpu",
        "host": "studio",
        "result_folder": str(folder),
        "result_files": {name: f"{name}.png" for name in ("result", "loss_plot", "content", "style")},
        "result_rows": 400,
        "result_columns": 533,
        "created_at": moment,
        "started_at": moment,
        "finished_at": moment,
        "fingerprint": f"{number:064}",
        "manifest": {"moves": moves, "folder": None, "rejected_to": None},
    }


def _source(number: int, role: str) -> dict[str, Any]:
    return {
        "job_id": f"{number:010}",
        "role": role,
        "position": 0,
        "original_path": f"/home/user/nst/inbox/{number}_{role}.jpg",
        "file_name": f"{role}.jpg",
        "sha256": "b" * 64,
        "bytes": 4_000_000,
        "rows": 3000,
        "columns": 4000,
    }


def _attempt(number: int, moment: datetime) -> dict[str, Any]:
    return {
        "job_id": f"{number:010}",
        "number": 1,
        "started_at": moment,
        "finished_at": moment,
        "outcome": JobState.COMPLETED,
        "host": "studio",
        "pid": 1,
        "phase": "publish",
    }


def _point(number: int, iteration: int) -> dict[str, Any]:
    loss = 1000 / (1 + iteration)
    layers = {f"style/block{block}_conv1": loss / 5 for block in range(1, 6)}
    return {
        "job_id": f"{number:010}",
        "iteration": iteration,
        "attempt": 1,
        "total": loss + 1,
        "content": 0.5,
        "style": loss,
        "tv": 0.5,
        "layers": {"content/block4_conv2": 0.5, **layers},
        "seconds": 0.1 * iteration,
    }


def _insert(database: Database, table: type[Any], rows: list[dict[str, Any]]) -> None:
    with database.begin() as session:
        session.connection().execute(sa.insert(table), rows)
