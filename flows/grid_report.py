"""What is told of a grid of jobs: its record (KIND.json), which says at every moment how far it is, its sheet of
results (sheet.png), and its rows for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flows.contact_sheet import Cell, draw_contact_sheet
from storage.disk import write_bytes
from storage.errors import WorkspaceError
from storage.models import Job, LossPoint

SHEET: Final = "sheet.png"
_LEAST_THUMBNAIL: Final = 160
_MOST_THUMBNAIL: Final = 320


@dataclass(frozen=True)
class Variant:
    """One job of a grid: where its result stands on the sheet, what names it beside the others, and what it sets.

    `remark` stands under its picture.
    """

    row: str
    column: str
    name: str
    overrides: Mapping[str, Any]
    remark: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a variant so far: its completed job with its last losses, or why there is none."""

    variant: Variant
    name: str
    fingerprint: str
    job: Job | None = None
    losses: LossPoint | None = None
    error: str | None = None

    @property
    def state(self) -> str:
        """completed, failed or, while its turn has not come, pending."""
        if self.job is not None:
            return "completed"
        return "failed" if self.error else "pending"

    def document(self) -> dict[str, Any]:
        """The outcome for JSON."""
        return {
            "row": self.variant.row,
            "column": self.variant.column,
            "settings": dict(self.variant.overrides),
            "name": self.name,
            "fingerprint": self.fingerprint,
            "state": self.state,
            "error": self.error,
            "job": self.job.id if self.job else None,
            "result": str(result_path(self.job)) if self.job else None,
            "iterations": self.losses.iteration if self.losses else None,
            "losses": loss_document(self.losses),
            "seconds": round(self.losses.seconds, 3) if self.losses else None,
        }


@dataclass(frozen=True)
class GridReport:
    """A grid in its folder: which jobs of which pictures, and what has become of each, in their order."""

    folder: Path
    kind: str
    title: str
    preset: str
    pictures: Sequence[str]
    outcomes: list[Outcome]

    @property
    def failed(self) -> int:
        """How many jobs have failed."""
        return sum(outcome.state == "failed" for outcome in self.outcomes)

    @property
    def sheet(self) -> Path:
        """The picture of all results."""
        return self.folder / SHEET

    def document(self) -> dict[str, Any]:
        """The record, ready for JSON; the first of the pictures is the content."""
        return {
            "title": self.title,
            "folder": str(self.folder),
            "sheet": SHEET,
            "preset": self.preset,
            "pictures": list(self.pictures),
            "jobs": [outcome.document() for outcome in self.outcomes],
        }

    def write(self) -> None:
        """Write the record whole into the folder; WorkspaceError where the disk refuses."""
        path = record_path(self.folder, self.kind)
        text = json.dumps(self.document(), indent=2, ensure_ascii=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, f"{text}\n".encode(errors="replace"))
        except OSError as error:
            raise WorkspaceError(
                f"The record {path} cannot be written ({error.strerror or error}); check that folder."
            ) from error

    def draw(self) -> None:
        """Draw the sheet; WorkspaceError where the disk refuses."""
        cells = [
            Cell(
                outcome.variant.row,
                outcome.variant.column,
                result_path(outcome.job) if outcome.job else None,
                f"failed: {outcome.error}" if outcome.error else outcome.state,
                caption=caption(outcome.losses, outcome.variant.remark),
            )
            for outcome in self.outcomes
        ]
        jobs = [outcome.job for outcome in self.outcomes if outcome.job]
        # A result looks otherwise with every other network.
        weights = ", ".join(sorted({job.weights_name for job in jobs if job.weights_name}))
        title = f"{self.title} (weights {weights})" if weights else self.title
        draw_contact_sheet(cells, title=title, path=self.sheet, thumbnail=thumbnail_for(jobs), axes=("rows", "columns"))

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The columns and rows of a table of all jobs."""
        rows = [
            [
                ", ".join(filter(None, (outcome.variant.row, outcome.variant.column))),
                outcome.job.id if outcome.job else "-",
                f"{outcome.losses.total:.6g}" if outcome.losses else "-",
                f"{outcome.losses.seconds:.1f}" if outcome.losses else "-",
                str(result_path(outcome.job)) if outcome.job else f"{outcome.state}: {outcome.error or ''}",
            ]
            for outcome in self.outcomes
        ]
        return ["settings", "job", "loss", "seconds", "result"], rows


def record_path(folder: Path, kind: str) -> Path:
    """The record of a grid of that kind."""
    return folder / f"{kind}.json"


def result_path(job: Job) -> Path | None:
    """The picture of a completed job; None for a job without one."""
    if job.result_folder is None or not job.result_files:
        return None
    return Path(job.result_folder) / job.result_files["result"]


def loss_document(losses: LossPoint | None) -> dict[str, float] | None:
    """The parts of a loss for JSON."""
    if losses is None:
        return None
    return {"total": losses.total, "content": losses.content, "style": losses.style, "tv": losses.tv}


def caption(losses: LossPoint | None, *further: str) -> tuple[str, ...]:
    """What stands under a result: further lines, then its loss and seconds and the parts of the loss."""
    lines = [line for line in further if line]
    if losses is not None:
        lines.append(f"loss {losses.total:.4g}, {losses.seconds:.1f} s")
        # What is the whole loss needs no line of its own.
        if losses.total not in (losses.content, losses.style):
            variation = f", tv {losses.tv:.3g}" if losses.tv else ""
            lines += [f"content {losses.content:.3g}", f"style {losses.style:.3g}{variation}"]
    return tuple(lines)


def thumbnail_for(jobs: Sequence[Job]) -> int:
    """The side at which results are shown: their own, within what makes a sheet that can be looked at."""
    sides = [max(job.result_rows or 0, job.result_columns or 0) for job in jobs]
    return min(_MOST_THUMBNAIL, max([_LEAST_THUMBNAIL, *sides]))
