"""Prefect's API for a flow that runs in this process: the one that PREFECT_API_URL names, else a temporary
one on 127.0.0.1 that Prefect starts with the flow and stops with the process. Prefect reads its settings from
the environment when it is imported, so this is called before."""

from __future__ import annotations

import os
from pathlib import Path

_TEMPORARY = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # The first start migrates Prefect's own database, which takes 20 s and more on a slow disk.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def prepare_api(home: Path) -> None:
    """Set the environment so that Prefect finds its API; what the user has set stays.

    The temporary API keeps its database in `home`/prefect, so that only the first start is slow.
    """
    if "PREFECT_API_URL" not in os.environ:
        for key, value in _TEMPORARY.items():
            os.environ.setdefault(key, value)
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    # A failure reaches the user as one sentence of ours; Prefect's tracebacks still go to its API.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
