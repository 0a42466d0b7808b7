"""From files in the inbox to jobs, on real files and a real database with a clock of the test's own; and that a crash
between any two steps, or a disk that refuses, loses nothing and makes nothing twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import storage.workspace
from flows.checked_picture import CheckedPicture
from flows.errors import InboxMissingError
from flows.inbox import Waiting
from flows.intake import Look
from flows.settings import Settings
from storage.database import Database
from storage.jobs import JobStore, NewJob
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.intake_home import (
    BAD_TOML,
    CONTENT,
    HALF,
    HALF_MASK,
    MASK,
    OTHER,
    OTHER_MASK,
    OTHER_STYLE,
    PAIR,
    ROLES,
    STYLE,
    TOML,
    Files,
    Place,
    contents,
    png,
)

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


@pytest.mark.parametrize(
    ("dropped", "name", "work", "stays"),
    [
        pytest.param(
            {**PAIR, "lake.toml": TOML},
            "lake",
            {"content.png": "lake_content.png", "style.png": "lake_style.png", "settings.toml": "lake.toml"},
            set(),
            id="a pair with settings",
        ),
        pytest.param(
            {"trip/Lake-Content.PNG": CONTENT, "trip/LAKE.style.png": STYLE},
            "Lake",
            {"content.png": "trip/Lake-Content.PNG", "style.png": "trip/LAKE.style.png"},
            set(),
            id="a pair in a folder, case and separators as they come",
        ),
        pytest.param(
            {"lake_style10.png": OTHER_STYLE, "lake_style2.png": STYLE, "lake_content.png": CONTENT},
            "lake",
            {"content.png": "lake_content.png", "style1.png": "lake_style2.png", "style2.png": "lake_style10.png"},
            set(),
            id="two styles by their numbers",
        ),
        pytest.param(
            {
                "trip/content.png": CONTENT,
                "trip/style.png": STYLE,
                "trip/settings.toml": TOML,
                "trip/notes.txt": b"from the pier",
                "trip/raw/content.png": OTHER,
                "trip/job.json": b"{}",
                "trip/raw/.DS_Store": b"junk",
            },
            "trip",
            {
                "content.png": "trip/content.png",
                "style.png": "trip/style.png",
                "settings.toml": "trip/settings.toml",
                "notes.txt": "trip/notes.txt",
                "raw_content.png": "trip/raw/content.png",
                "job-2.json": "trip/job.json",
            },
            set(),
            id="a folder with all that is in it",
        ),
        pytest.param(
            {"swirls/style.png": STYLE, "swirls/settings.toml": TOML, "swirls/lake.png": CONTENT},
            "lake_swirls",
            {"content.png": "swirls/lake.png", "style.png": "swirls/style.png"},
            {"swirls/style.png", "swirls/settings.toml"},
            id="a picture in a style folder",
        ),
        pytest.param(
            {os.fsdecode(b"caf\xe9_content.png"): CONTENT, os.fsdecode(b"caf\xe9_style.png"): STYLE},
            "caf_",
            {"content.png": os.fsdecode(b"caf\xe9_content.png"), "style.png": os.fsdecode(b"caf\xe9_style.png")},
            set(),
            id="names that are not UTF-8",
        ),
    ],
)
def test_a_settled_drop_is_a_pending_job_with_its_files(
    place: Place, dropped: Files, name: str, work: dict[str, str], stays: set[str]
) -> None:
    place.drop(dropped)
    assert place.look() == Look((), (), (), place.now + 2.0)
    look = place.look(after=2.0)
    (job,) = look.claimed
    assert (look.rejected, look.waiting, place.heard) == ((), (), [job])
    assert (job.name, job.state, job.preset, job.error) == (name, JobState.PENDING, "default", None)
    assert place.work(job) == {held: dropped[original] for held, original in work.items()}
    assert place.inbox == {path: dropped[path] for path in stays}
    inbox = place.workspace.inbox
    assert job.manifest == {
        "moves": {str(inbox / path): held for held, path in work.items() if path not in stays},
        "folder": str(inbox / "trip") if name == "trip" else None,
        "rejected_to": None,
    }
    assert (inbox / "trip").exists() == (name == "Lake")
    assert {source.file_name: (source.sha256, source.bytes, source.rows, source.columns) for source in job.sources} == {
        held: (hashlib.sha256(dropped[path]).hexdigest(), len(dropped[path]), 20, 20)
        for held, path in work.items()
        if Path(held).stem.rstrip("12") in ("content", "style")
    }
    assert place.look() == Look((), (), (), float("inf"))
    assert [each.id for each in place.jobs] == [job.id]


MASKED = {**PAIR, "lake_mask.png": MASK, "lake_stylemask.png": OTHER_MASK, "lake_init.png": OTHER}
TWO_STYLES = {"lake_content.png": CONTENT, "lake_style1.png": STYLE, "lake_style2.png": OTHER_STYLE}
IN_THE_JOB = {
    "lake_content.png": "content.png",
    "lake_style.png": "style.png",
    "lake_style1.png": "style1.png",
    "lake_style2.png": "style2.png",
    "lake_mask.png": "mask.png",
    "lake_mask1.png": "mask1.png",
    "lake_mask2.png": "mask2.png",
    "lake_stylemask.png": "style_mask.png",
    "lake_stylemask2.png": "style_mask2.png",
    "lake_init.png": "initial.png",
}


@pytest.mark.parametrize(
    ("dropped", "sources"),
    [
        pytest.param(
            MASKED,
            [("content", 0, ""), ("style", 0, ""), ("style_mask", 0, ""), ("mask", 0, ""), ("initial", 0, "")],
            id="one of each",
        ),
        pytest.param(
            {**TWO_STYLES, "lake_mask1.png": MASK, "lake_mask2.png": OTHER_MASK},
            [("content", 0, ""), ("style", 0, "1"), ("style", 1, "2"), ("mask", 0, "1"), ("mask", 1, "2")],
            id="a mask for each of two styles",
        ),
        pytest.param(
            {**TWO_STYLES, "lake_stylemask2.png": MASK},
            [("content", 0, ""), ("style", 0, "1"), ("style", 1, "2"), ("style_mask", 1, "2")],
            id="a style mask for the second of two styles",
        ),
    ],
)
def test_masks_and_an_initial_picture_are_sources_of_the_job(
    place: Place, dropped: Files, sources: list[tuple[str, int, str]]
) -> None:
    place.drop(dropped)
    (job,) = place.settled_look().claimed
    assert [(source.role, source.position, source.file_name) for source in job.sources] == [
        (role, position, f"{role}{number}.png") for role, position, number in sources
    ]
    assert place.work(job) == {IN_THE_JOB[name]: data for name, data in dropped.items()}
    assert place.inbox == {}
    assert job.config["init"] == ("picture" if "lake_init.png" in dropped else "content")


def test_whose_style_mask_it_is_makes_another_job(place: Place) -> None:
    fingerprints = set()
    for mask in ("lake_stylemask1.png", "lake_stylemask2.png", "lake_mask1.png"):
        place.drop({**TWO_STYLES, mask: MASK})
        fingerprints |= {job.fingerprint for job in place.settled_look().claimed}
    place.drop(TWO_STYLES)
    fingerprints |= {job.fingerprint for job in place.settled_look().claimed}
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("toml", "init"),
    [
        pytest.param(b"rows = 64\n", "picture", id="no init"),
        pytest.param(b'preset = "paper-fig4"\n', "picture", id="the preset's init"),
        pytest.param(b'init = "noise"\n', "noise", id="the file's init"),
        pytest.param(b'init = "picture"\ninit_noise = 0.25\n', "picture", id="the same"),
    ],
)
def test_a_dropped_initial_picture_is_begun_with_unless_the_settings_say_otherwise(
    place: Place, toml: bytes, init: str
) -> None:
    place.drop({**PAIR, "lake_init.png": OTHER, "lake.toml": toml})
    (job,) = place.settled_look().claimed
    assert (job.config["init"], job.sources[-1].role) == (init, "initial")


def test_a_mask_that_comes_first_waits_for_its_pair_and_the_pair_for_what_is_still_written(place: Place) -> None:
    place.drop({"lake_mask.png": MASK})
    look = place.settled_look()
    assert [waiting.reason for waiting in look.waiting] == ["lake_mask.png waits for lake_content.* and lake_style.*"]
    place.drop({**PAIR, "lake_mask.png": HALF_MASK})
    place.look()
    place.drop({"lake_mask.png": MASK})
    assert place.look(after=1.9).claimed == ()
    (job,) = place.look(after=2.0).claimed
    assert place.work(job) == {"content.png": CONTENT, "style.png": STYLE, "mask.png": MASK}


def test_half_a_mask_is_rejected_with_its_pair(place: Place) -> None:
    place.drop({**PAIR, "lake_mask.png": HALF_MASK})
    assert [waiting.path for waiting in place.settled_look().waiting] == [Path("lake_mask.png")]
    (job,) = place.look(after=60.0).rejected
    assert str(job.error).startswith(f"{place.workspace.inbox / 'lake_mask.png'} is damaged or incomplete")
    assert place.inbox == {}


NO_STYLE = (
    "lake has a mask that belongs to none of its styles (lake_mask2.png); give it the number of its style, or take it "
    "away"
)


def test_a_mask_without_its_style_may_be_followed_by_it(place: Place) -> None:
    masks = {"lake_mask1.png": MASK, "lake_mask2.png": OTHER_MASK}
    place.drop({"lake_content.png": CONTENT, "lake_style1.png": STYLE, **masks})
    look = place.settled_look()
    assert (look.waiting, look.rejected) == ((Waiting(Path("lake_content.png"), NO_STYLE),), ())
    assert look.next_look == place.now + 60.0
    place.drop(TWO_STYLES)
    (job,) = place.settled_look().claimed
    assert [source.file_name for source in job.sources] == [
        "content.png",
        "style1.png",
        "style2.png",
        "mask1.png",
        "mask2.png",
    ]


def test_a_mask_without_its_style_is_rejected_with_all_that_came_with_it(place: Place) -> None:
    dropped = {**PAIR, "lake_mask1.png": MASK, "lake_mask2.png": OTHER_MASK}
    place.drop(dropped)
    place.settled_look()
    (job,) = place.look(after=60.0).rejected
    assert (job.name, job.error) == ("lake", f"{NO_STYLE}.")
    assert contents(place.workspace.rejected / "lake") == {"lake.reason.txt": f"{NO_STYLE}.\n".encode(), **dropped}
    assert place.inbox == {}


@pytest.mark.parametrize(
    ("further", "sentence"),
    [
        pytest.param(
            {"lake_mask.png": png(9, rows=20, columns=40)},
            "{content}: mask 1 has another shape than the content: 20 x 40 pixels (rows x columns), the content 20 x "
            "20; make it from that picture.",
            id="a mask of another shape",
        ),
        pytest.param(
            {"lake_stylemask.png": png(9, rows=40, columns=20)},
            "{content}: style mask 1 has another shape than style 1: 40 x 20 pixels (rows x columns), style 1 20 x 20; "
            "make it from that picture.",
            id="a style mask of another shape",
        ),
        pytest.param(
            {"lake.toml": b'init = "picture"\n'},
            "init = picture needs a picture to start from: give it with --init, or drop it as NAME_init.EXT.",
            id="no picture to start from",
        ),
    ],
)
def test_pictures_that_do_not_go_together_are_rejected_at_once(place: Place, further: Files, sentence: str) -> None:
    place.drop({**PAIR, **further})
    (job,) = place.settled_look().rejected
    assert job.error == sentence.format(content=place.workspace.inbox / "lake_content.png")
    assert place.inbox == {}


def test_a_style_folder_keeps_its_style_mask(place: Place) -> None:
    kept = {"swirls/style.png": STYLE, "swirls/stylemask.png": MASK}
    place.drop({**kept, "swirls/lake.png": CONTENT})
    (job,) = place.settled_look().claimed
    assert place.work(job) == {"content.png": CONTENT, "style.png": STYLE, "style_mask.png": MASK}
    assert place.inbox == kept


def test_every_picture_of_a_style_folder_is_a_job(place: Place) -> None:
    place.drop({"swirls/style.png": STYLE, "swirls/a.png": CONTENT, "swirls/b.png": OTHER})
    assert [job.name for job in place.settled_look().claimed] == ["a_swirls", "b_swirls"]
    place.drop({"swirls/c.png": CONTENT})
    (job,) = place.settled_look().claimed
    assert (job.name, place.work(job)) == ("c_swirls", {"content.png": CONTENT, "style.png": STYLE})
    assert place.inbox == {"swirls/style.png": STYLE}


def test_small_drops_go_first_and_a_long_look_ends_before_all_is_taken(place: Place) -> None:
    place.use(slow := Slow(place, seconds=1.0))
    place.drop({f"burst{number}_{role}.png": png(2 * number + turn) for number in range(5) for turn, role in ROLES})
    place.look()
    place.now += 1
    place.drop({f"single_{role}.png": png(50 + turn) for turn, role in ROLES})
    place.look()
    first = place.look(after=place.settings.settle_seconds)
    assert [job.name for job in first.claimed] == ["single", "burst0", "burst1"]
    assert (first.next_look, slow.checked) == (place.now, 6)
    second = place.look()
    assert [job.name for job in second.claimed] == ["burst2", "burst3", "burst4"]
    # Also those that are taken last came in a burst of five.
    assert [job.burst_size for job in place.jobs] == [1, 5, 5, 5, 5, 5]


class Slow:
    """Checks a picture in so many seconds of the place's clock."""

    def __init__(self, place: Place, *, seconds: float) -> None:
        self._place = place
        self._seconds = seconds
        self.checked = 0

    def __call__(self, path: Path) -> CheckedPicture:
        self._place.now += self._seconds
        self.checked += 1
        return CheckedPicture.of(path, max_pixels=self._place.settings.max_pixels)


