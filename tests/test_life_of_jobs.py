"""Any interleaving of drops, looks, runs, crashes, stalls, cancels, retries and the passing of time, by a machine that
hypothesis drives (see job_machine.py): after each step every file of the user's is in one known place and every job
in a state that its life allows; in the end every job has ended."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from PIL import Image
from prefect.exceptions import TerminationSignal
from sqlalchemy import text

from flows.published import cancel_job
from flows.runs import RunState
from storage.database import open_database
from storage.lifecycle import TRANSITIONS
from storage.models import JobState
from tests.job_machine import ITERATIONS, KEEP_SECONDS, LEASE_SECONDS, MAX_ATTEMPTS, Seen, World
from tests.stoppable import Fault, Process

EXAMPLES = int(os.environ.get("NST_LIFE_EXAMPLES", "30"))
STEPS = int(os.environ.get("NST_LIFE_STEPS", "50"))
FIXED_SEED = "NST_LIFE_EXAMPLES" not in os.environ
PHASES = tuple(Phase) if FIXED_SEED else (Phase.generate,)

NAMES, SEEDS = ("lake", "pier"), (1, 2)
OPEN = (JobState.PENDING, JobState.RUNNING, JobState.CANCELLING)
GIVEN_UP = (JobState.FAILED, JobState.CANCELLED)
ENDED = (JobState.COMPLETED, JobState.REJECTED, *GIVEN_UP)

# The life of a job as the design tells it; None is before and after there is one.
CLAIM, WAIT, RUN = (None, "claimed"), ("claimed", "pending"), ("pending", "running")
DESIGN: Final = {
    CLAIM,
    WAIT,
    RUN,
    ("running", "completed"),
    ("running", "failed"),
    ("running", "cancelling"),
    ("cancelling", "cancelled"),
    ("claimed", "rejected"),
}
BESIDE_THE_DESIGN: Final = {
    ("claimed", None): "the pictures were written to meanwhile, so there is nothing to be done yet",
    ("claimed", "failed"): "somebody took the files away, or they cannot be copied",
    ("claimed", "cancelled"): "`nst run` was interrupted",
    ("pending", "completed"): "the result of another job is reused",
    ("pending", "failed"): "its runs end before they begin it, or a result cannot be reused",
    ("pending", "cancelled"): "it had not begun",
    ("running", "pending"): "its worker died, or something failed that another attempt may get past",
    ("cancelling", "completed"): "the cancel came too late",
    ("failed", "pending"): "`nst retry`",
    ("cancelled", "pending"): "`nst retry`",
}


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (seed, 40, 200)).save(file, "png")
    return file.getvalue()


PICTURES: Final = {seed: png(seed) for seed in (*SEEDS, 9)}
STYLE: Final = PICTURES[9]
GOOD_TOML, BAD_TOML = b'weights = "random"\nrows = 16\n', b"row = 16\n"
FORCE_TOML = GOOD_TOML + b"force = true\n"

STYLE_FOLDER = "swirls"
ORDERS: Final[dict[str, Callable[[], BaseException]]] = {
    "SIGTERM": lambda: TerminationSignal(15),
    "an error that may pass": lambda: OSError("The network is away."),
    "an error that stays": lambda: ValueError("The loss is nan."),
}
WORK = (*["work"] * 6, "kill -9", *ORDERS)
DROPS = (*["pair"] * 3, "folder", "style folder", "force", "bad picture", "bad settings")
USERS = (*DROPS, *["cancel"] * 2, *["retry"] * 3, "delete a result", "cancel a run", "retry a run", "delete a run")
STEPS_OF_THE_SERVICE = (
    *(*["round"] * 3, *["look"] * 2, *["dispatch"] * 3, *["start a run"] * 2, *["clean up"] * 2),
    *("restart", "Prefect goes away", "Prefect comes back"),
    *("5 s", "70 s", "70 s", "3700 s"),
    *WORK,
)
FAULTS = st.none() | st.builds(Fault, st.integers(1, 25), st.sampled_from(["crash", "refuse", "stall"]))
NUMBERS = st.integers(0, 7)

T = TypeVar("T")
Files = list[tuple[tuple[str, ...], bytes, int]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once, that notes every change of a job's state."""
    path = tmp_path_factory.mktemp("template") / "nst.db"
    with open_database(path) as database, database.begin() as session:
        session.execute(text("CREATE TABLE seen (id TEXT, old TEXT, new TEXT)"))
        for name, when, old, new in (
            ("changed", "AFTER UPDATE OF state ON jobs WHEN old.state <> new.state", "old.state", "new.state"),
            ("made", "AFTER INSERT ON jobs", "NULL", "new.state"),
            ("gone", "AFTER DELETE ON jobs", "old.state", "NULL"),
        ):
            row = "old" if name == "gone" else "new"
            session.execute(
                text(f"CREATE TRIGGER {name} {when} BEGIN INSERT INTO seen VALUES ({row}.id, {old}, {new}); END")
            )
    return path


