"""What a run shows in Prefect: the progress of its optimisation, and one page a job with its pictures, loss
curve, settings and losses. Prefect may be away at any time; that costs a warning and a few seconds, never a job."""

from __future__ import annotations

import base64
import contextvars
import html
import io
import re
import string
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, cast
from uuid import UUID

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from flows.gallery.links import ServerLinks, in_gallery
from flows.progress import Progress
from flows.report import LOSS_PLOT, RANDOM_REMARK, result_name, used_settings
from flows.roles import role_label
from flows.runs import prefect_client
from nst_engine.config import RANDOM_WEIGHTS
from nst_engine.errors import ImageError
from nst_engine.images import decode
from storage.models import Job, LossPoint

UPDATE_SECONDS: Final = 3.0
PATIENCE_SECONDS: Final = 10.0
REPORT_BYTES: Final = 100_000


class _Scale(NamedTuple):
    """The longer side of a thumbnail in pixels, its JPEG quality, and the columns of the loss curve."""

    side: int
    quality: int
    columns: int


# The report takes the first with which it keeps to REPORT_BYTES.
_SCALES: Final = tuple(
    _Scale(*scale)
    for scale in ((320, 82, 640), (256, 75, 640), (200, 65, 560), (144, 55, 480), (96, 45, 400), (64, 35, 400))
)
_PLOT_COLOURS: Final = 64
_PICTURES_A_ROW: Final = 3
_SOURCES_SHOWN: Final = 8
_ATTEMPTS_SHOWN: Final = 5
_LOSS_ROWS: Final = 10
_TEXT_LENGTH: Final = 500
# What a card in the dashboard has room for.
_NAME_LENGTH: Final = 40


class Sender:
    """Calls Prefect one call after another in a thread of its own; of the calls that wait, only the newest is made.

    Prefect's client retries for minutes where the API is away, and longer where a proxy tells it to; nobody
    waits for it longer than he wants. The first failure is logged as a warning. Made inside a flow or a task.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._logger = get_run_logger()
        self._warned = False
        self._changed = threading.Condition()
        self._waiting: Callable[[], None] | None = None
        self._busy = False

    def send(self, call: Callable[[], None]) -> None:
        """Make this call when the one before has ended; returns at once."""
        with self._changed:
            self._waiting = call
            if self._busy:
                return
            self._busy = True
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._work,), name="dashboard", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait until all calls have ended, at most so long."""
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._busy, seconds)
        if not ended:
            self._warn(f"no answer in {seconds:g} s")

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - no fault of Prefect, its client or a proxy may fail the job
                self._warn(" ".join(str(error).split()) or repr(error))

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            call, self._waiting = self._waiting, None
            if call is None:
                self._busy = False
                self._changed.notify_all()
            return call

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._logger.warning("Prefect could not be told %s (%s); the job goes on.", self._what, reason)


class ProgressArtifact:
    """How far an optimisation is, as a bar in its task run. Begun, moved and finished inside a task."""

    def __init__(self, job_name: str, *, clock: Callable[[], float]) -> None:
        self._name = job_name
        self._clock = clock
        self._sender = Sender("the progress")
        self._id: UUID | None = None
        self._progress: Progress | None = None
        self._sent = clock()

    @classmethod
    def begin(cls, job_name: str, *, clock: Callable[[], float] = time.monotonic) -> Self:
        """Show a job at 0 %. `clock` counts seconds."""
        artifact = cls(job_name, clock=clock)
        artifact._send(0.0, f"{inline(job_name)}: starting")
        return artifact

    def move(self, progress: Progress) -> None:
        """Show how far the job is; at most one update every UPDATE_SECONDS, and none is waited for."""
        self._progress = progress
        now = self._clock()
        if now - self._sent >= UPDATE_SECONDS:
            self._sent = now
            self._send(100 * progress.iteration / progress.config.iterations, _moving(self._name, progress))

    def finish(self) -> None:
        """Show the optimisation as done, at 100 %, also where it converged early; waits PATIENCE_SECONDS at most."""
        self._send(100.0, _finished(self._name, self._progress))
        self._sender.wait(PATIENCE_SECONDS)

    def _send(self, percent: float, description: str) -> None:
        def call() -> None:
            if self._id is None:
                self._id = cast("UUID", create_progress_artifact(percent, description=description))
            else:
                update_progress_artifact(self._id, percent, description=description)

        self._sender.send(call)


