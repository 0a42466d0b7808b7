"""What a night has to do, and how it went: the pairs of a collection against the jobs it has had. Looking reads the
pictures and changes nothing; carrying out writes the jobs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from flows.checked_picture import CheckedPicture
from flows.collection import SETTINGS, Collection, Pair, Problem, shown
from flows.fingerprint import fingerprint_of
from flows.roles import in_order
from flows.sources import sources_of
from nst_engine.errors import ImageError, WeightsError
from storage.errors import WorkspaceError
from storage.jobs import JobStore, NewJob
from storage.models import JobState, Night, NightState, Role
from storage.nights import NightStore, Standing
from storage.workspace import safe_name, sha256_of

_JOBS_A_TRANSACTION: Final = 500
_NAMED: Final = 5

Known = TypeVar("Known")


@dataclass(frozen=True)
class Plan:
    """The pairs of a collection by what is to be done with them; of pairs that are the same only the first is here.

    `pairs` counts them all, with those lost to `problems`. `asked` gives each pair's fingerprint, None where a picture
    is a problem; `done_before` of them are completed, `again` have a job that is to be gone on with or tried again,
    by its id, `new` have none.
    """

    collection: Collection
    pairs: int
    asked: tuple[tuple[Pair, str | None], ...]
    done_before: int
    again: Mapping[str, Pair]
    new: tuple[tuple[Pair, NewJob], ...]
    problems: tuple[Problem, ...]

    @property
    def to_do(self) -> int:
        """How many pairs are to be run."""
        return len(self.again) + len(self.new)


def look(
    collection: Collection,
    standings: Mapping[str, Standing],
    *,
    check: Callable[[Path], CheckedPicture],
    night_id: str | None = None,
) -> Plan:
    """Compare a collection with how its pairs stand; what this night itself has completed was not done before.

    Each file is read once for its SHA-256, and once more, whole, by `check` (CheckedPicture.of or what does as it
    does), when a job is to be made of it. What cannot be used is a problem, not an error.
    """
    reading = _Reading(collection.folder, check)
    asked: list[tuple[Pair, str | None]] = []
    seen: set[str] = set()
    again: dict[str, Pair] = {}
    new: list[tuple[Pair, NewJob]] = []
    done_before = 0
    for pair in collection.pairs:
        fingerprint = reading.fingerprint(pair)
        if fingerprint is None:
            asked.append((pair, None))
            continue
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        standing = standings.get(fingerprint)
        if standing is not None and standing.state is JobState.COMPLETED:
            done_before += standing.night_id != night_id or night_id is None
        elif standing is not None and _goes_on(standing, pair):
            again[standing.job_id] = pair
        else:
            job = reading.job(pair, fingerprint, collection.name, night_id)
            if job is None:
                asked.append((pair, None))
                continue
            new.append((pair, job))
        asked.append((pair, fingerprint))
    problems = (*collection.problems, *reading.problems())
    return Plan(
        collection=collection,
        pairs=len(asked) + sum(problem.pairs for problem in collection.problems),
        asked=tuple(asked),
        done_before=done_before,
        again=again,
        new=tuple(new),
        problems=problems,
    )


def carry_out(plan: Plan, jobs: JobStore, nights: NightStore, *, night_id: str, flow_run_id: str) -> bool:
    """Write the plan's jobs, pending, as jobs of a running night; after a crash the next look finds what is there.

    Returns False where the night has ended meanwhile or this run has lost it: then it makes no job any more.
    """
    if not nights.take_up(night_id, list(plan.again), flow_run_id=flow_run_id):
        return False
    for first in range(0, len(plan.new), _JOBS_A_TRANSACTION):
        page = [job for _, job in plan.new[first : first + _JOBS_A_TRANSACTION]]
        if jobs.create_pending(page, night_id=night_id, flow_run_id=flow_run_id) is None:
            return False
    return True


def sentence_on(night: Night) -> str:
    """How a night stands or has ended, in one sentence."""
    if night.error is not None:
        return f"{night.collection}: {night.error}"
    if night.state is NightState.RUNNING:
        return f"{night.collection}: another run goes on with its night."
    if night.pairs is None or night.completed is None:
        return f"{night.collection}: {night.state.value} before anything was found."
    before, problems = night.done_before or 0, night.problems or []
    parts = [f"{night.completed + before} of {night.pairs} pairs are done"]
    if before:
        parts.append(f"{before} of them before this night")
    parts += [f"{count} {what}" for count, what in ((night.failed, "failed"), (night.cancelled, "cancelled")) if count]
    if problems:
        named = ", ".join(str(problem["file"]) for problem in problems[:_NAMED])
        further = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        lost = sum(problem["pairs"] for problem in problems)
        parts.append(f"{lost} cannot be made because of {named}{further}")
    cancelled = "cancelled; " if night.state is NightState.CANCELLED else ""
    return f"{night.collection}: {cancelled}{', '.join(parts)}."


def _goes_on(standing: Standing, pair: Pair) -> bool:
    """Whether the pair's job is to be used; one that has ended reads the pictures where they were then."""
    if standing.state not in (JobState.FAILED, JobState.CANCELLED):
        return True
    return standing.paths == (str(pair.content.absolute()), str(pair.style.absolute()))


