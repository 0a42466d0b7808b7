"""The Prefect server as the service starts it, as a real process on a real database: that it holds under load, that
what it needs for that is in force and still needed, and that it ends when it should."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from benchmarks.burst import run_burst
from flows.errors import OrchestrationError
from flows.prefect_server import COLLECT_SECONDS, api_url, server_environment, wait_until_healthy

ROOT = Path(__file__).resolve().parents[1]
STARTS_WITHIN = 120
# A server that freezes does so for 10 to 60 s; else no answer takes longer than 1 s, or 2 s on a machine that is
# busy with other things.
FREEZE_SECONDS = 5

# The server itself, which also says what goes on in its process for each line that it is sent.
PROBED = """
import gc, json, runpy, sys, threading
from prefect.server.services import perpetual_services as services

def report():
    for _ in sys.stdin:
        print(json.dumps({
            "collects by itself": gc.isenabled(),
            "collections": gc.get_stats()[2]["collections"],
            "services": [service.function.__name__ for service in services.get_perpetual_services()],
            "enabled": [service.function.__name__ for service in services.get_enabled_perpetual_services()],
        }), flush=True)

threading.Thread(target=report, daemon=True).start()
runpy.run_module("flows.prefect_server", run_name="__main__", alter_sys=True)
"""

PARENT = """
import os, subprocess, sys, threading
from flows.lifeline import Lifeline
lifeline = Lifeline()
command = [sys.executable, "-m", "flows.prefect_server", *sys.argv[1:]]
subprocess.Popen(command, env={**os.environ, **lifeline.environment()}, pass_fds=(lifeline.child_fd,))
threading.Event().wait()
"""

# Two transactions that read before they write, in Prefect's own way; the argument says whose.
TRANSACTIONS = """
import asyncio, gc, json, sys
import sqlalchemy as sa
from prefect.server.database import provide_database_interface
from prefect.settings import get_current_settings
from flows import prefect_server

if sys.argv[1] == "ours":
    prefect_server._begin_writes_immediately()

async def main():
    db = provide_database_interface()
    async with (await db.engine()).begin() as connection:
        await connection.execute(sa.text("CREATE TABLE written (number INTEGER)"))
    both = asyncio.Event()
    reading = []

    async def transact(number):
        try:
            async with db.session_context(begin_transaction=True) as session:
                await session.execute(sa.text("SELECT * FROM written"))
                reading.append(number)
                if len(reading) == 2:
                    both.set()
                try:
                    await asyncio.wait_for(both.wait(), 0.5)
                except TimeoutError:
                    pass
                await session.execute(sa.text(f"INSERT INTO written VALUES ({number})"))
        except sa.exc.OperationalError as error:
            return str(error.orig)
        return "written"

    results = sorted(await asyncio.gather(transact(1), transact(2)))
    late = get_current_settings().server.services.late_runs.enabled
    print(json.dumps({"results": results, "late runs": late, "collects by itself": gc.isenabled()}))

