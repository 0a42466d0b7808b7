"""`nst doctor`: each fault is made for real, and found with its mend; without it the same check has nothing to mend."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cluster_processes import ClusterProcesses

from flows.access import missing
from flows.doctor import cluster, database, files, jobs, machine, prefect, service
from flows.doctor.finding import Check, Finding
from flows.heartbeat import beat
from flows.locks import only_one
from flows.part_states import PartRecord
from flows.settings import Settings
from storage.backup import back_up_daily
from storage.database import open_database
from storage.jobs import JobStore, NewJob, utc_now
from storage.models import Job
from storage.workspace import Workspace
from tests.service_process import REPOSITORY, free_port
from tests.small_disk import small_disk

Making = Callable[["Scene"], Iterator[list[Finding]]]


class Scene:
    """A home with one job that is done, whose service this process is: it holds the locks and gives signs of life."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.home, self.patch, self.stack = home, patch, stack
        self.workspace = Workspace(home)
        self.workspace.create()
        self.ports = {f"{part}_port": free_port() for part in ("prefect", "gallery", "scheduler")}
        self.settings = Settings(home=home, **self.ports)  # type: ignore[arg-type]
        self.database = stack.enter_context(open_database(self.workspace.database_path))
        self.store = JobStore(self.database)
        self.end_as_failed("first", failed=False)
        self.locks = stack.enter_context(ExitStack())
        for lock in ("service.lock", "sensor.lock"):
            self.locks.enter_context(only_one(home / lock, what="the service"))
        for loop in ("sensor", "dispatcher"):
            beat(home, loop)  # type: ignore[arg-type]
        self.part = PartRecord(home / "logs", "gallery")
        (home / "logs").mkdir()
        self.part.note_process(os.getpid())

    def configure(self, **settings: Any) -> None:
        self.settings = Settings(home=self.home, **{**self.ports, **settings})

    def pending(self, name: str, *, age: timedelta = timedelta()) -> Job:
        store = JobStore(self.database, clock=lambda: utc_now() - age)
        job = store.create(NewJob(name=name, preset="default", config={}, sources=[]))
        store.make_pending(job.id)
        return job

    def end_as_failed(self, name: str, *, failed: bool = True) -> Job:
        job = self.pending(name)
        lease = utc_now() + timedelta(minutes=1)
        self.store.start_attempt(job.id, host="studio", pid=1, lease_until=lease)
        if failed:
            self.store.fail(job.id, attempt=1, error="The colours ran out; buy some.")
        else:
            self.store.complete(job.id, attempt=1, result_folder="/out", result_files={}, rows=1, columns=1)
        return job

    def run(self, *command: str) -> subprocess.Popen[str]:
        """Another program, which says a line when it is ready and ends with the test."""
        process = subprocess.Popen(
            [sys.executable, "-u", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        assert process.stdout.readline()
        return process


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as stack:
        yield Scene(tmp_path / "home", monkeypatch, stack)


def wrong_version(scene: Scene) -> Iterator[list[Finding]]:
    folder = scene.home / "packages" / "fastapi-0.165.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fastapi\nVersion: 0.165.0\n")
    scene.patch.syspath_prepend(folder.parent)
    yield [
        Finding(
            "versions",
            "nst needs fastapi<0.151,>=0.139, and here is 0.165.0",
            "install nst from its lock file again: pip install -r requirements.lock",
        )
    ]


def no_scratch_folder(scene: Scene) -> Iterator[list[Finding]]:
    scene.patch.setenv("TMPDIR", f"{scene.home}/none")
    finding = f"there is no folder {scene.home}/none for large pictures"
    yield [Finding("scratch", finding, "make it, or set TMPDIR")]


def small_scratch_folder(scene: Scene) -> Iterator[list[Finding]]:
    with small_disk(scene.home / "scratch") as disk:
        scene.patch.setenv("TMPDIR", str(disk.place))
        yield [
            Finding(
                "scratch",
                f"0.1 GB free in {disk.place} for large pictures",
                f"free some space on the disk of {disk.place}, or set TMPDIR",
            )
        ]


def home_is_a_file(scene: Scene) -> Iterator[list[Finding]]:
    place = scene.home / "file"
    place.touch()
    scene.settings = Settings(home=place)
    yield [Finding("home", f"{place} is no folder", "move it away, or name another home with --home")]


def read_only_home(scene: Scene) -> Iterator[list[Finding]]:
    with small_disk(scene.home / "disk") as disk, disk.read_only():
        scene.settings = Settings(home=disk.place)
        (found,) = files.home(scene.settings)
        assert found.finding.startswith(f"Cannot write to {disk.place} (")
        yield [
            Finding("home", found.finding, "mend its permissions or name another home with --home or NST_HOME"),
        ]


def open_secret(scene: Scene) -> Iterator[list[Finding]]:
    file = scene.home / "nst.toml"
    file.write_text('gallery_password = "hunter2"\n')
    scene.home.chmod(0o755)
    file.chmod(0o644)
    finding = f"Other users of this machine can read {file}, which holds secrets"
    yield [Finding("secrets", finding, f"chmod 600 {file}")]


def full_disk(scene: Scene) -> Iterator[list[Finding]]:
    with small_disk(scene.home / "disk") as disk:
        scene.settings = Settings(home=disk.place)
        remedy = f"free some space on the disk of {disk.place}"
        yield [Finding("disk", f"0.1 GB free for {disk.place}", remedy)]


def no_inbox(scene: Scene) -> Iterator[list[Finding]]:
    inbox = scene.workspace.inbox
    inbox.rmdir()
    yield [
        Finding(
            "inbox",
            f"{inbox}: the inbox cannot be read (No such file or directory)",
            "make that folder, mount its disk or mend its permissions",
        )
    ]


def inbox_is_a_file(scene: Scene) -> Iterator[list[Finding]]:
    inbox = scene.workspace.inbox
    inbox.rmdir()
    inbox.touch()
    yield [
        Finding(
            "inbox",
            f"{inbox}: the inbox cannot be read (Not a directory)",
            "make that folder, mount its disk or mend its permissions",
        )
    ]


def half_files(scene: Scene) -> Iterator[list[Finding]]:
    parts = [scene.home / ".nst.db.nst.part", scene.workspace.outbox / ".lake.0123456789.part"]
    for part in parts:
        part.touch()
        os.utime(part, (time.time() - 7200, time.time() - 7200))
    # This one is being written.
    (scene.workspace.outbox / ".now.nst.part").touch()
    finding = f"{parts[0]}, {parts[1]} have never become whole"
    yield [Finding("leftovers", finding, "remove what is left of it while the service does not run")]


def folders_of_no_job(scene: Scene) -> Iterator[list[Finding]]:
    work = scene.workspace.work
    job = scene.pending("known")
    for name in (job.id, "0123456789", "holiday"):
        (work / name).mkdir()
    bring_back = "start the service again, which brings the pictures in there back to the inbox"
    yield [
        Finding("leftovers", f"{work}/0123456789 is no job's", bring_back),
        Finding("leftovers", f"{work}/holiday is no job's", "nst leaves it alone; move it away"),
    ]


def locked_database(scene: Scene) -> Iterator[list[Finding]]:
    path = scene.workspace.database_path
    hold = f"import sqlite3; c = sqlite3.connect({str(path)!r}); c.execute('BEGIN IMMEDIATE'); print(); input()"
    scene.run("-c", hold)
    remedy = f"end the process that holds it; `fuser {path}` lists who has it open"
    yield [Finding("database", f"{path} has been locked by another process for 3 s", remedy)]


def read_only_database(scene: Scene) -> Iterator[list[Finding]]:
    with small_disk(scene.home / "disk") as disk:
        path = Workspace(disk.place).database_path
        open_database(path).close()
        with disk.read_only():
            scene.settings = Settings(home=disk.place)
            remedy = "make the file and its disk readable and writable"
            yield [Finding("database", f"The database {path} is read-only", remedy)]


def newer_database(scene: Scene) -> Iterator[list[Finding]]:
    path = scene.workspace.database_path
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    sentence = (
        f"The database {path} has the schema '9999', made by a newer nst (or by another program); update nst or name "
        "another database."
    )
    yield [Finding("database", sentence, "update nst, or name another home with --home")]


def damaged_database(scene: Scene) -> Iterator[list[Finding]]:
    path = scene.workspace.database_path
    backup = back_up_daily(path, day=utc_now().date(), keep=7)
    scene.database.close()
    with path.open("r+b") as file:
        file.write(b"x" * 100)
    command = shlex.join(["nst", "backup", "--restore", str(backup), "--home", str(scene.home)])
    yield [
        Finding(
            "database",
            f"The database {path} is damaged (file is not a database)",
            f"its newest backup is {backup}: restore that with `{command}`, which keeps the old file beside it",
        )
    ]


def old_backup(scene: Scene) -> Iterator[list[Finding]]:
    backup = back_up_daily(scene.workspace.database_path, day=utc_now().date(), keep=7)
    assert backup is not None
    then = time.time() - 5 * 86400
    os.utime(backup, (then, then))
    remedy = f"see logs/sensor.log in {scene.home}, and make one now: nst backup FILE"
    yield [Finding("backup", f"{backup}, 5 days old", remedy)]


def clock_set_back(scene: Scene) -> Iterator[list[Finding]]:
    job = scene.pending("tomorrow", age=timedelta(days=-4))
    made = scene.store.get(job.id).created_at.astimezone()
    yield [
        Finding(
            "clock",
            f"a job is of {made:%Y-%m-%d %H:%M %Z}, 4 days after what this machine takes for now",
            "set the clock (timedatectl); what waits for a time goes on when that has come",
        )
    ]


def dead_part(scene: Scene) -> Iterator[list[Finding]]:
    process = scene.run("-c", "print()")
    process.wait()
    PartRecord(scene.home / "logs", "scheduler").note_process(process.pid)
    yield [Finding("service", "scheduler does not run", f"{scene.home}/logs/scheduler.log says why it ended")]


def part_that_dies_over_and_over(scene: Scene) -> Iterator[list[Finding]]:
    for _ in range(4):
        scene.part.note_restart()
    finding = "gallery was started again 4 times within 10 minutes"
    yield [Finding("service", finding, f"{scene.home}/logs/gallery.log says why it ends")]


def silent_loops(scene: Scene) -> Iterator[list[Finding]]:
    (scene.home / "sensor.alive").unlink()
    then = time.time() - 3600.4
    os.utime(scene.home / "dispatcher.alive", (then, then))
    yield [
        Finding("sensor", "The sensor does not run", "start the service with `nst up`"),
        Finding(
            "sensor",
            "The dispatcher has given no sign of life for 3600 s",
            "see logs/sensor.log in the home and start the service again",
        ),
    ]


def taken_port(scene: Scene) -> Iterator[list[Finding]]:
    port = scene.ports["prefect_port"]
    process = scene.run("-m", "http.server", "--bind", "127.0.0.1", str(port))
    # What a child of the service's process listens on is its own.
    assert [finding.remedy for finding in service.ports(scene.settings)] == [""]
    scene.locks.close()
    program = f"{Path(sys.executable).name} -u -m http.server"
    remedy = "end that program, or set prefect_port to another port"
    yield [Finding("ports", f"port {port} is taken by {program} (process {process.pid})", remedy)]


def public_host(scene: Scene) -> Iterator[list[Finding]]:
    scene.configure(host="0.0.0.0")
    lacking = missing(scene.settings, prefect=True, gallery=True, scheduler=True)
    assert len(lacking) == 3
    finding = "other machines can reach host = 0.0.0.0, and the service does not start so"
    yield [Finding("access", finding, remedy) for remedy in lacking]


def waiting_job(scene: Scene) -> Iterator[list[Finding]]:
    scene.pending("old", age=timedelta(minutes=30))
    scene.pending("new")
    remedy = "see what is said above of Prefect and the sensor, and logs/flow-worker.log in the home"
    yield [Finding("queue", "2 wait, 0 run; the first has waited for 30 minutes", remedy)]


def dead_lease(scene: Scene) -> Iterator[list[Finding]]:
    job = scene.pending("lost")
    scene.store.start_attempt(job.id, host="studio", pid=1, lease_until=utc_now() - timedelta(hours=1))
    finding = f"lost (job {job.id}) runs and gives no sign of life"
    yield [Finding("leases", finding, "see logs/sensor.log: the dispatcher takes it up again")]


def failing_jobs(scene: Scene) -> Iterator[list[Finding]]:
    for number in range(3):
        scene.end_as_failed(f"lake{number}")
    finding = "3 of the last 4 jobs of a day failed, the newest: lake2: The colours ran out; buy some."
    yield [Finding("failures", finding, "mend that; nst retry JOB tries one again")]


@pytest.mark.parametrize(
    ("check", "making"),
    [
        pytest.param(check, making, id=making.__name__)
        for check, making in (
            (machine.versions_here, wrong_version),
            (machine.scratch, no_scratch_folder),
            (machine.scratch, small_scratch_folder),
            (files.home, home_is_a_file),
            (files.home, read_only_home),
            (files.secrets, open_secret),
            (files.disk, full_disk),
            (files.inbox, no_inbox),
            (files.inbox, inbox_is_a_file),
            (files.leftovers, half_files),
            (files.leftovers, folders_of_no_job),
            (database.database, locked_database),
            (database.database, read_only_database),
            (database.database, newer_database),
            (database.database, damaged_database),
            (database.backup, old_backup),
            (database.clock, clock_set_back),
            (service.parts, dead_part),
            (service.parts, part_that_dies_over_and_over),
            (service.loops, silent_loops),
            (service.ports, taken_port),
            (service.access, public_host),
            (jobs.queue, waiting_job),
            (jobs.leases, dead_lease),
            (jobs.failures, failing_jobs),
        )
    ],
)
def test_a_fault_is_found_with_its_mend(scene: Scene, check: Check, making: Making) -> None:
    assert [finding.remedy for finding in check(scene.settings)] == [""]
    with contextmanager(making)(scene) as expected:
        assert list(check(scene.settings)) == expected


def test_used_up_limits_of_inotify_are_found(scene: Scene, tmp_path: Path) -> None:
    """Of a table of limits of this test's own: to use up those of the machine would disturb its other programs."""
    limits = {"max_user_instances": 100_000, "max_user_watches": 100_000}

    def look() -> list[Finding]:
        for name, most in limits.items():
            (tmp_path / name).write_text(f"{most}\n")
        return list(files.inotify(scene.settings, limits=tmp_path))

    assert [finding.remedy for finding in look()] == [""]
    limits["max_user_instances"] = 20
    libc = ctypes.CDLL(None)
    held = [libc.inotify_init() for _ in range(20)]
    try:
        (found,) = look()
    finally:
        for descriptor in held:
            os.close(descriptor)
    used = int(found.finding.split()[0])
    assert used >= 20
    assert found == Finding(
        "inotify",
        f"{used} of the 20 of fs.inotify.max_user_instances are used up, without which changes are seen late",
        "sysctl fs.inotify.max_user_instances=80, or end what uses them",
    )


def test_without_a_service_what_waits_for_one_says_so(scene: Scene) -> None:
    scene.pending("old", age=timedelta(minutes=30))
    lost = scene.pending("lost")
    scene.store.start_attempt(lost.id, host="studio", pid=1, lease_until=utc_now() - timedelta(hours=1))
    scene.locks.close()
    assert [
        finding
        for check in (service.parts, service.loops, prefect.prefect, cluster.scheduler)
        for finding in check(scene.settings)
    ] == [
        Finding("service", "does not run; `nst up` starts it"),
        Finding("sensor", "does not run"),
        Finding(
            "prefect",
            f"`nst up` runs a server at http://127.0.0.1:{scene.ports['prefect_port']}/api, `nst run` a temporary one",
        ),
        Finding("scheduler", "`nst up` runs one"),
    ]
    assert list(jobs.leases(scene.settings)) == [
        Finding("leases", f"lost (job {lost.id}) runs and gives no sign of life", "`nst up` goes on with it")
    ]


ROUTES: dict[str, Any] = {
    "/api/health": True,
    "/api/admin/version": version("prefect"),
    "/api/work_pools/nst": {"name": "nst", "is_paused": False},
    "/api/deployments/name/stylize/stylize": {},
    "/api/deployments/name/bulk/bulk": {},
    "/api/deployments/name/nightly/nightly": {},
    "/api/work_pools/nst/workers/filter": [{"status": "OFFLINE"}, {"status": "ONLINE"}],
}


class FakePrefect:
    """What answers as Prefect's API: the routes above, as the test has changed them. A status in place of an answer is
    that of a refusal."""

    def __init__(self, port: int) -> None:
        self.routes = dict(ROUTES)
        self.pause = 0.0
        self.ahead = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(outer.pause)
                answer = outer.routes.get(self.path, 404)
                refused = type(answer) is int
                body = json.dumps({} if refused else answer).encode()
                self.send_response_only(answer if refused else 200)
                self.send_header("Date", formatdate(time.time() + outer.ahead, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api(scene: Scene) -> Iterator[FakePrefect]:
    fake = FakePrefect(scene.ports["prefect_port"])
    yield fake
    fake.close()


AGAIN = "start the service again, which makes it"
LOG = "see logs/prefect.log in the home"
PASSWORD = "set prefect_auth or PREFECT_API_AUTH_STRING"
OURS = version("prefect")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"/api/health": 500}, [("{api} answers with 500", LOG)], id="not healthy"),
        pytest.param({"/api/health": 401}, [("{api} asks for a password", PASSWORD)], id="health asks for a password"),
        pytest.param({"/api/work_pools/nst": 401}, [("its API asks for a password", PASSWORD)], id="password"),
        pytest.param({"/api/work_pools/nst": 404}, [("it has no work pool nst", AGAIN)], id="no work pool"),
        pytest.param(
            {"/api/work_pools/nst": {"is_paused": True}},
            [("its work pool nst is paused", "resume it in the dashboard")],
            id="paused",
        ),
        pytest.param(
            {"/api/deployments/name/bulk/bulk": 404, "/api/deployments/name/nightly/nightly": 404},
            [("it has no deployment bulk/bulk", AGAIN), ("it has no deployment nightly/nightly", AGAIN)],
            id="no deployments",
        ),
        pytest.param(
            {"/api/work_pools/nst/workers/filter": [{"status": "OFFLINE"}]},
            [("no flow worker takes its runs", "see logs/flow-worker.log in the home")],
            id="no flow worker",
        ),
        pytest.param(
            {"/api/admin/version": "2.20.1"},
            [
                (
                    f"its server has version 2.20.1, and here is {OURS}",
                    "run a server of the version that is here, or install nst's on both",
                )
            ],
            id="another version",
        ),
    ],
)
def test_what_is_wrong_with_prefect_is_found(
    scene: Scene, api: FakePrefect, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    address = f"http://127.0.0.1:{scene.ports['prefect_port']}/api"
    (found,) = prefect.prefect(scene.settings)
    assert found.finding.endswith("s, with pool, deployments and worker")
    assert found.remedy == ""
    api.routes |= changes
    assert list(prefect.prefect(scene.settings)) == [
        Finding("prefect", finding.format(api=address), remedy) for finding, remedy in expected
    ]


def test_another_clock_and_a_slow_answer_are_found(scene: Scene, api: FakePrefect) -> None:
    api.ahead, api.pause = 300.0, 1.05
    api.routes["/api/work_pools/nst"] = 404
    slow, clock, pool = prefect.prefect(scene.settings)
    assert slow.finding.startswith(f"http://127.0.0.1:{scene.ports['prefect_port']}/api takes 1.")
    assert slow.remedy == "see what else keeps this machine and its disk busy, and logs/prefect.log"
    seconds = int(clock.finding.removeprefix("its clock is ").split()[0])
    assert 295 <= seconds <= 300
    assert clock == Finding(
        "prefect", f"its clock is {seconds} s ahead of this machine's", "set both clocks (timedatectl set-ntp true)"
    )
    assert pool == Finding("prefect", "it has no work pool nst", AGAIN)


def test_a_server_that_is_away_or_hangs_is_found_soon(scene: Scene) -> None:
    port = scene.ports["prefect_port"]
    address = f"http://127.0.0.1:{port}/api"
    (found,) = prefect.prefect(scene.settings)
    assert found == Finding("prefect", f"{address} does not answer ([Errno 111] Connection refused)", LOG)
    server = scene.run("-m", "http.server", "--bind", "127.0.0.1", str(port))
    server.send_signal(signal.SIGSTOP)
    scene.patch.setenv("PREFECT_API_URL", address)
    (found,) = prefect.prefect(scene.settings)
    remedy = "start it, or correct PREFECT_API_URL"
    assert found == Finding("prefect", f"{address} does not answer (no answer within 3 s)", remedy)


def test_a_scheduler_that_is_away_hangs_or_has_no_worker_is_found(scene: Scene) -> None:
    port = scene.ports["scheduler_port"]
    away = [Finding("scheduler", f"tcp://127.0.0.1:{port} does not answer", "see logs/scheduler.log in the home")]
    assert list(cluster.scheduler(scene.settings)) == away
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", port))
        bound.listen()
        assert list(cluster.scheduler(scene.settings)) == away
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "flows.cluster", "scheduler", "--port", str(port)], cwd=REPOSITORY
    )
    try:
        deadline = time.monotonic() + 60
        while (found := list(cluster.scheduler(scene.settings))) == away:
            assert time.monotonic() < deadline
    finally:
        scheduler.kill()
        scheduler.wait()
    remedy = "see logs/gpu-worker.log in the home"
    assert found == [Finding("scheduler", f"tcp://127.0.0.1:{port} has no GPU worker", remedy)]


def test_more_gpu_workers_than_a_burst_keeps_at_work_are_told_of(scene: Scene, tmp_path: Path) -> None:
    with ClusterProcesses(tmp_path) as processes:
        processes.start_scheduler()
        # What they would compute does not matter here.
        sleepers = scene.run(
            "-m",
            "benchmarks.sleeping_workers",
            *("--scheduler", processes.address, "--workers", "4", "--job-seconds", "1"),
        )
        processes.wait_for_workers(4)
        told = {
            at_once: list(
                cluster.scheduler(
                    scene.settings.model_copy(update={"scheduler": processes.address, "bulk_at_once": at_once})
                )
            )
            for at_once in (3, 4)
        }
        sleepers.kill()
        sleepers.wait()
    finding = f"{processes.address} has 4 GPU workers, of which a burst keeps 3 at work"
    assert told == {
        3: [Finding("scheduler", finding, "set bulk_at_once = 6 in nst.toml and start the service again")],
        4: [Finding("scheduler", f"{processes.address} with 4 GPU workers")],
    }
