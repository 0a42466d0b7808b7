"""What `nst doctor` asks the Dask scheduler: whether it answers, and whether a GPU worker has come to it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from flows.certificates import dask_security
from flows.doctor.finding import Finding, of_sentence
from flows.doctor.running import service_process
from flows.edition import edition, edition_of
from flows.errors import SettingsError
from flows.service import scheduler_address
from flows.settings import Settings

_SECONDS: Final = 3.0
_READ_OR_WRITTEN: Final = 2
"""Jobs at once beside those that are computed."""

Value = TypeVar("Value")


def scheduler(settings: Settings) -> list[Finding]:
    """The scheduler and its GPU workers, where there should be some."""
    outside = settings.scheduler is not None
    if not outside and service_process(settings.home) is None:
        return [Finding("scheduler", "`nst up` runs one")]
    # Before its time is taken: these imports take seconds.
    import distributed  # noqa: F401

    from flows import gpu  # noqa: F401

    try:
        address = scheduler_address(settings)
        security = dask_security(address, settings.certificates)
    except SettingsError as error:
        return [of_sentence("scheduler", str(error))]
    workers = _within(2 * _SECONDS, lambda: asyncio.run(_gpu_workers(address, security)))
    if workers is None:
        remedy = "start it, or correct NST_SCHEDULER" if outside else "see logs/scheduler.log in the home"
        return [Finding("scheduler", f"{address} does not answer", remedy)]
    return [_of_workers(settings, address, workers, outside=outside)]


def _of_workers(settings: Settings, address: str, workers: dict[str, str], *, outside: bool) -> Finding:
    """What there is to say of the GPU workers, whose editions are given by their addresses."""
    others = {at: found for at, found in workers.items() if found != edition()}
    if others:
        told = ", ".join(f"{found} at {at}" for at, found in others.items())
        remedy = "install the same on all machines, and start the workers and the service again"
        return Finding("scheduler", f"there is {edition()} here, and there are GPU workers with {told}", remedy)
    if not workers:
        remedy = "start one: nst worker" if outside else "see logs/gpu-worker.log in the home"
        return Finding("scheduler", f"{address} has no GPU worker", remedy)
    if len(workers) > settings.bulk_at_once:
        return Finding(
            "scheduler",
            f"{address} has {len(workers)} GPU workers, of which a burst keeps {settings.bulk_at_once} at work",
            f"set bulk_at_once = {len(workers) + _READ_OR_WRITTEN} in nst.toml and start the service again",
        )
    return Finding("scheduler", f"{address} with {len(workers)} GPU worker{'' if len(workers) == 1 else 's'}")


def _within(seconds: float, ask: Callable[[], Value]) -> Value | None:
    """What `ask` returns, None where it raises OSError or takes longer.

    Dask ends no connection whose other end hangs; its thread is left alone then and ends with this process.
    """
    answers = queue.SimpleQueue[Value | None]()

    def answer() -> None:
        try:
            answers.put(ask())
        except OSError:
            answers.put(None)

    threading.Thread(target=answer, name="scheduler", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


async def _gpu_workers(address: str, security: Any) -> dict[str, str]:
    """The edition of each GPU worker of the scheduler, by its address; OSError where it does not answer in time."""
    from distributed.comm.core import connect

    from flows import gpu

    arguments = security.get_connection_args("client") if security is not None else {}
    comm: Any = await connect(address, timeout=_SECONDS, **arguments)  # type: ignore[no-untyped-call]
    try:
        async with asyncio.timeout(_SECONDS):
            await comm.write({"op": "identity", "n_workers": -1, "reply": True})
            info = await comm.read()
    finally:
        comm.abort()
    return {at: edition_of(worker) for at, worker in info["workers"].items() if gpu.GPU in worker["resources"]}
