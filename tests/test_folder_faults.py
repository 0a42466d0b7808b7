"""Folders that are closed, read-only, moved or away while the service works, and a system that watches none: what was
dropped stays where it is until they are back, and then goes on; once, and not as something else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows.attempt import Attempt
from flows.errors import InboxMissingError
from flows.settings import load_settings
from flows.tasks import put_in_place
from nst_engine.config import TransferConfig
from nst_engine.errors import ImageError
from storage.database import open_database
from storage.errors import DatabaseError, WorkspaceError
from storage.jobs import JobStore, utc_now
from storage.models import Job, JobState
from storage.workspace import Workspace
from tests.intake_home import CONTENT, OTHER, PAIR, STYLE, Place, contents
from tests.rights import modes_count
from tests.small_disk import SmallDisk, small_disk, unmount
from tests.test_sensor import Sensing

REPOSITORY = Path(__file__).parents[1]
START_SECONDS = 120.0
HELD = {"content.png": CONTENT, "style.png": STYLE}


@contextmanager
def closed(folder: Path, mode: int) -> Iterator[None]:
    """Take rights to a folder away for the length of a block."""
    before = folder.stat().st_mode
    with modes_count():
        folder.chmod(mode)
        try:
            yield
        finally:
            folder.chmod(before)


def states(place: Place) -> list[tuple[str, JobState]]:
    return [(job.name, job.state) for job in place.jobs]


def begun(place: Place, job: Job, result: dict[str, bytes]) -> Attempt:
    """The first attempt at a job, with a result that is ready to be moved to its place."""
    number = place.store.start_attempt(job.id, host="here", pid=1, lease_until=utc_now() + timedelta(hours=1))
    for name, data in result.items():
        path = place.workspace.job_folder(job.id) / "result" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return Attempt(place.store.get(job.id), number, place.store, place.workspace, place.settings)


def test_an_inbox_that_may_not_be_read_is_said_and_goes_on(place: Place) -> None:
    place.drop(PAIR)
    with closed(place.workspace.inbox, 0o000):
        for _ in range(2):
            with pytest.raises(InboxMissingError, match=r"inbox cannot be read \(Permission denied\); .*permissions"):
                place.look(after=3600.0)
    assert (states(place), place.inbox) == ([], PAIR)
    (job,) = place.settled_look().claimed
    assert (place.inbox, place.work(job)) == ({}, HELD)


@pytest.mark.parametrize("folder", ["inbox", "work"])
def test_files_that_may_not_be_moved_stay_until_they_may(place: Place, folder: str) -> None:
    place.drop(PAIR)
    with closed(place.workspace.home / folder, 0o555):
        for look in (place.settled_look(), place.look(after=3600.0)):
            assert (look.claimed, look.rejected) == ((), ())
            (waiting,) = look.waiting
            assert "(Permission denied); check both places." in waiting.reason
        assert (states(place), place.inbox) == ([("lake", JobState.CLAIMED)], PAIR)
    place.look(after=2.0)
    (job,) = place.jobs
    assert (job.state, place.inbox, place.work(job)) == (JobState.PENDING, {}, HELD)


def test_a_rejection_that_may_not_be_written_waits(place: Place) -> None:
    place.drop({**PAIR, "lake.toml": b"row = 1\n"})
    with closed(place.workspace.rejected, 0o555):
        assert place.settled_look().rejected == ()
        assert (states(place), len(place.inbox)) == ([("lake", JobState.CLAIMED)], 3)
    place.look(after=2.0)
    assert (states(place), place.inbox) == ([("lake", JobState.REJECTED)], {})
    assert set(contents(place.workspace.rejected / "lake")) == {*PAIR, "lake.toml", "lake.reason.txt"}


RESULT = {"result.png": OTHER, "job.json": b"{}"}


def test_a_result_waits_for_an_outbox_that_may_not_be_written_and_makes_one_that_is_gone(place: Place) -> None:
    place.drop(PAIR)
    (job,) = place.settled_look().claimed
    attempt = begun(place, job, RESULT)
    with disable_run_logger():
        with (
            closed(place.workspace.outbox, 0o555),
            pytest.raises(WorkspaceError, match=r"cannot be moved .*Permission"),
        ):
            put_in_place(attempt, None)
        assert contents(attempt.folder / "result") == RESULT
        place.workspace.outbox.rmdir()
        assert put_in_place(attempt, None) == place.workspace.outbox / "lake"
    assert contents(place.workspace.outbox) == {f"lake/{name}": data for name, data in RESULT.items()}
    assert states(place) == [("lake", JobState.COMPLETED)]


def test_an_inbox_on_a_read_only_disk_makes_one_job_that_begins_when_its_files_can_be_moved(
    tmp_path: Path, template: Path
) -> None:
    """They could be copied, and then were new drops again and again."""
    with small_disk(tmp_path / "home" / "inbox") as disk:
        place = Place(tmp_path / "home", template)
        place.drop(PAIR)
        with disk.read_only():
            place.settled_look()
            for _ in range(3):
                (waiting,) = place.look(after=2.0).waiting
                assert "(the disk is read-only); mount it so that it can be written to." in waiting.reason
            assert (states(place), place.inbox) == ([("lake", JobState.CLAIMED)], PAIR)
        place.look(after=2.0)
        (job,) = place.jobs
        assert (job.state, place.inbox, place.work(job)) == (JobState.PENDING, {}, HELD)
        place.close()


def test_a_home_on_a_read_only_disk_is_said_in_one_sentence(tmp_path: Path, template: Path) -> None:
    with small_disk(tmp_path / "home") as disk:
        place = Place(tmp_path / "home", template)
        place.drop(PAIR)
        place.settled_look()
        place.drop({"hill_content.png": OTHER, "hill_style.png": STYLE})
        place.close()
        with disk.read_only(), pytest.raises(DatabaseError) as caught:
            place.restart()
        assert str(place.workspace.database_path) in str(caught.value)
        assert str(caught.value).count(". ") == 0
        place.restart()
        place.settled_look()
        assert states(place) == [("lake", JobState.PENDING), ("hill", JobState.PENDING)]
        place.close()


def test_links_are_rejected_to_another_disk_as_links(tmp_path: Path, template: Path) -> None:
    with small_disk(tmp_path / "home" / "rejected"):
        place = Place(tmp_path / "home", template)
        (place.workspace.inbox / "nowhere.png").symlink_to("nothing")
        place.look()
        place.look(after=3600.0)
        assert (states(place), list(place.workspace.inbox.iterdir())) == ([("nowhere", JobState.REJECTED)], [])
        assert (place.workspace.rejected / "nowhere" / "nowhere.png").readlink() == Path("nothing")
        place.close()


def wait_for_start(sensor: Sensing) -> None:
    """Wait until it has taken its first drop; on a busy machine its imports take most of that."""
    deadline = time.monotonic() + START_SECONDS
    while not sensor.store.recent(limit=1, state=JobState.PENDING):
        assert time.monotonic() < deadline, sensor.output()
        time.sleep(0.1)


@pytest.mark.usefixtures("prefect_api")
def test_a_sensor_whose_disk_goes_and_comes_takes_what_is_dropped_and_not_what_lay_beneath(
    tmp_path: Path,
) -> None:
    inbox = tmp_path / "home" / "inbox"
    inbox.mkdir(parents=True)
    for name, data in PAIR.items():
        (inbox / name.replace("lake", "beneath")).write_bytes(data)
    with small_disk(inbox) as disk:
        sensor = Sensing(tmp_path / "home", watcher="native", rescan_seconds=1)
        try:
            sensor.drop("first")
            wait_for_start(sensor)
            disk.unmount()
            sensor.wait_for_line("the disk of the inbox is away")
            shutil.rmtree(sensor.workspace.work / sensor.store.find("first").id)
            again = SmallDisk(inbox)
            sensor.drop("second")
            sensor.wait_for("second")
            again.unmount()
            sensor.wait_for_line("the disk of the inbox is away", times=2)
            SmallDisk(inbox)
            for name in ("third", "fourth"):
                sensor.drop(name)
                sensor.wait_for(name)
            assert sensor.end() == 0
            assert [job.name for job in sensor.store.recent(limit=10)] == ["fourth", "third", "second", "first"]
        finally:
            sensor.close()
        unmount(inbox)
        assert {path.name for path in inbox.iterdir()} == {"beneath_content.png", "beneath_style.png"}
        assert "Traceback" not in sensor.output()


@pytest.mark.usefixtures("in_a_burst")
def test_a_job_whose_folder_is_closed_is_tried_again_and_one_whose_folder_was_removed_fails(
    tmp_path: Path, claim_pair: Callable[..., Job]
) -> None:
    from flows.stylize import stylize

    settings = load_settings(home=tmp_path / "home", device="cpu")
    workspace = Workspace(settings.home)
    workspace.create()
    with open_database(workspace.database_path) as database:
        store = JobStore(database)
        job = claim_pair(store, workspace, TransferConfig(weights="random"))
        content = workspace.job_folder(job.id) / "content.png"
        with closed(content.parent, 0o000), pytest.raises(ImageError):
            stylize(job.id, str(settings.home), "cpu")
        job = store.get(job.id)
        assert (job.state, job.attempts_before_retry) == (JobState.PENDING, 0)
        assert job.attempts[0].error == (
            f"{content} cannot be reached (Permission denied); check its folder and your rights to it."
        )
        shutil.rmtree(workspace.work)
        with pytest.raises(ImageError):
            stylize(job.id, str(settings.home), "cpu")
        job = store.get(job.id)
        assert (job.state, job.error, len(job.attempts)) == (
            JobState.FAILED,
            f"{content} does not exist; check the name.",
            2,
        )
    # Nor does the dispatcher stumble over it.
    assert workspace.jobs_with_folders() == []


LIMITED = """
import json, logging, sys, threading
from pathlib import Path
from flows.listing import scan
from flows.watcher import Watcher

