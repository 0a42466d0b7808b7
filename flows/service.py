"""The service on one machine: Prefect server, Dask scheduler, GPU workers, flow worker, sensor and gallery, each a
supervised process, stopped together. `nst up` runs them all, `nst worker` and `nst sensor` some."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from flows.access import CLIENT_AUTH, SERVER_AUTH, exposed_secrets, prefect_auth, require_access, use_prefect_auth
from flows.certificates import has_certificates, require_certificates
from flows.gallery.links import GALLERY_URL, gallery_url
from flows.lifeline import end_with_parent
from flows.locks import only_one
from flows.prefect_names import BULK
from flows.prefect_server import server_environment, service_api, wait_until_healthy
from flows.settings import Settings
from flows.supervisor import Part, Supervisor
from storage.damage import require_sound
from storage.database import open_database
from storage.workspace import Workspace, check_writable

SERVICE_LOCK: Final = "service.lock"
SENSOR_LOCK: Final = "sensor.lock"
README: Final = "README.txt"
# What Dask's nanny writes when the worker's process died.
_NANNY_RESTARTS: Final = "Restarting worker"
_SERVER_START_SECONDS: Final = 180.0
_FLOW_WORKER_START_SECONDS: Final = 120.0


def up(settings: Settings, *, as_json: bool, say: Callable[[str], None]) -> None:
    """Run the whole service until SIGTERM or Ctrl-C. `say` tells the user where things are.

    Raises SettingsError when others could reach it without a password or certificates, ServiceError when another one
    runs for the same home, OrchestrationError when the Prefect server does not start, StorageError when the home
    cannot be written to or the database is damaged.
    """
    url = os.environ.get("PREFECT_API_URL")
    require_access(settings, prefect=url is None, gallery=True, scheduler=settings.scheduler is None)
    scheduler = scheduler_address(settings)
    require_certificates(scheduler, settings.certificates)
    workspace = Workspace(settings.home)
    check_writable(settings.home)
    workspace.create()
    _require_database(settings)
    write_readme(settings.home)
    for sentence in exposed_secrets(settings):
        say(sentence)
    api = service_api(settings)
    auth = prefect_auth(settings)
    gallery = gallery_url(settings.host, settings.gallery_port)
    environment = {
        "NST_HOME": str(settings.home),
        GALLERY_URL: gallery,
        "NST_SCHEDULER": scheduler,
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "DO_NOT_TRACK": "1",
        **({CLIENT_AUTH: auth} if auth else {}),
    }
    parts = []
    if url is None:
        parts.append(_server(settings, api, auth))
    if settings.scheduler is None:
        parts.append(_scheduler(settings))
    if settings.scheduler is None and settings.own_workers:
        parts += gpu_workers(settings, scheduler)
    parts += [_flow_worker(environment, api, auth), _sensor(environment, as_json=as_json), _gallery(environment)]
    with only_one(settings.home / SERVICE_LOCK, what="nst up"), _stopped_by_signals() as stop:
        supervisor = Supervisor(parts, logs=settings.home / "logs", stop=stop)

        def started() -> None:
            say(f"Drop pictures into  {workspace.inbox}")
            say(f"Results appear in   {workspace.outbox}")
            say(f"Gallery             {gallery}")
            say(f"Dashboard           {api.removesuffix('/api')}")
            say("Ctrl-C stops the service; jobs go on when it is started again.")

        supervisor.run(started=started)


def work(settings: Settings, scheduler: str, *, say: Callable[[str], None]) -> None:
    """Run this machine's GPU workers for the scheduler at `scheduler` until SIGTERM or Ctrl-C.

    Raises SettingsError when it is reached by TLS and there are no certificates for it.
    """
    require_certificates(scheduler, settings.certificates)
    Workspace(settings.home).create_home()
    workers = [
        replace(
            part,
            command=[*part.command, "--grace-seconds", str(settings.grace_seconds)],
            stop_seconds=part.stop_seconds + settings.grace_seconds,
        )
        for part in gpu_workers(settings, scheduler)
    ]
    with _stopped_by_signals() as stop:

        def started() -> None:
            say(f"{len(workers)} GPU workers for the scheduler at {scheduler}; Ctrl-C ends them.")

        Supervisor(workers, logs=settings.home / "logs", stop=stop, in_order=False).run(started=started)


def sense(settings: Settings, *, say: Callable[[str], None]) -> None:
    """Run the sensor in this process until SIGTERM or Ctrl-C, for the Prefect API at PREFECT_API_URL.

    Raises ServiceError when another one runs for the same home, StorageError when the database is damaged.
    """
    _require_database(settings)
    from flows.sensor import Sensor

    end_with_parent()
    use_prefect_auth(settings)
    Workspace(settings.home).create_home()
    with only_one(settings.home / SENSOR_LOCK, what="A sensor"), _stopped_by_signals() as stop:
        sensor = Sensor(settings, stop=stop)

        def wake() -> None:
            stop.wait()
            sensor.wake()

        threading.Thread(target=wake, name="stop", daemon=True).start()
        say(f"Watching {Workspace(settings.home).inbox} for the Prefect API at {os.environ['PREFECT_API_URL']}")
        sensor.run()


def _require_database(settings: Settings) -> None:
    """Raise StorageError unless the service can begin on its database: the file is whole, or the server answers."""
    if settings.database_file is not None:
        require_sound(settings.database_file)
    else:
        open_database(settings.database).close()


def gpu_workers(settings: Settings, scheduler: str) -> list[Part]:
    """One worker a GPU, or one on the CPU, as the setting `device` says."""
    command = [sys.executable, "-m", "flows.cluster", "worker", "--scheduler", scheduler]
    if scheduler.startswith("tls://"):
        command += ["--certs", str(settings.certificates)]
    if settings.max_memory is not None:
        command += ["--max-memory", str(settings.max_memory)]
    if settings.xla:
        command.append("--xla")
    if not settings.deterministic:
        command.append("--not-deterministic")
    gpus = _gpus() if settings.device == "auto" else []
    if not gpus:
        return [Part("gpu-worker", [*command, "--device", settings.device], restart_sign=_NANNY_RESTARTS)]
    return [
        Part(
            f"gpu-worker-{gpu}",
            [*command, "--device", "gpu:0"],
            {"CUDA_VISIBLE_DEVICES": gpu},
            restart_sign=_NANNY_RESTARTS,
        )
        for gpu in gpus
    ]


def scheduler_address(settings: Settings) -> str:
    """The address of the scheduler: the one that is named, else this service's, by TLS where it has certificates."""
    if settings.scheduler is not None:
        return settings.scheduler
    scheme = "tls" if has_certificates(settings.certificates) else "tcp"
    return f"{scheme}://{_reachable(settings.host)}:{settings.scheduler_port}"


