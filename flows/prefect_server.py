"""Prefect's API and dashboard as the service runs them: one process on SQLite, with what SQLite needs to hold under
load, which ends with the process that started it.

python -m flows.prefect_server --host 127.0.0.1 --port 4200
"""

from __future__ import annotations

import argparse
import gc
import http.client
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.access import SERVER_AUTH, basic_authorization, use_prefect_auth
from flows.addresses import is_loopback
from flows.errors import OrchestrationError, ServiceError
from flows.lifeline import end_with_parent
from flows.listening import leave_on_signals, listen
from flows.prefect_database import end_without

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    from flows.settings import Settings

DATABASE = "prefect.db"
COLLECT_SECONDS = 5.0
POLL_SECONDS = 0.2
# Where nobody listens that is known at once; a server that is there may be slow on a busy machine.
PATIENCE_SECONDS = 30.0
# Open connections, such as a dashboard's, are cut after this when the server is told to end.
DRAIN_SECONDS = 2


def main() -> None:
    """Serve until SIGTERM or SIGINT, then exit with code 0.

    With code 1 and a sentence when the port is taken, or when others could reach it without a password.
    """
    parser = argparse.ArgumentParser(description="Run the Prefect server of the service.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=4200, help="the port to listen on")
    options = parser.parse_args()
    leave_on_signals()
    end_with_parent()
    if not is_loopback(options.host) and not os.environ.get(SERVER_AUTH):
        sys.exit(f"Other machines can reach {options.host}; set {SERVER_AUTH} to the USER:PASSWORD to ask them for.")
    try:
        # Bound before the seconds of Prefect's import, so that a taken port is told of at once.
        bound = listen(options.host, options.port, setting="prefect_port")
    except ServiceError as error:
        sys.exit(str(error))
    _serve(bound, host=options.host)


def server_environment(home: Path, *, host: str, port: int) -> dict[str, str]:
    """The variables that this process needs before it starts, as Prefect reads its settings when it is imported.

    The database and all else that Prefect keeps is in `home`/prefect.
    """
    prefect_home = home / "prefect"
    return {
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{prefect_home / DATABASE}",
        "PREFECT_API_URL": api_url(host, port),
        # Relative: the dashboard asks the server it came from, also through a tunnel, a proxy or another name.
        "PREFECT_SERVER_UI_API_URL": "/api",
        # The dashboard's files are unpacked at the first start, by default into the installed package, which a service
        # often may not write.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(prefect_home / "ui"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # The marker of late runs contends for the database with the runs it would mark while many are waiting.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
        # In memory, the default, leases are lost with the server and their slots stay taken.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # One event, one transaction is the default; in a burst it falls behind, and the dashboard with it.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


def api_url(host: str, port: int) -> str:
    """Where processes on this machine find the API of a server that listens on `host` and `port`."""
    # One that listens on all addresses is reached on the machine's own.
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{reachable}]:{port}/api" if ":" in reachable else f"http://{reachable}:{port}/api"


def service_api(settings: Settings) -> str:
    """Where the API of a service is: at PREFECT_API_URL, else where `nst up` lets its own server listen."""
    return os.environ.get("PREFECT_API_URL") or api_url(settings.host, settings.prefect_port)


def use_service_api(settings: Settings) -> None:
    """Let Prefect in this process, once it is imported, talk to the API of the service.

    Raises OrchestrationError when nobody answers there.
    """
    url = service_api(settings)
    use_prefect_auth(settings)
    if not _healthy(f"{url}/health", seconds=PATIENCE_SECONDS):
        raise OrchestrationError(f"No service runs for {settings.home} ({url} does not answer); start it with nst up.")
    os.environ["PREFECT_API_URL"] = url
    os.environ.setdefault("PREFECT_HOME", str(settings.home / "prefect"))


def wait_until_healthy(
    url: str, *, timeout: float, alive: Callable[[], bool], path: str = "health", auth: str | None = None
) -> None:
    """Return when the API at `url` (http://HOST:PORT/api) answers that it is healthy, or has what is at `path`.

    `auth` is the USER:PASSWORD that it asks for; it says whether it is healthy without.
    Raises OrchestrationError when `alive()` says that the process that sees to that has ended, or after `timeout`
    seconds.
    """
    deadline = time.monotonic() + timeout
    while alive():
        if _healthy(f"{url}/{path}", auth=auth):
            return
        if time.monotonic() >= deadline:
            raise OrchestrationError(
                f"{url}/{path}: no answer within {timeout:g} s; look at the log files, or start again."
            )
        # An unready server offers no event to wait for.
        time.sleep(POLL_SECONDS)
    raise OrchestrationError(f"{url}/{path}: who was to answer ended while it started; look at the log files.")


def _healthy(url: str, *, auth: str | None = None, seconds: float = 2.0) -> bool:
    # A proxy that the environment names knows nothing of this machine's ports.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if auth is not None:
        direct.addheaders = [("Authorization", basic_authorization(auth))]
    try:
        with direct.open(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _serve(bound: socket.socket, *, host: str) -> None:
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from flows.own_pages import OwnPagesOnly

    _begin_writes_immediately()
    let_schedules_plan_runs()
    app = create_app(final=True)
    settings = get_current_settings()
    api = settings.server.api
    config = uvicorn.Config(
        # Who knows the password may come from anywhere.
        app if os.environ.get(SERVER_AUTH) else OwnPagesOnly(app, host=host),
        log_level="warning",
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    end_without(settings.home / DATABASE)
    _collect_garbage_in_a_thread(started=lambda: server.started)
    server.run(sockets=[bound])


def _begin_writes_immediately() -> None:
    """Let each transaction that may write wait for its turn when it begins.

    As shipped it begins by reading. When another one writes before its own first write, SQLite cannot let it go on
    and does not let it wait either, and the caller is answered 503.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    shipped = AioSqliteConfiguration.begin_transaction

    def begin_transaction(
        self: AioSqliteConfiguration,
        session: AsyncSession,
        with_for_update: bool = True,
    ) -> AbstractAsyncContextManager[AsyncSessionTransaction]:
        return shipped(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_transaction  # type: ignore[method-assign, assignment]


def let_schedules_plan_runs() -> None:
    """Let the scheduler insert the runs that it plans; as shipped no schedule ever begins a run.

    It gives the state of each run beside the columns. SQLAlchemy has ignored that, and refuses it from 2.1 on; the
    scheduler itself inserts the states right after.
    """
    from prefect.server.database.orm_models import FlowRun
    from sqlalchemy import inspect

    hybrid: Any = inspect(FlowRun).all_orm_descriptors["state"]
    hybrid.bulk_dml_setter = lambda _class, _run, _state: None


def _collect_garbage_in_a_thread(*, started: Callable[[], bool]) -> None:
    """Keep Python's collector out of the thread that answers requests.

    There it would free a cursor, for which it waits for a mutex; the thread that holds it can be asleep in SQLite's
    busy handler for up to 60 s, and the one it waits for may need the thread that is stopped.
    """
    gc.disable()
    never = threading.Event()

    def collect() -> None:
        settled = False
        while not never.wait(COLLECT_SECONDS):
            gc.collect()
            if not settled and started():
                # What is left of the imports and the migrations stays: without it a collection is short.
                gc.freeze()
                settled = True

    threading.Thread(target=collect, name="collector", daemon=True).start()


if __name__ == "__main__":
    main()