def publish_report(job: Job, losses: Sequence[LossPoint], *, folder: Path) -> None:
    """Show a job's pictures, loss curve, record and losses (at least one) on the page `job-<id>`.

    `folder` holds the result, the loss curve and the sources. The page stays under REPORT_BYTES. Called inside
    a flow or a task; waits PATIENCE_SECONDS at most.
    """
    try:
        pictures = _pictures(job, folder)
        plot = _picture(folder / LOSS_PLOT, side=_SCALES[0].columns)
    except ImageError as error:
        get_run_logger().warning("Prefect does not show the report of job %s: %s", job.id, error)
        return
    parts = [_record(job, losses), _settings(job), _attempts(job), _losses(losses)]
    for scale in _SCALES:
        page = _page(job, [_thumbnails(pictures, scale), _curve(plot, scale), *parts])
        if len(page.encode()) <= REPORT_BYTES:
            break
    last = losses[-1]
    _publish(job, page, f"{inline(job.name)}: {last.iteration} iterations, loss {last.total:.4g}")


def failure_report(job: Job, sentence: str) -> None:
    """Show why a job failed, its settings and its attempts on the page `job-<id>`.

    Called inside a flow or a task; waits PATIENCE_SECONDS at most.
    """
    reason = f"<p><strong>{_text(sentence)}</strong></p>"
    page = _page(job, [reason, _settings(job), _attempts(job)])
    _publish(job, page, f"{inline(job.name)}: failed")


def publish_inbox(reasons: Sequence[str]) -> None:
    """Show what waits in the inbox, and for what, on the page `inbox`; OrchestrationError when Prefect is away."""
    lines = "".join(f"<li>{_text(reason)}</li>" for reason in reasons)
    page = f"<ul>{lines}</ul>" if reasons else "Nothing waits."
    with prefect_client():
        create_markdown_artifact(page, key="inbox", description=f"{len(reasons)} files wait in the inbox")


def _publish(job: Job, page: str, description: str) -> None:
    sender = Sender("the report")
    sender.send(
        lambda: cast("None", create_markdown_artifact(page, key=f"job-{job.id.lower()}", description=description))
    )
    sender.wait(PATIENCE_SECONDS)


def _moving(name: str, now: Progress) -> str:
    pace = ""
    if now.seconds_an_iteration is not None and now.seconds_left is not None:
        pace = f", {now.seconds_an_iteration:.3g} s an iteration, {_duration(now.seconds_left)} left"
    return f"{inline(name)}: {now.position}, loss {now.loss:.4g}{pace}"


def _finished(name: str, last: Progress | None) -> str:
    if last is None:
        return f"{inline(name)}: done"
    return f"{inline(name)}: done after {last.iteration} of {last.config.iterations} iterations, loss {last.loss:.4g}"


def _page(job: Job, parts: Sequence[str]) -> str:
    # One HTML block, without a blank line that would end it: inside one nothing is read as Markdown.
    return "\n".join([f"<h2>{_text(job.name)}</h2>", *(part for part in (_gallery(job), *parts) if part)])


def _gallery(job: Job) -> str:
    address = in_gallery(ServerLinks(dashboard="").job(job.id))
    return f'<p><a href="{html.escape(address)}">This job in the gallery</a></p>' if address else ""


def _pictures(job: Job, folder: Path) -> list[tuple[str, Image.Image]]:
    """The result and its sources with their captions, at the largest size that is shown."""
    sources = [(role_label(job, source), source.file_name) for source in job.sources[:_SOURCES_SHOWN]]
    files = [("result", result_name(job.config)), *sources]
    return [(caption, _picture(folder / name, side=_SCALES[0].side)) for caption, name in files]