def test_a_settings_file_says_what_the_job_is(place: Place) -> None:
    settings = b'preset = "keras-2016"\nname = "Lake, evening"\npriority = 7\nforce = true\nrows = 64\n'
    place.drop({**PAIR, "lake.toml": settings})
    (job,) = place.settled_look().claimed
    assert (job.name, job.preset, job.priority, job.fingerprint) == ("Lake_ evening", "keras-2016", 7, None)
    assert (job.config["rows"], job.config["optimizer"]) == (64, "sgd")


def test_a_drop_without_settings_has_the_preset_of_the_service(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path / "home", template, preset="paper-fig4")
    place.drop(PAIR)
    (job,) = place.settled_look().claimed
    assert (job.preset, job.priority) == ("paper-fig4", 0)
    assert job.fingerprint is not None
    place.close()


@pytest.mark.parametrize(
    ("dropped", "name", "settings", "rejected", "stays"),
    [
        pytest.param(
            {**PAIR, "lake.toml": BAD_TOML},
            "lake",
            "lake.toml",
            {"lake_content.png", "lake_style.png", "lake.toml"},
            set(),
            id="a pair",
        ),
        pytest.param(
            {
                "trip/content.png": CONTENT,
                "trip/style.png": STYLE,
                "trip/settings.toml": BAD_TOML,
                "trip/a/b.txt": b"b",
            },
            "trip",
            "trip/settings.toml",
            {"trip/content.png", "trip/style.png", "trip/settings.toml", "trip/a/b.txt"},
            set(),
            id="a folder",
        ),
        pytest.param(
            {"swirls/style.png": STYLE, "swirls/settings.toml": BAD_TOML, "swirls/lake.png": CONTENT},
            "lake_swirls",
            "swirls/settings.toml",
            {"swirls/lake.png"},
            {"swirls/style.png", "swirls/settings.toml"},
            id="a picture in a style folder",
        ),
    ],
)
def test_a_bad_settings_file_rejects_the_drop_with_its_line_and_key(
    place: Place, dropped: Files, name: str, settings: str, rejected: set[str], stays: set[str]
) -> None:
    place.drop(dropped)
    (job,) = place.settled_look().rejected
    folder = place.workspace.rejected / name
    sentence = (
        f"{place.workspace.inbox / settings}, line 2: iteration: there is no such setting; did you mean 'iterations'?"
    )
    assert (job.name, job.state, job.error, job.result_folder) == (name, JobState.REJECTED, sentence, str(folder))
    assert contents(place.workspace.rejected) == {
        f"{name}/{name}.reason.txt": f"{sentence}\n".encode(),
        **{f"{name}/{Path(path).name}": dropped[path] for path in rejected},
    }
    assert place.inbox == {path: dropped[path] for path in stays}
    assert (place.workspace.inbox / "trip").exists() is False
    assert (place.heard, place.jobs[0].id, list(place.workspace.work.iterdir())) == ([job], job.id, [])


