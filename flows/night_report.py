"""What is told of a night that ends: its row in the database, the contact sheet of its collection, one sentence, and
two tables in Prefect, one of its jobs and one of what no job could be made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from flows.contact_sheet import Cell, draw_contact_sheet
from flows.dashboard import PATIENCE_SECONDS, Sender, inline
from flows.gallery.links import ServerLinks, in_gallery
from flows.night import Plan
from flows.report import result_name
from nst_engine.errors import EngineError
from storage.errors import StorageError
from storage.jobs import JobStore
from storage.models import Job, JobState, Night
from storage.nights import NightStore
from storage.workspace import Workspace

_ROWS: Final = 500


def finish_night(night: Night, plan: Plan, nights: NightStore, jobs: JobStore, workspace: Workspace) -> Night | None:
    """End a night whose jobs have all ended; None when somebody has cancelled it.

    Neither a contact sheet that cannot be drawn nor Prefect being away keeps a night from ending. Called inside its
    flow; waits PATIENCE_SECONDS for Prefect at most.
    """
    sheet = _contact_sheet(night, plan, nights, workspace) if nights.counts(night.id)[JobState.COMPLETED] else None
    ended = nights.finish(night.id, contact_sheet=str(sheet) if sheet else None)
    _publish_tables(night, nights.jobs(night.id, limit=_ROWS), jobs, plan)
    return ended


def _contact_sheet(night: Night, plan: Plan, nights: NightStore, workspace: Workspace) -> Path | None:
    """The grid of all results of the collection, those of earlier nights included."""
    cells = cells_of(plan, nights)
    path = workspace.outbox_of(night.collection) / f"contact-sheet-{night.id}.jpg"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_contact_sheet(cells, title=f"{night.collection}, {night.started_at.astimezone():%Y-%m-%d}", path=path)
    except (EngineError, StorageError, OSError) as error:
        get_run_logger().warning("There is no contact sheet of night %s: %s", night.id, error)
        return None
    return path


def cells_of(plan: Plan, nights: NightStore) -> list[Cell]:
    """What has become of each pair of the plan's collection, named by the paths in contents/ and styles/."""
    name, folder = plan.collection.name, plan.collection.folder
    results, standings = nights.results(name), nights.standings(name)
    cells = []
    for pair, fingerprint in plan.asked:
        content, style = (Path(*path.relative_to(folder).parts[1:]).as_posix() for path in (pair.content, pair.style))
        result = results.get(fingerprint or "")
        standing = standings.get(fingerprint or "")
        note = standing.state.value if standing else "cannot be made"
        picture = Path(result) / result_name(pair.config.model_dump()) if result else None
        cells.append(Cell(content, style, picture, note))
    return cells


def _publish_tables(night: Night, found: Sequence[Job], jobs: JobStore, plan: Plan) -> None:
    losses = jobs.final_losses([job.id for job in found])
    rows = [
        {
            "name": job.name,
            "state": job.state.value,
            "loss": f"{losses[job.id].total:.4g}" if job.id in losses else "",
            "seconds": f"{losses[job.id].seconds:.1f}" if job.id in losses else "",
            "error": job.error or "",
        }
        for job in found
    ]
    problems = [
        {"file": problem.file, "pairs": problem.pairs, "reason": problem.reason} for problem in plan.problems[:_ROWS]
    ]
    page = in_gallery(ServerLinks(dashboard="").collection(night.collection))
    more = f" [This collection in the gallery]({page})" if page else ""
    name = inline(night.collection)
    if rows:
        which = f"the first {_ROWS} jobs" if len(rows) == _ROWS else "the jobs"
        _publish(f"night-{night.id}", rows, f"{name}: {which} of the night.{more}")
    if problems:
        _publish(f"night-{night.id}-problems", problems, f"{name}: what no job could be made of.{more}")


def _publish(key: str, rows: list[dict[str, Any]], description: str) -> None:
    sender = Sender("what came of the night")

    def call() -> None:
        create_table_artifact(rows, key=key, description=description)

    sender.send(call)
    sender.wait(PATIENCE_SECONDS)