def _picture(path: Path, *, side: int) -> Image.Image:
    # The sources were checked against the size limit when the job was made of them.
    return _shrunk(Image.fromarray(decode(path, max_pixels=sys.maxsize)), side)


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((side, side))
    return small


def _thumbnails(pictures: Sequence[tuple[str, Image.Image]], scale: _Scale) -> str:
    cells = [
        f"<td>{_image(_shrunk(picture, scale.side), 'JPEG', caption, quality=scale.quality)}<br>{caption}</td>"
        for caption, picture in pictures
    ]
    starts = range(0, len(cells), _PICTURES_A_ROW)
    rows = "".join(f"<tr>{''.join(cells[start : start + _PICTURES_A_ROW])}</tr>" for start in starts)
    return f"<table>{rows}</table>"


def _curve(plot: Image.Image, scale: _Scale) -> str:
    # Median cut, the default, gives two lines one colour.
    palette = _shrunk(plot, scale.columns).quantize(_PLOT_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    return _image(palette, "PNG", "loss curve")


def _image(image: Image.Image, kind: str, caption: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{caption}" src="data:image/{kind.lower()};base64,{data}">'


def _record(job: Job, losses: Sequence[LossPoint]) -> str:
    facts = {
        "result": job.result_folder,
        "preset": job.preset,
        "weights": job.weights_name,
        "device": job.device,
        "precision": job.precision,
        "host": job.host,
        "created": _time(job.created_at),
        "started": _time(job.started_at),
        "finished": _time(job.finished_at),
        "optimising": f"{losses[-1].seconds:.1f} s",
        "attempts": str(len(job.attempts)),
    }
    facts |= {role_label(job, source): source.original_path for source in job.sources[:_SOURCES_SHOWN]}
    remark = f"<p>{RANDOM_REMARK}</p>\n" if job.weights_name == RANDOM_WEIGHTS else ""
    return f"{remark}<h3>Job {job.id}</h3>\n{_mapping(facts)}"


def _settings(job: Job) -> str:
    return f"<h3>Settings</h3>\n{_mapping(used_settings(job.config))}"


def _attempts(job: Job) -> str:
    if len(job.attempts) < 2 and not any(attempt.error for attempt in job.attempts):
        return ""
    rows = [
        [
            str(attempt.number),
            _time(attempt.started_at),
            _time(attempt.finished_at),
            attempt.outcome.value if attempt.outcome else "running",
            f"{attempt.host}, process {attempt.pid}",
            attempt.error or "",
        ]
        for attempt in job.attempts[-_ATTEMPTS_SHOWN:]
    ]
    return f"<h3>Attempts</h3>\n{_table(['attempt', 'started', 'finished', 'outcome', 'where', 'error'], rows)}"


def _losses(losses: Sequence[LossPoint]) -> str:
    """The first, the last and some evenly between them."""
    steps = _LOSS_ROWS - 1
    indices = sorted({round(step * (len(losses) - 1) / steps) for step in range(_LOSS_ROWS)})
    rows = [
        [str(point.iteration), *(f"{loss:.4g}" for loss in (point.total, point.content, point.style, point.tv))]
        for point in (losses[index] for index in indices)
    ]
    return f"<h3>Losses</h3>\n{_table(['iteration', 'total', 'content', 'style', 'total variation'], rows)}"


def _mapping(facts: Mapping[str, str | None]) -> str:
    rows = "".join(f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in facts.items() if value)
    return f"<table>{rows}</table>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _plain(text: str, *, length: int) -> str:
    """One line of displayable characters, cut after `length`."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _text(text: str) -> str:
    """Text for HTML; a user's file names may hold anything."""
    return html.escape(_plain(text, length=_TEXT_LENGTH))


def inline(name: str) -> str:
    """A name for a line that Prefect reads as Markdown."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", _plain(name, length=_NAME_LENGTH))


def _time(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if moment else ""


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
