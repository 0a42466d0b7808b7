"""The processes of the Dask cluster that carries the GPU step: `python -m flows.cluster scheduler` is its middle, and
`python -m flows.cluster worker` a GPU worker on this machine. A worker needs nothing but the scheduler's address and
the network's weights. Both end cleanly on SIGTERM and Ctrl-C, and with the process that started them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import dask
from distributed import Nanny, Scheduler, Security
from distributed.comm.addressing import get_address_host
from distributed.comm.core import FatalCommClosedError, connect
from distributed.utils import get_ip

from flows import gpu
from flows.addresses import is_loopback
from flows.certificates import dask_security
from flows.edition import edition
from flows.errors import FlowError
from flows.lifeline import end_with_parent

logger = logging.getLogger("flows.cluster")

DEFAULT_PORT: Final = 8786
_ANY_LOCAL_PORT: Final = "127.0.0.1:0"
_ONE_FOR_THE_CHUNK_AND_ONE_FOR_REPORTS: Final = 2
_CONNECT_SECONDS: Final = 2.0
_CLOSE_SECONDS: Final = 2.0
_HUNG_UP_SECONDS: Final = 0.2
_END_SECONDS: Final = 10.0

CLUSTER_CONFIG: Final = {
    "distributed.scheduler.allowed-failures": 1,
    # What each process serves over HTTP, to nobody here.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # Dask waits twice as long before each attempt within this time, 30 s as shipped: a worker that is starting while
    # its scheduler is away would notice it that late.
    "distributed.comm.timeouts.connect": "5s",
    # Instead of what is shipped, which keeps NumPy to one thread and malloc from reusing large arrays.
    "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "warning"},
    # What costs time while nothing happens: as shipped an idle worker takes 5 % of a core.
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
"""Dask's settings for each process of the cluster."""


async def run_scheduler(*, host: str, port: int, certificates: Path | None) -> None:
    """Run a scheduler until the task is cancelled; FlowError when it cannot or may not listen there.

    With a folder of `certificates` it speaks TLS only, with who has one of them; off loopback it has to.
    """
    if certificates is None and not is_loopback(host):
        raise FlowError(f"Other machines can reach {host}; give certificates (`nst cluster certs`) with --certs.")
    security = dask_security("tls://", certificates) if certificates else None
    try:
        # The HTTP server cannot be left out; it listens where nobody else does.
        scheduler = await Scheduler(
            host=host, port=port, security=security, dashboard=False, dashboard_address=_ANY_LOCAL_PORT
        )
    except (OSError, RuntimeError) as error:
        raise FlowError(f"The scheduler cannot listen on {host}:{port} ({error.__cause__ or error}).") from error
    try:
        await scheduler.finished()
    finally:
        await scheduler.close()


async def run_worker(
    address: str,
    *,
    engine: gpu.EnginePlugin,
    local_directory: str | None,
    certificates: Path | None,
    grace_seconds: float,
) -> None:
    """Run a GPU worker for the scheduler at `address`, whenever there is one, until the task is cancelled.

    What it holds of jobs then goes to other workers, for which it takes at most `grace_seconds`. `engine` gives it its
    engine; `certificates` is the folder of them, for an address of tls://. Raises FlowError when the worker's process
    cannot start, which has said itself why, and when the scheduler has other certificates.
    """
    security = dask_security(address, certificates) or Security()  # type: ignore[no-untyped-call]
    while True:
        await _reachable(address, security)
        nanny = Nanny(
            address,
            security=security,
            # This machine's address on the scheduler's network: Dask's worker would listen on all that it has.
            host=get_ip(get_address_host(address)),  # type: ignore[no-untyped-call]
            nthreads=_ONE_FOR_THE_CHUNK_AND_ONE_FOR_REPORTS,
            resources={gpu.GPU: 1, edition(): 1},
            plugins=(engine,),
            memory_limit=0,
            local_directory=local_directory,
            dashboard=False,
            dashboard_address=_ANY_LOCAL_PORT,
        )
        try:
            await nanny
            await nanny.finished()  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            await _hand_over(nanny, seconds=grace_seconds)
            raise
        except RuntimeError as error:
            if not isinstance(error.__cause__, OSError):
                raise FlowError("The GPU worker's process could not start.") from error
        finally:
            # Dask asserts that a worker which is still starting is not closed: that one ends with this process.
            with suppress(AssertionError):
                await nanny.close(timeout=_CLOSE_SECONDS)
        logger.warning("The scheduler at %s was lost; waiting for it.", address)


