"""Prefect's API for a flow that runs in this process: the one that PREFECT_API_URL names, else a temporary
one on 127.0.0.1 that Prefect starts with the flow and stops with the process. Prefect reads its settings from
the environment when it is imported, so it is imported here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # The first start migrates Prefect's own database, which takes 20 s and more on a slow disk.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def prepare_api(home: Path) -> None:
    """Set the environment so that Prefect finds its API, and import Prefect; what the user has set stays.

    The temporary API keeps its database in `home`/prefect, so that only the first start is slow.
    """
    if "PREFECT_API_URL" not in os.environ:
        for key, value in _TEMPORARY.items():
            os.environ.setdefault(key, value)
        os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    # A failure reaches the user as one sentence of ours; Prefect's tracebacks still go to its API.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with _log_stream_left_open():
        import prefect.main  # noqa: F401


@contextmanager
def _log_stream_left_open() -> Iterator[None]:
    """Keep Prefect's import from closing the stream that absl, TensorFlow's logging, writes to.

    Prefect sets logging up anew, which closes all handlers, and absl's closes its stream with it, unless that is
    standard error now or was at the start: where it has been redirected since TensorFlow was imported, as in a
    notebook or a test, the caller would lose their standard error.
    """
    absl = sys.modules.get("absl.logging")
    if absl is None:
        yield
        return
    handler = absl.get_absl_handler().python_handler
    kept = handler.stream
    handler.setStream(sys.stderr)
    try:
        yield
    finally:
        handler.setStream(kept)