def test_rejected_drops_of_one_name_are_kept_apart(place: Place) -> None:
    for data in (CONTENT, OTHER):
        place.drop({"lake_content.png": data, "lake_style.png": STYLE, "lake.toml": BAD_TOML})
        place.settled_look()
    rejected = contents(place.workspace.rejected)
    assert (rejected["lake/lake_content.png"], rejected["lake-2/lake_content.png"]) == (CONTENT, OTHER)
    assert {"lake/lake.reason.txt", "lake-2/lake-2.reason.txt"} < rejected.keys()


def test_a_picture_that_is_too_narrow_is_rejected_at_once(place: Place) -> None:
    place.drop({"lake_content.png": png(1, rows=1000, columns=20), "lake_style.png": STYLE})
    (job,) = place.settled_look().rejected
    assert job.error is not None
    assert job.error.startswith(f"{place.workspace.inbox / 'lake_content.png'}: the picture is too narrow: ")


def test_half_a_picture_may_be_finished_within_the_patience(place: Place) -> None:
    place.drop({**PAIR, "lake_content.png": HALF})
    began = place.now
    look = place.settled_look()
    (waiting,) = look.waiting
    assert (look.claimed, look.rejected, look.next_look) == ((), (), began + 60.0)
    assert waiting.path == Path("lake_content.png")
    assert waiting.reason.startswith("lake_content.png")
    assert waiting.reason.endswith("(it may still be written to)")
    assert place.look(after=57.0).rejected == ()
    place.drop({"lake_content.png": CONTENT})
    (job,) = place.settled_look().claimed
    assert place.work(job) == {"content.png": CONTENT, "style.png": STYLE}


