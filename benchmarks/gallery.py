"""How fast the gallery answers on a database of 100,000 jobs: a real server, asked one request after another.

python -m benchmarks.gallery [--jobs 100000] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from flows.gallery.pages import PAGE_SIZE
from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from nst_engine.samples import content_sample
from storage.database import Database, open_database
from storage.models import Attempt, Job, JobState, LossPoint, Night, NightState, Source
from storage.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("default", "gatys-2015", "keras-2016")
COLLECTIONS = (None, *(f"collection {number:02}" for number in range(20)))
WORDS = ("lake", "harbour", "portrait", "alley", "bridge", "tower", "meadow", "river", "night", "street")
STATES = {JobState.COMPLETED: 95, JobState.FAILED: 3, JobState.CANCELLED: 1, JobState.PENDING: 1}
BATCH = 2000
LONG_CURVE = 20_000
NIGHTS = 200


def main() -> None:
    """Make the database, ask for every kind of page and print the table."""
    parser = argparse.ArgumentParser(description="Measure how fast the gallery answers.")
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs in the database")
    parser.add_argument("--repeats", type=int, default=7, help="requests for each page")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _fill(home, options.jobs)
        size = Workspace(home).database_path.stat().st_size
        with _gallery(home) as address:
            figures = _measure(address, options.jobs, options.repeats)
    report = {"machine": _machine(), "jobs": options.jobs, "database_bytes": size, "seconds": figures}
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _pages(jobs: int) -> dict[str, str]:
    last = jobs // PAGE_SIZE
    return {
        "all jobs, the first page": "/",
        "all jobs, the page in the middle": f"/?page={last // 2}",
        "all jobs, the last page": f"/?page={last}",
        "the state of most of them, a late page": f"/?state=completed&page={int(0.9 * last)}",
        "a rare state": "/?state=failed",
        "state and preset, a late page": f"/?state=completed&preset=default&page={int(0.7 * last)}",
        "state, preset and collection": "/?state=completed&preset=default&collection=collection+07&page=99",
        "a name that many have": "/?q=lake",
        "a name that many have, the last page": "/?q=lake&page=9999",
        "a name that one has": f"/?q=-{jobs // 2}-",
        "a name that none has": "/?q=nothing+like+it",
        "name, state and collection": "/?q=tower&state=completed&collection=collection+03",
        "all collections": "/collections",
        "a collection": "/collections/collection%2003",
        "a job": "/jobs/0000000001",
        f"a job with {LONG_CURVE:,} iterations": "/jobs/0000000000",
        "a thumbnail that has been made": "/jobs/0000000000/thumbnail/cover",
    }


def _measure(address: str, jobs: int, repeats: int) -> dict[str, list[float]]:
    figures = {}
    with httpx.Client(base_url=address, timeout=60) as client:
        for name, path in _pages(jobs).items():
            seconds = []
            for _ in range(repeats):
                began = time.perf_counter()
                answer = client.get(path)
                seconds.append(time.perf_counter() - began)
                answer.raise_for_status()
            # The first request of a page may also read the database from the disk.
            figures[name] = seconds
    return figures


def _fill(home: Path, jobs: int) -> None:
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
            [_job(number, moments[number], config, versions, folder, numbers) for number in batch],
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
) -> dict[str, Any]:
    (state,) = numbers.choices([*STATES], [*STATES.values()]) if number > 1 else [JobState.COMPLETED]
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


@contextmanager
def _gallery(home: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "gallery", "--home", str(home), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            assert server.stdout is not None
            # It says where it is before it answers.
            server.stdout.readline()
            with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
                client.get(f"{address}/static/icon.svg").raise_for_status()
            yield address
        finally:
            server.terminate()


def _machine() -> str:
    from nst_engine.hardware import cpu_model

    return f"{cpu_model()}, {os.cpu_count()} cores; Python {platform.python_version()}"


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['machine']}; {report['jobs']:,} jobs, a database of {report['database_bytes'] / 1e6:.0f} MB; "
        "milliseconds from the request to the whole answer, one request after another.",
        "",
        "| page | median | longest |",
        "|---|---|---|",
    ]
    for name, seconds in report["seconds"].items():
        lines.append(f"| {name} | {1e3 * statistics.median(seconds):.0f} | {1e3 * max(seconds):.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
