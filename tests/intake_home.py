"""A home with a clock of the test's own, into which pictures are dropped and whose intake looks when it is told to."""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from flows.checked_picture import CheckedPicture
from flows.intake import Intake, Look
from flows.settings import Settings
from storage.database import Database, open_database
from storage.jobs import JobStore
from storage.models import Job
from storage.workspace import Workspace


def png(seed: int, *, rows: int = 20, columns: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (columns, rows), (seed, 40, 200)).save(file, "png")
    return file.getvalue()


CONTENT, OTHER, STYLE, OTHER_STYLE = (png(seed) for seed in (1, 2, 3, 4))
HALF = CONTENT[: len(CONTENT) // 2]
MASK, OTHER_MASK = png(7, rows=40, columns=40), png(8)
HALF_MASK = MASK[: len(MASK) // 2]
TOML = b"rows = 64\n"
BAD_TOML = b"rows = 64\niteration = 6\n"
PAIR = {"lake_content.png": CONTENT, "lake_style.png": STYLE}

Files = dict[str, bytes]


ROLES = ((0, "content"), (1, "style"))


class Place:
    """A home with its own clock; `restart` is what a new process does."""

    def __init__(self, home: Path, template: Path, **settings: Any) -> None:
        self.workspace = Workspace(home)
        self.workspace.create()
        shutil.copy(template, self.workspace.database_path)
        self.settings = Settings(home=home, **settings)
        self.now = 100.0
        self._database: Database | None = None
        self.restart()

    def restart(self, make_store: Callable[[Database], JobStore] = JobStore) -> None:
        self.close()
        self._database = open_database(self.workspace.database_path)
        self.store = make_store(self._database)
        self.heard: list[Job] = []
        self.use(functools.partial(CheckedPicture.of, max_pixels=self.settings.max_pixels))

    def use(self, check: Callable[[Path], CheckedPicture]) -> None:
        """Let pictures be checked so from now on."""
        self.intake = Intake(
            self.store,
            self.workspace,
            self.settings,
            check=check,
            clock=lambda: self.now,
            on_job=self.heard.append,
        )

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def drop(self, files: Files) -> None:
        for name, data in files.items():
            path = self.workspace.inbox / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def look(self, *, after: float = 0.0) -> Look:
        self.now += after
        return self.intake.look()

    def settled_look(self) -> Look:
        """Look, wait until everything has settled, look again."""
        self.look()
        return self.look(after=self.settings.settle_seconds)

    @property
    def inbox(self) -> Files:
        return contents(self.workspace.inbox)

    @property
    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        return self.store.recent(limit=5000)[::-1]

    def work(self, job: Job) -> Files:
        return contents(self.workspace.job_folder(job.id))


def contents(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
