"""The folders of a service: what is copied, moved, named and refused."""

import errno
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

from storage.disk import sync
from storage.errors import WorkspaceError
from storage.workspace import Workspace, check_writable, safe_name, sha256_of

JOB = "0123456789"
RESULT = {"result.png": b"picture", "job.json": b"{}", "snapshots/0100.png": b"early"}


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
    with pytest.raises(WorkspaceError, match=r"home cannot be made .*; name another home"):
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
    return next(workspace.candidates("cat"))


def empty_folder_in_outbox(workspace: Workspace) -> Path:
    folder = workspace.outbox / "cat"
    folder.mkdir()
    return folder


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
    "place",
    [in_outbox, empty_folder_in_outbox, not_there, empty_folder, link_to_empty_folder, empty_folder_after_a_crash],
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
    for name, _ in zip(workspace.candidates("cat"), range(30), strict=False):
        finish(workspace)
        workspace.publish(JOB, name)
    done.set()
    watcher.join()
    assert seen == {frozenset({"result.png", "job.json", "snapshots"})}


def test_results_of_one_name_are_numbered(workspace: Workspace) -> None:
    (workspace.outbox / "a_b.c").mkdir()
    names = workspace.candidates("a/b.c")
    assert [next(names) for _ in range(3)] == [workspace.outbox / name for name in ("a_b.c", "a_b.c-2", "a_b.c-3")]


def drop(workspace: Workspace, **contents: str) -> dict[Path, str]:
    """Files in the folder `cat` of the inbox and the names that they are to have: content.jpg and so on."""
    folder = workspace.inbox / "cat"
    folder.mkdir(exist_ok=True)
    moves = {}
    for name, content in contents.items():
        path = folder / f"Cat {name}.jpg"
        path.write_text(content)
        os.utime(path, ns=(1_000_000_000, 1_234_567_890_123_456_789))
        moves[path] = f"{name}.jpg"
    return moves


def tree(workspace: Workspace) -> dict[str, str]:
    """Everything in the home, an empty folder as `name/`."""
    found = {}
    for path in sorted(workspace.home.rglob("*")):
        name = str(path.relative_to(workspace.home))
        if not path.is_dir():
            found[name] = path.read_text()
        elif path.parent != workspace.home and not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


IN_INBOX = {"inbox/cat/Cat content.jpg": "C", "inbox/cat/Cat style.jpg": "S"}
TAKEN = {"inbox/cat/": "", f"work/{JOB}/content.jpg": "C", f"work/{JOB}/style.jpg": "S"}


def half_a_rename(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.hardlink_to(source)


def half_a_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f".{target.name}.nst.part").write_text("half")


def a_whole_move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


CRASHES: dict[str, Callable[[Path, Path], None]] = {
    "between files": a_whole_move,
    "in a rename": half_a_rename,
    "in a copy": half_a_copy,
    "before": lambda source, target: None,
}


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES)
def test_a_drop_is_taken_or_taken_to_the_end(workspace: Workspace, crash: Callable[[Path, Path], None]) -> None:
    moves = drop(workspace, content="C", style="S")
    source, name = next(iter(moves.items()))
    crash(source, workspace.job_folder(JOB) / name)
    workspace.take(JOB, moves)
    assert tree(workspace) == TAKEN
    assert (workspace.job_folder(JOB) / name).stat().st_mtime_ns == 1_234_567_890_123_456_789
    workspace.take(JOB, moves)
    assert tree(workspace) == TAKEN


def test_a_later_drop_of_the_same_name_is_not_taken(workspace: Workspace) -> None:
    moves = drop(workspace, content="C", style="S")
    workspace.take(JOB, moves)
    drop(workspace, content="new")
    workspace.take(JOB, moves)
    assert tree(workspace) == {
        "inbox/cat/Cat content.jpg": "new",
        f"work/{JOB}/content.jpg": "C",
        f"work/{JOB}/style.jpg": "S",
    }


GONE: dict[str, Callable[[Workspace, dict[Path, str]], None]] = {
    f"work/{JOB}": lambda workspace, moves: workspace.take(JOB, moves),
    "rejected/cat": lambda workspace, moves: workspace.reject(moves, to=workspace.rejected / "cat", reason=REASON),
}


