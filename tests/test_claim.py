"""From pictures to a pending job, and what is left when the copies cannot be made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.checked_picture import CheckedPicture
from flows.claim import claim
from flows.report import result_files
from flows.roles import role_label
from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError, ImageError
from nst_engine.images import MAX_PIXELS, encode_png
from storage.database import open_database
from storage.errors import WorkspaceError
from storage.jobs import JobStore, utc_now
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


def test_styles_are_numbered_and_the_job_is_called_as_told(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    home = tmp_path / "home"
    Workspace(home).create()
    with open_database(home / "nst.db") as database:
        job = claim(
            JobStore(database),
            Workspace(home),
            content=content_file,
            styles=[style_file, content_file],
            preset="default",
            config=TransferConfig(),
            max_pixels=MAX_PIXELS,
            name="a/b",
        )
    assert job.name == "a_b"
    assert {path.name: path.read_bytes() for path in (home / "work" / job.id).iterdir()} == {
        "content.png": content_file.read_bytes(),
        "style1.png": style_file.read_bytes(),
        "style2.png": content_file.read_bytes(),
    }
    assert [(source.role, source.position, source.file_name) for source in job.sources] == [
        ("content", 0, "content.png"),
        ("style", 0, "style1.png"),
        ("style", 1, "style2.png"),
    ]


def test_masks_and_an_initial_picture_go_with_their_styles(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    mask, style_mask = style_file.with_name("sky.png"), style_file.with_name("moon.JPG")
    encode_png(np.zeros((48, 64, 3), np.uint8), mask)
    encode_png(np.zeros((192, 192, 3), np.uint8), style_mask)
    home = tmp_path / "home"
    Workspace(home).create()
    with open_database(home / "nst.db") as database:
        job = claim(
            JobStore(database),
            Workspace(home),
            content=content_file,
            styles=[content_file, style_file],
            masks=[mask],
            style_masks=[None, style_mask],
            initial=style_file,
            preset="default",
            config=TransferConfig(init="picture"),
            max_pixels=MAX_PIXELS,
        )
    assert [(source.role, source.position, source.file_name, source.original_path) for source in job.sources] == [
        ("content", 0, "content.png", str(content_file)),
        ("style", 0, "style1.png", str(content_file)),
        ("style", 1, "style2.png", str(style_file)),
        ("style_mask", 1, "style_mask2.jpg", str(style_mask)),
        ("mask", 0, "mask1.png", str(mask)),
        ("initial", 0, "initial.png", str(style_file)),
    ]
    assert {path.name: path.read_bytes() for path in (home / "work" / job.id).iterdir()} == {
        source.file_name: Path(source.original_path).read_bytes() for source in job.sources
    }
    assert result_files(job) == {
        "result": "result.png",
        "loss_plot": "loss.png",
        "record": "job.json",
        "content": "content.png",
        "style1": "style1.png",
        "style2": "style2.png",
        "style_mask2": "style_mask2.jpg",
        "mask1": "mask1.png",
        "initial": "initial.png",
    }
    assert [role_label(job, source) for source in job.sources] == [
        *("content", "style 1", "style 2", "style mask 2", "mask 1", "initial")
    ]


@pytest.mark.parametrize(
    ("further", "error", "sentence"),
    [
        pytest.param(
            {"masks": 2}, ImageError, "{content}: there are 2 masks for 1 styles; give one a style", id="too many masks"
        ),
        pytest.param(
            {"style_masks": 2}, ImageError, "{content}: there are 2 style masks for 1 styles; give", id="style masks"
        ),
        pytest.param({"init": "picture"}, ConfigError, "init = picture needs a picture to start from", id="no picture"),
    ],
)
def test_what_does_not_go_together_makes_no_job(
    tmp_path: Path, style_file: Path, further: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    home = tmp_path / "home"
    Workspace(home).create()
    with open_database(home / "nst.db") as database:
        store = JobStore(database)
        with pytest.raises(error) as caught:
            claim(
                store,
                Workspace(home),
                content=style_file,
                styles=[style_file],
                masks=[style_file] * further.get("masks", 0),
                style_masks=[style_file] * further.get("style_masks", 0),
                preset="default",
                config=TransferConfig(init=further.get("init", "content")),
                max_pixels=MAX_PIXELS,
            )
        assert store.recent(limit=10) == []
    assert str(caught.value).startswith(sentence.format(content=style_file))


def test_the_same_pair_again_is_a_job_of_its_own_with_the_same_fingerprint(
    tmp_path: Path, content_file: Path, style_file: Path
) -> None:
    home = tmp_path / "home"
    Workspace(home).create()
    with open_database(home / "nst.db") as database:
        store = JobStore(database)
        first, second, other = (
            claim_pair(store, home, *pair)
            for pair in ((content_file, style_file), (content_file, style_file), (style_file, content_file))
        )
        assert store.waiting(limit=10, now=utc_now()) == []
    assert len({first.id, second.id, other.id}) == 3
    assert first.fingerprint == second.fingerprint != other.fingerprint
    # It is this process that runs it, not the service.
    assert first.lease_until is not None
    assert first.lease_until > utc_now()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:99]), "{path}", id="half a picture"),
        pytest.param(
            lambda path: encode_png(np.zeros((1000, 20, 3), np.uint8), path),
            "{path}: the picture is too narrow",
            id="too narrow",
        ),
    ],
)
def test_a_picture_that_is_not_usable_makes_no_job(
    tmp_path: Path, content_file: Path, style_file: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    home = tmp_path / "home"
    Workspace(home).create()
    spoil(content_file)
    with open_database(home / "nst.db") as database:
        store = JobStore(database)
        with pytest.raises(ImageError) as caught:
            claim_pair(store, home, content_file, style_file)
        assert store.recent(limit=10) == []
    assert str(caught.value).startswith(sentence.format(path=content_file))
    assert list((home / "work").iterdir()) == []


def test_a_checked_picture_is_known_by_its_bytes(content_file: Path) -> None:
    data = content_file.read_bytes()
    assert CheckedPicture.of(content_file, max_pixels=MAX_PIXELS) == CheckedPicture(
        rows=96, columns=128, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
