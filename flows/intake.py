"""One look at the inbox: which drops are ready and become jobs, which can never work and are rejected, what waits and
why. The listing decides, not events: a look may be taken at any time, by nobody's leave, and again after a crash."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flows.checked_picture import CheckedPicture
from flows.claim import claim_drop, finish_claims, reject_drop
from flows.drop_group import shown
from flows.drop_settings import read_drop_settings
from flows.inbox import Drop, Entry, Waiting, assess
from flows.listing import Settling, scan
from flows.plain_text import one_line
from flows.settings import Settings
from nst_engine.errors import ConfigError, ImageError, WeightsError
from storage.errors import WorkspaceError
from storage.jobs import JobStore
from storage.models import Job
from storage.workspace import Workspace

_STYLES_REMEMBERED: Final = 64
_LONGEST_LOOK: Final = 5.0
"""Seconds after which no more drops are taken before the inbox is listed again."""


@dataclass(frozen=True)
class Look:
    """What a look at the inbox came to; `next_look` is when something may have changed by the clock alone."""

    claimed: tuple[Job, ...]
    rejected: tuple[Job, ...]
    waiting: tuple[Waiting, ...]
    next_look: float


@dataclass
class _Outcome:
    claimed: list[Job] = field(default_factory=list)
    rejected: list[Job] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    next_look: float = math.inf

    def wait(self, path: Path, reason: str, *, until: float = math.inf) -> None:
        self.waiting.append(Waiting(path, one_line(reason)))
        self.next_look = min(self.next_look, until)


class Intake:
    """Takes drops out of one inbox. `check` is CheckedPicture.of or does as it does; `clock` counts seconds."""

    def __init__(
        self,
        store: JobStore,
        workspace: Workspace,
        settings: Settings,
        *,
        check: Callable[[Path], CheckedPicture],
        clock: Callable[[], float],
        on_job: Callable[[Job], None],
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._settings = settings
        self._check_picture = check
        self._clock = clock
        self._on_job = on_job
        self._settling = Settling()
        self._checked: dict[tuple[Path, int, int, int], CheckedPicture] = {}
        self._bursts: dict[float, int] = {}

    def look(self) -> Look:
        """List the inbox and act on what is ready; InboxMissingError where there is none, DatabaseError as usual."""
        outcome = _Outcome()
        busy: set[Path] = set()
        for stuck in finish_claims(self._store, self._workspace):
            busy |= stuck.files
            outcome.wait(Path(stuck.job_name), stuck.reason, until=self._clock() + self._settings.settle_seconds)
        listing = scan(self._workspace.inbox)
        self._settling.observe(listing.entries, now=self._clock())
        entries = {entry.path: entry for entry in listing.entries if self._workspace.inbox / entry.path not in busy}
        assessment = assess(entries.values())
        # Told below where a folder cannot be read; a part of a folder is not the folder.
        whole = [
            drop for drop in assessment.drops if not any(drop.folder in path.parents for path in listing.unreadable)
        ]
        ends = self._clock() + _LONGEST_LOOK
        for burst_size, drop in self._ready(whole, outcome):
            if self._clock() > ends:
                # Somebody may have dropped a single picture meanwhile, or want the sensor to end.
                outcome.next_look = self._clock()
                break
            self._take(drop, entries, outcome, burst_size=burst_size)
        for waiting in assessment.waiting:
            self._wait_or_reject(waiting, entries[waiting.path], outcome)
        for path in listing.unreadable:
            outcome.wait(path, f"{shown(path)} cannot be read; mend its permissions")
        return Look(tuple(outcome.claimed), tuple(outcome.rejected), tuple(outcome.waiting), outcome.next_look)

    def _ready(self, drops: Sequence[Drop], outcome: _Outcome) -> list[tuple[int, Drop]]:
        """The drops that have settled, each with how many settled at the same moment; the smallest bursts first."""
        settled = {id(drop): self._settled_at(drop) for drop in drops}
        left = Counter(settled.values())
        # A burst that is taken look by look stays as large as it was.
        self._bursts = {moment: max(count, self._bursts.get(moment, 0)) for moment, count in left.items()}
        ready = []
        for drop in drops:
            moment = settled[id(drop)]
            if moment > self._clock():
                outcome.next_look = min(outcome.next_look, moment)
            else:
                ready.append((self._bursts[moment], drop))
        return sorted(ready, key=lambda each: each[0])

    def _settled_at(self, drop: Drop) -> float:
        return max(self._settling.first_seen(path) for path in drop.files) + self._settings.settle_seconds

    def _take(self, drop: Drop, entries: dict[Path, Entry], outcome: _Outcome, *, burst_size: int) -> None:
        inbox = self._workspace.inbox
        if drop.problem is not None:
            # What is missing may be on its way.
            until = self._settled_at(drop) + self._settings.patience_seconds
            if self._clock() < until:
                outcome.wait(drop.content, drop.problem, until=until)
            else:
                self._reject(drop, f"{drop.problem}.", outcome)
            return
        pictures = []
        for _, path in drop.pictures:
            try:
                pictures.append(self._check(entries[path]))
            except FileNotFoundError:
                return
            except (ImageError, WorkspaceError) as error:
                # A writer that stalls leaves the same picture as one that is done badly; time tells them apart.
                until = self._settling.first_seen(path) + self._settings.patience_seconds
                if self._clock() < until:
                    outcome.wait(path, f"{_sentence(error, inbox)} (it may still be written to)", until=until)
                else:
                    self._reject(drop, str(error), outcome)
                return
        try:
            settings = read_drop_settings(
                inbox / drop.settings if drop.settings else None,
                preset=self._settings.preset,
                with_initial=drop.initial is not None,
            )
            job = claim_drop(
                self._store, self._workspace, drop, settings=settings, pictures=pictures, burst_size=burst_size
            )
        except (ConfigError, ImageError, WeightsError) as error:
            # No drop names its weights, and one without settings no preset: then the service is set wrongly.
            if isinstance(error, WeightsError) or (drop.settings is None and isinstance(error, ConfigError)):
                outcome.wait(drop.content, str(error), until=self._clock() + self._settings.settle_seconds)
            else:
                self._reject(drop, str(error), outcome)
        except WorkspaceError as error:
            # The claim stands and is finished by the next look, unless the file went away before there was one.
            outcome.wait(drop.content, str(error), until=self._clock() + self._settings.settle_seconds)
        else:
            if job is None:
                outcome.next_look = min(outcome.next_look, self._clock() + self._settings.settle_seconds)
                return
            outcome.claimed.append(job)
            self._on_job(job)

    def _check(self, entry: Entry) -> CheckedPicture:
        """The checked picture, remembered: a style folder's style is the style of many jobs."""
        key = (entry.path, entry.size, entry.mtime_ns, entry.inode)
        if key not in self._checked:
            while len(self._checked) >= _STYLES_REMEMBERED:
                del self._checked[next(iter(self._checked))]
            self._checked[key] = self._check_picture(self._workspace.inbox / entry.path)
        return self._checked[key]

    def _wait_or_reject(self, waiting: Waiting, entry: Entry, outcome: _Outcome) -> None:
        if entry.kind in ("file", "link"):
            until = self._settling.first_seen(entry.path) + self._settings.pair_timeout
            if self._clock() >= until:
                reason = f"{waiting.reason}. It waited for {self._settings.pair_timeout:g} s."
                self._record_rejection(entry.path.stem, [self._workspace.inbox / entry.path], None, reason, outcome)
                return
            outcome.next_look = min(outcome.next_look, until)
        outcome.wait(waiting.path, waiting.reason)

    def _reject(self, drop: Drop, reason: str, outcome: _Outcome) -> None:
        folder = self._workspace.inbox / drop.folder if drop.folder else None
        files = [self._workspace.inbox / path for path in drop.taken]
        self._record_rejection(drop.name, files, folder, reason, outcome)

    def _record_rejection(
        self, name: str, files: list[Path], folder: Path | None, reason: str, outcome: _Outcome
    ) -> None:
        try:
            job = reject_drop(
                self._store, self._workspace, name=name, files=files, folder=folder, reason=one_line(reason)
            )
        except WorkspaceError as error:
            outcome.wait(Path(name), str(error), until=self._clock() + self._settings.settle_seconds)
        else:
            outcome.rejected.append(job)
            self._on_job(job)


def _sentence(error: Exception, inbox: Path) -> str:
    return str(error).replace(f"{inbox}/", "")
