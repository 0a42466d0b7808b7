"""The decoder's process: pictures and refusals as without it, and what becomes of a file that it dies of."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.checked_picture import CheckedPicture
from flows.decoding import GuardedDecoder
from flows.errors import ServiceError
from nst_engine.errors import ImageError
from nst_engine.images import encode_png
from nst_engine.samples import content_sample
from storage.errors import WorkspaceError
from tests.intake_home import PAIR, Place

MAX_PIXELS = 50_000_000

# Stands for a decoder with a fault, of which none is known; the process and its death are real.
FAULTY = """
import os, signal
from pathlib import Path
from PIL import Image

opened = Image.open

def open(file, *arguments, **options):
    head = file.read(5)
    file.seek(0)
    if head == b"abort":
        with Path(__file__).with_name("aborted").open("a") as log:
            log.write(str(os.getpid()) + "\\n")
        os.abort()
    if head == b"leave":
        os._exit(3)
    if head == b"print":
        os.write(1, b"what a library prints\\n")
    return opened(file, *arguments, **options)

Image.open = open
"""


@pytest.fixture(scope="module")
def decoder() -> Iterator[GuardedDecoder]:
    with GuardedDecoder(max_pixels=MAX_PIXELS) as decoder:
        yield decoder


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedDecoder]:
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with GuardedDecoder(max_pixels=MAX_PIXELS) as decoder:
        yield decoder


def outcome(check: Callable[[Path], CheckedPicture], path: Path) -> Any:
    try:
        return check(path)
    except (ImageError, WorkspaceError, FileNotFoundError) as error:
        return type(error), str(error)


def child_of(decoder: GuardedDecoder) -> int:
    assert decoder._child is not None
    return decoder._child.pid


def picture(path: Path) -> Path:
    encode_png(content_sample(30, 40), path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("whole.png", "half.png", "tiny.png", "huge.png", "text.jpg", "empty.png", "folder.png", "gone.png"),
        os.fsdecode(b"odd \n \xff name.png"),
    ],
)
def test_it_says_what_is_said_without_it(decoder: GuardedDecoder, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    match name:
        case "half.png":
            path.write_bytes(picture(tmp_path / "other").read_bytes()[:500])
        case "tiny.png":
            encode_png(np.zeros((4, 40, 3), np.uint8), path)
        case "huge.png":
            Image.new("1", (8000, 8000)).save(path)
        case "text.jpg":
            path.write_text("a letter")
        case "empty.png":
            path.touch()
        case "folder.png":
            path.mkdir()
        case "gone.png":
            pass
        case _:
            picture(path)
    without = outcome(lambda path: CheckedPicture.of(path, max_pixels=MAX_PIXELS), path)
    assert outcome(decoder.check, path) == without
    assert isinstance(without, CheckedPicture) == (name == "whole.png" or "odd" in name)


def test_one_process_checks_many(decoder: GuardedDecoder, tmp_path: Path) -> None:
    decoder.check(picture(tmp_path / "a.png"))
    process = child_of(decoder)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ImageError):
        decoder.check(tmp_path / "b.png")
    decoder.check(picture(tmp_path / "c.png"))
    assert child_of(decoder) == process


@pytest.mark.parametrize(
    ("head", "how"), [pytest.param("abort", "SIGABRT", id="crashes"), pytest.param("leave", "an error", id="leaves")]
)
def test_a_file_that_a_decoder_dies_of_is_refused(faulty: GuardedDecoder, tmp_path: Path, head: str, how: str) -> None:
    path = tmp_path / "lake_content.png"
    path.write_text(f"{head} and more")
    sentence = f"{path} ended its decoder ({how}); it is damaged, or made to do harm: export it again."
    for _ in range(3):
        assert outcome(faulty.check, path) == (ImageError, sentence)
    if head == "abort":
        # Two processes died of it, and no third was given it.
        assert len(set((tmp_path / "aborted").read_text().split())) == 2
    assert faulty.check(picture(tmp_path / "other.png")).rows == 30
    path.unlink()
    assert faulty.check(picture(path)).rows == 30


def test_what_a_library_prints_is_no_answer(faulty: GuardedDecoder, tmp_path: Path) -> None:
    path = tmp_path / "said.png"
    path.write_text("print this")
    kind, sentence = outcome(faulty.check, path)
    assert (kind, sentence.split("; ")[0]) == (
        ImageError,
        f"{path} is no JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF picture, or its beginning is damaged",
    )


def test_a_decoder_that_was_killed_is_started_again(decoder: GuardedDecoder, tmp_path: Path) -> None:
    path = picture(tmp_path / "lake.png")
    expected = decoder.check(path)
    killed = child_of(decoder)
    os.kill(killed, signal.SIGKILL)
    assert decoder.check(path) == expected
    assert child_of(decoder) != killed


def test_a_picture_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 6000)).save(path, compress_level=1)
    with GuardedDecoder(max_pixels=MAX_PIXELS, seconds=0.05) as decoder:
        assert outcome(decoder.check, path) == (
            ImageError,
            f"{path} takes longer than 0.05 s to decode; export it again, or make it smaller.",
        )


def test_a_picture_that_takes_too_much_memory_is_refused_and_the_process_lives(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 6000)).save(path, compress_level=1)
    with GuardedDecoder(max_pixels=MAX_PIXELS, memory=100_000_000) as decoder:
        small = decoder.check(picture(tmp_path / "small.png"))
        process = child_of(decoder)
        assert outcome(decoder.check, path) == (
            ImageError,
            f"{path} takes more memory to decode than the largest picture allowed; export it again.",
        )
        assert decoder.check(tmp_path / "small.png") == small
        assert child_of(decoder) == process


def test_the_largest_picture_allowed_fits(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((5000, 5000), np.uint16)).save(path, compress_level=1)
    with GuardedDecoder(max_pixels=25_000_000) as decoder:
        checked = decoder.check(path)
    assert (checked.rows, checked.columns) == (5000, 5000)


BROKEN = {
    "a module that is missing": ("PIL/__init__.py", "raise ImportError('no Pillow')"),
    "a library that prints and then dies": ("numpy.py", "import os; os.write(1, b'hello\\n'); os.abort()"),
    "a Pillow that decodes nothing": (
        "sitecustomize.py",
        "from PIL import JpegImagePlugin\n\ndef _accept(prefix):\n    raise OSError('no libjpeg')\n"
        "from PIL import Image\nImage.preinit()\nImage.OPEN['JPEG'] = (Image.OPEN['JPEG'][0], _accept)\n",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_decoder_that_cannot_start_is_no_fault_of_a_drop(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    name, code = BROKEN[fault]
    (tmp_path / "broken" / name).parent.mkdir(parents=True)
    (tmp_path / "broken" / name).write_text(code)
    place.drop(PAIR)
    with GuardedDecoder(max_pixels=MAX_PIXELS) as decoder:
        place.use(decoder.check)
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path / "broken"))
            place.look()
            for _ in range(2):
                with pytest.raises(
                    ServiceError, match=r"^The process that decodes pictures ended before its first one"
                ):
                    place.look(after=3600.0)
                assert (place.inbox, place.jobs) == (PAIR, [])
        assert "Traceback" in capfd.readouterr().err or "numpy" in name
        # Mended, it goes on with the same files.
        assert [job.name for job in place.look().claimed] == ["lake"]


def test_no_python_is_no_fault_of_a_drop(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.drop(PAIR)
    with GuardedDecoder(max_pixels=MAX_PIXELS) as decoder:
        place.use(decoder.check)
        place.look()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            with pytest.raises(ServiceError, match=r"^No process can be started to decode pictures \(No such file"):
                place.look(after=3600.0)
        assert (place.inbox, place.jobs) == (PAIR, [])


def test_its_process_ends_with_it(tmp_path: Path) -> None:
    with GuardedDecoder(max_pixels=MAX_PIXELS) as decoder:
        decoder.check(picture(tmp_path / "lake.png"))
        process = child_of(decoder)
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
