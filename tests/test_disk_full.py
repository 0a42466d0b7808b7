"""A full disk: on a small real one that is full at every write of a job's life, one after another, all goes on once
there is room; no file of the user's is lost or doubled, no half file is taken for a whole one, and each refusal is
told."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image
from prefect.logging import disable_run_logger

from flows import checkpoint, snapshots
from flows.attempt import Attempt
from flows.chunks import take_snapshot
from flows.gallery.thumbnails import Thumbnails
from flows.logs import line_file
from flows.settings import load_settings
from flows.tasks import complete, deprocess
from nst_engine.config import TransferConfig
from nst_engine.errors import ImageError
from nst_engine.transfer import TransferState
from storage import leftovers
from storage.backup import back_up
from storage.database import open_database
from storage.errors import DatabaseError, StorageError, WorkspaceError
from storage.jobs import JobStore, NewLossPoint, utc_now
from storage.models import Job, JobState
from storage.refusal import error_line, is_disk_full
from storage.workspace import Workspace
from tests.intake_home import BAD_TOML, CONTENT, PAIR, STYLE, Place, contents
from tests.small_disk import SmallDisk, small_disk
from tests.transfer_state import finished_transfer

ROOMS = (0, 1, 2, 3, 4, 6, 8, 10, 13, 17, 22, 28, 36, 46, 58, 73, 92, 116, 146)
DROP = {**PAIR, "lake.toml": b"rows = 16\niterations = 12\nsnapshot_every = 12\n"}
RESULT = {"result.png", "loss.png", "job.json", "timelapse.webp", "snapshots/000012.jpg"}
HELD = {"content.png": CONTENT, "style.png": STYLE, "settings.toml": DROP["lake.toml"]}
# What is said: which file or folder, that the disk is full, and that it wants space.
SENTENCE = re.compile(r"/.*(the disk is full|No space left on device|disk I/O error).*(space|disk)", re.DOTALL)


class Squeezed:
    """A home with one small disk in it, full whenever something is asked of it and then with ever more room.

    `kind` is what it lacks: `pages` to write to, or `files`, names for new ones.
    """

    def __init__(self, place: Place, disk: SmallDisk, kind: str) -> None:
        self.place = place
        self.disk = disk
        self.kind = kind
        self.told: list[str] = []
        self.expected = tuple(DROP.values())

    def until_done(self, what: Callable[[], bool | None], *, last: bool = False) -> None:
        """Try it with no room, then with ever more, until it neither raises nor returns False.

        The `last` step of a job removes what was held for it.
        """
        for room in ROOMS:
            self.disk.leave(**{self.kind: room})
            try:
                if what() is not False:
                    break
            except (StorageError, ImageError, OSError) as error:
                if not is_disk_full(error):
                    raise
                self.told.append(error_line(error, place=self.place.workspace.home))
            self.check()
        else:
            raise AssertionError(f"it took more room than {ROOMS[-1]} {self.kind}: {self.told[-1:]}")
        self.disk.free()
        self.expected = () if last else self.expected
        self.check()

    def look(self) -> bool:
        """Look at the inbox; False while something waits."""
        look = self.place.look(after=2.0)
        self.told += [waiting.reason for waiting in look.waiting]
        return not look.waiting and bool(look.claimed or look.rejected or self.place.inbox == {})

    def check(self) -> None:
        """Every dropped file is in one place, and nothing half is anywhere; a result has copies of its own."""
        files = {path: data for path, data in contents(self.place.workspace.home).items() if "/result/" not in path}
        assert [path for path in files if path.endswith((".part", ".tmp"))] == []
        held = {path: data for path, data in files.items() if not path.startswith("outbox/")}
        assert Counter(data for data in held.values() if data in DROP.values()) == Counter(self.expected)
        for folder in self.place.workspace.outbox.iterdir():
            assert set(contents(folder)) == RESULT | set(HELD)


@pytest.fixture(params=["pages", "files"])
def squeeze(tmp_path: Path, template: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Squeezed]]:
    """Makes a home of which one folder, or all, lies on a small disk."""
    with ExitStack() as stack:

        def squeezed(small: str) -> Squeezed:
            home = tmp_path / "home"
            disk = stack.enter_context(small_disk(home / small))
            place = Place(home, template)
            stack.callback(place.close)
            return Squeezed(place, disk, request.param)

        yield squeezed


@pytest.fixture(scope="module")
def state() -> TransferState:
    return finished_transfer()


LOSSES = [
    NewLossPoint(
        iteration=iteration,
        total=3.0,
        content=1.0,
        style=1.5,
        tv=0.5,
        layers={"style/block1_conv1": 1.5},
        learning_rate=1.0,
        seconds=0.1,
    )
    for iteration in range(13)
]


@pytest.mark.parametrize("small", ["", "work", "outbox"], ids=["the home", "work", "outbox"])
def test_a_job_gets_through_a_disk_that_is_full_at_each_write(
    squeeze: Callable[[str], Squeezed], small: str, state: TransferState
) -> None:
    squeezed = squeeze(small)
    place = squeezed.place
    place.drop(DROP)
    place.look()
    squeezed.until_done(squeezed.look)
    (job,) = place.jobs
    assert (job.state, place.inbox, place.work(job)) == (JobState.PENDING, {}, HELD)

    with disable_run_logger():
        attempt = begin(squeezed, job)
        squeezed.until_done(lambda: place.store.add_loss_points(job.id, attempt=attempt.number, points=LOSSES))
        squeezed.until_done(lambda: snapshots.write_snapshots(attempt.folder, [take_snapshot(state)]))
        squeezed.until_done(lambda: checkpoint.save(attempt.checkpoint, state))
        squeezed.until_done(lambda: snapshots.write_preview(attempt.folder, state))
        squeezed.until_done(
            lambda: place.store.release(job.id, attempt=attempt.number, error="The disk is full.", counted=False)
        )
        attempt = begin(squeezed, job)
        saved = checkpoint.load(attempt.checkpoint)
        assert saved is not None
        squeezed.until_done(lambda: deprocess.fn(attempt, saved))

    reserved = place.workspace.outbox / "lake"
    squeezed.until_done(lambda: place.store.reserve_result(job.id, place.workspace.candidates(job.name)) == reserved)
    squeezed.until_done(lambda: place.workspace.publish(job.id, reserved))
    assert contents(reserved).items() >= HELD.items()
    squeezed.until_done(lambda: complete(attempt, reserved), last=True)

    job = place.store.get(job.id)
    assert (job.state, job.attempts_before_retry, len(job.attempts)) == (JobState.COMPLETED, 1, 2)
    result = contents(reserved)
    assert set(result) == RESULT | set(HELD)
    assert {name: result[name] for name in HELD} == HELD
    assert contents(place.workspace.work) == {}
    # In the home there is hardly a step that writes nothing.
    assert len(squeezed.told) >= (8 if small == "" else 3)
    assert [told for told in squeezed.told if not SENTENCE.search(told)] == []


def begin(squeezed: Squeezed, job: Job) -> Attempt:
    place = squeezed.place
    numbers: list[int] = []
    squeezed.until_done(
        lambda: numbers.append(
            place.store.start_attempt(job.id, host="here", pid=1, lease_until=utc_now() + timedelta(hours=1))
        )
    )
    return Attempt(place.store.get(job.id), numbers[-1], place.store, place.workspace, place.settings)


@pytest.mark.parametrize("small", ["", "rejected"], ids=["the home", "rejected"])
def test_a_rejection_waits_for_a_full_disk_and_is_made_once(squeeze: Callable[[str], Squeezed], small: str) -> None:
    squeezed = squeeze(small)
    place = squeezed.place
    place.drop(PAIR | {"lake.toml": BAD_TOML})
    squeezed.expected = (CONTENT, STYLE)
    place.look()
    squeezed.until_done(squeezed.look)
    (job,) = place.jobs
    rejected = contents(place.workspace.rejected / "lake")
    reason = rejected.pop("lake.reason.txt")
    assert (job.state, place.inbox, rejected) == (JobState.REJECTED, {}, {**PAIR, "lake.toml": BAD_TOML})
    assert reason == f"{job.error}\n".encode()
    assert squeezed.told
    assert [told for told in squeezed.told if not SENTENCE.search(told)] == []


def test_a_style_folder_keeps_its_style_when_the_disk_is_full(squeeze: Callable[[str], Squeezed]) -> None:
    squeezed = squeeze("work")
    place = squeezed.place
    place.drop({"swirls/style.png": STYLE, "swirls/lake.png": CONTENT})
    place.look()
    for room in ROOMS:
        squeezed.disk.leave(**{squeezed.kind: room})
        look = place.look(after=2.0)
        assert look.rejected == ()
        assert place.inbox["swirls/style.png"] == STYLE
        if place.inbox == {"swirls/style.png": STYLE} and not look.waiting:
            break
        assert [path for path in contents(place.workspace.home) if path.endswith(".part")] == []
        squeezed.told += [waiting.reason for waiting in look.waiting]
    (job,) = place.jobs
    assert (job.state, place.work(job)) == (JobState.PENDING, {"content.png": CONTENT, "style.png": STYLE})
    assert squeezed.told
    assert [told for told in squeezed.told if not SENTENCE.search(told)] == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def test_a_log_that_is_refused_says_so_once_and_goes_on(disk: SmallDisk, capfd: pytest.CaptureFixture[str]) -> None:
    path = disk.place / "logs" / "sensor.log"
    log = line_file(path)

    def say(line: str) -> None:
        log.handle(logging.makeLogRecord({"msg": line}))

    say("before")
    disk.leave(pages=0)
    for number in range(200):
        say(f"{number} while it is full{'.' * 100}")
    told = capfd.readouterr().err
    assert told == f"The log file {path} cannot be written (the disk is full); free some space on it.\n"
    disk.free()
    say("after")
    disk.leave(pages=0)
    for number in range(200):
        say(f"{number} while it is full again{'.' * 100}")
    log.close()
    assert capfd.readouterr().err == told
    lines = path.read_text().splitlines()
    # The line that was refused may be there in part.
    assert (lines[0], sum(line.endswith("after") for line in lines)) == ("before", 1)


def test_a_database_is_opened_once_there_is_room_and_is_whole(squeeze: Callable[[str], Squeezed]) -> None:
    squeezed = squeeze("")
    place = squeezed.place
    place.close()
    before = place.workspace.database_path.read_bytes()
    told: list[str] = []
    for room in ROOMS:
        squeezed.disk.leave(**{squeezed.kind: room})
        try:
            place.restart()
            break
        except DatabaseError as error:
            told.append(str(error))
    assert told
    assert [sentence for sentence in told if str(place.workspace.database_path) not in sentence] == []
    assert place.workspace.database_path.read_bytes() == before
    squeezed.disk.free()
    place.drop(PAIR)
    assert [job.name for job in place.settled_look().claimed] == ["lake"]


def test_a_backup_that_finds_no_room_leaves_nothing(disk: SmallDisk, template: Path) -> None:
    backup = disk.place / "nst-backup.db"
    disk.leave(pages=10)
    with open_database(template) as database:
        with pytest.raises(StorageError, match=r"nst-backup.db .*full.*free some space"):
            back_up(database, backup)
        assert list(disk.place.iterdir()) == []
        disk.free()
        assert back_up(database, backup) == backup.stat().st_size
    with open_database(backup) as database:
        assert database.integrity() == []


def test_a_thumbnail_that_cannot_be_kept_is_shown_all_the_same(
    disk: SmallDisk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = tmp_path / "result.png"
    Image.effect_noise((400, 300), 80).convert("RGB").save(picture)
    thumbnails = Thumbnails(disk.place, max_pixels=10**6)
    disk.leave(pages=1)
    shown = thumbnails.make(picture, job_id="0123456789", role="result", side=480)
    assert Image.open(io.BytesIO(shown)).size == (400, 300)
    assert contents(disk.place) == {}
    assert "cannot be kept (No space left on device)" in caplog.text
    disk.free()
    assert thumbnails.make(picture, job_id="0123456789", role="result", side=480) == shown
    assert thumbnails.kept(picture, job_id="0123456789", role="result", side=480) == shown


def test_what_a_given_up_job_made_is_removed_though_the_disk_has_no_room(squeeze: Callable[[str], Squeezed]) -> None:
    squeezed = squeeze("")
    workspace = squeezed.place.workspace
    folder = workspace.job_folder("0123456789")
    (folder / "snapshots").mkdir(parents=True)
    for name in ("content.png", "checkpoint", "preview.jpg", "snapshots/000001.jpg"):
        (folder / name).write_bytes(bytes(5000))
    squeezed.disk.leave(**{squeezed.kind: 0})
    leftovers.set_aside(workspace, "0123456789", ["checkpoint", "preview.jpg", "snapshots"])
    assert contents(folder) == {"content.png": bytes(5000)}
    assert leftovers.remove_aside(workspace) == 15_000
    assert contents(workspace.work) == {"0123456789/content.png": bytes(5000)}


SMALL = {
    "rows": 32,
    "iterations": 2,
    "weights": "random",
    "precision": "float32",
    "content_layers": "block2_conv2",
    "style_layers": "block1_conv1,block2_conv1",
}


@pytest.mark.usefixtures("in_a_burst")
def test_a_job_of_the_service_waits_for_room_and_no_attempt_is_counted(
    disk: SmallDisk, tmp_path: Path, claim_pair: Callable[..., Job]
) -> None:
    """Until more attempts have found the outbox full than a job has."""
    from flows.stylize import stylize

    workspace = Workspace(tmp_path / "home")
    workspace.create()
    (workspace.home / "nst.toml").write_text("max_attempts = 1\n")
    settings = load_settings(home=workspace.home, device="cpu")
    workspace.outbox.rmdir()
    workspace.outbox.symlink_to(disk.place)
    with open_database(workspace.database_path) as database:
        store = JobStore(database)
        job = claim_pair(store, workspace, TransferConfig().with_overrides(SMALL))
        disk.leave(pages=1)
        for attempt in range(1, settings.max_attempts + 2):
            before = utc_now()
            with pytest.raises(WorkspaceError, match="the disk is full"):
                stylize(job.id, str(settings.home), "cpu")
            job = store.get(job.id)
            assert (job.state, job.attempts_before_retry) == (JobState.PENDING, attempt)
            assert job.attempts[-1].error == (
                f"The result cannot be moved to {disk.place / 'lake_swirls'} (the disk is full); free some space on it."
            )
            assert job.lease_until is not None
            assert job.lease_until >= before + timedelta(seconds=60 * attempt)
        assert contents(disk.place) == {}
        disk.free()
        assert stylize(job.id, str(settings.home), "cpu") == str(workspace.outbox / "lake_swirls")
        job = store.get(job.id)
    assert (job.state, len(job.attempts)) == (JobState.COMPLETED, settings.max_attempts + 2)
    assert contents(workspace.work) == {}
