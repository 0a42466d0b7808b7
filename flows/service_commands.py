"""The commands of `nst` about the service: running it or its parts, what it is doing, cancelling, retrying, backup."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.options import Device, Home, JobReference, Json, existing_store, print_json, settings_of, store_of

LogJson = Annotated[bool, typer.Option("--log-json", help="Write what happens as JSON lines.")]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="The Dask scheduler, such as tls://gpu1:8786 [default: this one].")
]
Certificates = Annotated[
    Path | None,
    typer.Option("--certs", metavar="DIR", help="The certificates for a tls:// address [default: certs/ in the home]."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (up, sensor, worker, inbox, status, cancel, retry, backup):
        app.command()(command)


def up(home: Home = None, device: Device = None, log_json: LogJson = False) -> None:
    """Run the service: watch the inbox of the home folder and paint what is dropped there."""
    from flows.logs import speak
    from flows.service import up as run_service

    logger = speak(as_json=log_json)
    run_service(settings_of(home, device=device), as_json=log_json, say=logger.info)


def sensor(home: Home = None, log_json: LogJson = False) -> None:
    """Run the sensor alone: claim what is dropped and submit it to the Prefect API at PREFECT_API_URL."""
    import os

    from flows.errors import SettingsError
    from flows.logs import speak
    from flows.service import sense

    if "PREFECT_API_URL" not in os.environ:
        raise SettingsError("PREFECT_API_URL is not set; set it to the address of Prefect's API, or use `nst up`.")
    logger = speak(as_json=log_json)
    sense(settings_of(home), say=logger.info)


def worker(
    home: Home = None,
    scheduler: Scheduler = None,
    certs: Certificates = None,
    device: Device = None,
    log_json: LogJson = False,
) -> None:
    """Run this machine's GPU workers alone, one a GPU, for a scheduler here or elsewhere."""
    from flows.logs import speak
    from flows.service import scheduler_address, work

    logger = speak(as_json=log_json)
    settings = settings_of(home, device=device)
    if certs is not None:
        settings = settings.model_copy(update={"tls_folder": certs.absolute()})
    if scheduler is not None:
        settings = settings.model_copy(update={"scheduler": _checked(scheduler)})
    work(settings, scheduler_address(settings), say=logger.info)


def _checked(scheduler: str) -> str:
    from flows.addresses import checked_scheduler
    from flows.errors import SettingsError

    try:
        return checked_scheduler(scheduler)
    except ValueError as error:
        raise SettingsError(f"--scheduler {scheduler}: {error}.") from error


def inbox(home: Home = None, as_json: Json = False) -> None:
    """Show what lies in the inbox: what is about to become a job, and what waits for something, and for what."""
    from flows.drop_group import shown
    from flows.inbox import assess
    from flows.listing import scan
    from flows.plain_text import one_line
    from flows.terminal import out, table
    from storage.workspace import Workspace, safe_name

    folder = Workspace(settings_of(home).home).inbox
    listing = scan(folder)
    assessment = assess(listing.entries)
    rows = [
        (path, one_line(drop.problem) if drop.problem else f"ready: becomes the job {safe_name(drop.name)}")
        for drop in assessment.drops
        for path in drop.taken
    ]
    rows += [(waiting.path, one_line(waiting.reason)) for waiting in assessment.waiting]
    rows += [(path, "cannot be read; mend its permissions") for path in listing.unreadable]
    if as_json:
        print_json([{"file": str(path), "state": state} for path, state in rows])
    elif rows:
        out.print(table(None, ["file", "state"], [[shown(path), state] for path, state in rows]))
    else:
        out.print(f"Nothing waits in {folder}.", markup=False)


