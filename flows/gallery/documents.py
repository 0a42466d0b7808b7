"""What a job's page says in words and numbers, ready for a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from flows.report import used_settings
from flows.roles import role_label
from nst_engine.config import TransferConfig
from nst_engine.scales import iterations_left
from storage.models import Job, JobState, LossPoint, Source

WAITING: Final = frozenset({JobState.CLAIMED, JobState.PENDING, JobState.RUNNING, JobState.CANCELLING})
_FILE_LABELS: Final = {
    "result": "Result",
    "loss_plot": "Loss curve",
    "record": "Record",
    "timelapse": "Timelapse",
}


@dataclass(frozen=True)
class Progress:
    """How far a job at work is; `loss`, `left` and `scale` are None where nothing is known yet or there is but one."""

    iteration: int
    iterations: int
    phase: str
    loss: str | None = None
    left: str | None = None
    scale: str | None = None

    @property
    def percent(self) -> int:
        """0 to 100."""
        return round(100 * self.iteration / max(self.iterations, 1))


def progress_of(job: Job, losses: Sequence[LossPoint]) -> Progress:
    """How far a job is by its losses, the last of which is the newest."""
    iterations = int(job.config.get("iterations") or 0)
    phase = (job.attempts[-1].phase if job.attempts else None) or "starting"
    if not losses:
        return Progress(0, iterations, phase)
    last = losses[-1]
    loss = f"{last.total:.4g}"
    scales = int(job.config.get("scales", 1))
    if scales == 1:
        return Progress(last.iteration, iterations, phase, loss, _left(losses, iterations - last.iteration))
    config = TransferConfig.model_validate(job.config)
    left = _left(losses, iterations_left(config, iteration=last.iteration, scale=last.scale))
    return Progress(last.iteration, iterations, phase, loss, left, f"scale {last.scale} of {scales}")


def _left(losses: Sequence[LossPoint], iterations: float) -> str | None:
    """How long so many more iterations of the last scale take at its pace; None before there is one."""
    last = losses[-1]
    before = next((point for point in reversed(losses) if point.scale != last.scale), None)
    iteration, seconds = (before.iteration, before.seconds) if before else (0, 0.0)
    if last.iteration == iteration or last.seconds == seconds:
        return None
    pace = (last.seconds - seconds) / (last.iteration - iteration)
    return duration(iterations * pace)


def facts(job: Job, losses: Sequence[LossPoint]) -> list[tuple[str, str]]:
    """The short record beside the picture."""
    size = f"{job.result_columns} × {job.result_rows} pixels" if job.result_columns and job.result_rows else None
    found = {
        "Size": size,
        "Iterations": f"{losses[-1].iteration:,}" if losses else None,
        "Loss": _fall(losses) if losses else None,
        "Optimising": duration(losses[-1].seconds) if losses else None,
        "Snapshots": f"every {job.snapshot_every} iterations" if job.snapshot_every else None,
        "Weights": job.weights_name,
        "Device": ", ".join(part for part in (job.device, job.precision) if part),
        "Machine": job.host,
        "Priority": str(job.priority) if job.priority else None,
    }
    return [(label, value) for label, value in found.items() if value]


def _fall(losses: Sequence[LossPoint]) -> str:
    """The first and the last loss of the finest scale: those of a coarser one are no measure for it."""
    last = losses[-1]
    first = next(point for point in losses if point.scale == last.scale)
    return f"{first.total:.4g} → {last.total:.4g}"


def settings_of(job: Job) -> Mapping[str, str]:
    """The settings that had a say; none for a job that was refused before it had any."""
    return used_settings(job.config) if "optimizer" in job.config else {}


def source_label(job: Job, source: Source) -> str:
    """The role of a source in words, with its number where there are several styles."""
    return role_label(job, source).capitalize()


def source_role(source: Source) -> str:
    """The role under which a source's file is asked for."""
    return Path(source.file_name).stem


def file_label(role: str) -> str:
    """What a download is called."""
    return _FILE_LABELS.get(role, role.replace("_", " ").capitalize())


def file_size(size: int) -> str:
    """Bytes as people say them."""
    if size < 1_000_000:
        return f"{max(1, round(size / 1000))} kB"
    return f"{size / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def local_time(moment: datetime) -> str:
    """A time on this machine's clock, to the minute."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