asyncio.run(main())
"""


class Server:
    """A server process that a test may stop and start again on the same home."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = api_url("127.0.0.1", self.port)
        self.environment = {**os.environ, **server_environment(home, host="127.0.0.1", port=self.port)}
        self.log = home / "server.log"

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROBED, f"--port={self.port}"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        wait_until_healthy(self.url, timeout=STARTS_WITHIN, alive=lambda: self.process.poll() is None)

    def stop(self, number: int) -> int:
        """The exit code, which must not wait until a client that stays gives up."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return code

    def probe(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("report\n")
        self.process.stdin.flush()
        return dict(json.loads(line_of(self.process.stdout)))

    def ask(self, path: str, body: object = None) -> Any:
        status, document = post_or_get(f"{self.url}/{path}", body)
        assert status in (200, 201), document
        return document


def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post_or_get(url: str, body: object = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def text_of(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"))
    server.start()
    yield server
    server.stop(signal.SIGKILL)


def test_settings_are_in_force(server: Server) -> None:
    settings = server.ask("admin/settings")["server"]
    assert {
        "analytics": settings["analytics_enabled"],
        "promotion": settings["ui"]["show_promotional_content"],
        "late runs": settings["services"]["late_runs"]["enabled"],
        "leases": settings["concurrency"]["lease_storage"],
        "events a transaction": settings["services"]["task_run_recorder"]["batch_size"],
        "database": settings["database"]["migrate_on_start"],
    } == {
        "analytics": False,
        "promotion": False,
        "late runs": False,
        "leases": "prefect.server.concurrency.lease_storage.filesystem",
        "events a transaction": 50,
        "database": True,
    }
    home = Path(server.environment["PREFECT_HOME"])
    assert (home / "prefect.db").is_file()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 201, id="a program"),
        pytest.param({"Origin": "http://{here}"}, 201, id="the dashboard"),
        pytest.param({"Host": "localhost:9", "Origin": "http://localhost:9"}, 201, id="through a tunnel"),
        pytest.param({"Origin": "http://localhost:4300"}, 403, id="another port"),
        pytest.param({"Origin": "https://evil.example"}, 403, id="another site"),
        pytest.param({"Origin": "null"}, 403, id="a page that hides where it is from"),
        pytest.param({"Host": "evil.example:{port}"}, 403, id="a name that was pointed here"),
    ],
)
def test_only_its_own_pages_and_programs_are_answered(server: Server, headers: dict[str, str], status: int) -> None:
    here = server.url.removeprefix("http://").removesuffix("/api")
    sent = {name: value.format(here=here, port=server.port) for name, value in headers.items()}
    body = {"name": f"variable_{uuid4().hex}", "value": 1}
    assert httpx.post(f"{server.url}/variables/", json=body, headers=sent).status_code == status
    # Of a socket a page tells its origin too.
    if "Host" not in sent:
        address = f"{server.url.replace('http', 'ws')}/events/out"
        with contextlib.ExitStack() as refused:
            if status == 403:
                refused.enter_context(pytest.raises(InvalidStatus, match="403"))
            connect(address, additional_headers=sent, subprotocols=["prefect"]).close()


def test_collector_runs_in_its_own_thread_only(server: Server) -> None:
    first = server.probe()
    assert not first["collects by itself"]
    deadline = time.monotonic() + 3 * COLLECT_SECONDS
    while server.probe()["collections"] == first["collections"]:
        assert time.monotonic() < deadline, "the garbage is not collected"
        time.sleep(0.2)


def test_late_runs_are_not_marked(server: Server) -> None:
    found = server.probe()
    late = [name for name in found["services"] if "late" in name]
    assert late, "Prefect marks late runs in another way now"
    assert not set(late) & set(found["enabled"])
    assert "schedule_deployments" in found["enabled"]


@pytest.mark.parametrize(
    ("whose", "second"),
    [pytest.param("shipped", "database is locked", id="shipped"), pytest.param("ours", "written", id="ours")],
)
def test_transactions_that_read_before_they_write(whose: str, second: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    if whose == "ours":
        environment |= server_environment(tmp_path, host="127.0.0.1", port=free_port())
        (tmp_path / "prefect").mkdir()
    command = [sys.executable, "-c", TRANSACTIONS, whose]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    # As shipped each of the three is still as it should not be: else ours has no use any more.
    shipped = whose == "shipped"
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "results": sorted([second, "written"]),
        "late runs": shipped,
        "collects by itself": True,
    }


def test_concurrent_writers_are_all_answered(server: Server) -> None:
    flow_id = server.ask("flows/", {"name": "writers"})["id"]
    body = {"flow_id": flow_id, "state": {"type": "SCHEDULED"}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post_or_get(f"{server.url}/flow_runs/", body)[0], range(80)))
    assert Counter(answers) == {201: 80}


def test_burst(server: Server) -> None:
    burst = run_burst(server.url, jobs=40, at_once=8)
    assert burst.states == {"Completed": 40}
    assert burst.answers.errors == []
    assert len(burst.answers.seconds) > 20
    assert max(burst.answers.seconds) < FREEZE_SECONDS
    assert burst.lag < FREEZE_SECONDS


@pytest.mark.parametrize("version", ["", "v2"])
def test_dashboard_is_whole_without_a_network(server: Server, version: str) -> None:
    base = server.url.removesuffix("/api")
    page = text_of(f"{base}/{version}")
    links = re.findall(r'<(?:script|link)[^>]*?(?:src|href)="([^"]+)"', page)
    assert [link for link in links if not link.startswith("/")] == []
    parts = [link for link in links if link.endswith((".js", ".css"))]
    assert len(parts) > 3
    for part in parts:
        assert text_of(base + part)
    assert json.loads(text_of(f"{base}/ui-settings"))["api_url"] == "/api"
    assert (Path(server.environment["PREFECT_HOME"]) / "ui").is_dir()


def test_signals_end_it_cleanly_and_runs_are_kept(server: Server) -> None:
    flow_id = server.ask("flows/", {"name": "kept"})["id"]
    run_id = server.ask("flow_runs/", {"flow_id": flow_id})["id"]
    log = server.log.read_text()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A client that stays, as each flow run does.
        with connect(server.url.replace("http", "ws") + "/events/in") as client:
            assert client.ping().wait(5)
            code = server.stop(number)
        assert code == 0
        server.start()
        assert server.ask(f"flow_runs/{run_id}")["flow_id"] == flow_id
    assert server.log.read_text() == log


def test_it_ends_when_its_parent_is_killed(server: Server) -> None:
    server.stop(signal.SIGTERM)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, f"--port={server.port}"],
        cwd=ROOT,
        env=server.environment,
        stdout=subprocess.PIPE,
    )
    wait_until_healthy(server.url, timeout=STARTS_WITHIN, alive=lambda: parent.poll() is None)
    parent.kill()
    # The server shares the parent's stdout, so that this ends with it.
    parent.communicate(timeout=10)
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"{server.url}/health")
    server.start()


def test_taken_port_is_told_of_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "flows.prefect_server", f"--port={port}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"127.0.0.1:{port}: cannot be listened on (Address already in use); choose another prefect_port.\n"
    )


@pytest.mark.parametrize(
    ("alive", "message"),
    [
        pytest.param(True, "no answer within 0.3 s", id="silent"),
        pytest.param(False, "who was to answer ended while it started", id="dead"),
    ],
)
def test_waiting_for_no_server(alive: bool, message: str) -> None:
    url = api_url("127.0.0.1", free_port())
    with pytest.raises(OrchestrationError, match=f"{url}/health: {message}"):
        wait_until_healthy(url, timeout=0.3, alive=lambda: alive)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        pytest.param("127.0.0.1", "http://127.0.0.1:4200/api", id="loopback"),
        pytest.param("0.0.0.0", "http://127.0.0.1:4200/api", id="all"),
        pytest.param("::", "http://[::1]:4200/api", id="all-6"),
        pytest.param("studio.local", "http://studio.local:4200/api", id="name"),
    ],
)
def test_api_url(host: str, url: str) -> None:
    assert api_url(host, 4200) == url
