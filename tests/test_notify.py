"""Messages about failures and nights, taken by a real receiver that speaks HTTP, as Apprise sends them."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr

from flows.notify import Notifier, receivers_of
from flows.settings import load_settings
from nst_engine.images import encode_png
from storage.database import Database, open_database
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState, Night, NightState
from storage.workspace import Workspace
from tests.service_process import REPOSITORY, free_port

PATIENCE = 120.0
HANGS = 60.0
SECRET = "hunter2-topic"
HERE = f"nst on {socket.gethostname()}"


class Receiver:
    """An HTTP server that keeps what is sent to it; it answers with `status`, and after `pause` seconds."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []
        self.status = 200
        self.pause = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.messages.append((document["title"], document["message"]))
                time.sleep(outer.pause)
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"json://127.0.0.1:{self.server.server_address[1]}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def wait_until(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.02)


def failed(number: int, *, night: str | None = None, state: JobState = JobState.FAILED) -> Job:
    return Job(id=f"{number:010}", name=f"lake{number}", state=state, error=f"Paint {number} is out.", night_id=night)


def notifier(*addresses: str, on: tuple[str, ...] = ("failed", "night"), gather: float = 0.3) -> Notifier:
    return Notifier([SecretStr(each) for each in addresses], on=on, gather_seconds=gather, pauses=(0.1, 0.1))


def test_a_burst_of_failures_is_one_message_with_the_first_names(receiver: Receiver) -> None:
    with notifier(receiver.address) as told:
        for number in range(100):
            told.job_ended(failed(number))
        told.job_ended(failed(100, state=JobState.COMPLETED))
        wait_until("the message is there", lambda: receiver.messages)
        told.job_ended(failed(7))
        told.night_ended("travel: 10 of 12 pairs are done, 2 failed.")
        wait_until("the next one is there", lambda: len(receiver.messages) == 2)
    first = "\n".join(f"lake{number}: Paint {number} is out." for number in range(5))
    assert receiver.messages == [
        (f"{HERE}: 100 jobs failed", f"{first}\nand 95 more; `nst jobs --state failed` lists them."),
        (
            f"{HERE}: a job failed, a night has ended",
            "lake7: Paint 7 is out.\ntravel: 10 of 12 pairs are done, 2 failed.",
        ),
    ]


@pytest.mark.parametrize(
    ("on", "titles"),
    [
        pytest.param(("failed", "night"), ["a job failed, a night has ended"], id="both"),
        pytest.param(("failed",), ["2 jobs failed"], id="failures only"),
        pytest.param(("night",), ["a night has ended"], id="nights only"),
    ],
)
def test_only_what_was_asked_for_is_told_and_a_night_s_failures_with_the_night(
    receiver: Receiver, on: tuple[str, ...], titles: list[str]
) -> None:
    with notifier(receiver.address, on=on, gather=30) as told:
        told.job_ended(failed(1))
        told.job_ended(failed(2, night="0123456789"))
        told.night_ended("travel: done.")
    # What is gathered is sent at the end.
    assert [title for title, _ in receiver.messages] == [f"{HERE}: {title}" for title in titles]


def test_nobody_to_tell_starts_nothing() -> None:
    before = threading.active_count()
    with notifier() as told:
        told.job_ended(failed(1))
        assert threading.active_count() == before


def test_a_refused_message_is_tried_again_a_few_times_and_logged_without_the_address(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 500
    other = Receiver()
    with caplog.at_level(logging.DEBUG), notifier(receiver.address, "blub://x", other.address) as told:
        told.job_ended(failed(1))
        wait_until("it was given up", lambda: "did not take a message" in caplog.text)
    other.close()
    assert (len(receiver.messages), len(other.messages)) == (3, 1)
    assert [record.getMessage() for record in caplog.records if record.name == "nst"] == [
        "notify: Apprise does not know what address 2 (blub) is; correct it in nst.toml or NST_NOTIFY.",
        "notify: address 1 (json) did not take a message (3 tries); `nst notify` tries it.",
    ]
    said = [record for record in caplog.records if record.name != "urllib3.connectionpool"]
    assert not any(SECRET in record.getMessage() for record in said)
    assert SECRET not in "".join(capfd.readouterr())


def test_a_receiver_that_hangs_holds_up_nobody(receiver: Receiver) -> None:
    receiver.pause = HANGS
    with notifier(receiver.address, gather=0.01) as told:
        told.job_ended(failed(0))
        wait_until("it hangs", lambda: receiver.messages)
        begun = time.monotonic()
        for number in range(1000):
            told.job_ended(failed(number))
        assert time.monotonic() - begun < HANGS / 2
        begun = time.monotonic()
    # Nor for ever the end of the process.
    assert time.monotonic() - begun < HANGS / 2


@pytest.mark.parametrize(
    ("file", "environment", "addresses"),
    [
        pytest.param("", None, None, id="none"),
        pytest.param('notify = ["json://a/b,c", "ntfy://d"]', None, ["json://a/b,c", "ntfy://d"], id="a list"),
        pytest.param("", "json://a/b,c, ntfy://d\nntfys://e", ["json://a/b,c", "ntfy://d", "ntfys://e"], id="a text"),
        pytest.param('notify = ["ntfy://d"]', "", None, id="off again"),
    ],
)
def test_the_setting_takes_a_list_or_a_text_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, environment: str | None, addresses: list[str] | None
) -> None:
    monkeypatch.delenv("NST_NOTIFY", raising=False)
    (tmp_path / "nst.toml").write_text(file)
    if environment is not None:
        monkeypatch.setenv("NST_NOTIFY", environment)
    settings = load_settings(home=tmp_path)
    found = None if settings.notify is None else [each.get_secret_value() for each in settings.notify]
    assert found == addresses
    assert not any(address in repr(settings) for address in addresses or ())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    workspace = Workspace(tmp_path / "home")
    workspace.create()
    with open_database(workspace.database_path) as database:
        yield database


