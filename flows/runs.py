"""The flow runs of a service's jobs in Prefect: scheduling them, asking after them, marking those that are dead."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Crashed, Scheduled

from flows.errors import OrchestrationError
from flows.prefect_names import BULK, NIGHTLY, STYLIZE
from storage.models import Job, Night

_PAGE: Final = 200


class RunState(StrEnum):
    """Where a flow run stands, as far as a job is concerned."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLED = "cancelled"
    ENDED = "ended"
    MISSING = "missing"


@contextlib.contextmanager
def prefect_client() -> Iterator[SyncPrefectClient]:
    """A client of the API; whatever it fails with is raised as OrchestrationError."""
    with _failing_as_one(), get_client(sync_client=True) as client:
        yield client


@contextlib.contextmanager
def _failing_as_one() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, PrefectException, RuntimeError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise OrchestrationError(
                "Prefect's API asks for another user and password; set prefect_auth in nst.toml, or NST_PREFECT_AUTH."
            ) from error
        raise OrchestrationError(
            f"Prefect's API does not answer ({str(error) or type(error).__name__}); see logs/prefect.log in the home."
        ) from error


class Asker:
    """Asks where runs stand, again and again with one client, which costs more to make than to ask.

    For one thread. After an OrchestrationError the next question makes another client.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._client: SyncPrefectClient | None = None

    def states(self, run_ids: Collection[str]) -> dict[str, RunState]:
        """The state of each of these runs; OrchestrationError when Prefect is away."""
        found: dict[str, RunState] = dict.fromkeys(run_ids, RunState.MISSING)
        wanted = [UUID(run_id) for run_id in run_ids]
        with _failing_as_one():
            try:
                if self._client is None:
                    self._client = self._open.enter_context(get_client(sync_client=True))
                for first in range(0, len(wanted), _PAGE):
                    page = FlowRunFilter(id=FlowRunFilterId(any_=wanted[first : first + _PAGE]))
                    for run in self._client.read_flow_runs(flow_run_filter=page, limit=_PAGE):
                        found[str(run.id)] = _meaning(run.state)
            except BaseException:
                self.close()
                raise
        return found

    def close(self) -> None:
        """Let go of the client."""
        self._client = None
        self._open.close()


class Runs:
    """The flow runs of one service's jobs. All methods raise OrchestrationError when Prefect is away."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._asker = Asker()

    def submit_job(self, job: Job) -> str:
        """Schedule a run of its own for the job; submitting the same submission again gives the same run."""
        return self._submit(
            STYLIZE,
            name=job.name,
            parameters={"job_id": job.id, "home": str(self._home), "submission": job.submission},
            tags=["nst", f"preset:{job.preset}"],
            key=f"{job.id}:{job.submission}",
        )

    def submit_burst(self, jobs: Sequence[Job]) -> str:
        """Schedule one run for all these jobs."""
        submissions = {job.id: job.submission for job in jobs}
        return self._submit(
            BULK,
            name=f"burst of {len(jobs)} from {jobs[0].name}",
            parameters={"submissions": submissions, "home": str(self._home)},
            tags=["nst", "burst"],
            key=f"burst:{jobs[0].id}:{jobs[0].submission}:{len(jobs)}:{jobs[-1].id}",
        )

    def submit_night(self, collection: str, *, night: Night | None = None) -> str:
        """Schedule a run of the collection's pairs that are not done yet, or one that goes on with this night."""
        return self._submit(
            NIGHTLY,
            name=f"night of {collection}",
            parameters={"collection": collection, "home": str(self._home), "night": night.id if night else None},
            tags=["nst", "night"],
            key=f"night:{night.id}:{night.submission}" if night else f"night:{uuid4()}",
        )

    def states(self, run_ids: Collection[str]) -> dict[str, RunState]:
        """The state of each of these runs."""
        return self._asker.states(run_ids)

    @staticmethod
    def mark_crashed(run_id: str, message: str) -> None:
        """Tell Prefect that a run's process is dead, which nothing else on an own server does.

        A run that Prefect no longer knows, or never has, needs no telling.
        """
        with prefect_client() as client, contextlib.suppress(ObjectNotFound):
            client.set_flow_run_state(UUID(run_id), Crashed(message=message), force=True)

    def _submit(self, deployment: str, *, name: str, parameters: dict[str, object], tags: list[str], key: str) -> str:
        with prefect_client() as client:
            try:
                # Asked for each time: Prefect's database may have been made anew, and the deployments with it.
                known = client.read_deployment_by_name(deployment)
            except ObjectNotFound as error:
                raise OrchestrationError(
                    f"Prefect does not know the deployment {deployment}; the flow worker makes it anew."
                ) from error
            run = client.create_flow_run_from_deployment(
                known.id,
                name=name,
                parameters=parameters,
                tags=tags,
                idempotency_key=key,
                state=Scheduled(),
            )
        return str(run.id)


def _meaning(state: State | None) -> RunState:
    if state is None or state.is_scheduled() or state.is_paused():
        return RunState.WAITING
    if state.is_pending():
        return RunState.STARTING
    if state.is_cancelled() or state.is_cancelling():
        return RunState.CANCELLED
    return RunState.ENDED if state.is_final() else RunState.RUNNING
