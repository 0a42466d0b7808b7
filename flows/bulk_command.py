"""The command `nst bulk`: how a collection stands, what its next night would do, starting one now, and cancelling the
one that runs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import Home, Json, print_json, settings_of

if TYPE_CHECKING:
    from flows.night import Plan
    from flows.settings import Settings
    from storage.models import Night
    from storage.nights import NightStore

Name = Annotated[str, typer.Argument(metavar="NAME", help="A collection: the name of its folder in collections/.")]
Now = Annotated[bool, typer.Option("--now", help="Let the service run a night of it now.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what a night would run, and what it cannot.")]
Cancel = Annotated[bool, typer.Option("--cancel", help="Cancel its night that is running.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(bulk)


def bulk(
    name: Name,
    now: Now = False,
    dry_run: DryRun = False,
    cancel: Cancel = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show how a collection stands; run it now, list what that would do, or cancel it."""
    from flows.errors import SettingsError
    from storage.database import open_database
    from storage.nights import NightStore

    if now + dry_run + cancel > 1:
        raise SettingsError("Give one of --now, --dry-run and --cancel.")
    settings = settings_of(home)
    if not cancel:
        _require(settings, name)
    if not settings.has_database:
        # Looking makes no database.
        _look_or_act(settings, name, None, now=now, dry_run=dry_run, cancel=cancel, as_json=as_json)
        return
    with open_database(settings.database) as database:
        _look_or_act(settings, name, NightStore(database), now=now, dry_run=dry_run, cancel=cancel, as_json=as_json)


def _look_or_act(
    settings: Settings,
    name: str,
    nights: NightStore | None,
    *,
    now: bool,
    dry_run: bool,
    cancel: bool,
    as_json: bool,
) -> None:
    from storage.models import NightState

    last = nights.last(name) if nights else None
    running = last if last is not None and last.state is NightState.RUNNING else None
    if cancel:
        _cancel(settings, name, running, nights, as_json=as_json)
    elif now:
        _start(settings, name, running, as_json=as_json)
    else:
        _show(settings, name, last, nights, dry_run=dry_run, as_json=as_json)


def _require(settings: Settings, name: str) -> None:
    from flows.collection import collection_names
    from flows.errors import CollectionError
    from nst_engine.config import did_you_mean
    from storage.workspace import Workspace

    folder = Workspace(settings.home).collections
    names = collection_names(folder)
    if name not in names:
        raise CollectionError(f"{folder / name}: there is no such collection{did_you_mean(name, names)}")


def _cancel(settings: Settings, name: str, running: Night | None, nights: NightStore | None, *, as_json: bool) -> None:
    from flows.errors import NightStateError
    from flows.night import sentence_on

    # Its folder may have been renamed or removed since the night began.
    ended = nights.cancel(running.id) if nights and running else None
    if ended is None:
        _require(settings, name)
        raise NightStateError(f"{name}: no night of it is running; `nst bulk {name}` shows how it stands.")
    if as_json:
        print_json({"night": ended.id, "cancelled": ended.cancelled})
    else:
        sys.stdout.write(f"{sentence_on(ended)} Jobs that run stop within seconds.\n")


def _start(settings: Settings, name: str, running: Night | None, *, as_json: bool) -> None:
    from flows.collection import read_collection
    from flows.errors import NightStateError
    from flows.prefect_server import service_api, use_service_api
    from storage.workspace import Workspace

    if running is not None:
        raise NightStateError(
            f"{name}: its night {running.id} is running already; `nst bulk {name}` shows how far it is."
        )
    read_collection(Workspace(settings.home).collections / name, preset=settings.preset)
    use_service_api(settings)
    from flows.runs import Runs

    run_id = Runs(settings.home).submit_night(name)
    page = f"{service_api(settings).removesuffix('/api')}/runs/flow-run/{run_id}"
    if as_json:
        print_json({"collection": name, "flow_run_id": run_id, "dashboard": page})
    else:
        sys.stdout.write(f"A night of {name} begins. Follow it with `nst bulk {name}` or at {page}\n")


def _show(
    settings: Settings, name: str, last: Night | None, nights: NightStore | None, *, dry_run: bool, as_json: bool
) -> None:
    from flows.collection import read_collection
    from flows.collection_commands import next_night
    from flows.decoding import GuardedDecoder
    from flows.night import look
    from flows.terminal import out, print_mapping, table
    from storage.workspace import Workspace

    collection = read_collection(Workspace(settings.home).collections / name, preset=settings.preset)
    with GuardedDecoder(max_pixels=settings.max_pixels) as decoder:
        plan = look(collection, nights.standings(name) if nights else {}, check=decoder.check)
    would_run = [pair.name for pair in (*plan.again.values(), *(pair for pair, _ in plan.new))]
    document: dict[str, Any] = {
        "name": name,
        "folder": str(collection.folder),
        "pairs": plan.pairs,
        "done": plan.done_before,
        "to_do": plan.to_do,
        "problems": [asdict(problem) for problem in plan.problems],
        "night": _night(last, nights),
        "next_night": next_night(settings),
    }
    if as_json:
        print_json(document | ({"would_run": would_run} if dry_run else {}))
        return
    if dry_run:
        for pair in would_run:
            out.print(pair, markup=False)
    else:
        print_mapping(_lines(plan, document))
    if plan.problems:
        rows = [[problem.file, str(problem.pairs), problem.reason] for problem in plan.problems]
        out.print()
        out.print(table(None, ["problem", "pairs", "what is wrong"], rows))
    if dry_run:
        out.print(f"\nA night would run {plan.to_do} of {plan.pairs} pairs; {plan.done_before} are done.", markup=False)


def _lines(plan: Plan, document: dict[str, Any]) -> dict[str, object]:
    night = document["night"]
    return {
        "collection": plan.collection.folder,
        "pairs": f"{plan.pairs}: {plan.done_before} done, {plan.to_do} to do",
        "last night": night["sentence"] if night else "-",
        "next night": document["next_night"] or "not planned; nst schedule tells why",
    }


def _night(night: Night | None, nights: NightStore | None) -> dict[str, Any] | None:
    from flows.night import sentence_on
    from flows.terminal import local_time
    from storage.models import JobState, NightState

    if night is None or nights is None:
        return None
    counts = nights.counts(night.id)
    if night.state is NightState.RUNNING:
        ended = sum(counts[state] for state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED))
        sentence = f"runs since {local_time(night.started_at)}: {ended} of {sum(counts.values())} jobs have ended"
    else:
        sentence = f"{night.state.value} {local_time(night.finished_at)}; {sentence_on(night)}"
    return {
        "id": night.id,
        "state": night.state.value,
        "started_at": local_time(night.started_at),
        "finished_at": local_time(night.finished_at) if night.finished_at else None,
        "jobs": {state.value: count for state, count in counts.items() if count},
        "contact_sheet": night.contact_sheet,
        "sentence": sentence,
    }
