"""What is left after a power loss at any moment of a drop's life: the sensor's and the flow's own steps run in a
process whose every call to the disk is recorded, and from each state that a loss may leave the service goes on."""

from __future__ import annotations

import functools
import io
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from PIL import Image
from prefect.logging import disable_run_logger

from flows.attempt import Attempt
from flows.checked_picture import CheckedPicture
from flows.claim import copy_dropped_files
from flows.dispatch import Dispatcher
from flows.errors import OrchestrationError
from flows.intake import Intake
from flows.report import LOSS_PLOT, RECORD, result_document, result_name
from flows.retention import Retention
from flows.runs import Runs
from flows.settings import Settings
from flows.tasks import published_before, put_in_place
from storage.database import Database, open_database
from storage.disk import sync
from storage.jobs import JobStore, NewJob, NewLossPoint, utc_now
from storage.models import Job, JobState
from storage.nights import NightStore
from storage.retention import RetentionStore
from storage.workspace import Workspace
from tests.power_loss import Disk, Node, Operation, State, states_of
from tests.power_trace import can_trace, mark, trace

pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is missing, or this process may trace no other")

SEED = 20261123
MIXED = 3
"""How many mixtures by chance of what is certain and what is not, after each operation."""


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 40, 200)).save(file, "png")
    return file.getvalue()


Files = dict[str, bytes]

RESULT, PLOT, OVERWRITTEN = png(1), png(2), png(3)
DROPS: dict[str, Files] = {
    "lake": {"lake_content.png": png(10), "lake_style.png": png(11), "lake.toml": b"rows = 64\n"},
    "trip": {
        "trip/content.png": png(20),
        "trip/style.png": png(21),
        "trip/settings.toml": b"iteration = 6\n",
        "trip/notes.txt": b"from the pier",
    },
    "sea": {"sea_content.png": png(30), "sea_style.png": png(31)},
    "hill_swirls": {"swirls/hill.png": png(40), "swirls/style.png": png(41)},
    "moor": {"moor_content.png": png(50), "moor_style.png": png(51)},
}
"""The files in the inbox by the name of their job."""
HELD = {
    "lake": {"lake_content.png": "content.png", "lake_style.png": "style.png", "lake.toml": "settings.toml"},
    "trip": {path: Path(path).name for path in DROPS["trip"]},
    "sea": {"sea_content.png": "content.png", "sea_style.png": "style.png"},
    "hill_swirls": {"swirls/hill.png": "content.png", "swirls/style.png": "style.png"},
    "moor": {"moor_content.png": "content.png", "moor_style.png": "style.png"},
}
"""What they are called in the job's folder and beside the result."""
STAYS = "swirls/style.png"
ENDS = dict.fromkeys(DROPS, JobState.COMPLETED) | {"trip": JobState.REJECTED, "moor": JobState.FAILED}
AT_THE_END = DROPS | {
    "sea": DROPS["sea"] | {"sea_content.png": OVERWRITTEN},
    "hill_swirls": DROPS["hill_swirls"] | {"swirls/hill.png": OVERWRITTEN},
}
"""The files of each drop as they are when its part of the life is over."""
WHOLE = frozenset([OVERWRITTEN, *(content for files in DROPS.values() for content in files.values())])


class PrefectAway(Runs):
    """The runs of a Prefect that is away: the jobs are run by hand."""

    def submit_job(self, job: Job) -> str:
        raise OrchestrationError("Prefect is away.")


class OverwritingStore(JobStore):
    """A store during whose next create() somebody writes to a file that is just being taken."""

    overwrite: Path | None = None

    def create(self, new: NewJob) -> Job:
        if self.overwrite is not None:
            self.overwrite.write_bytes(OVERWRITTEN)
            self.overwrite = None
        return super().create(new)