@dataclass(frozen=True)
class Dropped:
    """What a user has dropped: its files by their names in the inbox; `token` is in no other drop."""

    token: bytes
    files: dict[str, bytes]


class LifeOfJobs(RuleBasedStateMachine):
    """Steps that may be taken in any order; what each may break is checked after it."""

    template: Path
    steps: ClassVar[Counter[str]] = Counter()
    states: ClassVar[set[tuple[object, ...]]] = set()
    arrows: ClassVar[Counter[tuple[str | None, str | None]]] = Counter()

    @initialize(kinds=st.lists(st.sampled_from(DROPS), min_size=1, max_size=2))
    def begin(self, kinds: list[str]) -> None:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="nst-life-", dir=base))
        self.world = World(self.folder / "home", self.template)
        self.drops: list[Dropped] = []
        self.deleted = Counter[bytes]()
        self.deleted_folders = set[str]()
        style_folder = self.world.workspace.inbox / STYLE_FOLDER
        style_folder.mkdir()
        (style_folder / "style.png").write_bytes(STYLE)
        (style_folder / "settings.toml").write_bytes(GOOD_TOML)
        for name, kind in zip(NAMES, kinds, strict=False):
            self._drop(kind, name, SEEDS[0])
        self._serve("look", 0, None)
        self._serve("dispatch", 0, None)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._come_to_rest()
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    # What users do.

    @rule(what=st.sampled_from(USERS), name=st.sampled_from(NAMES), seed=st.sampled_from(SEEDS), number=NUMBERS)
    def user(self, what: str, name: str, seed: int, number: int) -> None:
        """Drops, cancels, tries again, removes a result, or does so in Prefect's dashboard."""
        action = {
            "cancel": self._cancel,
            "retry": self._retry,
            "delete a result": self._delete_result,
            "cancel a run": self._cancel_run,
            "retry a run": self._retry_run,
            "delete a run": self._delete_run,
        }.get(what)
        if action(number) if action else self._drop(what, name, seed):
            self.steps[what] += 1

    def _drop(self, kind: str, name: str, seed: int) -> bool:
        token = f"# drop {len(self.drops)}\n".encode()
        settings = {"force": FORCE_TOML, "bad settings": BAD_TOML}.get(kind, GOOD_TOML) + token
        content = PICTURES[seed][:60] + token if kind == "bad picture" else PICTURES[seed]
        if kind == "style folder":
            # What is taken is one picture; the end of a PNG may have anything behind it.
            settings = content + token
            files = {f"{STYLE_FOLDER}/{name}.png": settings}
        elif kind == "folder":
            files = {f"{name}/content.png": content, f"{name}/style.png": STYLE, f"{name}/settings.toml": settings}
        else:
            files = {f"{name}_content.png": content, f"{name}_style.png": STYLE, f"{name}.toml": settings}
        paths = {self.world.workspace.inbox / file: data for file, data in files.items()}
        # A user who writes over what he has dropped loses that himself.
        if any(path.exists() for path in paths):
            return False
        for path, data in paths.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        self.drops.append(Dropped(settings, files))
        return True

    def _cancel(self, number: int) -> bool:
        job = one_of([job for job in self.jobs() if job.state in OPEN], number)
        if job:
            cancel_job(self.world.store, job.id)
        return job is not None

    def _retry(self, number: int) -> bool:
        # As `nst retry` looks before.
        given_up = [job for job in self.jobs() if job.state in GIVEN_UP and job.result_folder is None]
        job = one_of([job for job in given_up if self._has_pictures(job)], number)
        if job:
            self.world.store.retry(job.id)
        return job is not None

    def _has_pictures(self, job: Seen) -> bool:
        return all((self._work(job) / name).is_file() for name in job.names)

    def _delete_result(self, number: int) -> bool:
        folder = one_of(sorted(self.world.workspace.outbox.iterdir()), number)
        if folder is None or str(folder) not in {job.result_folder for job in self.jobs() if job.state in ENDED}:
            return False
        self.deleted.update(path.read_bytes() for path in folder.iterdir())
        self.deleted_folders.add(str(folder))
        shutil.rmtree(folder)
        return True

    def _cancel_run(self, number: int) -> bool:
        run_id = self._run(number, RunState.WAITING, RunState.RUNNING)
        if run_id:
            self.world.prefect.runs[run_id].state = RunState.CANCELLED
            if process := self._process_of(run_id):
                self.world.go_on(process, order=TerminationSignal(15))
        return run_id is not None

    def _retry_run(self, number: int) -> bool:
        run_id = self._run(number, RunState.ENDED, RunState.CANCELLED)
        if run_id is None or self._process_of(run_id):
            return False
        run = self.world.prefect.runs[run_id]
        run.state, run.count = RunState.WAITING, run.count + 1
        return True

    def _delete_run(self, number: int) -> bool:
        run_id = self._run(number, *RunState)
        if run_id is None or self._process_of(run_id):
            return False
        del self.world.prefect.runs[run_id]
        return True

    # What the service and its runs do. One rule, for hypothesis would leave either out in half of the examples.

    @rule(what=st.sampled_from(STEPS_OF_THE_SERVICE), number=NUMBERS, times=st.integers(1, 8), fault=FAULTS)
    def service(self, what: str, number: int, times: int, fault: Fault | None) -> None:
        process = one_of(self.world.processes, number)
        if what in WORK and process is None:
            what = "round"
        self.steps[what] += 1
        if what.endswith(" s"):
            # The leases of those who stand still run out.
            self.world.time += timedelta(seconds=int(what[:-2]))
        elif what in WORK and process is not None:
            self._work_on(process, what, times, fault)
        else:
            self._serve(what, number, fault)

    def _serve(self, what: str, number: int, fault: Fault | None) -> None:
        """Its two threads do their work, it is started anew, Prefect comes and goes; a round is look, dispatch and the
        runs that begin."""
        if what in ("look", "round"):
            self.world.serve("sensor", self.world.intake.look)
            self.world.time += timedelta(seconds=self.world.settings.settle_seconds)
            self.world.serve("sensor", self.world.intake.look, fault if what == "look" else None)
        if what in ("dispatch", "round"):
            self.world.serve("dispatcher", self.world.dispatcher.cycle, fault)
        if what == "round":
            while run_id := self._run(0, RunState.WAITING):
                self.world.start_run(run_id)
        if what == "start a run" and (run_id := self._run(number, RunState.WAITING)):
            self.world.start_run(run_id, fault)
        if what == "clean up":
            self.world.time += timedelta(seconds=1 + KEEP_SECONDS)
            self.world.serve("dispatcher", self.world.retention.keep, fault)
        if what == "restart":
            self.world.restart()
        if what.startswith("Prefect"):
            self.world.prefect.away = what == "Prefect goes away"

    def _work_on(self, process: Process, what: str, times: int, fault: Fault | None) -> None:
        """A run goes on for a while, is killed, told to end, or meets an error, which may or may not pass."""
        if what == "kill -9":
            self.world.kill(process)
        elif what == "work":
            for left in reversed(range(times)):
                if not process.ended:
                    self.world.go_on(process, None if left else fault)
        else:
            self.world.go_on(process, order=ORDERS[what]())

    # What must be true after each.

    @invariant()
    def all_is_in_its_place(self) -> None:
        if hasattr(self, "world"):
            jobs, files = self.jobs(), self.files()
            self._check_arrows()
            for dropped in self.drops:
                self._check_place(dropped, jobs, files)
            for job in jobs:
                self._check_job(job)
            self._check_outbox(jobs)
            self.states.update(
                (job.state, len(job.open_attempts), job.result_folder is not None, job.has_run, len(job.iterations))
                for job in jobs
            )

    def _check_arrows(self) -> None:
        for arrow in self.world.new_arrows():
            assert arrow in DESIGN | BESIDE_THE_DESIGN.keys()
            self.arrows[arrow] += 1

    def _check_place(self, dropped: Dropped, jobs: list[Seen], files: Files) -> None:
        found = {place: inode for place, data, inode in files if data == dropped.token}
        if self.deleted[dropped.token]:
            return
        assert found, f"{dropped.token!r} is nowhere"
        if len(found) > 1:
            # Two names of one file while it is moved, or the copy beside the result until the job is tidied up.
            results: dict[tuple[str, ...], tuple[str, ...]] = {
                ("work", job.id): result_place(job) for job in jobs if job.state in (*OPEN, JobState.COMPLETED)
            }
            first, second = sorted(found, reverse=True)[:2]
            assert len(found) == 2, found
            assert len(set(found.values())) == 1 or results.get(first[:2]) == second[:2], found

    def _check_job(self, job: Seen) -> None:
        work, result = self._work(job), Path(str(job.result_folder))
        if job.state in OPEN or (job.state in GIVEN_UP and job.result_folder is None):
            places = [work]
        elif job.state is JobState.COMPLETED:
            places = [] if str(result) in self.deleted_folders else [result]
        else:
            places = [work, result] if job.state in GIVEN_UP else [result]
        if places and job.state is not JobState.CLAIMED:
            for name, sha256 in job.names.items():
                there = [place / name for place in places if (place / name).is_file()]
                assert there, f"{name} of {job.id}, {job.state}, is not in {places}"
                assert sha256 in (None, hashlib.sha256(there[0].read_bytes()).hexdigest()), there
        if places and job.state is JobState.COMPLETED:
            assert json.loads((result / "job.json").read_text())["id"] == job.id
            assert (result / "result.png").is_file()
        assert sum(job.open_attempts.values()) == (job.state in (JobState.RUNNING, JobState.CANCELLING)), job
        assert list(job.open_attempts) == list(range(1, len(job.open_attempts) + 1)), job
        assert len(job.open_attempts) - job.attempts_before_retry <= MAX_ATTEMPTS, job
        assert job.has_ended == (job.state in ENDED), job
        assert not (job.has_ended and job.has_lease), job
        assert job.iterations == list(range(len(job.iterations))), job
        assert job.state is not JobState.COMPLETED or len(job.iterations) in (0, ITERATIONS + 1), job

    def _check_outbox(self, jobs: list[Seen]) -> None:
        owners = Counter(job.result_folder for job in jobs if job.result_folder is not None)
        assert set(owners.values()) <= {1}, owners
        owned = {job.result_folder for job in jobs if job.state in (*OPEN, JobState.COMPLETED)}
        there = {str(path) for path in self.world.workspace.outbox.iterdir()}
        assert there <= owned, there - owned

    def _come_to_rest(self) -> None:
        """Nothing breaks any more: every job ends, and every drop is in one place."""
        self.world.prefect.away = False
        for _ in range(60):
            for process in list(self.world.processes):
                while not process.ended:
                    self.world.go_on(process)
            self.world.time += timedelta(seconds=LEASE_SECONDS + 10)
            self._serve("round", 0, None)
            self.all_is_in_its_place()
            if not self.world.processes and all(job.state in ENDED for job in self.jobs()) and not self._left():
                break
        jobs = self.jobs()
        assert {job.state for job in jobs} <= set(ENDED), jobs
        assert not self._left()
        # Whoever was killed between completing a job and removing what is left of it is cleaned up after.
        self.world.time += timedelta(seconds=LEASE_SECONDS + 20)
        self._serve("dispatch", 0, None)
        given_up = {job.id for job in jobs if job.state in GIVEN_UP}
        assert {path.name for path in self.world.workspace.work.iterdir() if not path.name.startswith(".")} <= given_up
        everywhere = Counter(data for _, data, _ in self.files()) + self.deleted
        for data, count in Counter(data for dropped in self.drops for data in dropped.files.values()).items():
            assert everywhere[data] >= count
        for dropped in self.drops:
            assert everywhere[dropped.token] == 1, dropped
        assert len(jobs) == len(self.drops), jobs

    def _left(self) -> list[str]:
        return [path.name for path in self.world.workspace.inbox.rglob("*") if path.is_file() and not is_kept(path)]

    def _run(self, number: int, *states: RunState) -> str | None:
        """One of the runs in these states."""
        return one_of(sorted(run_id for run_id, run in self.world.prefect.runs.items() if run.state in states), number)

    def _process_of(self, run_id: str) -> Process | None:
        return next((process for process in self.world.processes if process.run_id == run_id), None)

    def _work(self, job: Seen) -> Path:
        return self.world.workspace.job_folder(job.id)

    def jobs(self) -> list[Seen]:
        return self.world.jobs()

    def files(self) -> Files:
        """All files of users, by the parts of their path; what a job makes in its folder is not among them."""
        found = []
        for top in ("inbox", "work", "outbox", "rejected"):
            for path in (self.world.home / top).rglob("*"):
                parts = path.relative_to(self.world.home).parts
                made = top == "work" and (parts[1].startswith(".") or "result" in parts)
                if path.is_file() and not made and not path.name.endswith(".part"):
                    found.append((parts, path.read_bytes(), path.stat().st_ino))
        return found