def test_half_a_picture_is_rejected_when_the_patience_is_at_its_end(place: Place) -> None:
    place.drop({**PAIR, "lake_style.png": HALF})
    place.look()
    assert place.look(after=59.5).rejected == ()
    (job,) = place.look(after=0.5).rejected
    folder = place.workspace.rejected / "lake"
    assert (job.state, place.inbox) == (JobState.REJECTED, {})
    assert str(place.workspace.inbox / "lake_style.png") in str(job.error)
    assert contents(folder) == {
        "lake_content.png": CONTENT,
        "lake_style.png": HALF,
        "lake.reason.txt": f"{job.error}\n".encode(),
    }


def test_a_lone_file_waits_for_its_partner_and_is_rejected_at_last(place: Place) -> None:
    place.drop({"lake_content.png": CONTENT})
    reason = "lake_content.png waits for lake_style.*"
    look = place.settled_look()
    assert look == Look((), (), (Waiting(Path("lake_content.png"), reason),), place.now - 2.0 + 3600.0)
    assert place.look(after=3597.5).rejected == ()
    (job,) = place.look(after=0.5).rejected
    sentence = f"{reason}. It waited for 3600 s."
    assert (job.name, job.error) == ("lake_content", sentence)
    assert contents(place.workspace.rejected) == {
        "lake_content/lake_content.png": CONTENT,
        "lake_content/lake_content.reason.txt": f"{sentence}\n".encode(),
    }
    assert place.inbox == {}


