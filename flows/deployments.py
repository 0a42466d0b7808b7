"""What Prefect has to know before a job can run: the work pool `nst` and a deployment of each flow, made in Python
and brought up to date at every start."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import httpx
from prefect import Flow
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectException
from prefect.types.entrypoint import EntrypointType

from flows.bulk import bulk
from flows.errors import OrchestrationError
from flows.nightly import nightly
from flows.prefect_names import BULK, NIGHTLY, STYLIZE, WORK_POOL
from flows.runs import prefect_client
from flows.stylize import stylize


def ensure_deployments(home: Path) -> None:
    """Make the work pool and the deployments, or bring them up to date; safe to repeat at every start."""
    with prefect_client() as client:
        pool = WorkPoolCreate(name=WORK_POOL, type="process", description="The flow runs of nst's jobs")
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(pool)
    for flow, description in (
        (stylize, "One job: preprocess, optimise, deprocess, publish."),
        (nightly, "A night: all pairs of the collections that are not done yet."),
        # The last: `nst up` takes it for the sign that all are made.
        (bulk, "The jobs of a burst, a few at a time."),
    ):
        _deploy(flow, description, home)


def are_deployed() -> bool:
    """Whether Prefect knows the work pool and all deployments; OrchestrationError when it is away."""
    with prefect_client() as client:
        try:
            client.read_work_pool(WORK_POOL)
            for deployment in (STYLIZE, NIGHTLY, BULK):
                client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return False
    return True


def _deploy(flow: Flow[..., Any], description: str, home: Path) -> None:
    deployment: Any = flow.to_deployment(
        name=flow.name,
        description=description,
        work_pool_name=WORK_POOL,
        tags=["nst"],
        paused=_is_paused(f"{flow.name}/{flow.name}"),
        parameters={"home": str(home)},
        entrypoint_type=EntrypointType.MODULE_PATH,
        # One process a run: without a command Prefect starts a second one to prepare a workspace.
        job_variables={"command": f"{sys.executable} -m prefect.engine", "working_dir": str(home)},
    )
    try:
        deployment.apply()
    except (httpx.HTTPError, PrefectException) as error:
        raise OrchestrationError(f"Prefect does not take the deployment {flow.name} ({error}).") from error


def _is_paused(deployment: str) -> bool:
    """Whether a user has paused it in the dashboard; applying a deployment resumes it where nothing is said."""
    with prefect_client() as client:
        try:
            return client.read_deployment_by_name(deployment).paused
        except ObjectNotFound:
            return False