def one_of(found: Sequence[T], number: int) -> T | None:
    return found[number % len(found)] if found else None


def result_place(job: Seen) -> tuple[str, ...]:
    return ("outbox", Path(str(job.result_folder)).name)


def is_kept(path: Path) -> bool:
    """What a style folder keeps."""
    return path.parent.name == STYLE_FOLDER and path.name in ("style.png", "settings.toml")


def test_any_order_of_events_leaves_every_file_in_its_place(template: Path) -> None:
    LifeOfJobs.template = template
    logging.getLogger("nst").setLevel(logging.CRITICAL)
    try:
        run_state_machine_as_test(
            LifeOfJobs,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=FIXED_SEED,
                phases=PHASES,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        logging.getLogger("nst").setLevel(logging.NOTSET)
        print(f"{sum(LifeOfJobs.steps.values())} steps: {LifeOfJobs.steps}")
        print(f"{len(LifeOfJobs.states)} states, arrows: {LifeOfJobs.arrows}")


def test_the_life_of_a_job_is_that_of_the_design_and_what_is_said_beside_it() -> None:
    arrows = {(old.value, new.value) for old, following in TRANSITIONS.items() for new in following}
    told = {arrow for arrow in DESIGN | BESIDE_THE_DESIGN.keys() if None not in arrow}
    assert arrows == told
