"""What a night has to do, looked up in real folders and a real database, and the pictures that its jobs take."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flows.checked_picture import CheckedPicture
from flows.claim import bring_pictures
from flows.collection import Problem, read_collection
from flows.contact_sheet import Cell
from flows.errors import PictureGoneError
from flows.night import Plan, carry_out, look, sentence_on
from flows.night_report import cells_of
from nst_engine.images import encode_png
from storage.database import open_database
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState, Night, NightState
from storage.nights import NightStore
from storage.workspace import Workspace
from tests.service_process import SMALL, STYLE, content_of

CHECK = functools.partial(CheckedPicture.of, max_pixels=1_000_000)


class Scene:
    """A home with the collection `lakes` of two contents and one style, and a night of it."""

    def __init__(self, home: Path) -> None:
        self.workspace = Workspace(home)
        self.workspace.create()
        self._database = open_database(self.workspace.database_path)
        self.jobs, self.nights = JobStore(self._database), NightStore(self._database)
        self.folder = self.workspace.collections / "lakes"
        self.contents, self.styles = self.folder / "contents", self.folder / "styles"
        for folder in (self.contents, self.styles):
            folder.mkdir(parents=True)
        for number in range(2):
            encode_png(content_of(number), self.contents / f"c{number}.png")
        encode_png(STYLE, self.styles / "s.png")
        (self.folder / "settings.toml").write_text(SMALL + "priority = 3\n")
        self.night = self.start()

    def start(self) -> Night:
        night, _ = self.nights.start("lakes", host="atelier", pid=7, flow_run_id="run-1", lease_until=utc_now())
        return night

    def close(self) -> None:
        self._database.close()

    def look(self) -> Plan:
        collection = read_collection(self.folder, preset="default")
        standings = self.nights.standings("lakes")
        return look(collection, standings, check=CHECK, night_id=self.night.id)

    def carry_out(self) -> list[Job]:
        carry_out(self.look(), self.jobs, self.nights, night_id=self.night.id, flow_run_id="run-1")
        return self.nights.jobs(self.night.id, limit=99)

    def next_night(self) -> Plan:
        self.nights.finish(self.night.id)
        self.night = self.start()
        return self.look()

    def end(self, job: Job, *, failed: bool) -> None:
        lease = utc_now()
        number = self.jobs.start_attempt(job.id, host="atelier", pid=7, lease_until=lease)
        if failed:
            self.jobs.fail(job.id, attempt=number, error="The GPU is gone.")
        else:
            self.jobs.complete(
                job.id, attempt=number, result_folder=f"/out/{job.name}", result_files={}, rows=48, columns=60
            )


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "home")
    yield scene
    scene.close()


def counts(plan: Plan) -> tuple[int, int, int, int]:
    return plan.pairs, plan.done_before, len(plan.again), len(plan.new)


def test_every_pair_becomes_a_job_with_its_pictures_where_they_are(scene: Scene) -> None:
    assert counts(scene.look()) == (2, 0, 0, 2)
    jobs = scene.carry_out()
    found = [
        (job.state, job.collection, job.night_id, job.priority, job.manifest, job.config["iterations"]) for job in jobs
    ]
    assert found == [(JobState.PENDING, "lakes", scene.night.id, 3, None, 6)] * 2
    assert [source.original_path for job in jobs for source in job.sources] == [
        str(path) for number in range(2) for path in (scene.contents / f"c{number}.png", scene.styles / "s.png")
    ]
    assert list(scene.workspace.work.iterdir()) == []


def test_a_night_that_is_gone_on_with_makes_nothing_twice(scene: Scene) -> None:
    first, second = scene.carry_out()
    scene.end(first, failed=False)
    plan = scene.look()
    assert (counts(plan), list(plan.again)) == ((2, 0, 1, 0), [second.id])
    assert [job.id for job in scene.carry_out()] == [first.id, second.id]


def test_the_next_night_does_what_failed_and_what_is_new_or_changed(scene: Scene) -> None:
    done, failed = scene.carry_out()
    scene.end(done, failed=False)
    scene.end(failed, failed=True)
    encode_png(content_of(50), scene.contents / "new.png")
    plan = scene.next_night()
    assert (counts(plan), list(plan.again)) == ((3, 1, 1, 1), [failed.id])
    encode_png(content_of(60), scene.contents / "c0.png")
    assert counts(scene.look()) == (3, 0, 1, 2)
    # Other settings make another picture.
    (scene.folder / "settings.toml").write_text(SMALL.replace("iterations = 6", "iterations = 7"))
    assert counts(scene.look()) == (3, 0, 0, 3)


def test_a_failed_job_whose_picture_was_renamed_is_made_anew(scene: Scene) -> None:
    _, failed = scene.carry_out()
    scene.end(failed, failed=True)
    (scene.contents / "c1.png").rename(scene.contents / "c9.png")
    plan = scene.next_night()
    assert [str(pair.content) for pair, _ in plan.new] == [str(scene.contents / "c9.png")]
    assert failed.id not in plan.again


def test_pairs_that_are_the_same_are_one(scene: Scene) -> None:
    (scene.contents / "copy.png").write_bytes((scene.contents / "c0.png").read_bytes())
    plan = scene.look()
    assert counts(plan) == (2, 0, 0, 2)
    assert [pair.content.name for pair, _ in plan.asked] == ["c0.png", "c1.png"]


def test_a_picture_that_cannot_be_used_is_a_problem_with_its_pairs(scene: Scene) -> None:
    (scene.contents / "empty.png").touch()
    (scene.contents / "text.png").write_text("no picture")
    whole = (scene.styles / "s.png").read_bytes()
    (scene.styles / "torn.png").write_bytes(whole[: len(whole) // 2])
    plan = scene.look()
    assert (plan.pairs, plan.to_do) == (8, 2)
    assert {(problem.file, problem.pairs) for problem in plan.problems} == {
        ("contents/empty.png", 2),
        ("contents/text.png", 2),
        ("styles/torn.png", 2),
    }
    reasons = {problem.file: problem.reason for problem in plan.problems}
    assert reasons["styles/torn.png"].startswith("is damaged or incomplete")
    assert [fingerprint is None for _, fingerprint in plan.asked].count(True) == 6


def test_pictures_of_one_name_in_two_folders_have_places_of_their_own_on_the_sheet(scene: Scene) -> None:
    (scene.contents / "2025").mkdir()
    encode_png(content_of(9), scene.contents / "2025" / "c0.png")
    jobs = scene.carry_out()
    scene.end(jobs[0], failed=True)
    for job in jobs[1:]:
        scene.end(job, failed=False)
    assert cells_of(scene.look(), scene.nights) == [
        Cell("2025/c0.png", "s.png", None, "failed"),
        Cell("c0.png", "s.png", Path("/out", jobs[1].name, "result.png"), "completed"),
        Cell("c1.png", "s.png", Path("/out", jobs[2].name, "result.png"), "completed"),
    ]


def test_a_name_that_is_no_utf8_is_a_problem(scene: Scene) -> None:
    strange = os.fsencode(scene.contents) + b"/caf\xe9.png"
    os.rename(scene.contents / "c1.png", strange)  # noqa: PTH104
    plan = scene.look()
    assert plan.problems == (Problem("contents/caf?.png", "has a name that is no UTF-8; rename it.", 1),)
    assert counts(plan) == (2, 0, 0, 1)


def test_a_style_too_narrow_for_the_settings_is_named(scene: Scene) -> None:
    encode_png(np.tile(STYLE[:, :33], (8, 1, 1)), scene.styles / "narrow.png")
    plan = scene.look()
    assert [(problem.file, problem.pairs) for problem in plan.problems] == [("styles/narrow.png", 2)]


def test_a_job_takes_its_pictures_as_they_were_when_it_was_made(scene: Scene) -> None:
    changed, gone = scene.carry_out()
    bring_pictures(scene.workspace, changed)
    folder = scene.workspace.job_folder(changed.id)
    assert (folder / "content.png").read_bytes() == (scene.contents / "c0.png").read_bytes()
    # What it has taken, it keeps.
    encode_png(content_of(70), scene.contents / "c0.png")
    bring_pictures(scene.workspace, changed)
    (folder / "content.png").unlink()
    with pytest.raises(PictureGoneError, match=r"c0\.png has changed since its job was made; the next night takes it"):
        bring_pictures(scene.workspace, changed)
    (scene.contents / "c1.png").unlink()
    with pytest.raises(PictureGoneError, match=rf"c1\.png is gone; .* `nst retry {gone.id}`"):
        bring_pictures(scene.workspace, gone)


@pytest.mark.parametrize(
    ("night", "sentence"),
    [
        pytest.param({"completed": 4}, "lakes: 4 of 4 pairs are done.", id="all"),
        pytest.param({"done_before": 3, "completed": 1}, "lakes: 4 of 4 pairs are done, 3 of them before this night."),
        pytest.param(
            {"state": NightState.CANCELLED, "completed": 1, "failed": 1, "cancelled": 2},
            "lakes: cancelled; 1 of 4 pairs are done, 1 failed, 2 cancelled.",
            id="cancelled",
        ),
        pytest.param(
            {"completed": 1, "problems": [{"file": f"styles/{n}", "reason": "", "pairs": 1} for n in range(7)]},
            "lakes: 1 of 4 pairs are done, 7 cannot be made because of styles/0, styles/1, styles/2, styles/3, "
            "styles/4 and 2 more.",
            id="problems",
        ),
        pytest.param({"error": "/c/lakes/styles: holds no pictures."}, "lakes: /c/lakes/styles: holds no pictures."),
        pytest.param(
            {"pairs": None, "state": NightState.CANCELLED}, "lakes: cancelled before anything was found.", id="early"
        ),
        pytest.param(
            {"state": NightState.RUNNING, "completed": None}, "lakes: another run goes on with its night.", id="lost"
        ),
    ],
)
def test_a_night_is_told_in_one_sentence(night: dict[str, object], sentence: str) -> None:
    whole = {"collection": "lakes", "state": NightState.COMPLETED, "pairs": 4, "done_before": 0, "completed": 0}
    assert sentence_on(Night(**whole | night)) == sentence
