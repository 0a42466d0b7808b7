"""How fast the gallery answers on a database of 100,000 jobs: a real server, asked one request after another.

python -m benchmarks.gallery [--jobs 100000] [--repeats 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.history import LONG_CURVE, fill
from flows.gallery.pages import PAGE_SIZE
from storage.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Make the database, ask for every kind of page and print the table."""
    parser = argparse.ArgumentParser(description="Measure how fast the gallery answers.")
    parser.add_argument("--jobs", type=int, default=100_000, help="jobs in the database")
    parser.add_argument("--repeats", type=int, default=7, help="requests for each page")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill(home, options.jobs)
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
