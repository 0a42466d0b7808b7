"""The folders of a service: what is copied, moved, named and refused."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import WorkspaceError
from storage.workspace import Workspace, check_writable, safe_name, sha256_of

JOB = "0123456789"
RESULT = {"result.png": b"picture", "job.json": b"{}", "snapshots/0100.png": b"early"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "home")
    workspace.create()
    return workspace


@pytest.fixture
def other_volume() -> Iterator[Path]:
    """A folder on another file system than the temporary folder of the tests."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finish(workspace: Workspace) -> None:
    for name, content in RESULT.items():
        path = workspace.job_folder(JOB) / "result" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_a_home_has_its_folders(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "far" / "home")
    workspace.create()
    workspace.create()
    assert {path.name for path in workspace.home.iterdir() if path.is_dir()} == {
        "inbox",
        "outbox",
        "rejected",
        "collections",
        "work",
    }
    assert workspace.database_path == tmp_path / "far" / "home" / "nst.db"


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"home/inbox cannot be made .*; name another home"):
        Workspace(tmp_path / "home").create()


def test_a_source_is_copied_with_its_time(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "cat.jpg"
    source.write_bytes(b"x" * 3_000_000)
    os.utime(source, ns=(1_000_000_000, 1_234_567_890_123_456_789))
    copy = workspace.copy_source(JOB, source, "content.jpg")
    assert copy == workspace.work / JOB / "content.jpg"
    assert files(workspace.work) == {f"{JOB}/content.jpg": source.read_bytes()}
    assert copy.stat().st_mtime_ns == 1_234_567_890_123_456_789


@pytest.mark.parametrize("name", ["gone.jpg", "folder"])
def test_a_source_that_cannot_be_read_leaves_nothing(workspace: Workspace, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkspaceError, match=f"{name} cannot be copied to .*content.jpg"):
        workspace.copy_source(JOB, tmp_path / name, "content.jpg")
    assert files(workspace.work) == {}


@pytest.mark.parametrize("name", ["", ".", "..", "../cat.jpg", "a/b", "/etc/passwd"])
def test_names_do_not_lead_out_of_the_folder(workspace: Workspace, tmp_path: Path, name: str) -> None:
    source = tmp_path / "cat.jpg"
    source.write_bytes(b"cat")
    for act in (
        lambda: workspace.copy_source(JOB, source, name),
        lambda: workspace.job_folder(name),
        lambda: workspace.discard(name),
    ):
        with pytest.raises(WorkspaceError, match="is not the name of a file"):
            act()
    assert workspace.work.is_dir()


def in_outbox(workspace: Workspace) -> Path:
    return workspace.free_name("cat")


def not_there(workspace: Workspace) -> Path:
    return workspace.home.parent / "new" / "out"


def empty_folder(workspace: Workspace) -> Path:
    folder = workspace.home.parent / "mine"
    folder.mkdir()
    return folder


def link_to_empty_folder(workspace: Workspace) -> Path:
    link = workspace.home.parent / "link"
    link.symlink_to(empty_folder(workspace))
    return link


def empty_folder_after_a_crash(workspace: Workspace) -> Path:
    folder = empty_folder(workspace)
    (folder / f".{JOB}.part").mkdir()
    (folder / f".{JOB}.part" / "result.png").write_bytes(b"hal")
    return folder


@pytest.mark.parametrize(
    "place", [in_outbox, not_there, empty_folder, link_to_empty_folder, empty_folder_after_a_crash]
)
def test_a_result_is_moved_whole(workspace: Workspace, place: Callable[[Workspace], Path]) -> None:
    finish(workspace)
    destination = place(workspace)
    workspace.publish(JOB, destination)
    assert files(destination) == RESULT
    assert not (workspace.job_folder(JOB) / "result").exists()
    assert list(destination.parent.rglob(".*")) == []


def test_a_folder_of_the_user_stays_the_same_folder(workspace: Workspace) -> None:
    finish(workspace)
    destination = empty_folder(workspace)
    destination.chmod(0o2770)
    before = destination.stat()
    workspace.publish(JOB, destination)
    after = destination.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("there", [True, False], ids=["empty folder", "not there"])
def test_a_result_is_moved_to_another_volume(workspace: Workspace, other_volume: Path, there: bool) -> None:
    finish(workspace)
    destination = other_volume / "out"
    if there:
        destination.mkdir()
    workspace.publish(JOB, destination)
    assert files(other_volume) == {f"out/{name}": content for name, content in RESULT.items()}
    assert files(workspace.home) == {}


def a_file(destination: Path) -> None:
    destination.write_bytes(b"mine")


def a_full_folder(destination: Path) -> None:
    destination.mkdir()
    (destination / "mine.txt").write_bytes(b"mine")


def a_hidden_file(destination: Path) -> None:
    destination.mkdir()
    (destination / ".mine").write_bytes(b"mine")


@pytest.mark.parametrize("put", [a_file, a_full_folder, a_hidden_file])
@pytest.mark.parametrize("place", ["outbox", ""], ids=["in the outbox", "elsewhere"])
def test_what_is_there_is_never_overwritten(workspace: Workspace, put: Callable[[Path], None], place: str) -> None:
    finish(workspace)
    destination = workspace.home / place / "out"
    put(destination)
    before = files(workspace.home)
    with pytest.raises(WorkspaceError, match=f"{destination} is already there and not an empty folder"):
        workspace.publish(JOB, destination)
    assert files(workspace.home) == before


def test_a_destination_below_a_file_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    finish(workspace)
    (tmp_path / "file").write_text("in the way")
    before = files(tmp_path)
    with pytest.raises(WorkspaceError, match=r"cannot be moved to .*choose another folder with -o"):
        workspace.publish(JOB, tmp_path / "file" / "out")
    assert files(tmp_path) == before


def test_a_job_without_a_result_cannot_be_published(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=f"Job {JOB} has no finished files"):
        workspace.publish(JOB, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_reader_never_sees_half_a_result(workspace: Workspace) -> None:
    seen: set[frozenset[str]] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for folder in workspace.outbox.iterdir():
                seen.add(frozenset(path.name for path in folder.iterdir()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(30):
        finish(workspace)
        workspace.publish(JOB, workspace.free_name("cat"))
    done.set()
    watcher.join()
    assert seen <= {frozenset(), frozenset({"result.png", "job.json", "snapshots"})}


def test_names_in_the_outbox_are_given_once(workspace: Workspace) -> None:
    taken: list[str] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait(30)
        taken.append(workspace.free_name("cat").name)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == ["cat", *(f"cat-{n}" for n in range(2, 9))]
    assert {path.name for path in workspace.outbox.iterdir()} == set(taken)


def test_a_name_in_a_missing_outbox_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"outbox/cat cannot be made .*; check the outbox"):
        Workspace(tmp_path / "home").free_name("cat")


def test_discarding_a_job_leaves_the_others(workspace: Workspace) -> None:
    finish(workspace)
    (workspace.work / "other").mkdir()
    workspace.discard(JOB)
    workspace.discard(JOB)
    assert [path.name for path in workspace.work.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("cat", "cat", id="plain"),
        pytest.param("Katze & Hund (2)", "Katze _ Hund _2_", id="signs"),
        pytest.param("a/b\\c:d", "a_b_c_d", id="separators"),
        pytest.param("../../etc", "_.._etc", id="leads out"),
        pytest.param("-rf .hidden", "rf .hidden", id="option"),
        pytest.param(" .cat. ", "cat", id="dots and spaces"),
        pytest.param("cafe\u0301", "caf\u00e9", id="decomposed"),
        pytest.param("हिन्दी 猫", "हिन्दी 猫", id="marks and ideographs"),
        pytest.param("a\0b\nc\udce9", "a_b_c_", id="control and broken bytes"),
        pytest.param("", "untitled", id="empty"),
        pytest.param("...", "untitled", id="only dots"),
        pytest.param("x" * 300, "x" * 120, id="long"),
        pytest.param("猫" * 100, "猫" * 40, id="long in bytes"),
        pytest.param("x" + "猫" * 100, "x" + "猫" * 39, id="cut within a character"),
        pytest.param("x" * 119 + " y", "x" * 119, id="cut after a space"),
    ],
)
def test_names_are_made_good_for_files(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text() | st.text(alphabet=st.characters(), min_size=50))
def test_any_text_makes_a_good_name(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 120
    assert name[0] not in " .-"
    assert name[-1] not in " ."
    assert not set(name) & set('/\\:*?"<>|\0')
    assert safe_name(name) == name


@pytest.mark.parametrize("place", ["", "not/there/yet"], ids=["folder", "not there"])
def test_a_place_that_can_be_written_is_accepted_and_left_as_it_was(tmp_path: Path, place: str) -> None:
    check_writable(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/out", "file/far/out"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError) as caught:
        check_writable(tmp_path / place)
    assert str(caught.value) == f"Cannot write to {tmp_path / place} (Not a directory); choose another folder with -o."


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_checksums_are_of_all_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_checksum_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"gone.png cannot be read .No such file or directory.; check"):
        sha256_of(tmp_path / "gone.png")
