"""The flow worker: takes runs from the work pool `nst` and starts a process for each, however long Prefect is away
meanwhile, and makes the deployments anew where Prefect has lost them.

python -m flows.flow_worker
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import psutil

from flows.lifeline import end_with_parent

_GRACE_SECONDS: Final = 12.0
_LOOK_SECONDS: Final = 10.0

logger = logging.getLogger(__name__)


def main() -> None:
    """Bring the deployments up to date and work until SIGTERM or SIGINT, then exit with code 0."""
    end_with_parent()
    from flows.deployments import ensure_deployments

    home = Path(os.environ["NST_HOME"])
    ensure_deployments(home)
    threading.Thread(target=_keep_deployments, args=(home,), name="deployments", daemon=True).start()
    _endure_outages()
    asyncio.run(_work())
    sys.exit(0)


async def _work() -> None:
    from prefect.workers.process import ProcessWorker

    from flows.prefect_names import WORK_POOL

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


def _keep_deployments(home: Path) -> None:
    """Look again and again whether Prefect still knows the deployments: its database may be made anew beside us."""
    from flows.deployments import are_deployed, ensure_deployments
    from flows.errors import FlowError
    from flows.schedule import ensure_schedule
    from flows.settings import load_settings

    never = threading.Event()
    while not never.wait(_LOOK_SECONDS):
        # Prefect may be away, and is looked for again.
        with contextlib.suppress(FlowError):
            if not are_deployed():
                logger.warning("Prefect has lost the deployments; they are made anew")
                ensure_deployments(home)
                ensure_schedule(load_settings(home=home))


def _endure_outages() -> None:
    """Let the Prefect worker ask on for as long as Prefect is away.

    As shipped it gives up after a minute or two and ends the flows it has started, which need Prefect for nothing that
    could not wait.
    """
    import prefect.workers.base

    base: Any = prefect.workers.base
    shipped = base.critical_service_loop

    async def endure(*args: Any, **options: Any) -> None:
        while True:
            try:
                await shipped(*args, **options)
            except RuntimeError as error:
                if "exceeded error threshold" not in str(error):
                    raise
            else:
                return

    base.critical_service_loop = endure


def _end_flows() -> None:
    """Let the flows give their jobs back: a Prefect worker that is cancelled kills its processes at once."""
    flows = psutil.Process().children()
    for flow in flows:
        with contextlib.suppress(psutil.NoSuchProcess):
            flow.terminate()
    psutil.wait_procs(flows, timeout=_GRACE_SECONDS)


if __name__ == "__main__":
    main()