@pytest.mark.parametrize("to", GONE)
def test_a_drop_of_which_a_file_is_gone_stays(workspace: Workspace, to: str) -> None:
    moves = drop(workspace, content="C", style="S")
    gone = workspace.inbox / "cat" / "Cat style.jpg"
    gone.unlink()
    with pytest.raises(WorkspaceError) as caught:
        GONE[to](workspace, moves)
    assert str(caught.value) == f"{gone} is gone and not in {workspace.home / to} either; drop it again."
    assert tree(workspace) == {"inbox/cat/Cat content.jpg": "C"}


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES)
def test_a_drop_is_put_back_or_put_back_to_the_end(workspace: Workspace, crash: Callable[[Path, Path], None]) -> None:
    moves = drop(workspace, content="C", style="S")
    workspace.take(JOB, moves)
    (workspace.inbox / "cat").rmdir()
    target, name = next(iter(moves.items()))
    crash(workspace.job_folder(JOB) / name, target)
    workspace.put_back(JOB, moves)
    half = {"inbox/cat/.Cat content.jpg.nst.part": "half"} if crash is half_a_copy else {}
    assert tree(workspace) == IN_INBOX | half
    workspace.put_back(JOB, moves)
    assert tree(workspace) == IN_INBOX | half


def test_a_name_taken_meanwhile_is_left_alone(workspace: Workspace) -> None:
    moves = drop(workspace, content="C", style="S")
    workspace.take(JOB, moves)
    drop(workspace, content="new")
    (workspace.inbox / "cat" / "Cat content-2.jpg").symlink_to("nowhere")
    (workspace.job_folder(JOB) / ".style.jpg.nst.part").write_text("half")
    (workspace.job_folder(JOB) / "checkpoint").write_text("state")
    workspace.put_back(JOB, moves)
    (workspace.inbox / "cat" / "Cat content-2.jpg").unlink()
    assert tree(workspace) == {
        "inbox/cat/Cat content.jpg": "new",
        "inbox/cat/Cat content-3.jpg": "C",
        "inbox/cat/Cat style.jpg": "S",
        f"work/{JOB}/checkpoint": "state",
    }


REASON = "Cat content.jpg is no picture; drop another one."
REJECTED = {
    "inbox/cat/": "",
    "rejected/cat-2/cat-2.reason.txt": f"{REASON}\n",
    "rejected/cat-2/content.jpg": "C",
    "rejected/cat-2/style.jpg": "S",
}


@pytest.mark.parametrize("crash", CRASHES.values(), ids=CRASHES)
def test_a_drop_is_rejected_or_rejected_to_the_end(workspace: Workspace, crash: Callable[[Path, Path], None]) -> None:
    moves = drop(workspace, content="C", style="S")
    source, name = next(iter(moves.items()))
    to = workspace.rejected / "cat-2"
    crash(source, to / name)
    workspace.reject(moves, to=to, reason=REASON)
    assert tree(workspace) == REJECTED
    workspace.reject(moves, to=to, reason=REASON)
    assert tree(workspace) == REJECTED


def test_a_reason_replaces_no_file_of_the_drop(workspace: Workspace) -> None:
    (workspace.inbox / "cat.reason.txt").write_text("old")
    workspace.reject(
        {workspace.inbox / "cat.reason.txt": "cat.reason.txt"}, to=workspace.rejected / "cat", reason="caf\udce9"
    )
    assert tree(workspace) == {"rejected/cat/cat.reason.txt": "old", "rejected/cat/cat.reason-2.txt": "caf?\n"}


def test_a_rejected_drop_gets_a_folder_of_its_own(workspace: Workspace) -> None:
    assert workspace.rejected_folder("a/b") == workspace.rejected / "a_b"
    (workspace.rejected / "a_b").mkdir()
    (workspace.rejected / "a_b-2").symlink_to("nowhere")
    assert workspace.rejected_folder("a/b") == workspace.rejected / "a_b-3"


@pytest.mark.parametrize("name", ["", "..", "../cat.jpg", "a/b"])
def test_moves_do_not_lead_out_of_the_folder(workspace: Workspace, name: str) -> None:
    (path,) = drop(workspace, content="C")
    for act in (
        lambda: workspace.take(JOB, {path: name}),
        lambda: workspace.put_back(JOB, {path: name}),
        lambda: workspace.reject({path: name}, to=workspace.rejected / "cat", reason="No."),
    ):
        with pytest.raises(WorkspaceError, match="is not the name of a file"):
            act()
    assert tree(workspace) == {"inbox/cat/Cat content.jpg": "C"}


@pytest.fixture
def mounted(workspace: Workspace, other_volume: Path) -> Workspace:
    """A workspace whose inbox is on another volume, as a share would be."""
    workspace.inbox.rmdir()
    workspace.inbox.symlink_to(other_volume)
    return workspace


