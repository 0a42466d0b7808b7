"""From pictures to a pending job, and what is left when the copies cannot be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.claim import claim
from nst_engine.config import TransferConfig
from nst_engine.images import MAX_PIXELS
from storage.database import open_database
from storage.errors import WorkspaceError
from storage.jobs import JobStore
from storage.models import Job, JobState
from storage.workspace import Workspace


def claim_pair(store: JobStore, home: Path, content: Path, style: Path) -> Job:
    return claim(
        store,
        Workspace(home),
        content=content,
        styles=[style],
        preset="default",
        config=TransferConfig(),
        max_pixels=MAX_PIXELS,
    )


def test_a_claimed_pair_is_a_pending_job_with_its_own_copies(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    home = tmp_path / "home"
    Workspace(home).create()
    with open_database(home / "nst.db") as database:
        job = claim_pair(JobStore(database), home, content_file, style_file)
    folder = home / "work" / job.id
    assert (job.name, job.state, job.preset) == ("lake_swirls", JobState.PENDING, "default")
    assert job.config == TransferConfig().model_dump()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "content.png": content_file.read_bytes(),
        "style.png": style_file.read_bytes(),
    }
    assert [(source.role, source.original_path, source.rows, source.columns) for source in job.sources] == [
        ("content", str(content_file), 96, 128),
        ("style", str(style_file), 96, 96),
    ]


def test_copies_that_cannot_be_made_fail_the_job_and_leave_the_pictures(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # A file where the folder of all jobs' files should be.
    (home / "work").write_text("in the way")
    with open_database(home / "nst.db") as database:
        store = JobStore(database)
        with pytest.raises(WorkspaceError) as caught:
            claim_pair(store, home, content_file, style_file)
        (job,) = store.recent(limit=10)
    assert (job.state, job.error) == (JobState.FAILED, str(caught.value))
    assert str(content_file) in str(caught.value)
    assert content_file.exists()
    assert style_file.exists()