def test_a_late_partner_makes_the_pair(place: Place) -> None:
    place.drop({"lake_content.png": CONTENT})
    place.settled_look()
    place.look(after=3500.0)
    place.drop({"lake_style.png": STYLE})
    assert [job.name for job in place.settled_look().claimed] == ["lake"]


def test_a_link_is_rejected_as_a_link_and_a_pipe_stays(place: Place, tmp_path: Path) -> None:
    (tmp_path / "precious.png").write_bytes(CONTENT)
    (place.workspace.inbox / "lake_content.png").symlink_to(tmp_path / "precious.png")
    (place.workspace.inbox / "nowhere.png").symlink_to("nothing")
    os.mkfifo(place.workspace.inbox / "pipe")
    assert [str(waiting.path) for waiting in place.settled_look().waiting] == [
        "lake_content.png",
        "nowhere.png",
        "pipe",
    ]
    look = place.look(after=3600.0)
    assert [job.name for job in look.rejected] == ["lake_content", "nowhere"]
    assert [str(waiting.path) for waiting in look.waiting] == ["pipe"]
    assert (place.workspace.rejected / "lake_content" / "lake_content.png").readlink() == tmp_path / "precious.png"
    assert (place.workspace.rejected / "nowhere" / "nowhere.png").readlink() == Path("nothing")
    assert (tmp_path / "precious.png").read_bytes() == CONTENT


def test_a_drop_that_still_grows_is_left_alone(place: Place) -> None:
    place.drop({**PAIR, "lake_content.png": HALF})
    place.look()
    place.drop({"lake_content.png": CONTENT})
    assert place.look(after=1.9) == Look((), (), (), place.now + 2.0)
    assert place.look(after=1.9).claimed == ()
    assert [job.name for job in place.look(after=0.1).claimed] == ["lake"]


def test_a_folder_is_taken_when_the_last_of_its_files_has_settled(place: Place) -> None:
    place.drop({"trip/content.png": CONTENT, "trip/style.png": STYLE})
    place.look()
    place.drop({"trip/notes.txt": b"late"})
    assert place.look(after=1.5) == Look((), (), (), place.now + 2.0)
    (job,) = place.look(after=2.0).claimed
    assert place.work(job) == {"content.png": CONTENT, "style.png": STYLE, "notes.txt": b"late"}


@NOT_ROOT
def test_a_folder_that_cannot_be_read_to_its_end_is_left_alone(place: Place) -> None:
    place.drop({"trip/content.png": CONTENT, "trip/style.png": STYLE, "trip/more/notes.txt": b"n"})
    (place.workspace.inbox / "trip" / "more").chmod(0)
    try:
        look = place.settled_look()
    finally:
        (place.workspace.inbox / "trip" / "more").chmod(0o755)
    assert (look.claimed, [waiting.path for waiting in look.waiting]) == ((), [Path("trip/more")])
    assert [job.name for job in place.settled_look().claimed] == ["trip"]


def test_the_same_pair_under_another_name_is_a_job_with_the_same_fingerprint(place: Place) -> None:
    place.drop({**PAIR, "sea_content.png": CONTENT, "sea_style.png": STYLE, "sky_content.png": OTHER})
    place.drop({"sky_style.png": STYLE})
    lake, sea, sky = place.settled_look().claimed
    place.drop(PAIR)
    (again,) = place.settled_look().claimed
    assert [job.name for job in (lake, sea, sky, again)] == ["lake", "sea", "sky", "lake"]
    assert lake.fingerprint == sea.fingerprint == again.fingerprint != sky.fingerprint
    assert len({job.id for job in place.jobs}) == 4