def _reachable(host: str) -> str:
    """The address under which processes on this machine find one that listens on `host`."""
    place = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{place}]" if ":" in place else place


def write_readme(home: Path) -> None:
    """Say in the home folder itself how to drop; a text that the user has changed stays."""
    readme = home / README
    if not readme.exists():
        readme.write_text(Path(__file__).with_name("home_readme.txt").read_text(encoding="utf-8"), encoding="utf-8")


def _server(settings: Settings, api: str, auth: str | None) -> Part:
    def ready(alive: Callable[[], bool]) -> None:
        wait_until_healthy(api, timeout=_SERVER_START_SECONDS, alive=alive)

    (settings.home / "prefect").mkdir(exist_ok=True)
    host, port = settings.host, settings.prefect_port
    return Part(
        "prefect",
        [sys.executable, "-m", "flows.prefect_server", "--host", host, "--port", str(port)],
        {**server_environment(settings.home, host=host, port=port), **({SERVER_AUTH: auth} if auth else {})},
        ready,
    )


def _scheduler(settings: Settings) -> Part:
    place = ["--host", settings.host, "--port", str(settings.scheduler_port)]
    if has_certificates(settings.certificates):
        place += ["--certs", str(settings.certificates)]
    return Part("scheduler", [sys.executable, "-m", "flows.cluster", "scheduler", *place])


def _flow_worker(environment: dict[str, str], api: str, auth: str | None) -> Part:
    def ready(alive: Callable[[], bool]) -> None:
        # It makes the deployments before anything else; the sensor needs them.
        wait_until_healthy(
            api, path=f"deployments/name/{BULK}", timeout=_FLOW_WORKER_START_SECONDS, alive=alive, auth=auth
        )

    return Part("flow-worker", [sys.executable, "-m", "flows.flow_worker"], environment, ready)


def _sensor(environment: dict[str, str], *, as_json: bool) -> Part:
    command = [sys.executable, "-m", "flows.cli", "sensor", *(["--log-json"] if as_json else [])]
    return Part("sensor", command, environment, speaks=True)


def _gallery(environment: dict[str, str]) -> Part:
    # Nothing waits for it: where its port is taken, all else goes on, and it tries again.
    return Part("gallery", [sys.executable, "-m", "flows.cli", "gallery"], environment)


def _gpus() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, else all that the driver knows, by number or UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    listed = subprocess.run(  # noqa: S603
        [command, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.split() if listed.returncode == 0 else []


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()

    def set_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, set_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
