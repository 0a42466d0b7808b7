"""The sensor: on a real folder with real events, and as a process of its own whose Prefect is away."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.exits import WRONG_MACHINE
from nst_engine.images import encode_png
from storage.database import open_database
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace

# Only what imports the sensor needs this: Prefect reads its settings when it is imported.
pytestmark = pytest.mark.usefixtures("prefect_api")

REPOSITORY = Path(__file__).parents[1]
PATIENCE = 30.0


def wait_until(what: str, condition: Callable[[], object], *, tell: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}\n{tell()}"
        time.sleep(0.02)


class Sensing:
    """`nst sensor` for a home, with a Prefect API that nobody answers for."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.workspace = Workspace(home)
        self.workspace.create()
        self._database = open_database(self.workspace.database_path)
        self.store = JobStore(self._database)
        self._output = home / "sensor.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "NST_"))}
        environment |= {
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
            "PREFECT_HOME": str(home / "prefect"),
            "NST_SETTLE_SECONDS": "0.3",
            # So that nothing is found by looking again only.
            "NST_RESCAN_SECONDS": "3600",
        }
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", "sensor", "--home", str(home)],
                cwd=REPOSITORY,
                env=environment | {f"NST_{key.upper()}": str(value) for key, value in settings.items()},
                stdout=output,
                stderr=output,
            )

    def output(self) -> str:
        return self._output.read_text()

    def drop(self, name: str) -> None:
        for role, shade in (("content", 200), ("style", 90)):
            encode_png(np.full((20, 20, 3), shade, np.uint8), self.workspace.inbox / f"{name}_{role}.png")

    def wait_for(self, name: str) -> Job:
        """Wait until a job of that name is pending."""

        def found() -> list[Job]:
            return [job for job in self.store.recent(limit=100, state=JobState.PENDING) if job.name == name]

        wait_until(f"{name} is pending", found, tell=self.output)
        (job,) = found()
        return job

    def wait_for_line(self, words: str, *, times: int = 1) -> None:
        wait_until(f"{words!r} is said", lambda: self.output().count(words) >= times, tell=self.output)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def end(self) -> int:
        """End it with SIGTERM; returns its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; returns its exit code."""
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._database.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sensing]]:
    """A sensor that is told of changes and one that is not; started together, since that takes seconds."""
    sensors = {
        mode: Sensing(tmp_path_factory.mktemp(mode), watcher=mode, pair_timeout=2) for mode in ("native", "polling")
    }
    yield sensors
    for sensor in sensors.values():
        sensor.close()


@pytest.fixture(params=["native", "polling"])
def sensor(both: dict[str, Sensing], request: pytest.FixtureRequest) -> Sensing:
    return both[request.param]


def test_drops_become_jobs_while_prefect_is_away(sensor: Sensing) -> None:
    for name in ("before", "after"):
        sensor.drop(name)
        job = sensor.wait_for(name)
        assert (job.flow_run_id, job.attempts) == (None, [])
        assert {path.name for path in sensor.workspace.job_folder(job.id).iterdir()} == {"content.png", "style.png"}
        sensor.wait_for_line(f"{name}: waits for its turn (job {job.id})")
    assert list(sensor.workspace.inbox.iterdir()) == []
    sensor.wait_for_line("Prefect's API does not answer")
    # Said once, not at every try.
    assert sensor.output().count("Jobs wait until it does.") == 1


def test_an_inbox_that_was_deleted_and_made_again_goes_on_being_watched(sensor: Sensing) -> None:
    shutil.rmtree(sensor.workspace.inbox)
    sensor.wait_for_line(f"{sensor.workspace.inbox}: the inbox cannot be read")
    sensor.workspace.inbox.mkdir()
    for name in ("again", "and again"):
        sensor.drop(name)
        sensor.wait_for(name)


def test_what_waits_is_told_once_and_rejected_by_the_clock_alone(sensor: Sensing) -> None:
    (sensor.workspace.inbox / "alone_content.png").write_bytes(b"")
    sensor.wait_for_line("inbox: alone_content.png waits for alone_style.*")
    folder = sensor.workspace.rejected / "alone_content"
    sensor.wait_for_line(f"alone_content: rejected to {folder}: alone_content.png waits for alone_style.*. It waited")
    assert {path.name for path in folder.iterdir()} == {"alone_content.png", "alone_content.reason.txt"}
    assert sensor.output().count("inbox: alone_content.png") == 1