class Service:
    """What the sensor and the flow do on one home, in this process and with a clock of its own."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.settings = settings
        self.workspace = Workspace(settings.home)
        self.store = OverwritingStore(database)
        self.now = 100.0
        self.later = timedelta()
        self._intake = Intake(
            self.store,
            self.workspace,
            self.settings,
            check=functools.partial(CheckedPicture.of, max_pixels=self.settings.max_pixels),
            clock=lambda: self.now,
            on_job=lambda job: None,
        )
        self._dispatcher = Dispatcher(
            self.store,
            self.workspace,
            self.settings,
            PrefectAway(settings.home),
            nights=NightStore(database),
            on_end=lambda job: None,
            clock=self._clock,
        )
        self._retention = Retention(RetentionStore(database), self.workspace, self.settings, clock=self._clock)

    def _clock(self) -> datetime:
        return utc_now() + self.later

    def drop(self, files: Files) -> None:
        """Copy files into the inbox as anybody would: soon their names are certain, their bytes not yet."""
        inbox = self.workspace.inbox
        for name, content in files.items():
            (inbox / name).parent.mkdir(exist_ok=True)
            (inbox / name).write_bytes(content)
        for folder in {inbox, *((inbox / name).parent for name in files)}:
            sync(folder)
        if STAYS in files:
            # It has been there for long.
            sync(inbox / STAYS)

    def look(self) -> None:
        """Look at the inbox now, and again when everything has settled."""
        self._intake.look()
        self.now += self.settings.settle_seconds
        self._intake.look()

    def dispatch(self) -> None:
        try:
            self._dispatcher.cycle()
        except OrchestrationError:
            # It had a job to submit.
            return

    def keep(self) -> None:
        """Give up what failed long ago."""
        self.later = timedelta(days=40)
        self._retention.keep()

    def run_jobs(self) -> None:
        """Run what waits as its flow would, with a picture that is there already."""
        for job in self.store.recent(limit=len(DROPS), state=JobState.PENDING):
            number = self.store.start_attempt(
                job.id, host=socket.gethostname(), pid=os.getpid(), lease_until=utc_now() + timedelta(minutes=1)
            )
            attempt = Attempt(self.store.get(job.id), number, self.store, self.workspace, self.settings)
            with disable_run_logger():
                if published_before(attempt) is None:
                    self._write_result(attempt)
                    put_in_place(attempt, None)

    def _write_result(self, attempt: Attempt) -> None:
        points = [NewLossPoint(iteration=0, total=3, content=1, style=2, tv=0, layers={}, learning_rate=1, seconds=0)]
        self.store.add_loss_points(attempt.job.id, attempt=attempt.number, points=points)
        folder = attempt.folder / "result"
        folder.mkdir(exist_ok=True)
        (folder / result_name(attempt.job.config)).write_bytes(RESULT)
        copy_dropped_files(attempt.job, attempt.folder, folder)
        (folder / LOSS_PLOT).write_bytes(PLOT)
        document = result_document(attempt.job, self.store.losses(attempt.job.id))
        (folder / RECORD).write_text(json.dumps(document), encoding="utf-8")

    def go_on(self) -> None:
        """What a service does after its start, until nothing is left to do."""
        self.workspace.create()
        # Of a job that was being worked on the lease has run out.
        self.later = timedelta(minutes=2)
        self.dispatch()
        self.look()
        if contents(self.workspace.inbox):
            self.now += self.settings.patience_seconds
            self.look()
        self.run_jobs()
        self.keep()
        self.dispatch()


def live(home: Path) -> None:
    """The life that is recorded; each part of it has a mark before it and one after it."""
    settings = Settings(home=home)
    workspace = Workspace(home)
    workspace.create()
    with open_database(workspace.database_path) as database:
        service = Service(database, settings)
        service.drop(DROPS["lake"])
        with marked("a claim"):
            service.look()
        with marked("a result"):
            service.run_jobs()
        service.drop(DROPS["trip"])
        with marked("a rejection"):
            service.look()
        service.drop(DROPS["sea"])
        service.store.overwrite = workspace.inbox / "sea_content.png"
        with marked("a claim that is taken back"):
            service.look()
        service.look()
        service.run_jobs()
        service.drop(DROPS["hill_swirls"])
        service.store.overwrite = workspace.inbox / "swirls/hill.png"
        with marked("a claim with a copied style, taken back and made anew"):
            service.look()
            service.look()
        service.run_jobs()
        service.drop(DROPS["moor"])
        service.look()
        (moor,) = service.store.recent(limit=1)
        service.store.fail(moor.id, attempt=None, error="The loss is nan.")
        with marked("a failed job that is given up"):
            service.keep()
            service.look()
        with marked("the end of the process"):
            database.close()


@contextmanager
def marked(name: str) -> Iterator[None]:
    mark(name)
    yield
    mark(f"after {name}")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder in memory, where the disk is simulated many hundred times at one and the same path."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="nst-power-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        home = Path(folder).resolve() / "home"
        home.mkdir()
        yield home


@pytest.fixture(scope="module")
def recorded(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    """All that the life does to the disk; the database was there before."""
    open_database(home / "nst.db").close()
    command = [sys.executable, "-c", f"from tests.test_power_loss import *; live(Path({str(home)!r}))"]
    operations = trace(command, home, log=tmp_path_factory.mktemp("trace") / "log")
    disk = Disk()
    for operation in operations:
        disk.do(operation)
    state = next(disk.states(Random(SEED), mixed=0))
    files = {path: state.contents[node] for path, node in state.paths.items() if not node.is_folder}
    # Else something was done that the record does not know.
    assert files == contents(home)
    return operations


def contents(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def below(folder: str, files: Files) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def held(name: str, dropped: Files) -> Files:
    return {HELD[name][path]: content for path, content in dropped.items()}


def completed(name: str, dropped: Files) -> Files:
    """The files of a home whose one drop has become a result; of its record the name of its job."""
    made = {"result.png": RESULT, LOSS_PLOT: PLOT, RECORD: name.encode()}
    return below(f"outbox/{name}", held(name, dropped) | made) | staying(dropped)


def rejected(name: str, dropped: Files) -> Files:
    """The files of a home whose one drop was rejected; the reason, whatever it is, left empty."""
    files = {Path(path).name: content for path, content in dropped.items() if path != STAYS}
    return below(f"rejected/{name}", files | {f"{name}.reason.txt": b""}) | staying(dropped)


def given_up(name: str, dropped: Files) -> Files:
    """The files of a home whose one job failed and was given up."""
    return below(f"rejected/{name}", held(name, dropped) | {f"{name}.reason.txt": b""})


def staying(dropped: Files) -> Files:
    return below("inbox", {path: content for path, content in dropped.items() if path == STAYS})


FILES_AT_THE_END = {JobState.COMPLETED: completed, JobState.REJECTED: rejected, JobState.FAILED: given_up}


def files_in(home: Path, jobs: dict[str, Job]) -> Files:
    """All files of a home as those of FILES_AT_THE_END have them."""
    names = {job.id: name for name, job in jobs.items()}
    found = {}
    for path, content in contents(home).items():
        if path.startswith("outbox/") and Path(path).name == RECORD:
            found[path] = names[json.loads(content)["id"]].encode()
        elif path.endswith(".reason.txt"):
            found[path] = b""
        elif not path.startswith("nst.db"):
            found[path] = content
    return found


def jobs_in(store: JobStore) -> dict[str, Job]:
    """The jobs by their names, no two of which are equal."""
    found = store.recent(limit=2 * len(DROPS))
    jobs = {job.name: job for job in found}
    assert len(jobs) == len(found)
    return jobs


def check_promises(home: Path, store: JobStore) -> None:
    """Fail unless what the database says is true on the disk, and what has its final name is whole."""
    jobs = jobs_in(store)
    promised: Files = {}
    for name, job in jobs.items():
        if job.state in (JobState.PENDING, JobState.RUNNING):
            promised |= below(f"work/{job.id}", held(name, AT_THE_END[name]))
        elif job.state in (JobState.COMPLETED, JobState.REJECTED):
            promised |= FILES_AT_THE_END[job.state](name, AT_THE_END[name])
    for folder in (home / "outbox").iterdir():
        promised |= completed(folder.name, AT_THE_END[folder.name])
    found = files_in(home, jobs)
    assert {path: found.get(path) for path in promised} == promised


def survive(state: State, database: Database, settings: Settings, *, name: str, dropped: Files) -> None:
    """Fail unless the service goes on from a state and loses nothing; `dropped` is what the disk has of the drop."""
    home = settings.home
    # As a new process would: all files of the database are opened anew.
    database.close()
    state.lay_out(home)
    database.upgrade()
    assert database.integrity() == []
    service = Service(database, settings)
    before = list(DROPS)[: list(DROPS).index(name)]
    drops = {each: AT_THE_END[each] for each in before}
    check_promises(home, service.store)
    service.go_on()
    jobs = jobs_in(service.store)
    assert jobs.keys() == {*before, name}
    if WHOLE.issuperset(dropped.values()):
        assert jobs[name].state is ENDS[name]
    expected: Files = {}
    for each, files in (drops | {name: dropped}).items():
        expected |= FILES_AT_THE_END[jobs[each].state](each, files)
    assert files_in(home, jobs) == expected


@pytest.mark.parametrize(
    ("part", "name", "least"),
    [
        pytest.param(part, name, least, id=part)
        for part, name, least in (
            ("a claim", "lake", 60),
            ("a result", "lake", 80),
            ("a rejection", "trip", 80),
            ("a claim that is taken back", "sea", 60),
            ("a claim with a copied style, taken back and made anew", "hill_swirls", 80),
            ("a failed job that is given up", "moor", 10),
            ("the end of the process", "moor", 15),
        )
    ],
)
def test_a_power_loss_at_any_moment_loses_nothing(
    home: Path, recorded: list[Operation], record_property: pytest.RecordProperty, part: str, name: str, least: int
) -> None:
    states = states_of(recorded, begin=part, end=f"after {part}", seed=SEED, mixed=MIXED)
    settings = Settings(home=home)
    count, files = 0, dict[str, Node | None]()
    with open_database(home / "nst.db") as database:
        for state in states:
            count += 1
            files = files or {path: state.paths.get(f"inbox/{path}") for path in DROPS[name]}
            dropped = {path: state.contents.get(node, DROPS[name][path]) for path, node in files.items()}
            try:
                survive(state, database, settings, name=name, dropped=dropped)
            except Exception as error:
                error.add_note(f"The power was lost {state.after}.")
                raise
    record_property("states", count)
    assert count >= least
