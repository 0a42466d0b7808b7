"""What `nst doctor` asks Prefect's API: whether it answers, and soon, whether it is of our version and our time, and
whether it has what the service needs. It gives up at the first question that takes too long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

import httpx

from flows.access import basic_authorization, prefect_auth
from flows.doctor.finding import Finding
from flows.doctor.running import runs
from flows.prefect_names import BULK, NIGHTLY, STYLIZE, WORK_POOL
from flows.prefect_server import service_api
from flows.settings import Settings

_SECONDS: Final = 3.0
_SLOW_SECONDS: Final = 1.0
_CLOCK_SECONDS: Final = 60.0
_START_AGAIN: Final = "start the service again, which makes it"


def prefect(settings: Settings) -> list[Finding]:
    """Prefect's API, where there should be one."""
    api = service_api(settings)
    outside = "PREFECT_API_URL" in os.environ
    if not outside and not runs(settings.home):
        return [Finding("prefect", f"`nst up` runs a server at {api}, `nst run` a temporary one")]
    auth = prefect_auth(settings)
    headers = {"Authorization": basic_authorization(auth)} if auth else {}
    # A proxy that the environment names knows nothing of this machine's ports.
    with httpx.Client(base_url=f"{api}/", headers=headers, timeout=_SECONDS, trust_env=False) as client:
        begun = time.monotonic()
        try:
            health = client.get("health")
            seconds = time.monotonic() - begun
            found = [*_of_answer(api, health, seconds), *(_of_contents(client) if health.is_success else ())]
        except httpx.HTTPError as error:
            took = time.monotonic() - begun
            what = f"no answer within {took:.0f} s" if isinstance(error, httpx.TimeoutException) else str(error)
            remedy = "start it, or correct PREFECT_API_URL" if outside else "see logs/prefect.log in the home"
            return [Finding("prefect", f"{api} does not answer ({what})", remedy)]
    return found or [Finding("prefect", f"API at {api} answers in {seconds:.2f} s, with pool, deployments and worker")]


def _of_answer(api: str, health: httpx.Response, seconds: float) -> Iterator[Finding]:
    if health.status_code in (401, 403):
        yield Finding("prefect", f"{api} asks for a password", "set prefect_auth or PREFECT_API_AUTH_STRING")
    elif not health.is_success:
        yield Finding("prefect", f"{api} answers with {health.status_code}", "see logs/prefect.log in the home")
    if seconds > _SLOW_SECONDS:
        finding = f"{api} takes {seconds:.1f} s to answer"
        yield Finding("prefect", finding, "see what else keeps this machine and its disk busy, and logs/prefect.log")
    if sent := health.headers.get("date"):
        skew = (parsedate_to_datetime(sent) - datetime.now(UTC)).total_seconds()
        if abs(skew) > _CLOCK_SECONDS:
            finding = f"its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
            yield Finding("prefect", finding, "set both clocks (timedatectl set-ntp true)")


def _of_contents(client: httpx.Client) -> Iterator[Finding]:
    theirs, ours = str(client.get("admin/version").json()), version("prefect")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        finding = f"its server has version {theirs}, and here is {ours}"
        yield Finding("prefect", finding, "run a server of the version that is here, or install nst's on both")
    pool = client.get(f"work_pools/{WORK_POOL}")
    if pool.status_code in (401, 403):
        yield Finding("prefect", "its API asks for a password", "set prefect_auth or PREFECT_API_AUTH_STRING")
        return
    if pool.status_code == httpx.codes.NOT_FOUND:
        yield Finding("prefect", f"it has no work pool {WORK_POOL}", _START_AGAIN)
        return
    pool.raise_for_status()
    if pool.json().get("is_paused"):
        yield Finding("prefect", f"its work pool {WORK_POOL} is paused", "resume it in the dashboard")
    for name in (STYLIZE, BULK, NIGHTLY):
        if client.get(f"deployments/name/{name}").status_code == httpx.codes.NOT_FOUND:
            yield Finding("prefect", f"it has no deployment {name}", _START_AGAIN)
    workers = client.post(f"work_pools/{WORK_POOL}/workers/filter", json={})
    workers.raise_for_status()
    if not any(worker.get("status") == "ONLINE" for worker in workers.json()):
        yield Finding("prefect", "no flow worker takes its runs", "see logs/flow-worker.log in the home")
