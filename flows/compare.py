"""What two or more jobs have in common and what not: the settings that differ, what came of each, and whether their
losses measure the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flows.contact_sheet import MAX_COLUMNS, Cell, draw_contact_sheet
from flows.grid_report import caption, loss_document, result_path, thumbnail_for
from flows.terminal import setting_text
from nst_engine.config import TransferConfig
from storage.models import Job, LossPoint

_MEASURE: Final = (
    "content_layers",
    "style_layers",
    "content_weight",
    "style_weight",
    "tv_weight",
    "content_normalization",
    "gram_normalization",
    "tv_form",
    "style_loss",
    "style_weights",
    "equal_layers",
    "balance",
    "feather",
    "pooling",
    "padding",
    "weights",
)
"""Settings that a loss is measured by: under others the same picture has another loss."""


def comparison(jobs: Sequence[Job], losses: Mapping[str, LossPoint]) -> dict[str, Any]:
    """The jobs, ready for JSON: what each is and came to, the settings that differ, and what to keep in mind.

    `losses` are the last of each job, by its id. `differ` has, for each setting that is not the same in all, its
    value in each job; a job that is older than a setting has its default.
    """
    configs = [TransferConfig().model_dump(mode="json") | job.config for job in jobs]
    differ = {key: [config[key] for config in configs] for key in configs[0] if _differ(configs, key)}
    return {
        "jobs": [_job(job, losses.get(job.id)) for job in jobs],
        "differ": differ,
        "remark": _remark(jobs, differ),
    }


def table_rows(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the comparison as a table: a column a job, what differs in its settings last."""
    jobs = document["jobs"]
    columns = ["", *(job["id"] for job in jobs)]
    facts = [[key, *(setting_text(job[key]) for job in jobs)] for key in ("name", "state", "preset")]
    facts += [
        [role, *(", ".join(source["file"] for source in job["sources"] if source["role"] == role) for job in jobs)]
        for role in dict.fromkeys(source["role"] for job in jobs for source in job["sources"])
    ]
    facts.append(["size", *(f"{job['rows']} x {job['columns']}" if job["rows"] else "-" for job in jobs)])
    facts += [[key, *(setting_text(job[key]) for job in jobs)] for key in ("weights_name", "precision", "device")]
    facts.append(["iterations done", *(setting_text(job["iterations"]) for job in jobs)])
    facts += [
        [f"{part} loss", *(f"{job['losses'][part]:.6g}" if job["losses"] else "-" for job in jobs)]
        for part in ("total", "content", "style", "tv")
    ]
    facts.append(["seconds", *(setting_text(job["seconds"]) for job in jobs)])
    settings = [[key, *map(setting_text, values)] for key, values in document["differ"].items()]
    return columns, [*facts, *settings]


def draw_comparison(jobs: Sequence[Job], losses: Mapping[str, LossPoint], path: Path) -> None:
    """Draw the results side by side, at most MAX_COLUMNS; WorkspaceError where the disk refuses."""
    names = [job.name for job in jobs]
    cells = [
        Cell(
            "",
            job.name if names.count(job.name) == 1 else f"{job.name} {job.id}",
            result_path(job),
            job.state.value,
            caption=caption(losses.get(job.id), job.id),
        )
        for job in jobs[:MAX_COLUMNS]
    ]
    title = " and ".join(dict.fromkeys(names)) if len(jobs) <= 2 else f"{len(jobs)} jobs"
    draw_contact_sheet(cells, title=title, path=path, thumbnail=thumbnail_for(jobs))


def _differ(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(config[key] != configs[0][key] for config in configs)


def _job(job: Job, last: LossPoint | None) -> dict[str, Any]:
    result = result_path(job)
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "preset": job.preset,
        "sources": [
            {"role": source.role, "file": Path(source.original_path).name, "sha256": source.sha256}
            for source in job.sources
        ],
        "rows": job.result_rows,
        "columns": job.result_columns,
        "weights_name": job.weights_name,
        "weights_sha256": job.weights_sha256,
        "precision": job.precision,
        "device": job.device,
        "iterations": last.iteration if last else None,
        "losses": loss_document(last),
        "seconds": round(last.seconds, 3) if last else None,
        "result": str(result) if result else None,
    }


def _remark(jobs: Sequence[Job], differ: Mapping[str, Any]) -> str | None:
    reasons = [key for key in _MEASURE if key in differ]
    if len({tuple(source.sha256 for source in job.sources) for job in jobs}) > 1:
        reasons.append("the pictures")
    if len({(job.result_rows, job.result_columns) for job in jobs if job.result_rows}) > 1:
        reasons.append("the size")
    if not reasons:
        return None
    return f"Their losses do not measure the same ({', '.join(reasons)}): compare the pictures."
