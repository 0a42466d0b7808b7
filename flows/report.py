"""The report of a job: its record as a document (job.json, --json), its losses as a table (CSV) and its loss
curve as a picture (loss.png: total, content and style over the iterations, as the paper's figure 9)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TextIO

from flows.fingerprint import WITHOUT_EFFECT
from nst_engine.config import RANDOM_WEIGHTS, OutputFormat, TransferConfig
from nst_engine.encode import SUFFIXES
from storage.models import Attempt, Job, LossPoint, Source

RESULTS: Final = frozenset(f"result{suffix}" for suffix in SUFFIXES.values())
"""All names that a result may have."""
LOSS_PLOT: Final = "loss.png"
RECORD: Final = "job.json"
SNAPSHOTS: Final = "snapshots"
TIMELAPSE: Final = "timelapse.webp"
RANDOM_REMARK = (
    "Made with seeded random weights, not with those trained on ImageNet: textures and colours are transferred, "
    "shapes are not understood."
)
_STEP_SIZE: Final = frozenset({"learning_rate", "decay_rate", "decay_steps", "clip"})
_MOMENTS: Final = frozenset({"beta_1", "beta_2", "epsilon"})
_UNUSED: Final[Mapping[str, frozenset[str]]] = {
    "sgd": _MOMENTS | {"history"},
    "adam": frozenset({"history"}),
    "lbfgs": _STEP_SIZE | _MOMENTS,
}


def job_document(job: Job) -> dict[str, Any]:
    """The whole record of a job but its losses, ready for JSON; times in ISO 8601, UTC."""
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "error": job.error,
        "preset": job.preset,
        "config": job.config,
        "snapshot_every": job.snapshot_every,
        "weights": {"name": job.weights_name, "sha256": job.weights_sha256},
        "remark": RANDOM_REMARK if job.weights_name == RANDOM_WEIGHTS else None,
        "precision": job.precision,
        "device": job.device,
        "host": job.host,
        "versions": job.versions,
        "sources": [_source_document(source) for source in job.sources],
        "created_at": _iso(job.created_at),
        "started_at": _iso(job.started_at),
        "finished_at": _iso(job.finished_at),
        "attempts": [_attempt_document(attempt) for attempt in job.attempts],
        "result": {
            "folder": job.result_folder,
            "files": job.result_files,
            "rows": job.result_rows,
            "columns": job.result_columns,
        },
    }


def result_document(job: Job, losses: Sequence[LossPoint]) -> dict[str, Any]:
    """What job.json beside a result says: the record without what is only known after it was written."""
    document = job_document(job)
    for later in ("state", "error", "finished_at", "attempts", "result"):
        del document[later]
    last = losses[-1]
    return document | {
        "iterations": last.iteration,
        "losses": {"total": last.total, "content": last.content, "style": last.style, "tv": last.tv},
        "optimisation_seconds": round(last.seconds, 3),
    }


def used_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a job's config that had a say in its result, as text."""
    unused = {key for key, value in config.items() if value is None} | _UNUSED[config["optimizer"]]
    if config["decay_rate"] == 1:
        unused |= {"decay_rate", "decay_steps"}
    if config.get("scales", 1) == 1:
        unused |= {"scales", "scale_factor", "scale_iterations"}
    if config["init"] != "noise" and not config.get("init_noise"):
        unused.add("seed")
    if config["tv_weight"] == 0:
        unused.add("tv_form")
    defaults = TransferConfig().model_dump()
    unused |= {key for key in WITHOUT_EFFECT if config.get(key, defaults[key]) == defaults[key]}
    if _format(config) in ("jpeg", "webp", "avif"):
        unused.discard("quality")
    return {key: _setting(value) for key, value in config.items() if key not in unused}


def result_name(config: Mapping[str, Any]) -> str:
    """The name of the result of a job of these settings: result.png, result.jpg, ..."""
    return f"result{SUFFIXES[_format(config)]}"


def result_files(job: Job) -> dict[str, str]:
    """The names of a result folder's files by what they are: result, loss_plot, record, sources, timelapse."""
    sources = {Path(source.file_name).stem: source.file_name for source in job.sources}
    timelapse = {} if job.snapshot_every is None else {"timelapse": TIMELAPSE}
    return {"result": result_name(job.config), "loss_plot": LOSS_PLOT, "record": RECORD} | sources | timelapse


def loss_rows(losses: Sequence[LossPoint]) -> list[dict[str, Any]]:
    """The losses as one flat row an iteration; each layer's own loss comes last, as `layer:style/block1_conv1`."""
    return [
        {
            "iteration": point.iteration,
            "total": point.total,
            "content": point.content,
            "style": point.style,
            "tv": point.tv,
            "seconds": point.seconds,
            "learning_rate": point.learning_rate,
            "attempt": point.attempt,
            "scale": point.scale,
            **{f"layer:{layer}": value for layer, value in point.layers.items()},
        }
        for point in losses
    ]


def write_csv(losses: Sequence[LossPoint], stream: TextIO) -> None:
    """The rows of `loss_rows` as CSV with a header; only the header's fixed part when there are none."""
    rows = loss_rows(losses)
    header = list(rows[0]) if rows else ["iteration", "total", "content", "style", "tv", "seconds"]
    writer = csv.DictWriter(stream, fieldnames=header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def scale_ends(losses: Sequence[LossPoint]) -> list[int]:
    """The iterations with which a scale ended and a finer one began; none where there was but one scale."""
    return [point.iteration for point, later in pairwise(losses) if later.scale != point.scale]


def plot_losses(losses: Sequence[LossPoint], path: Path, *, title: str) -> None:
    """Draw the curve on a logarithmic axis into a PNG file of 960 x 600 pixels, with a line where a scale ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    iterations = [point.iteration for point in losses]
    for label, values in (
        ("total", [point.total for point in losses]),
        ("content", [point.content for point in losses]),
        ("style", [point.style for point in losses]),
        ("total variation", [point.tv for point in losses]),
    ):
        # A logarithmic axis has no place for zero: the content's loss where the content is the initial picture.
        shown = [value if value > 0 else float("nan") for value in values]
        if any(value > 0 for value in values):
            axes.plot(iterations, shown, label=label, marker="." if len(losses) < 100 else "")
    for iteration in scale_ends(losses):
        axes.axvline(iteration, color="0.5", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss, weighted")
    # Two dollar signs in a name are no formula.
    axes.set_title(title, parse_math=False)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _format(config: Mapping[str, Any]) -> OutputFormat:
    # Jobs from before there was a choice have none.
    chosen: OutputFormat = config.get("format", "png")
    return chosen


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {weight:g}" for name, weight in value.items())
    return str(value)


def _source_document(source: Source) -> dict[str, Any]:
    return {
        "role": source.role,
        "file": source.file_name,
        "original_path": source.original_path,
        "sha256": source.sha256,
        "bytes": source.bytes,
        "rows": source.rows,
        "columns": source.columns,
    }


def _attempt_document(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "started_at": _iso(attempt.started_at),
        "finished_at": _iso(attempt.finished_at),
        "outcome": attempt.outcome.value if attempt.outcome else None,
        "error": attempt.error,
        "host": attempt.host,
        "pid": attempt.pid,
        "device": attempt.device,
        "flow_run_id": attempt.flow_run_id,
    }


def _iso(time: datetime | None) -> str | None:
    return time.isoformat(timespec="milliseconds") if time else None