def test_a_second_sensor_of_the_same_home_is_refused(both: dict[str, Sensing]) -> None:
    first = both["native"]
    first.drop("held")
    first.wait_for("held")
    second = subprocess.run(
        [sys.executable, "-m", "flows.cli", "sensor", "--home", str(first.workspace.home)],
        cwd=REPOSITORY,
        env={**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode != 0
    assert f"A sensor already runs for {first.workspace.home} (process {first.process_id})" in second.stderr.replace(
        "\n", " "
    )


def test_a_sensor_ends_on_sigterm(both: dict[str, Sensing]) -> None:
    """The last test of this one."""
    sensor = both["native"]
    sensor.drop("last")
    sensor.wait_for("last")
    assert sensor.end() == 0
    assert "Traceback" not in sensor.output()


def test_a_sensor_whose_dispatcher_dies_ends_and_is_not_half_alive(both: dict[str, Sensing]) -> None:
    """The last test of this one: a row that no program of ours writes kills its dispatcher."""
    sensor = both["polling"]
    sensor.drop("odd")
    job = sensor.wait_for("odd")
    with closing(sqlite3.connect(sensor.workspace.database_path)) as connection, connection:
        connection.execute("UPDATE jobs SET config = '{' WHERE id = ?", [job.id])
    assert sensor.wait() == WRONG_MACHINE
    assert "JSONDecodeError" in sensor.output()
    assert "The sensor's dispatcher died of the error above; start the sensor again." in " ".join(
        sensor.output().split()
    )


MOUNTS = """\
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
server:/export {here}/net nfs4 rw,vers=4.2 0 0
//nas/pictures {here}/with\\040space cifs rw 0 0
/dev/sdb1 {here}/net/local ext4 rw 0 0
portal {here}/sshfs fuse.sshfs rw 0 0
systemd-1 {here}/auto autofs rw 0 0
server:/auto {here}/auto nfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "blind"),
    [
        pytest.param("home/inbox", False, id="a local disk"),
        pytest.param("net", True, id="the mount of a network folder itself"),
        pytest.param("net/home/inbox", True, id="below a network folder"),
        pytest.param("network", False, id="a name that begins like one"),
        pytest.param("net/local/inbox", False, id="a disk mounted below a network folder"),
        pytest.param("with space/inbox", True, id="a name with a space"),
        pytest.param("sshfs/inbox", True, id="FUSE"),
        pytest.param("auto/inbox", True, id="mounted over autofs"),
        pytest.param("shortcut/inbox", True, id="behind a link"),
    ],
)
def test_a_folder_is_blind_where_its_filesystem_is(tmp_path: Path, folder: str, blind: bool) -> None:
    from flows.watcher import is_blind

    (tmp_path / "shortcut").symlink_to(tmp_path / "net")
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS.format(here=tmp_path))
    assert is_blind(tmp_path / folder, mounts=mounts) is blind


def test_without_a_table_of_mounts_nothing_is_blind(tmp_path: Path) -> None:
    from flows.watcher import is_blind

    assert is_blind(tmp_path, mounts=tmp_path / "none") is False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def watching(folder: Path) -> Iterator[tuple[Any, threading.Event]]:
    """A watcher of the folder, and the event that it sets."""
    from flows.watcher import Watcher

    wake = threading.Event()
    watcher = Watcher(folder, wake, mode="native")
    watcher.check()
    assert wake.is_set()
    yield watcher, wake
    watcher.close()


def is_told(wake: threading.Event, action: Callable[[], object]) -> bool:
    """Whether the event is set by the action, once what came before it is over."""
    while wake.is_set():
        wake.clear()
        time.sleep(0.1)
    action()
    return wake.wait(1.0)


def test_changes_are_told_and_reading_is_not(watching: tuple[Any, threading.Event], folder: Path) -> None:
    _, wake = watching
    assert is_told(wake, lambda: (folder / "a.png").write_bytes(b"a"))
    assert not is_told(wake, lambda: (list(folder.iterdir()), (folder / "a.png").read_bytes()))
    assert is_told(wake, lambda: (folder / "a.png").rename(folder / "b.png"))
    assert is_told(wake, (folder / "sub").mkdir)
    assert is_told(wake, lambda: (folder / "sub" / "c.png").write_bytes(b"c"))


def test_a_watcher_that_is_whole_is_left_alone(watching: tuple[Any, threading.Event], folder: Path) -> None:
    watcher, wake = watching
    assert not is_told(wake, watcher.check)


def stop_observer(watcher: Any) -> None:
    watcher._observer.stop()
    watcher._observer.join()


def stop_emitter(watcher: Any) -> None:
    (emitter,) = watcher._observer.emitters
    emitter.stop()
    emitter.join()


@pytest.mark.parametrize("kill", [stop_observer, stop_emitter])
def test_threads_that_died_are_started_again(
    watching: tuple[Any, threading.Event], folder: Path, kill: Callable[[Any], None]
) -> None:
    watcher, wake = watching
    kill(watcher)
    assert not is_told(wake, lambda: (folder / "a.png").write_bytes(b"a"))
    # What happened meanwhile is to be looked for.
    assert is_told(wake, watcher.check)
    assert is_told(wake, lambda: (folder / "b.png").write_bytes(b"b"))


@pytest.mark.parametrize("checked", [True, False], ids=["seen while away", "back before anybody looked"])
def test_a_folder_that_comes_back_is_watched_again(
    watching: tuple[Any, threading.Event], folder: Path, checked: bool
) -> None:
    watcher, wake = watching
    folder.rename(folder.with_name("gone"))
    if checked:
        watcher.check()
    folder.mkdir()
    watcher.check()
    assert is_told(wake, lambda: (folder / "a.png").write_bytes(b"a"))


def test_polling_needs_no_threads(folder: Path) -> None:
    from flows.watcher import Watcher

    before = threading.active_count()
    watcher = Watcher(folder, threading.Event(), mode="polling")
    watcher.check()
    assert (watcher.polls, threading.active_count()) == (True, before)
    watcher.close()
