"""What must be true of a home when all is quiet after a soak: every file that was given to the service lies in exactly
one known place, byte for byte; every drop has ended once and well; nothing is left over."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.soak_load import Collection, Drop, Ledger, sha256_of
from nst_engine.errors import EngineError
from nst_engine.images import decode
from storage.database import Database
from storage.jobs import JobStore
from storage.lifecycle import ENDED
from storage.models import Job, JobState, NightState
from storage.nights import NightStore
from storage.workspace import Workspace

Picture = NDArray[np.uint8]
_REPORT: Final = ("job.json", "loss.png", "result.png")


@dataclass(frozen=True)
class Home:
    """What there is to check: the folders, the database, what was given to it, and the picture that (number of the
    content, number of the style, iterations) must come to.
    """

    workspace: Workspace
    database: Database
    ledger: Ledger
    expected: Callable[[int, int, int], Picture]

    @property
    def jobs(self) -> list[Job]:
        """All jobs."""
        return JobStore(self.database).recent(limit=1_000_000)


def check(home: Home) -> dict[str, list[str]]:
    """Every invariant by its sentence, with what breaks it."""
    return {invariant: list(find(home)) for invariant, find in INVARIANTS.items()}


def _files_in_one_place(home: Home) -> Iterator[str]:
    """The inbox too is a known place; only at the end of a soak must nothing be left there."""
    places = _places(home)
    wanted = Counter(sha256 for drop in home.ledger.drops for sha256 in drop.files.values())
    names = {sha256: file for drop in home.ledger.drops for file, sha256 in drop.files.items()}
    for sha256, times in wanted.items():
        if len(places[sha256]) != times:
            found = ", ".join(sorted(map(str, places[sha256]))) or "nowhere"
            yield f"{names[sha256]} was dropped {times} times and lies in {len(places[sha256])} places: {found}"


def _collections_untouched(home: Home) -> Iterator[str]:
    for collection in home.ledger.collections:
        for file, sha256 in collection.files.items():
            path = home.workspace.collections / collection.name / file
            if not path.is_file() or sha256_of(path.read_bytes()) != sha256:
                yield f"{path} is not as it was"


def _drops_ended_once(home: Home) -> Iterator[str]:
    jobs = defaultdict[str, list[Job]](list)
    for job in home.jobs:
        jobs[job.name].append(job)
    for drop in home.ledger.drops:
        found = jobs.pop(drop.name, [])
        if len(found) > 1:
            yield f"{drop.name} has become {len(found)} jobs"
        elif not found:
            # A picture without its partner becomes no job that anybody asked for.
            if drop.hostile is None:
                yield f"{drop.name} has become no job"
        elif not _is_due(home.ledger, drop, found[0]):
            yield f"{drop.name} is {found[0].state}: {found[0].error}"
    for collection in home.ledger.collections:
        done = [job for job in home.jobs if job.collection == collection.name]
        states = Counter(job.state for job in done)
        if states != {JobState.COMPLETED: len(collection.numbers)}:
            yield f"{collection.name} with {len(collection.numbers)} pairs has jobs {dict(states)}"
    dropped = {drop.name for drop in home.ledger.drops}
    for job in home.jobs:
        if job.collection is None and job.name not in dropped and job.state is not JobState.REJECTED:
            yield f"job {job.id} {job.name} was made of nothing that was dropped"


def _is_due(ledger: Ledger, drop: Drop, job: Job) -> bool:
    """Whether the job may have ended so."""
    if drop.hostile is not None:
        return job.state is JobState.REJECTED
    return job.state is JobState.COMPLETED or (job.state is JobState.CANCELLED and job.id in ledger.cancelled)


def _hostile_rejected(home: Home) -> Iterator[str]:
    places = _places(home)
    for drop in home.ledger.drops:
        for file, sha256 in drop.files.items() if drop.hostile else ():
            yield from (f"{file} lies in {place}" for place in places[sha256] if place.parts[0] != "rejected")


def _results_whole(home: Home) -> Iterator[str]:
    of_drops = {drop.name: (drop.number, drop.number, drop.iterations) for drop in home.ledger.drops}
    for job in home.jobs:
        if job.state is not JobState.COMPLETED:
            continue
        folder = Path(str(job.result_folder))
        missing = [name for name in _REPORT if not (folder / name).is_file()]
        made_of = _of_collection(home.ledger, job) or of_drops.get(job.name)
        if missing:
            yield f"{job.name} has no {' and '.join(missing)} in {folder}"
        elif made_of is not None and not _is_picture(folder / "result.png", home.expected(*made_of)):
            yield f"{folder / 'result.png'} is not the picture that {job.name} must come to"


def _of_collection(ledger: Ledger, job: Job) -> tuple[int, int, int] | None:
    collections: dict[str | None, Collection] = {each.name: each for each in ledger.collections}
    if job.collection not in collections:
        return None
    collection = collections[job.collection]
    hashes = {source.sha256 for source in job.sources if source.role == "content"}
    (number,) = (each for each in collection.numbers if collection.files[f"contents/n{each}.png"] in hashes)
    return number, collection.numbers[0], collection.iterations


def _is_picture(path: Path, expected: Picture) -> bool:
    try:
        return np.array_equal(decode(path), expected)
    except EngineError:
        return False


def _one_folder_a_result(home: Home) -> Iterator[str]:
    folders = Counter(str(job.result_folder) for job in home.jobs if job.state is JobState.COMPLETED)
    yield from (f"{folder} is the result of {times} jobs" for folder, times in folders.items() if times > 1)
    for record in home.workspace.outbox.rglob("job.json"):
        if str(record.parent) not in folders:
            yield f"{record.parent} is no job's result"


def _losses_once(home: Home) -> Iterator[str]:
    store = JobStore(home.database)
    for job in home.jobs:
        if job.state is JobState.COMPLETED:
            found = [point.iteration for point in store.losses(job.id)]
            if found != list(range(int(job.config["iterations"]) + 1)):
                yield f"{job.name} has the loss of {len(found)} of {job.config['iterations']} + 1 iterations"


def _legal_states(home: Home) -> Iterator[str]:
    for job in home.jobs:
        completed = [attempt.number for attempt in job.attempts if attempt.outcome is JobState.COMPLETED]
        if job.state not in ENDED:
            yield f"{job.name} is {job.state}"
        if any(attempt.finished_at is None for attempt in job.attempts):
            yield f"{job.name} is {job.state} with an open attempt"
        if job.lease_until is not None and job.state in ENDED:
            yield f"{job.name} is {job.state} with a lease"
        once = job.state is JobState.COMPLETED and job.reused_from is None
        if len(completed) != once or (once and completed != [len(job.attempts)]):
            yield f"{job.name} is {job.state}, and of {len(job.attempts)} attempts {completed} completed it"
    nights = NightStore(home.database)
    for collection in home.ledger.collections:
        night = nights.last(collection.name)
        if night is None or night.state is not NightState.COMPLETED:
            yield f"the night of {collection.name} is {night.state if night else 'not begun'}"


def _nothing_left(home: Home) -> Iterator[str]:
    kept = {job.id for job in home.jobs if job.state in (JobState.FAILED, JobState.CANCELLED)}
    work, inbox = home.workspace.work, home.workspace.inbox
    yield from (f"{folder} of no job that keeps it" for folder in work.iterdir() if folder.name not in kept)
    yield from (f"{path} is left in the inbox" for path in inbox.rglob("*") if path.is_file())
    places = (work, inbox, home.workspace.outbox, home.workspace.rejected)
    for path in itertools.chain.from_iterable(place.rglob("*") for place in places):
        if path.name.endswith((".part", ".aside", ".tmp")):
            yield f"{path} is left over"


def _database_whole(home: Home) -> Iterator[str]:
    yield from home.database.integrity()


def _places(home: Home) -> Mapping[str, Sequence[Path]]:
    """Where the files are, relative to the home, by their SHA-256."""
    workspace = home.workspace
    found = defaultdict[str, list[Path]](list)
    for top in (workspace.inbox, workspace.work, workspace.outbox, workspace.rejected):
        for path in top.rglob("*"):
            if path.is_file():
                found[sha256_of(path.read_bytes())].append(path.relative_to(workspace.home))
    return found


INVARIANTS: Final[Mapping[str, Callable[[Home], Iterator[str]]]] = {
    "each dropped file is in exactly one known place, byte for byte": _files_in_one_place,
    "the files of collections are as they were": _collections_untouched,
    "each drop and each pair of a collection ended once, as it should": _drops_ended_once,
    "what can never work is in rejected/": _hostile_rejected,
    "each result is whole and the expected picture, bit for bit": _results_whole,
    "no two jobs have one result, and no result is without a job": _one_folder_a_result,
    "each iteration's loss is there once": _losses_once,
    "each job, attempt and night has ended legally": _legal_states,
    "nothing is left over in inbox, work and outbox": _nothing_left,
    "the database is whole": _database_whole,
}
