"""The commands of `nst` about collections: how each stands, and when their next night begins."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.options import Home, Json, print_json, settings_of

if TYPE_CHECKING:
    from flows.schedule import Schedule
    from flows.settings import Settings
    from storage.models import Night
    from storage.nights import NightStore

Pause = Annotated[
    bool | None, typer.Option("--pause/--resume", help="Pause the schedule, or resume it.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (collections, schedule):
        app.command()(command)


def collections(home: Home = None, as_json: Json = False) -> None:
    """List the collections: their pairs, how many are done, and the last and the next night."""
    from flows.collection import collection_names, misnamed_collections
    from flows.terminal import out, table
    from storage.database import open_database
    from storage.nights import NightStore
    from storage.workspace import Workspace

    settings = settings_of(home)
    workspace = Workspace(settings.home)
    names = collection_names(workspace.collections)
    if settings.has_database:
        with open_database(settings.database) as database:
            found = [_standing(workspace.collections / name, settings, NightStore(database)) for name in names]
    else:
        found = [_standing(workspace.collections / name, settings, None) for name in names]
    upcoming = next_night(settings) if names else None
    if as_json:
        print_json([{**collection, "next_night": upcoming} for collection in found])
        return
    misnamed = misnamed_collections(workspace.collections)
    if not names and not misnamed:
        out.print(
            f"There are no collections in {workspace.collections}; make a folder there with contents/ and styles/.",
            markup=False,
        )
        return
    columns = ["collection", "contents", "styles", "pairs", "done", "failed", "last night"]
    out.print(table(None, columns, [_row(collection) for collection in found]))
    for collection in found:
        for sentence in filter(None, [collection["error"], *collection["problems"]]):
            out.print(f"{collection['name']}: {sentence}", markup=False)
    for sentence in misnamed:
        out.print(sentence, markup=False)
    out.print(f"\nnext night  {upcoming or 'not planned; nst schedule tells why'}", markup=False)


def schedule(pause: Pause = None, home: Home = None, as_json: Json = False) -> None:
    """Show when the collections' next nights begin; pause or resume that."""
    from flows.collection import collection_names
    from flows.prefect_server import use_service_api
    from flows.settings import OFF
    from flows.terminal import out, print_mapping
    from storage.workspace import Workspace

    settings = settings_of(home)
    use_service_api(settings)
    from flows.schedule import read_schedule, set_active

    found = read_schedule() if pause is None else set_active(not pause)
    folder = Workspace(settings.home).collections
    names = collection_names(folder)
    if as_json:
        print_json({"schedule": None if found is None else _document(found), "collections": names})
    elif found is not None:
        print_mapping(
            {
                "nights": f"{found.cron}  ({found.time_zone})",
                "state": "active" if found.active else "paused; nst schedule --resume goes on",
                "next": ", ".join(_times(found)) or "-",
                "collections": ", ".join(names) or f"none in {folder}, so nothing will be done",
            }
        )
    elif settings.nightly == OFF:
        out.print("No nights are planned: the setting nightly is off.")
    elif names:
        out.print("The schedule is about to be made; ask again in a few seconds.")
    else:
        out.print(f"No nights are planned: there is no collection in {folder}.", markup=False)


def _standing(folder: Path, settings: Settings, nights: NightStore | None) -> dict[str, Any]:
    from flows.collection import read_collection
    from flows.errors import CollectionError
    from storage.models import JobState

    states = Counter(standing.state for standing in nights.standings(folder.name).values()) if nights else Counter()
    found: dict[str, Any] = {
        "name": folder.name,
        "contents": None,
        "styles": None,
        "pairs": None,
        "done": states[JobState.COMPLETED],
        "failed": states[JobState.FAILED],
        "last_night": _night(nights.last(folder.name) if nights else None),
        "problems": [],
        "error": None,
    }
    try:
        collection = read_collection(folder, preset=settings.preset)
    except CollectionError as error:
        return found | {"error": str(error)}
    return found | {
        "contents": len({pair.content for pair in collection.pairs}),
        "styles": len({pair.style for pair in collection.pairs}),
        "pairs": len(collection.pairs),
        "problems": [f"{problem.file}: {problem.reason}" for problem in collection.problems],
    }


def _night(night: Night | None) -> dict[str, Any] | None:
    from flows.terminal import local_time

    if night is None:
        return None
    return {
        "id": night.id,
        "state": night.state.value,
        "started_at": local_time(night.started_at),
        "finished_at": local_time(night.finished_at) if night.finished_at else None,
        "completed": night.completed,
        "failed": night.failed,
    }


def _row(collection: dict[str, Any]) -> list[str]:
    night = collection["last_night"]
    counts = [collection[key] for key in ("contents", "styles", "pairs", "done", "failed")]
    if night is None:
        last = "-"
    elif night["finished_at"] is None:
        last = f"{night['state']} since {night['started_at']}"
    else:
        last = f"{night['state']} {night['finished_at']}: {night['completed']} completed, {night['failed']} failed"
    return [collection["name"], *("-" if count is None else str(count) for count in counts), last]


def next_night(settings: Settings) -> str | None:
    """When the next night begins; None when none is planned or no service runs."""
    from flows.errors import OrchestrationError
    from flows.prefect_server import use_service_api

    try:
        use_service_api(settings)
        from flows.schedule import read_schedule

        found = read_schedule()
    except OrchestrationError:
        # The rest of the list needs no service.
        return None
    return next(iter(_times(found)), None) if found else None


def _document(schedule: Schedule) -> dict[str, Any]:
    return {
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "active": schedule.active,
        "next": _times(schedule),
    }


def _times(schedule: Schedule) -> list[str]:
    return [time.strftime("%Y-%m-%d %H:%M") for time in schedule.upcoming]
