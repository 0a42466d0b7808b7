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

from flows.lifeline import end_with_parent


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

    task = asyncio.ensure_future(ProcessWorker(work_pool_name=WORK_POOL).start())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
