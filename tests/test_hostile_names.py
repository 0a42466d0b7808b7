"""What lies in an inbox that strangers may write to: names of every kind, links, pipes, devices, files without rights,
folders without end. Each ends as a job or with a reason of one line, at once; no file is lost, none touched outside."""

from __future__ import annotations

import ctypes
import html
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import httpx
import pytest

from flows.checked_picture import CheckedPicture
from flows.drop_group import shown
from flows.intake import Look
from flows.plain_text import one_line, printable
from storage.disk import open_file
from storage.errors import WorkspaceError
from storage.models import JobState
from storage.workspace import safe_name, sha256_of
from tests.gallery_home import serving
from tests.intake_home import Place, png
from tests.service_process import REPOSITORY

TIMEOUT = 3600.0
"""Seconds that a file waits for its partner."""
PATIENCE = 60.0
# linux/capability.h: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, version 3 of the header.
RIGHTS_OF_ROOT = 1 << 1 | 1 << 2
CAPABILITY_VERSION = 0x20080522

NAMES = {
    "a new line": "a\nb",
    "a carriage return": "a\rb",
    "an escape sequence": "\x1b[31mred\x1b[0m\x07",
    "every control character": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "255 bytes": "x" * (255 - len("_content.png")),
    "255 bytes of three each": "\u6c34" * ((255 - len("_content.png")) // 3),
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3a8",
    "right to left": "\u202egnp.exe\u2066\u200f",
    "a hundred accents": "e" + "\u0301" * 100,
    "a leading dash": "-rf",
    "an option": "--home=elsewhere",
    "two dots": "x..y",
    "the folder above": "x\\..\\..\\x",
    "spaces": "   ",
    "trailing dots and spaces": "end . . ",
    "no UTF-8": os.fsdecode(b"\xff\xfe caf\xe9"),
    "markup": "[red]x[bold]",
    "HTML": "<img src=x onerror=alert(1)>",
    "Markdown": "[x](javascript:alert(1))`*_",
    "formats": "%s%n{0}{x}$HOME",
    "wildcards": "*?[a-z]",
    "a shell": "'\";$(reboot)`reboot`|&",
    "a separator of lines": "a\u2028b\u2029c\u0085d",
    "a byte order mark": "\ufeffx",
    "a device of Windows": "CON:x",
    "separators": "_.-" * 60 + "x",
    "digits of others": "\u0663\u00b2",
    "of the service": "job.json",
    "no characters": "\ufffe\U0010ffff\ue000",
}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """What is opened and never answers must not keep the tests for ever."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("It took longer than two minutes.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def picture(number: int) -> bytes:
    """One of many that differ."""
    return png(number % 256) + number.to_bytes(4, "big")


def regular_files(*folders: Path) -> dict[str, bytes]:
    """All below these folders, however deep; links are not followed."""
    found, below = {}, list(folders)
    while below:
        with os.scandir(below.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found[entry.path] = Path(entry.path).read_bytes()
    return found


def kept(place: Place) -> Counter[bytes]:
    """The bytes of every file that was dropped, wherever it is now."""
    files = regular_files(place.workspace.inbox, place.workspace.work, place.workspace.rejected)
    return Counter(data for path, data in files.items() if not path.endswith(".reason.txt"))


def put(place: Place, *names: str, first: int = 0) -> Counter[bytes]:
    """Drop pictures that differ under these names; returns their bytes."""
    files = {name: picture(first + number) for number, name in enumerate(names)}
    place.drop(files)
    return Counter(files.values())


def require_plain(*sentences: str | None) -> None:
    for sentence in sentences:
        assert sentence
        assert sentence == printable(sentence)
        assert len(sentence.splitlines()) == 1


def test_a_pair_of_any_name_is_a_job_with_a_plain_name(place: Place) -> None:
    dropped = put(place, *(f"{name}_{role}.png" for name in NAMES.values() for role in ("content", "style")))
    look = place.settled_look()
    assert (len(look.claimed), look.rejected, look.waiting) == (len(NAMES), (), ())
    assert Counter(job.name for job in look.claimed) == Counter(safe_name(name) for name in NAMES.values())
    for job in look.claimed:
        require_plain(job.name)
        assert (job.name == Path(job.name).name, job.name.startswith(("-", "."))) == (True, False)
        assert place.work(job).keys() == {"content.png", "style.png"}
    assert (kept(place), place.inbox) == (dropped, {})


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for number, name in enumerate(("precious_content.png", "content.png", "style.png"), 900):
        (folder / name).write_bytes(picture(number))
    (folder / "settings.toml").write_text("rows = 64\n")
    return folder


def state_of(folder: Path) -> list[tuple[str, int, int, bytes]]:
    entries = [(path, path.lstat()) for path in sorted(folder.iterdir())]
    return [(path.name, status.st_mode, status.st_mtime_ns, path.read_bytes()) for path, status in entries]


def test_what_makes_no_job_is_told_of_and_goes_in_the_end(place: Place, outside: Path) -> None:
    inbox, before = place.workspace.inbox, state_of(outside)
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    partners = [f"{name}_style.png" for name in ("pipe", "device", "out", "loop", "nowhere", "room")]
    alone = ["a\nb\x1b[2J_content.png", "\u202ealone.png", f"{'y' * 251}.png", os.fsdecode(b"caf\xe9.png"), "<b>.png"]
    twins = [f"{name}_{role}.png" for name in (composed, decomposed) for role in ("content", "style")]
    inside = ["room_content.png/x.png", "half/style.png", "half/content.jpg/notes.txt"]
    dropped = put(place, *partners, *alone, *twins, *inside, "linked_content.png", "linked_style.png")
    os.mkfifo(inbox / "pipe_content.png")
    links = {
        "out_content.png": outside / "precious_content.png",
        "loop_content.png": Path("loop_content.png"),
        "one": Path("two"),
        "two": Path("one"),
        "nowhere_content.png": Path("nothing"),
        "folder": outside,
        "up": Path(),
        "linked.toml": outside / "settings.toml",
    }
    for name, target in links.items():
        (inbox / name).symlink_to(target)
    unix = socket.socket(socket.AF_UNIX)
    os.chdir(inbox)
    unix.bind("socket")
    unix.close()
    os.chdir(REPOSITORY)
    stay = ["pipe_content.png", "socket"]
    if os.geteuid() == 0:
        os.mknod(inbox / "device_content.png", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        stay.append("device_content.png")

    look = place.settled_look()
    assert ([job.name for job in look.claimed], look.rejected) == (["linked"], ())
    assert place.work(look.claimed[0]).keys() == {"content.png", "style.png"}
    # What a style folder keeps is in no list: half/style.png.
    told = {str(waiting.path) for waiting in look.waiting}
    assert told == {*partners, *alone, *twins, *links, *stay, "room_content.png/x.png", "half/content.jpg/notes.txt"}
    require_plain(*(waiting.reason for waiting in look.waiting))
    assert {waiting.reason for waiting in look.waiting} >= {
        "a?b?[2J_content.png waits for a?b?[2J_style.*",
        "folder is a link; drop the file itself",
        "pipe_content.png is a device, a pipe or a socket; drop the file itself",
        f"{shown(Path(composed))}_content.png waits because {composed} has more than one content "
        f"({decomposed}_content.png, {composed}_content.png); keep one",
    }
    shown_by_commands(place)

    look = place.look(after=TIMEOUT)
    assert {str(waiting.path) for waiting in look.waiting} == set(stay)
    assert len(look.rejected) == len(told) - len(stay)
    for job in look.rejected:
        require_plain(job.name, job.error)
        (reason,) = Path(str(job.result_folder)).glob("*.reason.txt")
        assert reason.read_text() == f"{job.error}\n"
    assert kept(place) == dropped
    assert {path.name: path.readlink() for path in place.workspace.rejected.rglob("*") if path.is_symlink()} == {
        safe_name(name): target for name, target in links.items()
    }
    assert state_of(outside) == before
    assert {path.name for path in inbox.iterdir()} == {*stay, "room_content.png", "half"}
    shown_by_gallery(place)


def shown_by_commands(place: Place) -> None:
    """`nst inbox` and `nst jobs` print a line for each file and job, and nothing that a terminal would obey."""

    def nst(*arguments: str) -> str:
        command = [sys.executable, "-m", "flows.cli", *arguments, "--home", str(place.workspace.home)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        # JSON is for programs, and has names as they are.
        said = done.stdout.replace("\u202e", "") if "--json" in arguments else done.stdout
        assert printable(said.replace("\n", "")) == said.replace("\n", "")
        return done.stdout

    waiting = place.look().waiting
    # A long sentence is folded.
    assert len(nst("inbox").splitlines()) > len(waiting)
    found = json.loads(nst("inbox", "--json"))
    assert {row["file"] for row in found} == {str(each.path).encode(errors="replace").decode() for each in waiting}
    assert {row["state"] for row in found} == {each.reason for each in waiting}
    assert len(nst("jobs").splitlines()) == 1 + len(place.jobs)


def shown_by_gallery(place: Place) -> None:
    with serving(place.workspace.home) as address, httpx.Client(base_url=address, timeout=30) as client:
        assert client.get("/").status_code == 200
        told = [job for job in place.jobs if job.error and ("?" in job.error or "<b>" in job.error)]
        assert len(told) == 4
        for job in told:
            page = client.get(f"/jobs/{job.id}")
            assert (page.status_code, "<b>" in page.text) == (200, False)
            assert str(job.error) in html.unescape(page.text)


def test_hard_links_are_files_like_others(place: Place, outside: Path) -> None:
    inbox, before = place.workspace.inbox, state_of(outside)
    dropped = put(place, "twice_content.png")
    (inbox / "twice_style.png").hardlink_to(inbox / "twice_content.png")
    for name in ("content.png", "style.png"):
        (inbox / f"shared_{name}").hardlink_to(outside / name)
    (inbox / "thrice.png").hardlink_to(inbox / "twice_content.png")
    look = place.settled_look()
    assert [(job.name, job.state) for job in look.claimed] == [
        ("shared", JobState.PENDING),
        ("twice", JobState.PENDING),
    ]
    assert [waiting.path for waiting in look.waiting] == [Path("thrice.png")]
    shared = Counter([(outside / "content.png").read_bytes(), (outside / "style.png").read_bytes()])
    assert kept(place) == Counter(dict.fromkeys(dropped, 3)) + shared
    assert state_of(outside) == before


def without_rights_of_root(function: Callable[[], Look]) -> Look:
    """The result of a function in a thread that may not read what its permissions forbid."""
    if os.geteuid() != 0:
        return function()
    found: list[Look] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
        sets = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, sets) == 0
        for number in (0, 1):
            sets[number] &= ~RIGHTS_OF_ROOT
        # Linux keeps them a thread each.
        assert libc.capset(header, sets) == 0
        found.append(function())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="rights are given up as Linux has it")
def test_a_file_without_rights_is_rejected_as_one_and_a_folder_waits(place: Place) -> None:
    inbox = place.workspace.inbox
    dropped = put(place, "lake_content.png", "lake_style.png", "trip/content.png", "trip/style.png", "trip/more/x.png")
    dropped += put(place, "sea_content.png", "sea_style.png", first=50)
    place.drop({"sea.toml": b"rows = 64\n"})
    for closed in ("lake_content.png", "trip/more", "sea.toml"):
        (inbox / closed).chmod(0)
    look = without_rights_of_root(place.settled_look)
    assert (look.claimed, {str(waiting.path): waiting.reason for waiting in look.waiting}) == (
        (),
        {
            "lake_content.png": "lake_content.png cannot be read (Permission denied); check that it is there and "
            "readable. (it may still be written to)",
            "trip/more": "trip/more cannot be read; mend its permissions",
        },
    )
    (sea,) = look.rejected
    assert str(sea.error).endswith(
        "sea.toml: cannot be read (Permission denied); put a file there that this user may read."
    )
    look = without_rights_of_root(lambda: place.look(after=PATIENCE))
    assert ([job.name for job in look.rejected], [str(waiting.path) for waiting in look.waiting]) == (
        ["lake"],
        ["trip/more"],
    )
    assert stat.S_IMODE((place.workspace.rejected / "lake" / "lake_content.png").stat().st_mode) == 0
    (inbox / "trip" / "more").chmod(0o700)
    assert [job.name for job in place.settled_look().claimed] == ["trip"]
    assert kept(place) == dropped + Counter([b"rows = 64\n"])


def test_folders_deeper_than_python_may_recurse_are_taken_and_removed(place: Place) -> None:
    folder = place.workspace.inbox / "deep"
    dropped = put(place, "deep/content.png", "deep/style.png")
    levels = sys.getrecursionlimit() + 100
    for last in ("d", "@eaDir"):
        below = folder
        for level in range(levels):
            below = below / (last if level == 0 else "d")
            below.mkdir()
        if last == "d":
            dropped += put(place, f"deep/{'d/' * levels}note.png", first=70)
        else:
            (below / "litter").touch()
    (job,) = place.settled_look().claimed
    assert (job.name, job.state, len(place.work(job))) == ("deep", JobState.PENDING, 3)
    assert (kept(place), list(place.workspace.inbox.iterdir())) == (dropped, [])


def test_folders_deeper_than_any_path_may_name_are_left_alone(place: Place) -> None:
    dropped = put(place, "abyss/content.png", "abyss/style.png", "lake_content.png", "lake_style.png")
    at = os.open(place.workspace.inbox / "abyss", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 255, dir_fd=at)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    for look in (place.settled_look(), place.look(after=TIMEOUT)):
        assert look.rejected == ()
        (waiting,) = look.waiting
        require_plain(waiting.reason)
        assert len(waiting.reason) <= 2000
        assert waiting.reason.endswith(" cannot be read; mend its permissions")
    assert [job.name for job in place.jobs] == ["lake"]
    command = ["rm", "-r", str(place.workspace.inbox / "abyss" / ("d" * 255))]
    subprocess.run(command, check=True)
    assert [job.name for job in place.look().claimed] == ["abyss"]
    assert kept(place) == dropped


@pytest.mark.parametrize(
    ("swapped", "after", "ends"),
    [
        pytest.param("lake_content.png", "lake_style.png", [], id="a picture that was checked"),
        pytest.param("lake_style.png", "lake_content.png", [], id="a picture that was not"),
        pytest.param("lake.toml", "lake_style.png", [JobState.REJECTED], id="the settings"),
        pytest.param("swirls/style.png", "swirls/a.png", [], id="a style folder's style"),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_file_that_becomes_something_else_while_it_is_taken_is_no_trap(
    place: Place, outside: Path, swapped: str, after: str, ends: list[JobState], kind: str
) -> None:
    inbox, before = place.workspace.inbox, state_of(outside)
    put(place, *(["swirls/a.png", "swirls/style.png"] if "/" in swapped else ["lake_content.png", "lake_style.png"]))
    if "toml" in swapped:
        place.drop({"lake.toml": b"rows = 64\n"})

    def check(path: Path) -> CheckedPicture:
        checked = CheckedPicture.of(path, max_pixels=place.settings.max_pixels)
        if path == inbox / after:
            (inbox / swapped).unlink()
            if kind == "pipe":
                os.mkfifo(inbox / swapped)
            else:
                (inbox / swapped).symlink_to(outside / ("settings.toml" if "toml" in swapped else "content.png"))
        return checked

    place.use(check)
    place.settled_look()
    jobs = place.jobs
    assert state_of(outside) == before
    # Nothing but regular files is ever among those of a job.
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in place.workspace.work.glob("*/*"))
    if kind == "pipe":
        assert [job.state for job in jobs] == ends
        assert ends or stat.S_ISFIFO((inbox / swapped).lstat().st_mode)


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"^it is no regular file$"):
        open_file(tmp_path / "pipe")
    with pytest.raises(WorkspaceError, match=r"pipe cannot be read \(it is no regular file\); check"):
        sha256_of(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("plain, \u00fcml\u00e4ut, \u6c34, \U0001f468\u200d\U0001f467", None, id="what may be shown"),
        pytest.param("a\nb\r\x1b[2J\x7f\x85\u2028\u202e\u2066\ud8ff", "a?b??[2J??????", id="what may not"),
    ],
)
def test_printable(text: str, expected: str | None) -> None:
    assert printable(text) == (expected or text)


def test_the_middle_of_a_long_sentence_is_left_out() -> None:
    short = one_line(f"lake.toml{'x' * 5000}; mend it.")
    assert (len(short), short[:9], short[-10:]) == (1999, "lake.toml", "; mend it.")
    assert one_line("x" * 2000) == "x" * 2000