@pytest.mark.parametrize("half", [True, False], ids=["after a crash", "at once"])
def test_a_drop_is_taken_from_another_volume_and_put_back(mounted: Workspace, half: bool) -> None:
    moves = drop(mounted, content="C", style="S")
    held = mounted.job_folder(JOB) / "content.jpg"
    if half:
        half_a_copy(next(iter(moves)), held)
    mounted.take(JOB, moves)
    assert files(mounted.home) == {f"work/{JOB}/content.jpg": b"C", f"work/{JOB}/style.jpg": b"S"}
    assert files(mounted.inbox.resolve()) == {}
    assert held.stat().st_mtime_ns == 1_234_567_890_123_456_789
    drop(mounted, content="new")
    mounted.put_back(JOB, moves)
    assert files(mounted.inbox.resolve()) == {
        "cat/Cat content.jpg": b"new",
        "cat/Cat content-2.jpg": b"C",
        "cat/Cat style.jpg": b"S",
    }
    assert tree(mounted) == {}


def test_a_later_drop_on_another_volume_is_not_taken(mounted: Workspace) -> None:
    moves = drop(mounted, content="C")
    mounted.take(JOB, moves)
    drop(mounted, content="new")
    mounted.take(JOB, moves)
    assert files(mounted.inbox.resolve()) == {"cat/Cat content.jpg": b"new"}
    assert files(mounted.home) == {f"work/{JOB}/content.jpg": b"C"}


def test_a_file_system_without_hard_links_will_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    moves = drop(workspace, content="C", style="S")
    workspace.take(JOB, moves)
    assert tree(workspace) == TAKEN
    drop(workspace, content="new")
    workspace.put_back(JOB, moves)
    assert tree(workspace) == IN_INBOX | {
        "inbox/cat/Cat content.jpg": "new",
        "inbox/cat/Cat content-2.jpg": "C",
    }


def test_what_cannot_be_synced_is_left_to_the_file_system() -> None:
    sync(Path("/dev/null"))
    with pytest.raises(FileNotFoundError):
        sync(Path("/dev/nothing"))


def is_junk(name: str) -> bool:
    return name.startswith(".") or name == "@eaDir"


LEFT: dict[str, tuple[dict[str, str], bool]] = {
    "nothing": ({}, True),
    "junk": ({".DS_Store": "", "@eaDir/cat.jpg/thumb.jpg": "t"}, True),
    "empty folders": ({"a/b/": "", "c/": ""}, True),
    "junk below": ({"a/b/.DS_Store": "", "a/@eaDir/x": ""}, True),
    "a file": ({"cat.txt": "mine", ".DS_Store": ""}, False),
    "a file below": ({"a/b/cat.txt": "mine", "@eaDir/x": ""}, False),
}


@pytest.mark.parametrize(("left", "goes"), LEFT.values(), ids=LEFT)
def test_a_dropped_folder_goes_when_nothing_is_left(workspace: Workspace, left: dict[str, str], goes: bool) -> None:
    folder = workspace.inbox / "cat"
    folder.mkdir()
    for name, content in left.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(content)
    before = tree(workspace)
    workspace.remove_dropped_folder(folder, is_junk=is_junk)
    workspace.remove_dropped_folder(folder, is_junk=is_junk)
    assert tree(workspace) == ({} if goes else before)
    assert folder.exists() is not goes


def test_a_linked_folder_is_no_dropped_folder(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    link = workspace.inbox / "cat"
    link.symlink_to(tmp_path / "mine")
    workspace.remove_dropped_folder(link, is_junk=is_junk)
    assert link.is_dir()
    (tmp_path / "mine" / "deep").symlink_to(tmp_path)
    workspace.remove_dropped_folder(tmp_path / "mine", is_junk=is_junk)
    assert link.is_dir()


def test_a_file_that_arrives_while_a_folder_goes_stays(workspace: Workspace) -> None:
    folder = workspace.inbox / "cat"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / ".DS_Store").touch()
    asked: list[str] = []

    def arriving(name: str) -> bool:
        asked.append(name)
        if len(asked) == 3:
            (folder / "a" / "new.jpg").write_text("new")
        return is_junk(name)

    workspace.remove_dropped_folder(folder, is_junk=arriving)
    assert tree(workspace) == {"inbox/cat/a/new.jpg": "new"}


def test_what_the_disk_refuses_is_said(workspace: Workspace) -> None:
    moves = drop(workspace, content="C")
    (workspace.work / JOB).write_text("in the way")
    (workspace.rejected / "cat").write_text("in the way")
    with pytest.raises(
        WorkspaceError, match=r"cannot be moved to .*work/0123456789 \(File exists\); check both places"
    ):
        workspace.take(JOB, moves)
    with pytest.raises(WorkspaceError, match=r"cannot be moved to .*rejected/cat \(File exists\); check both places"):
        workspace.reject(moves, to=workspace.rejected / "cat", reason="No.")
    assert tree(workspace)["inbox/cat/Cat content.jpg"] == "C"


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