class _Reading:
    """Reads each file once, remembers what was wrong with it, and counts the pairs that this costs."""

    def __init__(self, folder: Path, check: Callable[[Path], CheckedPicture]) -> None:
        self._folder = folder
        self._sha256 = functools.cache(functools.partial(_tried, _digest))
        self._checked = functools.cache(functools.partial(_tried, check))
        self._problems: Counter[tuple[str, str]] = Counter()

    def problems(self) -> tuple[Problem, ...]:
        return tuple(Problem(file, reason, pairs) for (file, reason), pairs in self._problems.items())

    def fingerprint(self, pair: Pair) -> str | None:
        content = self._known(self._sha256(pair.content), pair.content)
        # A pair is lost to one file, also where both are bad.
        style = None if content is None else self._known(self._sha256(pair.style), pair.style)
        if content is None or style is None:
            return None
        pictures: list[tuple[Role, str]] = [("content", content), ("style", style)]
        try:
            return fingerprint_of(pictures, pair.config, snapshot_every=pair.snapshot_every)
        except WeightsError as error:
            self._problems[SETTINGS, str(error)] += 1
            return None

    def job(self, pair: Pair, fingerprint: str, collection: str, night_id: str | None) -> NewJob | None:
        pictures: list[tuple[Role, Path, CheckedPicture]] = []
        for role, path in in_order(pair.content, [pair.style]):
            picture = self._known(self._checked(path), path)
            if picture is None:
                return None
            if picture.sha256 != self._sha256(path):
                self._note(path, f"{path} is being written to; the next night takes it.")
                return None
            pictures.append((role, path, picture))
        try:
            sources = sources_of(pictures, pair.config)
        except ImageError as error:
            narrow = pair.content if str(error).startswith(f"{pair.content}: ") else pair.style
            self._note(narrow, str(error))
            return None
        return NewJob(
            name=safe_name(pair.name),
            preset=pair.preset,
            config=pair.config.model_dump(),
            sources=sources,
            fingerprint=fingerprint,
            priority=pair.priority,
            snapshot_every=pair.snapshot_every,
            collection=collection,
            night_id=night_id,
        )

    def _known(self, found: Known | ImageError | WorkspaceError, path: Path) -> Known | None:
        if isinstance(found, ImageError | WorkspaceError):
            self._note(path, str(found))
            return None
        return found

    def _note(self, path: Path, reason: str) -> None:
        self._problems[shown(path.relative_to(self._folder)), reason.removeprefix(str(path)).lstrip(": ")] += 1


def _tried(read: Callable[[Path], Known], path: Path) -> Known | ImageError | WorkspaceError:
    try:
        return read(path)
    except (ImageError, WorkspaceError) as error:
        return error
    except FileNotFoundError:
        return WorkspaceError(f"{path} is gone; put it back, or take it out of the collection.")


def _digest(path: Path) -> str:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{path} has a name that is no UTF-8; rename it.") from None
    return sha256_of(path)