@pytest.mark.parametrize("preset", [pytest.param("typo", id="a preset that there is not")])
def test_a_mistake_in_the_settings_of_the_service_rejects_nothing(tmp_path: Path, template: Path, preset: str) -> None:
    place = Place(tmp_path / "home", template, preset=preset)
    place.drop(PAIR)
    look = place.settled_look()
    assert (look.claimed, look.rejected, look.next_look) == ((), (), place.now + 2.0)
    assert look.waiting == (Waiting(Path("lake_content.png"), "There is no preset 'typo'. 'nst presets' lists them."),)
    place.settings = Settings(home=tmp_path / "home")
    place.restart()
    assert [job.name for job in place.settled_look().claimed] == ["lake"]
    place.close()


def test_a_missing_inbox_is_said(place: Place) -> None:
    place.workspace.inbox.rmdir()
    with pytest.raises(InboxMissingError):
        place.look()


class ChangingStore(JobStore):
    """A store during whose first create() a file in the inbox is written to, as a user may at any moment."""

    def __init__(self, database: Database, change: Callable[[], object]) -> None:
        super().__init__(database)
        self._change = change
        self.changed = False

    def create(self, new: NewJob) -> Job:
        if not self.changed:
            self.changed = True
            self._change()
        return super().create(new)


def replace(path: Path, data: bytes) -> None:
    """Put another file in its place, as rsync does."""
    path.with_name(".new.part").write_bytes(data)
    path.with_name(".new.part").rename(path)


@pytest.mark.parametrize(
    "write", [pytest.param(Path.write_bytes, id="written in place"), pytest.param(replace, id="another file")]
)
@pytest.mark.parametrize(
    ("dropped", "changed", "held"),
    [
        pytest.param({**PAIR, "lake.toml": TOML}, "lake_content.png", "content.png", id="content of a pair"),
        pytest.param(PAIR, "lake_style.png", "style.png", id="style of a pair"),
        pytest.param(
            {"trip/content.png": CONTENT, "trip/style.png": STYLE, "trip/a/b.txt": b"b"},
            "trip/content.png",
            "content.png",
            id="content of a folder",
        ),
        pytest.param(
            {"swirls/style.png": STYLE, "swirls/lake.png": CONTENT},
            "swirls/style.png",
            "style.png",
            id="a style folder's",
        ),
    ],
)
def test_a_picture_that_is_overwritten_between_check_and_move_goes_back(
    place: Place, dropped: Files, changed: str, held: str, write: Callable[[Path, bytes], object]
) -> None:
    place.restart(lambda database: ChangingStore(database, lambda: write(place.workspace.inbox / changed, OTHER)))
    place.drop(dropped)
    look = place.settled_look()
    assert (look.claimed, look.rejected, place.jobs, place.heard) == ((), (), [], [])
    assert look.next_look == place.now + 2.0
    assert place.inbox == {**dropped, changed: OTHER}
    assert list(place.workspace.work.iterdir()) == []
    (job,) = place.settled_look().claimed
    assert place.work(job)[held] == OTHER
    assert {source.file_name: source.sha256 for source in job.sources}[held] == hashlib.sha256(OTHER).hexdigest()
    assert len(place.jobs) == 1


class CrashError(Exception):
    """What ends the process in the middle of its work."""


CRASH_POINTS = [
    *((Workspace, name) for name in ("take", "copy_source", "put_back", "reject", "remove_dropped_folder", "discard")),
    *((JobStore, name) for name in ("create", "make_pending", "reject", "forget")),
    *((storage.workspace, name) for name in ("move_file", "copy_file", "write_bytes", "sync")),
]


