"""What the command shows on a terminal: tables, a job's page with its loss curve, and the progress bar."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from flows.plain_text import printable
from flows.progress import Progress as JobProgress
from flows.progress import watched_by
from storage.models import Job, LossPoint

if TYPE_CHECKING:
    from nst_engine.presets import Preset

# A file or a pipe has no width of its own; tables there must not be folded to 80 columns.
_PIPE_WIDTH: Final = 240

out: Final = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err: Final = Console(stderr=True, highlight=False, soft_wrap=True)

_CURVE_COLUMNS: Final = 60
_CURVE_ROWS: Final = 10


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; its cells are text, never markup."""
    made = Table(title=title, box=None, pad_edge=False, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    return made


def print_mapping(values: Mapping[str, object]) -> None:
    """One line a value, names in a column of their own."""
    width = max(map(len, values))
    for name, value in values.items():
        out.print(f"{escape(name):<{width}}  {escape(str(value))}")


def print_presets(presets: Collection[Preset]) -> None:
    """Three lines a preset: what it does, with which layers, after whom."""
    width = max(len(preset.name) for preset in presets)
    for preset in presets:
        config = preset.config
        size = f"{config.rows} rows" if config.rows else f"longer side {config.long_edge}"
        layers = f"content {', '.join(config.content_layers)}; style {', '.join(config.style_layers)}"
        out.print(f"{preset.name:<{width}}  {config.optimizer}, {config.iterations} iterations, {size}", markup=False)
        for line in (layers, preset.source):
            indent = " " * (width + 2)
            out.print(fill(line, out.width, initial_indent=indent, subsequent_indent=indent), markup=False)


def print_job(job: Job, losses: Sequence[LossPoint], document: Mapping[str, Any]) -> None:
    """All that is known of a job: its record, settings, sources, attempts and loss curve."""
    result = document["result"]
    print_mapping(
        {
            "job": f"{job.id}  {job.name}",
            "state": job.state.value if job.error is None else f"{job.state.value}: {job.error}",
            "preset": job.preset,
            "weights": f"{job.weights_name} (SHA-256 {job.weights_sha256})" if job.weights_name else "-",
            **({"remark": document["remark"]} if document["remark"] else {}),
            "device": f"{job.device}, {job.precision}" if job.device else "-",
            "host": job.host or "-",
            "versions": ", ".join(f"{name} {number}" for name, number in (job.versions or {}).items()) or "-",
            "created": local_time(job.created_at),
            "started": local_time(job.started_at),
            "finished": local_time(job.finished_at),
            "result": f"{result['folder']} ({result['rows']} x {result['columns']})" if result["rows"] else "-",
            **({"pictures": result["folder"]} if result["folder"] and not result["rows"] else {}),
        }
    )
    out.print()
    sources = [
        [source.role, printable(source.original_path), f"{source.rows} x {source.columns}", source.sha256]
        for source in job.sources
    ]
    out.print(table(None, ["source", "path", "size", "SHA-256"], sources))
    out.print()
    attempts = [
        [
            str(attempt.number),
            local_time(attempt.started_at),
            local_time(attempt.finished_at),
            attempt.outcome.value if attempt.outcome else "running",
            f"{attempt.host}, process {attempt.pid}",
            attempt.error or "",
        ]
        for attempt in job.attempts
    ]
    out.print(table(None, ["attempt", "started", "finished", "outcome", "where", "error"], attempts))
    out.print()
    print_mapping({key: setting_text(value) for key, value in job.config.items()})
    if losses:
        last = losses[-1]
        out.print(
            f"\nloss after {last.iteration} iterations and {last.seconds:.1f} s: total {last.total:.6g}, "
            f"content {last.content:.6g}, style {last.style:.6g}, tv {last.tv:.6g}\n"
        )
        out.print(loss_curve([point.total for point in losses]), markup=False)


def loss_curve(totals: Sequence[float]) -> str:
    """The total loss over the iterations as text, on a logarithmic axis, 0 at the left."""
    logs = [math.log10(total) if total > 0 else -math.inf for total in totals]
    finite = [value for value in logs if math.isfinite(value)]
    if not finite:
        return "the loss is zero throughout"
    low, high = min(finite), max(finite)
    columns = min(_CURVE_COLUMNS, len(logs))
    grid = [[" "] * columns for _ in range(_CURVE_ROWS)]
    for column in range(columns):
        value = logs[round(column * (len(logs) - 1) / max(columns - 1, 1))]
        height = (value - low) / (high - low) if high > low and math.isfinite(value) else 0.0
        grid[_CURVE_ROWS - 1 - round(height * (_CURVE_ROWS - 1))][column] = "•"
    labels = {0: f"{10**high:.4g}", _CURVE_ROWS - 1: f"{10**low:.4g}"}
    width = max(map(len, labels.values()))
    lines = [f"{labels.get(row, ''):>{width}} ┤{''.join(cells)}".rstrip() for row, cells in enumerate(grid)]
    last = str(len(totals) - 1)
    axis = f"{'':>{width}} └{'─' * columns}"
    return "\n".join([*lines, axis, f"{'':>{width}}  0{last:>{max(columns - 1, 1)}}"])


def local_time(time: datetime | None) -> str:
    """A time on this machine's clock, to the second."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else "-"


@contextmanager
def progress_bar(name: str) -> Iterator[None]:
    """Show the progress of the job that runs inside: iteration, loss, seconds an iteration, time left."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=err,
    )
    with bar:
        shown = bar.add_task(name, total=None, detail="starting")

        def watch(now: JobProgress) -> None:
            scale = f"scale {now.scale} of {now.config.scales}  " if now.config.scales > 1 else ""
            detail = f"{scale}loss {now.loss:.5g}"
            if now.seconds_an_iteration is not None and now.seconds_left is not None:
                detail += f"  {now.seconds_an_iteration:.2f} s/iteration  {_clock(now.seconds_left)} left"
            bar.update(shown, completed=now.iteration, total=now.config.iterations, detail=detail)

        with watched_by(watch):
            yield


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def setting_text(value: object) -> str:
    """A setting's value as it would be given, a dash for none."""
    if isinstance(value, dict):
        return ", ".join(f"{name}:{weight:g}" for name, weight in value.items())
    return "-" if value is None else str(value)