def status(home: Home = None, as_json: Json = False) -> None:
    """Show whether the service runs, how many jobs are in which state, and what is being worked on."""
    from flows.locks import holder_of
    from flows.service import SERVICE_LOCK
    from flows.terminal import local_time, out, print_mapping, table
    from storage.models import JobState

    settings = settings_of(home)
    store = store_of(settings)
    process = holder_of(settings.home / SERVICE_LOCK)
    counts = store.counts() if store else {}
    running = store.recent(limit=50, state=JobState.RUNNING) if store else []
    losses = store.final_losses([job.id for job in running]) if store else {}
    document: dict[str, Any] = {
        "home": str(settings.home),
        "process": process,
        "jobs": {state.value: counts.get(state, 0) for state in JobState},
        "running": [
            {
                "id": job.id,
                "name": job.name,
                "phase": job.attempts[-1].phase,
                "iteration": losses[job.id].iteration if job.id in losses else 0,
                "iterations": job.config.get("iterations"),
                "attempt": job.attempts[-1].number,
                "started_at": local_time(job.attempts[-1].started_at),
            }
            for job in running
        ],
    }
    if as_json:
        print_json(document)
        return
    jobs = ", ".join(f"{count} {state}" for state, count in document["jobs"].items() if count) or "none yet"
    print_mapping(
        {
            "home": settings.home,
            "service": f"runs (process {process})" if process else "does not run; `nst up` starts it",
            "jobs": jobs,
        }
    )
    if running:
        columns = ["job", "name", "phase", "iteration", "attempt", "since"]
        rows = [
            [
                job["id"],
                job["name"],
                job["phase"] or "-",
                f"{job['iteration']} of {job['iterations']}",
                str(job["attempt"]),
                job["started_at"],
            ]
            for job in document["running"]
        ]
        out.print()
        out.print(table(None, columns, rows))


def cancel(job: JobReference, home: Home = None) -> None:
    """Cancel a job that waits or runs; its pictures stay in its folder under work/."""
    from flows.published import cancel_job
    from storage.models import JobState

    store = existing_store(settings_of(home), job)
    found = store.find(job)
    state = cancel_job(store, found.id)
    if state is JobState.CANCELLED:
        sys.stdout.write(f"Job {found.id} ({found.name}) is cancelled.\n")
    elif state is JobState.COMPLETED:
        sys.stdout.write(f"Job {found.id} ({found.name}) is done; the cancel came too late.\n")
    else:
        sys.stdout.write(f"Job {found.id} ({found.name}) is being cancelled.\n")


def retry(job: JobReference, home: Home = None) -> None:
    """Let a failed or cancelled job wait for its turn again; the service runs it."""
    from storage.errors import WorkspaceError
    from storage.workspace import Workspace

    settings = settings_of(home)
    store = existing_store(settings, job)
    found = store.find(job)
    folder: Path = Workspace(settings.home).job_folder(found.id)
    missing = [source for source in found.sources if not (folder / source.file_name).is_file()]
    if found.collection is not None:
        moved = [source.original_path for source in missing if not Path(source.original_path).is_file()]
        if moved:
            raise WorkspaceError(
                f"Job {found.id} ({found.name}) cannot be tried again: {', '.join(moved)} is gone; put it back, or let "
                f"the next night of {found.collection} take what is there."
            )
    elif gone := [source.file_name for source in missing]:
        raise WorkspaceError(
            f"Job {found.id} ({found.name}) cannot be tried again: {', '.join(gone)} is no longer in {folder}; drop "
            "its pictures again."
        )
    store.retry(found.id)
    sys.stdout.write(f"Job {found.id} ({found.name}) waits for its turn.\n")


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy: a new file, or the one to restore.")],
    restore: Annotated[bool, typer.Option("--restore", help="Put FILE in place of the database.")] = False,
    home: Home = None,
) -> None:
    """Copy the database to a file, also while the service runs, or put such a copy back; the pictures are not in it."""
    from storage.backup import back_up, restore_command
    from storage.database import open_database
    from storage.errors import DatabaseError

    settings = settings_of(home)
    path = settings.database_file
    if path is None:
        raise DatabaseError("The jobs of this home are kept by a PostgreSQL server; back them up with pg_dump.")
    if restore:
        _restore(settings.home, path, file)
        return
    if not path.exists():
        raise DatabaseError(f"There is no database {path} to back up; name another home with --home.")
    with open_database(path) as database:
        size = back_up(database, file)
    command = restore_command(path, file)
    sys.stdout.write(f"{file} has {size / 1e6:.1f} MB. To restore it, stop the service and run `{command}`.\n")


def _restore(home: Path, database: Path, backup: Path) -> None:
    from flows.locks import only_one
    from flows.service import SENSOR_LOCK, SERVICE_LOCK
    from storage.backup import restore

    with only_one(home / SERVICE_LOCK, what="nst up"), only_one(home / SENSOR_LOCK, what="A sensor"):
        aside = restore(database, backup)
    kept = f" The old one is {aside}." if aside else ""
    sys.stdout.write(
        f"{database} is now as {backup} was.{kept} Jobs made since are unknown to it: `nst up` takes up again those "
        "whose pictures lie in work/; results stay in outbox/.\n"
    )