folder, limits = Path(sys.argv[1]), Path("/proc/sys/user")
wake, now, seen = threading.Event(), [0.0], {}
logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)

def limit(kind, number):
    (limits / f"max_inotify_{kind}").write_text(str(number))

def is_told(patience):
    told = wake.wait(patience)
    wake.clear()
    return told

limit("instances", 0)
watcher = Watcher(folder, wake, mode="native", clock=lambda: now[0])
for time in (0, 1, 61):
    now[0] = time
    watcher.check()
seen["refused"] = watcher.polls, threading.active_count()
limit("instances", 4)
now[0] = 100
watcher.check()
seen["still"] = watcher.polls
now[0] = 122
watcher.check()
seen["again"] = watcher.polls, is_told(0)
limit("watches", 1)
(folder / "sub").mkdir()
seen["root"] = is_told(10), watcher.polls
wake.wait(0.3)
wake.clear()
(folder / "sub" / "content.png").write_bytes(b"picture")
seen["below"] = is_told(0.3), [str(entry.path) for entry in scan(folder).entries]
(folder / "style.png").write_bytes(b"picture")
seen["root again"] = is_told(10)
watcher.close()
limit("watches", 0)
other = Watcher(folder, wake, mode="native", clock=lambda: now[0])
other.check()
seen["no watches"] = other.polls, threading.active_count()
print(json.dumps(seen))
"""


def test_a_system_that_watches_no_more_folders_is_said_once_and_asked_again(tmp_path: Path) -> None:
    """In a user namespace, whose limits are its own."""
    namespace = ["unshare", "--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    ended = subprocess.run(
        [*namespace, sys.executable, "-c", LIMITED, tmp_path],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "refused": [True, 1],
        "still": True,
        "again": [False, True],
        "root": [True, False],
        # What nobody tells of is found by the next look.
        "below": [False, ["sub", "sub/content.png"]],
        "root again": True,
        "no watches": [True, 1],
    }
    polls = "it is looked at every few seconds"
    assert ended.stderr.splitlines() == [
        f"{tmp_path} cannot be watched (inotify instance limit reached), raise fs.inotify.max_user_instances; {polls}",
        f"{tmp_path} can be watched again",
        f"{tmp_path} cannot be watched (inotify watch limit reached), raise fs.inotify.max_user_watches; {polls}",
    ]