async def _hand_over(nanny: Nanny, *, seconds: float) -> None:
    """Let the scheduler send no more to the nanny's worker, and move what that holds to others.

    The chunk that it computes is not waited for: another worker computes that anew.
    """
    if seconds == 0 or nanny.worker_address is None:
        return
    try:
        async with asyncio.timeout(seconds):
            moved = await nanny.scheduler.retire_workers(workers=[nanny.worker_address])
    except (OSError, TimeoutError) as error:
        logger.warning("The jobs here could not be handed over (%s).", str(error) or f"it took over {seconds:g} s")
        return
    if not moved:
        logger.warning("There is no other GPU worker to hand the jobs here over to.")


async def _reachable(address: str, security: Security) -> None:
    known = security.get_connection_args("worker")  # type: ignore[no-untyped-call]
    while True:
        try:
            comm = await connect(address, timeout=_CONNECT_SECONDS, **known)  # type: ignore[no-untyped-call]
        except FatalCommClosedError as error:
            raise FlowError(
                f"The scheduler at {address} has other certificates than this worker; copy certs/ of its home here."
            ) from error
        except OSError:
            # Who takes the call and hangs up would be called again at once.
            await asyncio.sleep(_HUNG_UP_SECONDS)
            continue
        await comm.close()
        return


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)

    def end() -> None:
        # Ctrl-C of a terminal comes to all its processes, and is followed by the SIGTERM of whoever started this one.
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    with suppress(asyncio.CancelledError):
        await task


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.cluster", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    scheduler = roles.add_parser("scheduler", help="the middle of the cluster")
    scheduler.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    scheduler.add_argument("--port", type=int, default=DEFAULT_PORT, help="the port to listen on")
    scheduler.add_argument("--certs", type=Path, help="the folder of the certificates; without, it speaks no TLS")
    worker = roles.add_parser("worker", help="one GPU worker")
    worker.add_argument("--scheduler", required=True, help="the scheduler's address, such as tls://gpu1:8786")
    worker.add_argument("--certs", type=Path, help="the folder of the certificates, for tls://")
    worker.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    worker.add_argument("--max-memory", type=int, help="bytes that it may take; what is free by default")
    worker.add_argument("--xla", action="store_true", help="compile with XLA")
    worker.add_argument("--not-deterministic", action="store_true", help="do without the same bits on a GPU")
    worker.add_argument("--grace-seconds", type=float, default=0, help="for handing over its jobs at its end")
    worker.add_argument("--local-directory", help="where Dask keeps its lock files; a temporary folder by default")
    return parser


def main() -> int:
    """Run the process that the command line names; returns its exit code."""
    options = _parser().parse_args()
    end_with_parent(grace=_END_SECONDS + getattr(options, "grace_seconds", 0))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # The worker's process says on its own why it failed, and the nanny would print that it has, three times.
    logging.getLogger("distributed.nanny").addFilter(lambda record: record.levelno != logging.ERROR)
    if options.role == "scheduler":
        work = run_scheduler(host=options.host, port=options.port, certificates=options.certs)
    else:
        engine = gpu.EnginePlugin(
            options.device,
            max_memory=options.max_memory,
            xla=options.xla,
            deterministic=not options.not_deterministic,
        )
        work = run_worker(
            options.scheduler,
            engine=engine,
            local_directory=options.local_directory,
            certificates=options.certs,
            grace_seconds=options.grace_seconds,
        )
    try:
        with dask.config.set(CLUSTER_CONFIG):
            asyncio.run(_until_signal(work))
    except FlowError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
