"""The flow of a night: for each collection look at its pairs, make the jobs that are missing, run them as bulk runs
within this run, and say what came of it. A night is a row of the database: another run goes on where one has died."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.attempt import cancelled_in_prefect, night_run
from flows.bulk import bulk
from flows.collection import collection_names, misnamed_collections, read_collection
from flows.decoding import GuardedDecoder
from flows.errors import CollectionError, OrchestrationError
from flows.leases import LOCK_PATIENCE_SECONDS, keeping
from flows.night import carry_out, look, sentence_on
from flows.night_report import finish_night
from flows.settings import Settings, load_settings
from flows.silence import go_on_in_silence
from storage.database import open_database
from storage.errors import DatabaseError
from storage.jobs import JobStore, utc_now
from storage.lifecycle import OPEN
from storage.models import Night, NightState
from storage.nights import NightStore
from storage.workspace import Workspace

_JOBS_A_BULK: Final = 1000
"""The parameters of a run name its jobs, and Prefect takes no more than 512 KB of them."""
_LOOK_SECONDS: Final = 1.0
_PAUSE: Final = timedelta(seconds=10)


def _run_name() -> str:
    collection = flow_run.parameters["collection"]
    return f"night of {collection}" if collection else "night of all collections"


@flow(name="nightly", flow_run_name=_run_name, validate_parameters=False)
def nightly(collection: str | None = None, home: str | None = None, night: str | None = None) -> Any:
    """Run all pairs of `collection`, or of every collection of the service at `home`, that are not done yet.

    With `night` it goes on with that night. The run ends Failed when a pair failed or cannot be made, or when a
    collection cannot be read. When it is cancelled, so are its nights with their jobs; when its process has to end,
    the nights wait for another run.
    """
    go_on_in_silence()
    settings = load_settings(home=Path(home) if home else None)
    workspace = Workspace(settings.home)
    with open_database(settings.database, patience_seconds=LOCK_PATIENCE_SECONDS) as database:
        run = _Run(settings, workspace, JobStore(database), NightStore(database), str(flow_run.id), [])
        token = night_run.set(run.id)
        try:
            # A run that is retried in the dashboard does its night anew, unless that waits for it.
            skipped = run.begin(collection, None if flow_run.run_count > 1 else night)
            with _keeping_leases(run):
                return _verdict([run.spend(each) for each in run.nights], skipped)
        except (KeyboardInterrupt, TerminationSignal):
            run.stop(cancelled=cancelled_in_prefect(run.id))
            raise
        except Exception:
            run.stop(cancelled=False, pause=_PAUSE)
            raise
        finally:
            night_run.reset(token)


@dataclass(frozen=True)
class _Run:
    """One flow run and the nights that it has begun."""

    settings: Settings
    workspace: Workspace
    jobs: JobStore
    store: NightStore
    id: str
    nights: list[Night]

    def begin(self, collection: str | None, night: str | None) -> list[str]:
        """Make all nights of this run, so that each survives by itself; returns why others are left out."""
        me: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "flow_run_id": self.id,
            "lease_until": utc_now() + timedelta(seconds=self.settings.lease_seconds),
        }
        if collection and Path(collection).name != collection:
            raise CollectionError(f"{collection!r} is no collection; give the name of its folder in collections/.")
        if night is not None:
            taken = self.store.take_over(night, **me)
            if taken is None:
                return [f"Night {night} has ended or another run has it."]
            self.nights.append(taken)
            return []
        skipped = [] if collection else misnamed_collections(self.workspace.collections)
        for sentence in skipped:
            get_run_logger().warning(sentence)
        for name in [collection] if collection else collection_names(self.workspace.collections):
            begun, new = self.store.start(name, **me)
            if new:
                self.nights.append(begun)
            else:
                skipped.append(f"{name}: its night {begun.id} is running already.")
                get_run_logger().warning(skipped[-1])
        return skipped

    def spend(self, night: Night) -> Night:
        """Take one night to its end."""
        logger = get_run_logger()
        try:
            collection = read_collection(self.workspace.collections / night.collection, preset=self.settings.preset)
        except CollectionError as error:
            return self._ended(night, self.store.finish(night.id, error=str(error)))
        standings = self.store.standings(night.collection)
        with GuardedDecoder(max_pixels=self.settings.max_pixels) as decoder:
            plan = look(collection, standings, check=decoder.check, night_id=night.id)
        self.store.note_plan(
            night.id,
            pairs=plan.pairs,
            done_before=plan.done_before,
            problems=[asdict(problem) for problem in plan.problems],
        )
        for problem in plan.problems:
            logger.warning("%s: %s %s", night.collection, problem.file, problem.reason)
        logger.info(
            "%s: %d pairs, %d done before, %d to do", night.collection, plan.pairs, plan.done_before, plan.to_do
        )
        made = carry_out(plan, self.jobs, self.store, night_id=night.id, flow_run_id=self.id)
        if not made or not self._work(night):
            return self._ended(night, None)
        return self._ended(night, finish_night(night, plan, self.store, self.jobs, self.workspace))

    def stop(self, *, cancelled: bool, pause: timedelta | None = None) -> None:
        """Cancel the nights that have not ended, or leave them to another run, after a pause."""
        for night in self.nights:
            if cancelled:
                self.store.cancel(night.id)
            else:
                lease_until = utc_now() + pause if pause else None
                self.store.release(night.id, submission=night.submission, lease_until=lease_until)

    def _work(self, night: Night) -> bool:
        """Run the night's jobs until all have ended, those too that another process had already begun.

        Returns False when the night has been cancelled or lost to another run. Raises OrchestrationError when jobs
        were not even begun.
        """
        lease, never = timedelta(seconds=self.settings.lease_seconds), threading.Event()
        while self.store.holds(night.id, flow_run_id=self.id):
            submissions = self.store.hand_out(
                night.id, flow_run_id=self.id, lease_until=utc_now() + lease, limit=_JOBS_A_BULK
            )
            if submissions:
                named = bulk.with_options(flow_run_name=f"{len(submissions)} jobs of {night.collection}")
                # Prefect's types know this call as one that may have to be awaited, which it is not for this flow.
                state = cast("State[Any]", named(submissions, str(self.settings.home), return_state=True))
                if left := self.store.not_begun(night.id, flow_run_id=self.id):
                    raise OrchestrationError(
                        f"A run of {len(submissions)} jobs of {night.collection} ended before it began {left} of them "
                        f"({state.message}); another run goes on with the night."
                    )
                continue
            counts = self.store.counts(night.id)
            if not any(counts[state] for state in OPEN):
                return True
            # One waits for the second attempt, or another process has it: only the database tells its end.
            never.wait(_LOOK_SECONDS)
        return False

    def _ended(self, night: Night, ended: Night | None) -> Night:
        if ended is None:
            # Somebody has cancelled it, or another run has it.
            ended = self.store.get(night.id) or night
        get_run_logger().info(sentence_on(ended))
        return ended


@contextmanager
def _keeping_leases(run: _Run) -> Iterator[None]:
    """Say of all nights of the run that its process lives."""
    logger = get_run_logger()

    def renew(lease_until: datetime) -> None:
        run.store.renew(run.id, lease_until=lease_until)

    def warn(error: DatabaseError) -> None:
        logger.warning("%s The nights of this run may be gone on with by another.", error)

    with keeping(renew, seconds=run.settings.lease_seconds, warn=warn):
        yield


def _verdict(nights: list[Night], skipped: list[str]) -> Any:
    message = " ".join([*(sentence_on(night) for night in nights), *skipped]) or "There are no collections."
    states = {night.state for night in nights}
    if NightState.FAILED in states:
        return Failed(message=message)
    if states == {NightState.CANCELLED}:
        return Cancelled(message=message)
    return Completed(message=message)
