"""The flow worker: takes runs from the work pool `nst` and starts a process for each.

python -m flows.flow_worker
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

import psutil

from flows.lifeline import end_with_parent

_GRACE_SECONDS: Final = 12.0


def main() -> None:
    """Bring the deployments up to date and work until SIGTERM or SIGINT, then exit with code 0."""
    end_with_parent()
    from flows.deployments import ensure_deployments

    ensure_deployments(Path(os.environ["NST_HOME"]))
    asyncio.run(_work())
    sys.exit(0)


async def _work() -> None:
    from prefect.workers.process import ProcessWorker

    from flows.runs import WORK_POOL

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    worker = asyncio.ensure_future(ProcessWorker(work_pool_name=WORK_POOL).start())
    told = asyncio.ensure_future(stop.wait())
    await asyncio.wait({worker, told}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        await asyncio.to_thread(_end_flows)
        worker.cancel()
    told.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker


def _end_flows() -> None:
    """Let the flows give their jobs back: a Prefect worker that is cancelled kills its processes at once."""
    flows = psutil.Process().children()
    for flow in flows:
        with contextlib.suppress(psutil.NoSuchProcess):
            flow.terminate()
    psutil.wait_procs(flows, timeout=_GRACE_SECONDS)


if __name__ == "__main__":
    main()