def crash_at(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Let the call of that number, of all calls that change something, raise CrashError; returns the calls so far."""
    calls: list[str] = []

    def dying(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise CrashError(name)
            return original(*arguments, **named)

        return call

    for owner, name in CRASH_POINTS:
        patch.setattr(owner, name, dying(name, getattr(owner, name)))
    return calls


def whole_state(place: Place) -> Any:
    """All files and jobs of a home; ids, which are random, as the job's position."""
    ids = {job.id: f"job {number}" for number, job in enumerate(place.jobs)}
    home = place.workspace.home
    files = {}
    for path in home.rglob("*"):
        parts = [ids.get(part, part) for part in path.relative_to(home).parts]
        if not parts[0].startswith("nst.db"):
            files["/".join(parts)] = path.read_bytes() if path.is_file() else None
    jobs = [
        (
            job.name,
            job.state,
            job.error,
            job.result_folder,
            job.fingerprint,
            [(source.file_name, source.sha256) for source in job.sources],
        )
        for job in place.jobs
    ]
    return files, jobs


@pytest.mark.parametrize(
    ("dropped", "changed", "wait", "passed"),
    [
        pytest.param(
            {**PAIR, "lake.toml": TOML}, None, 2.0, {"create", "take", "move_file", "sync", "make_pending"}, id="a pair"
        ),
        pytest.param(
            {"trip/content.png": CONTENT, "trip/style.png": STYLE, "trip/a/b.txt": b"b"},
            None,
            2.0,
            {"create", "take", "move_file", "remove_dropped_folder", "make_pending"},
            id="a folder",
        ),
        pytest.param(
            {"swirls/style.png": STYLE, "swirls/lake.png": CONTENT},
            None,
            2.0,
            {"create", "copy_source", "copy_file", "take", "move_file", "make_pending"},
            id="a picture in a style folder",
        ),
        pytest.param(
            {**PAIR, "lake.toml": TOML},
            "lake_style.png",
            2.0,
            {"create", "take", "put_back", "discard", "forget", "make_pending"},
            id="a pair that is overwritten",
        ),
        pytest.param(
            {"swirls/style.png": STYLE, "swirls/lake.png": CONTENT},
            "swirls/style.png",
            2.0,
            {"create", "take", "put_back", "discard", "forget", "make_pending"},
            id="a style folder whose style is overwritten",
        ),
        pytest.param(
            {"trip/content.png": CONTENT, "trip/style.png": STYLE, "trip/settings.toml": BAD_TOML},
            None,
            2.0,
            {"create", "reject", "move_file", "write_bytes", "remove_dropped_folder"},
            id="a folder that is rejected",
        ),
        pytest.param(
            {"lake_content.png": CONTENT},
            None,
            3600.0,
            {"create", "reject", "move_file", "write_bytes"},
            id="a lone file",
        ),
    ],
)
def test_a_crash_at_any_step_is_finished_and_not_repeated(
    tmp_path: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    dropped: Files,
    changed: str | None,
    wait: float,
    passed: set[str],
) -> None:
    """What is there in the end is what is there without a crash: one job, each file in one place, bytes intact."""

    def run(crash: int) -> tuple[bool, list[str], Any]:
        home = tmp_path / "home"
        shutil.rmtree(home, ignore_errors=True)
        place = Place(home, template)
        store: JobStore = place.store
        if changed is not None:
            place.restart(
                lambda database: ChangingStore(database, lambda: replace(place.workspace.inbox / changed, OTHER))
            )
            store = place.store
        place.drop(dropped)
        place.look()
        crashed = False
        with monkeypatch.context() as patch:
            calls = crash_at(patch, crash)
            try:
                place.look(after=wait)
                place.look(after=2.0)
                place.look(after=2.0)
            except CrashError:
                crashed = True
        if isinstance(store, ChangingStore) and not store.changed:
            replace(place.workspace.inbox / str(changed), OTHER)
        place.restart()
        place.look()
        place.look(after=wait)
        place.look(after=2.0)
        state = whole_state(place)
        place.close()
        return crashed, calls, state

    crashed, calls, wanted = run(0)
    assert (crashed, passed - set(calls)) == (False, set())
    assert [state for _, state, *_ in wanted[1]] == [JobState.REJECTED if "reject" in passed else JobState.PENDING]
    crash = 1
    while True:
        crashed, calls, state = run(crash)
        if not crashed:
            break
        assert state == wanted, f"after a crash before call {crash}, {calls[-1]}"
        crash += 1
    assert crash > len(passed)


def test_a_disk_that_refuses_delays_the_job_and_makes_no_second(place: Place) -> None:
    place.workspace.work.rmdir()
    place.workspace.work.write_text("in the way")
    place.drop({**PAIR, "swirls/style.png": STYLE, "swirls/a.png": CONTENT})
    for look in (place.settled_look(), place.look(after=2.0), place.look(after=2.0)):
        assert (look.claimed, look.rejected, len(look.waiting)) == ((), (), 2)
    assert look.next_look == place.now + 2.0
    assert all(str(place.workspace.work) in waiting.reason for waiting in look.waiting)
    assert [(job.name, job.state) for job in place.jobs] == [
        ("lake", JobState.CLAIMED),
        ("a_swirls", JobState.CLAIMED),
    ]
    assert place.inbox == {**PAIR, "swirls/style.png": STYLE, "swirls/a.png": CONTENT}
    claimed = [job.id for job in place.jobs]
    place.workspace.work.unlink()
    assert place.look(after=2.0).waiting == ()
    assert [job.id for job in place.jobs] == claimed
    assert [(job.name, job.state) for job in place.jobs] == [
        ("lake", JobState.PENDING),
        ("a_swirls", JobState.PENDING),
    ]
    assert [place.work(job) for job in place.jobs] == [{"content.png": CONTENT, "style.png": STYLE}] * 2
    assert place.inbox == {"swirls/style.png": STYLE}


def test_a_disk_that_refuses_rejections_delays_them(place: Place) -> None:
    place.workspace.rejected.rmdir()
    place.workspace.rejected.write_text("in the way")
    place.drop({**PAIR, "lake.toml": BAD_TOML})
    (place.workspace.inbox / "nowhere.png").symlink_to("nothing")
    place.settled_look()
    place.look(after=3600.0)
    look = place.look(after=2.0)
    assert (look.rejected, [str(waiting.path) for waiting in look.waiting]) == ((), ["lake", "nowhere"])
    assert [job.state for job in place.jobs] == [JobState.CLAIMED] * 2
    place.workspace.rejected.unlink()
    place.look(after=2.0)
    assert [(job.name, job.state) for job in place.jobs] == [
        ("lake", JobState.REJECTED),
        ("nowhere", JobState.REJECTED),
    ]
    assert contents(place.workspace.rejected).keys() == {
        *(f"lake/{name}" for name in ("lake_content.png", "lake_style.png", "lake.toml", "lake.reason.txt")),
        "nowhere/nowhere.reason.txt",
    }
    assert list(place.workspace.inbox.iterdir()) == []


@pytest.fixture
def stuck(place: Place) -> Place:
    """A home with a pair and a picture in a style folder, both claimed, whose files could not be moved."""
    place.workspace.work.rmdir()
    place.workspace.work.write_text("in the way")
    place.drop({**PAIR, "swirls/style.png": STYLE, "swirls/a.png": CONTENT})
    place.settled_look()
    assert [job.state for job in place.jobs] == [JobState.CLAIMED] * 2
    return place


def test_a_file_that_was_taken_away_before_the_claim_was_finished_fails_the_job(stuck: Place) -> None:
    (stuck.workspace.inbox / "lake_style.png").unlink()
    stuck.workspace.work.unlink()
    stuck.look(after=2.0)
    lake, swirls = stuck.jobs
    assert (lake.state, swirls.state) == (JobState.FAILED, JobState.PENDING)
    assert str(lake.error).startswith(f"{stuck.workspace.inbox / 'lake_style.png'} is gone and not in ")
    assert stuck.inbox == {"lake_content.png": CONTENT, "swirls/style.png": STYLE}


def test_files_that_were_overwritten_before_the_claim_was_finished_are_claimed_anew(stuck: Place) -> None:
    before = {job.id for job in stuck.jobs}
    stuck.drop({"lake_content.png": OTHER, "swirls/style.png": OTHER_STYLE})
    stuck.workspace.work.unlink()
    stuck.settled_look()
    assert {job.id for job in stuck.jobs}.isdisjoint(before)
    assert [(job.name, job.state, stuck.work(job)) for job in stuck.jobs] == [
        ("lake", JobState.PENDING, {"content.png": OTHER, "style.png": STYLE}),
        ("a_swirls", JobState.PENDING, {"content.png": CONTENT, "style.png": OTHER_STYLE}),
    ]


def test_a_content_whose_style_folder_lost_its_style_waits_in_the_inbox(stuck: Place) -> None:
    (stuck.workspace.inbox / "swirls" / "style.png").unlink()
    stuck.workspace.work.unlink()
    look = stuck.look(after=2.0)
    assert [(job.name, job.state) for job in stuck.jobs] == [("lake", JobState.PENDING)]
    assert (stuck.inbox, [waiting.path for waiting in look.waiting]) == (
        {"swirls/a.png": CONTENT},
        [Path("swirls/a.png")],
    )
    stuck.drop({"swirls/style.png": OTHER_STYLE})
    (job,) = stuck.settled_look().claimed
    assert (job.name, stuck.work(job)) == ("a_swirls", {"content.png": CONTENT, "style.png": OTHER_STYLE})


def test_a_thousand_pairs_at_once_are_a_thousand_jobs(place: Place) -> None:
    for number in range(1000):
        place.drop({f"{number:03}_content.png": CONTENT, f"{number:03}_style.png": STYLE})
    place.look()
    look = place.look(after=2.0)
    assert [job.name for job in look.claimed] == [f"{number:03}" for number in range(1000)]
    assert (look.rejected, look.waiting, look.next_look) == ((), (), float("inf"))
    assert place.inbox == {}
    assert {job.id: (job.name, job.state) for job in place.jobs} == {
        job.id: (job.name, JobState.PENDING) for job in look.claimed
    }
    assert {path.name for path in place.workspace.work.iterdir()} == {job.id for job in look.claimed}
    assert all(place.work(job) == {"content.png": CONTENT, "style.png": STYLE} for job in look.claimed)
    assert place.look() == Look((), (), (), float("inf"))