def test_the_sensor_tells_of_failures_and_nights_and_gives_signs_of_life(
    tmp_path: Path, database: Database, receiver: Receiver
) -> None:
    home = tmp_path / "home"
    output = tmp_path / "sensor.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "NST_"))}
    environment |= {
        "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api",
        "PREFECT_HOME": str(home / "prefect"),
        "NST_SETTLE_SECONDS": "0.3",
        "NST_NOTIFY": receiver.address,
    }
    store = JobStore(database)
    with output.open("wb") as file:
        sensor = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "sensor", "--home", str(home)],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        for loop in ("sensor", "dispatcher"):
            wait_until(f"the {loop} lives", (home / f"{loop}.alive").exists)
        first = (home / "dispatcher.alive").stat().st_mtime
        for role, shade in (("content", 200), ("style", 90)):
            encode_png(np.full((20, 20, 3), shade, np.uint8), home / "inbox" / f"lake_{role}.png")
        wait_until("the drop is a job", lambda: store.recent(limit=1, state=JobState.PENDING))
        (job,) = store.recent(limit=1)
        store.fail(job.id, attempt=None, error="Its paint is out; buy some.")
        with database.begin() as session:
            now = utc_now() + timedelta(seconds=1)
            session.add(
                Night(
                    id="0123456789",
                    collection="travel",
                    state=NightState.FAILED,
                    started_at=now,
                    finished_at=now,
                    error="its settings cannot be read.",
                )
            )
        wait_until("the failure is said", lambda: "lake: failed: Its paint is out" in output.read_text())
        # A round comes after that in which the night is seen.
        said = (home / "dispatcher.alive").stat().st_mtime
        assert said >= first
        wait_until("two more rounds", lambda: (home / "dispatcher.alive").stat().st_mtime > said + 3)
        assert receiver.messages == []
        sensor.send_signal(signal.SIGTERM)
        assert sensor.wait(PATIENCE) == 0
    finally:
        sensor.kill()
        sensor.wait()
    assert receiver.messages == [
        (
            f"{HERE}: a job failed, a night has ended",
            "lake: Its paint is out; buy some.\ntravel: its settings cannot be read.",
        )
    ]
    assert SECRET not in output.read_text()
    assert not (home / "sensor.alive").exists()
    assert not (home / "dispatcher.alive").exists()


@pytest.mark.parametrize("works", [True, False], ids=["taken", "refused and unknown"])
def test_the_command_says_of_each_address_whether_its_message_was_taken(
    tmp_path: Path, receiver: Receiver, works: bool
) -> None:
    addresses = receiver.address if works else f"json://127.0.0.1:{free_port()}/{SECRET} blub://{SECRET}"
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "notify", "--home", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "NST_NOTIFY": addresses},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if works else 1)
    assert done.stderr == ""
    expected = (
        ["address 1 (json): took the message"]
        if works
        else [
            "address 1 (json): did not take the message; check the address and the network",
            "address 2 (blub): Apprise does not know it; see https://appriseit.com for what it knows",
        ]
    )
    assert done.stdout.splitlines() == expected
    assert receiver.messages == ([("nst: a test", "Messages of nst arrive here.")] if works else [])


def test_an_address_is_named_without_its_secrets() -> None:
    receivers, unknown = receivers_of([SecretStr(f"mailto://u:{SECRET}@host.example"), SecretStr(f"blub://{SECRET}")])
    assert ([receiver.label for receiver in receivers], unknown) == (["address 1 (mailto)"], ["address 2 (blub)"])


def test_the_command_asks_for_an_address_first(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "notify", "--home", str(tmp_path)],
        cwd=REPOSITORY,
        env={key: value for key, value in os.environ.items() if key != "NST_NOTIFY"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"nst: There is nobody to notify; set NST_NOTIFY, or notify in {tmp_path}/nst.toml")
