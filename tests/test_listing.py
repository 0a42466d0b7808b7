"""What is read from the disk, on real folders, and since when files have stood still."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from flows.errors import InboxMissingError
from flows.inbox import Entry
from flows.listing import Listing, Settling, scan

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    return inbox


def put(inbox: Path, *names: str) -> None:
    for name in names:
        path = inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def paths(listing: Listing) -> dict[str, str]:
    return {entry.path.as_posix(): entry.kind for entry in listing.entries}


def test_an_entry_is_what_the_disk_says(inbox: Path) -> None:
    put(inbox, "trip/content.jpg")
    folder, file = (inbox / "trip").lstat(), (inbox / "trip" / "content.jpg").lstat()
    assert scan(inbox) == Listing(
        entries=(
            Entry(Path("trip"), "folder", folder.st_size, folder.st_mtime_ns, folder.st_ino),
            Entry(Path("trip/content.jpg"), "file", len("trip/content.jpg"), file.st_mtime_ns, file.st_ino),
        ),
        unreadable=(),
    )


def test_an_empty_inbox(inbox: Path) -> None:
    assert scan(inbox) == Listing((), ())


def test_everything_below_by_path_but_no_junk(inbox: Path) -> None:
    put(
        inbox,
        "b.jpg",
        "a/deep/er/c.jpg",
        "a/b.jpg",
        ".DS_Store",
        "x.part",
        "a/Thumbs.db",
        "@eaDir/b.jpg",
        ".git/x/y.jpg",
    )
    (inbox / "empty").mkdir()
    listing = scan(inbox)
    assert [entry.path.as_posix() for entry in listing.entries] == [
        "a",
        "a/b.jpg",
        "a/deep",
        "a/deep/er",
        "a/deep/er/c.jpg",
        "b.jpg",
        "empty",
    ]


def test_links_pipes_and_sockets_are_listed_and_not_followed(inbox: Path, tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.jpg")
    (inbox / "file.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (inbox / "folder").symlink_to(tmp_path / "elsewhere")
    (inbox / "loop").symlink_to(inbox)
    (inbox / "nowhere").symlink_to("nothing")
    os.mkfifo(inbox / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(inbox / "socket"))
    assert paths(scan(inbox)) == {
        "file.jpg": "link",
        "folder": "link",
        "loop": "link",
        "nowhere": "link",
        "pipe": "other",
        "socket": "other",
    }


def test_a_name_that_is_not_utf_8(inbox: Path) -> None:
    name = os.fsdecode(b"caf\xe9_content.jpg")
    (inbox / name).touch()
    assert paths(scan(inbox)) == {name: "file"}


def test_the_inbox_may_be_a_link(inbox: Path, tmp_path: Path) -> None:
    put(inbox, "a.jpg")
    (tmp_path / "shortcut").symlink_to(inbox)
    assert scan(tmp_path / "shortcut") == scan(inbox)


@NOT_ROOT
@pytest.mark.parametrize(
    "mode", [pytest.param(0o000, id="not listed"), pytest.param(0o444, id="listed, but nothing of its files")]
)
def test_a_folder_without_rights_is_named_and_the_rest_listed(inbox: Path, mode: int) -> None:
    put(inbox, "closed/content.jpg", "closed/below/style.jpg", "open/a.jpg")
    (inbox / "closed").chmod(mode)
    try:
        listing = scan(inbox)
    finally:
        (inbox / "closed").chmod(0o755)
    assert paths(listing) == {"closed": "folder", "open": "folder", "open/a.jpg": "file"}
    assert listing.unreadable == (Path("closed"),)


def test_folders_too_deep_to_be_read_are_named_and_the_rest_listed(inbox: Path) -> None:
    put(inbox, "z.jpg")
    name = "d" * 255
    at = os.open(inbox, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    listing = scan(inbox)
    # By descriptors, so that others need not struggle with it.
    shutil.rmtree(inbox / name)
    (unreadable,) = listing.unreadable
    depth = len(unreadable.parts)
    assert 10 < depth < 20
    assert paths(listing) == {"/".join([name] * count): "folder" for count in range(1, depth + 1)} | {"z.jpg": "file"}


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("missing", "No such file or directory"),
        ("a file", "Not a directory"),
        ("a link to nothing", "No such file or directory"),
        pytest.param("closed", "Permission denied", marks=NOT_ROOT),
    ],
)
def test_without_an_inbox(inbox: Path, trouble: str, reason: str) -> None:
    inbox.rmdir()
    if trouble == "a file":
        inbox.write_text("in the way")
    elif trouble == "a link to nothing":
        inbox.symlink_to("nothing")
    elif trouble == "closed":
        inbox.mkdir(0o000)
    with pytest.raises(InboxMissingError) as failure:
        scan(inbox)
    assert str(failure.value) == (
        f"{inbox}: the inbox cannot be read ({reason}); make that folder, mount its disk or mend its permissions."
    )


def test_what_vanishes_meanwhile_is_left_out(inbox: Path) -> None:
    put(inbox, "stays.jpg", *(f"stays/{number}.jpg" for number in range(50)))
    stays = paths(scan(inbox))
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            put(inbox, *(f"goes/{number}.jpg" for number in range(50)))
            put(inbox, *(f"stays/goes{number}.jpg" for number in range(50)))
            shutil.rmtree(inbox / "goes")
            for number in range(50):
                (inbox / "stays" / f"goes{number}.jpg").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(300):
            listing = scan(inbox)
            assert listing.unreadable == ()
            assert stays.items() <= paths(listing).items()
    finally:
        stop.set()
        thread.join()
    assert paths(scan(inbox)) == stays


def entry(name: str, *, size: int = 1, mtime_ns: int = 1, inode: int = 1, kind: str = "file") -> Entry:
    return Entry(Path(name), kind, size, mtime_ns, inode)  # type: ignore[arg-type]


A = Path("a.jpg")


def test_a_file_stands_still_since_it_was_first_seen_unchanged() -> None:
    settling = Settling()
    settling.observe([entry("a.jpg")], now=10.0)
    assert settling.first_seen(A) == 10.0
    settling.observe([entry("a.jpg"), entry("b.jpg")], now=12.5)
    assert settling.first_seen(A) == 10.0
    assert settling.first_seen(Path("b.jpg")) == 12.5


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(entry("a.jpg", size=2), id="size"),
        pytest.param(entry("a.jpg", mtime_ns=2), id="mtime"),
        pytest.param(entry("a.jpg", inode=2), id="another file of that name"),
    ],
)
def test_a_change_starts_the_clock_again(changed: Entry) -> None:
    settling = Settling()
    settling.observe([entry("a.jpg")], now=10.0)
    settling.observe([changed], now=11.0)
    assert settling.first_seen(A) == 11.0
    settling.observe([changed], now=12.0)
    assert settling.first_seen(A) == 11.0


def test_a_file_that_went_is_forgotten() -> None:
    settling = Settling()
    settling.observe([entry("a.jpg")], now=10.0)
    settling.observe([], now=11.0)
    with pytest.raises(KeyError):
        settling.first_seen(A)
    settling.observe([entry("a.jpg")], now=12.0)
    assert settling.first_seen(A) == 12.0


def test_links_that_wait_have_a_time_too() -> None:
    settling = Settling()
    settling.observe([entry("a.jpg", kind="link")], now=10.0)
    assert settling.first_seen(A) == 10.0


def test_a_file_written_to_is_seen_to_change(inbox: Path) -> None:
    put(inbox, "a.jpg")
    settling = Settling()
    settling.observe(scan(inbox).entries, now=1.0)
    settling.observe(scan(inbox).entries, now=2.0)
    assert settling.first_seen(A) == 1.0
    with (inbox / "a.jpg").open("ab") as file:
        file.write(b"more")
    settling.observe(scan(inbox).entries, now=3.0)
    assert settling.first_seen(A) == 3.0
    put(inbox, "another.jpg")
    times = (inbox / "a.jpg").stat()
    (inbox / "another.jpg").write_bytes((inbox / "a.jpg").read_bytes())
    os.utime(inbox / "another.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    (inbox / "another.jpg").replace(inbox / "a.jpg")
    settling.observe(scan(inbox).entries, now=4.0)
    assert settling.first_seen(A) == 4.0
