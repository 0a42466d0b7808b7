"""A home with jobs in every state and real pictures, for the tests of the gallery. Written through the stores, as jobs
themselves do."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from flows.gallery.app import make_app
from flows.report import LOSS_PLOT, RECORD
from flows.settings import Settings
from nst_engine.config import TransferConfig
from nst_engine.images import encode_png
from nst_engine.samples import content_sample, style_sample
from storage.database import open_database
from storage.jobs import JobStore, NewJob, NewLossPoint, NewSource, new_job_id
from storage.models import Job, Night, NightState
from storage.workspace import Workspace
from tests.service_process import free_port

START = datetime(2026, 5, 1, 20, tzinfo=UTC)
NASTY = """<b>&"'</b><script>alert(1)</script>"""
ITERATIONS = 20
CONTENT, STYLE = content_sample(48, 64), style_sample(48, 64)


class GalleryHome:
    """A home and its store, with its database at a URL if not in it. Each job is made an hour after the one before."""

    def __init__(self, folder: Path, *, where: str | None = None) -> None:
        self.workspace = Workspace(folder)
        self.workspace.create()
        self._now = START
        self.database = open_database(where or self.workspace.database_path)
        self.store = JobStore(self.database, clock=lambda: self._now)

    def later(self) -> datetime:
        """A time after the end of all jobs so far."""
        return self._now + timedelta(days=1)

    def make(
        self, name: str, *, preset: str = "default", collection: str | None = None, styles: Sequence[str] = ("style",)
    ) -> Job:
        """A pending job whose content and styles lie in its folder."""
        self._now += timedelta(hours=1)
        files = [("content", "content"), *(("style", style) for style in styles)]
        job = self.store.create(
            NewJob(
                name=name,
                preset=preset,
                config=TransferConfig(iterations=ITERATIONS).model_dump(),
                sources=[
                    NewSource(
                        role=role,  # type: ignore[arg-type]
                        original_path=f"/photos/{name}_{stem}.png",
                        file_name=f"{stem}.png",
                        sha256="ab" * 32,
                        bytes=1000,
                        rows=48,
                        columns=64,
                    )
                    for role, stem in files
                ],
                collection=collection,
            )
        )
        folder = self.workspace.job_folder(job.id)
        folder.mkdir()
        encode_png(CONTENT, folder / "content.png")
        for style in styles:
            encode_png(STYLE, folder / f"{style}.png")
        self.store.make_pending(job.id)
        return job

    def start(self, name: str, *, iteration: int = 0, **more: Any) -> Job:
        """A running job after so many iterations."""
        job = self.make(name, **more)
        until = datetime.now(UTC) + timedelta(days=1)
        self.store.start_attempt(job.id, host="studio", pid=7, lease_until=until, flow_run_id="run-1")
        self.store.enter_phase(job.id, attempt=1, phase="optimise")
        self.advance(job, iteration)
        return job

    def advance(self, job: Job, iteration: int) -> None:
        """Write the losses of a running job up to an iteration."""
        points = [loss_point(number) for number in range(iteration + 1)]
        self.store.add_loss_points(job.id, attempt=1, points=points)

    def preview(self, job: Job, grey: int) -> None:
        """Put the newest picture of a running job into its folder."""
        Image.new("RGB", (64, 48), (grey, grey, grey)).save(self.workspace.job_folder(job.id) / "preview.jpg")

    def finish(self, job: Job, *, folder: Path | None = None, files: dict[str, str] | None = None) -> Path:
        """Complete a running job; returns the folder of its result."""
        place = folder or self.workspace.outbox / job.id
        place.mkdir(parents=True)
        for path in self.workspace.job_folder(job.id).iterdir():
            path.rename(place / path.name)
        encode_png(np.full((48, 64, 3), (200, 30, 30), np.uint8), place / "result.png")
        encode_png(np.full((60, 96, 3), 255, np.uint8), place / LOSS_PLOT)
        (place / RECORD).write_text("{}\n")
        sources = {Path(source.file_name).stem: source.file_name for source in job.sources}
        self.store.complete(
            job.id,
            attempt=1,
            result_folder=str(place),
            result_files={"result": "result.png", "loss_plot": LOSS_PLOT, "record": RECORD, **sources, **(files or {})},
            rows=48,
            columns=64,
        )
        return place

    def done(self, name: str, **more: Any) -> Job:
        """A completed job."""
        job = self.start(name, iteration=ITERATIONS, **more)
        self.finish(job)
        return self.store.get(job.id)

    def failed(self, name: str, error: str = "The disk is full; free some space.") -> Job:
        """A failed job."""
        job = self.start(name, iteration=3)
        self.store.fail(job.id, attempt=1, error=error)
        return self.store.get(job.id)

    def night(self, collection: str, state: NightState = NightState.COMPLETED, **more: Any) -> Night:
        """A night of a collection that has ended."""
        self._now += timedelta(hours=1)
        night = Night(
            id=new_job_id(),
            collection=collection,
            state=state,
            started_at=self._now,
            finished_at=self._now + timedelta(minutes=30),
            **more,
        )
        with self.database.begin() as session:
            session.add(night)
        return night


def loss_point(iteration: int) -> NewLossPoint:
    """The losses after an iteration: they fall, and the content's begins at zero."""
    style, content, tv = 1000.0 / (1 + iteration), 2.0 * iteration, 5.0
    return NewLossPoint(
        iteration=iteration,
        total=style + content + tv,
        content=content,
        style=style,
        tv=tv,
        layers={"content/block4_conv2": content, "style/block1_conv1": style / 2, "style/block2_conv1": style / 2},
        learning_rate=None,
        seconds=0.5 * iteration,
    )


def full_home(folder: Path) -> GalleryHome:
    """Jobs in every state, one whose name is markup, two collections, and a night with a contact sheet."""
    home = GalleryHome(folder)
    for number in range(26):
        home.done(f"lake_{number:02}", collection="Old harbour" if number % 2 else None)
    home.done(NASTY, preset="gatys-2015", styles=("style1", "style2"))
    home.make("waits")
    home.failed("broken")
    home.store.ask_cancel(home.make("unwanted").id)
    running = home.start("now", iteration=5)
    home.preview(running, 90)
    sheet = home.workspace.outbox / "Old harbour" / "contact-sheet.jpg"
    sheet.parent.mkdir()
    Image.new("RGB", (160, 120), (240, 240, 230)).save(sheet)
    home.night("Old harbour", pairs=13, done_before=0, completed=13, failed=0, cancelled=0)
    home.night(
        "Old harbour",
        NightState.FAILED,
        pairs=14,
        done_before=13,
        completed=0,
        failed=1,
        cancelled=0,
        contact_sheet=str(sheet),
        problems=[{"file": "contents/<i>.jpg", "reason": "is damaged; copy it again.", "pairs": 2}],
    )
    (home.workspace.collections / "Studio" / "contents").mkdir(parents=True)
    (home.workspace.collections / "Studio" / "styles").mkdir()
    return home


@contextlib.contextmanager
def serving(home: Path, **settings: Any) -> Iterator[str]:
    """The address of the gallery of a home, which runs in a thread for the length of the block."""
    port = free_port()
    config = uvicorn.Config(make_app(Settings(home=home, **settings)), port=port, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
