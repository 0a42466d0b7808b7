"""Settings files from strangers: bombs, lies, places outside, numbers that no machine could work with. Each is refused
in one sentence, at once and with little memory, or is a job; so are the files of the service and of a collection."""

from __future__ import annotations

import functools
import itertools
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from flows.checked_picture import CheckedPicture
from flows.collection import read_collection
from flows.errors import CollectionError, SettingsError
from flows.intake import Intake
from flows.plain_text import printable
from flows.settings import load_settings
from flows.toml_file import MAX_BYTES, MAX_LINE
from storage.models import JobState
from tests.intake_home import Place, png

SECONDS = 4.0
"""Of processor time for one drop; the longest takes one on an idle machine."""
BYTES = 150_000_000


def lines(*parts: str) -> bytes:
    """A file of at most so many bytes as are read, of these parts over and over."""
    text = "\n".join(parts)
    return (text * (MAX_BYTES // len(text)))[: MAX_BYTES - 1].encode()


def numbered(pattern: str, *, head: str = "") -> bytes:
    rows, size = [head], len(head)
    for number in range(MAX_BYTES):
        rows.append(pattern.format(number))
        size += len(rows[-1])
        if size > MAX_BYTES - 100:
            break
    return "".join(rows).encode()


DOTS = ".a" * (MAX_LINE // 2 - 20)

BOMBS = {
    "arrays 100,000 deep": b"rows = " + b"[" * 100_000,
    "arrays 40,000 deep, a line each": b"rows = " + b"[\n" * 40_000,
    "arrays 300 deep that end": b"rows = " + b"[\n" * 300 + b"]\n" * 300,
    "tables in tables": b"rows = " + b"{a=" * 600 + b"1" + b"}" * 600,
    "tables in tables that end": b"rows = " + b"{a=" * 150 + b"1" + b"}" * 150,
    "a key of a thousand parts": f"rows{DOTS} = 1\n".encode(),
    "a key of a thousand parts, for a key of a drop": f"priority{DOTS} = 1\n".encode(),
    "fifty keys of a thousand parts": numbered("x{0}" + DOTS + " = 1\n"),
    "fifty tables of a thousand parts": numbered("[x{0}" + DOTS + "]\n"),
    "a hundred thousand keys": numbered("a{0}=1\n"),
    "a million keys": b"".join(b"a%d=1\n" % number for number in range(1_000_000)),
    "a hundred thousand layers": numbered("a{0}=1\n", head="[style_layers]\n"),
    "a list of a hundred thousand layers": numbered("'a{0}',\n", head="style_layers = [\n") + b"]\n",
    "the same layer over and over": numbered("'block1_conv1',\n", head="style_layers = [\n") + b"]\n",
    "a list for a number": numbered("{0},\n", head="rows = [\n") + b"]\n",
    "a hundred thousand weights of one style": numbered("1,\n", head="style_weights = [\n") + b"]\n",
    "a long string": b'keep = """' + b"x\n" * (MAX_BYTES // 2 - 10) + b'"""\n',
    "a string that does not end": b'keep = """' + b'\\"""' * (MAX_BYTES // 4 - 10),
    "quotes": lines('"', "'", '"""', "'''"),
    "brackets": lines("[", "{"),
    "a line of 90,000 characters": b"# " + b"x" * 90_000 + b"\nrow = 1\n",
    "a number of 1900 digits": b"rows = " + b"9" * 1900,
    "a number of 1900 digits, hexadecimal": b"seed = 0x" + b"f" * 1900,
    "a number of 1900 digits, of a drop": b"priority = " + b"9" * 1900,
    "a fraction of 1900 digits": b"content_weight = -0." + b"3" * 1900,
    "100 MB": b"",
    "no UTF-8": b"rows = 64\nname = '\xff\xfe'\n",
    "UTF-16": "rows = 64".encode("utf-16"),
    "UTF-32": "rows = 64".encode("utf-32"),
    "a NUL": b"rows = 64\0\n",
    "zeros": bytes(50_000),
    "an escape sequence for a value": b'keep = "\\u001b[2Ja\\nb\\u202e"\n',
    "an escape sequence for a key": b'"\\u001b[2Ja\\nb\\u202e" = 1\n',
    "an escape sequence for a layer": b'style_layers = ["\\u001b[2Ja\\nb"]\n',
    "an escape sequence as it is": b"\x1b[2J = 1\n",
    "a picture": png(3),
}
FINE = {
    "a mark and lines of Windows": b"\xef\xbb\xbfrows = 64\r\niterations = 3\r\n",
    "nothing": b"",
    "comments": lines("#", "# rows = 8"),
    "many lines of nothing": b"\n" * (MAX_BYTES - 1),
    "a name that leads out": b'name = "../../x"\n',
    "a name that is a path": b'name = "/etc/passwd"\n',
    "a name of two dots": b'name = ".."\n',
    "a name with lines and colours": b'name = "\\u001b[2Ja\\nb\\u202e"\n',
    "a name of 90,000 characters": b'name = """\n' + b"x\n" * 40_000 + b'"""\n',
}
REFUSED: dict[str, tuple[str, str]] = {
    "weights outside": ('weights = "/etc/passwd"', "weights = /etc/passwd: a drop cannot name a file"),
    "weights that are a pipe": ('weights = "PIPE"', "a drop cannot name a file"),
    "weights that never end": ('weights = "/dev/zero"', "a drop cannot name a file"),
    "weights above": ('weights = "../../nst.db"', "a drop cannot name a file"),
    "weights in a table": ('[weights]\npath = "/etc/passwd"', "a drop cannot name a file"),
    "init outside": ('init = "/etc/shadow"', "init = /etc/shadow: input should be 'content', 'style'"),
    "a preset outside": ('preset = "../../etc/passwd"', "There is no preset '../../etc/passwd'"),
    "rows without end": ("rows = 1000000000", "rows = 1000000000: input should be less than or equal to 20000"),
    "iterations without end": ("iterations = 1_000_000_000_000", "less than or equal to 1000000"),
    "no rows": ("rows = 0", "rows = 0: input should be greater than or equal to 16"),
    "rows below nothing": ("rows = -400", "rows = -400: input should be greater than or equal to 16"),
    "a number that is none": ("content_weight = nan", "content_weight = nan: input should be a finite number"),
    "infinite": ("style_weight = inf", "style_weight = inf: input should be a finite number"),
    "infinite below nothing": ("tv_weight = -inf", "tv_weight = -inf: input should be"),
    "a number beyond all": ("style_weight = 1e400", "style_weight = inf: input should be a finite number"),
    "true for a number": ("iterations = true", "iterations = true: cannot be true or false (steps of"),
    "true for a fraction": ("content_weight = false", "content_weight = false: cannot be true or false"),
    "true for a priority": ("priority = true", "priority = True: is not a whole number from -10 to 10"),
    "a day for a number": ("rows = 1979-05-27", "rows = 1979-05-27: input should be a valid integer"),
    "a list for a number": ("rows = [400]", "rows = [400]: input should be"),
    "a table for a number": ("rows = {a = 1}", "rows = {'a': 1}: input should be"),
    "a number for a word": ("optimizer = 1", "optimizer = 1: input should be 'sgd', 'adam' or 'lbfgs'"),
    "a fraction of a row": ("rows = 64.5", "rows = 64.5: input should be a valid integer"),
    "snapshots without end": ("snapshot_every = 1\niterations = 100000", "a job keeps at most 1000"),
    "a hundred scales": ("scales = 100", "scales = 100: input should be less than or equal to 10"),
    "a memory without end": ("history = 100000", "history = 100000: input should be less than or equal to 100"),
    "a blur without end": ("feather = 1e300", "feather = 1e+300: input should be less than or equal to 1000"),
    "a result of 2 PB": ("rows = 20000", "rows = 20000 would make 20,000 x 400,000 pixels (rows x columns) of this"),
    "a style of 2 PB": ("style_scale = 20\nrows = 6000", "would make 6,000 x 120,000 pixels"),
    "a style's side without end": ('style_fit = "edge"\nrows = 3000', "rows = 3000 would make 3,000 x 60,000 pixels"),
}


def sparse(path: Path, *, bytes_: int) -> None:
    path.touch()
    os.truncate(path, bytes_)


def test_whatever_a_settings_file_holds_its_drop_is_a_job_or_rejected_in_one_sentence_at_once(place: Place) -> None:
    inbox = place.workspace.inbox
    pairs = {**BOMBS, **FINE, **{name: text.encode() for name, (text, _) in REFUSED.items()}}
    os.mkfifo(inbox.parent / "pipe")
    pairs["weights that are a pipe"] = f'weights = "{inbox.parent / "pipe"}"'.encode()
    # Whatever is made of the rows of a wide picture is twenty times as wide.
    wide, small = png(1, rows=20, columns=400), png(2)
    for number, (name, data) in enumerate(pairs.items()):
        content = wide if name in ("a result of 2 PB", "a style of 2 PB", "a style's side without end") else small
        place.drop({f"{number:03}_content.png": content, f"{number:03}_style.png": content, f"{number:03}.toml": data})
    sparse(inbox / f"{list(pairs).index('100 MB'):03}.toml", bytes_=100_000_000)
    before, marks = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [time.process_time()]
    place.intake = Intake(
        place.store,
        place.workspace,
        place.settings,
        check=functools.partial(CheckedPicture.of, max_pixels=place.settings.max_pixels),
        clock=lambda: place.now,
        on_job=lambda job: marks.append(time.process_time()),
    )
    place.look()
    look = place.look(after=2.0)
    assert max(later - earlier for earlier, later in itertools.pairwise(marks)) < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES
    assert (len(look.claimed) + len(look.rejected), look.waiting, list(inbox.iterdir())) == (len(pairs), (), [])
    by_number = {Path(job.sources[0].original_path).name[:3]: job for job in look.claimed}
    for number, name in enumerate(pairs):
        assert (f"{number:03}" in by_number) == (name in FINE), name
    for job in look.claimed:
        assert (job.state, job.name, Path(job.name).name) == (JobState.PENDING, printable(job.name), job.name)
        assert len(job.name.encode()) <= 120
        assert place.work(job).keys() == {"content.png", "style.png", "settings.toml"}
    for job in look.rejected:
        sentence, name = str(job.error), list(pairs)[int(job.name[:3])]
        assert sentence == printable(sentence)
        assert (len(sentence) <= 2000, sentence[-1]) == (True, "?" if sentence.endswith("'?") else ".")
        # How many styles there are is no matter of the file alone.
        assert sentence.startswith("style_weights gives" if "weights of one" in name else f"{inbox / job.name[:3]}")
        if name in REFUSED:
            assert REFUSED[name][1] in sentence


ON_EVERY_FILE = [
    "arrays 100,000 deep",
    "a key of a thousand parts",
    "a million keys",
    "no UTF-8",
    "zeros",
    "a number of 1900 digits",
]


@pytest.mark.parametrize("name", ON_EVERY_FILE)
def test_the_settings_of_the_service_and_of_a_collection_are_read_alike(tmp_path: Path, name: str) -> None:
    for role in ("contents", "styles"):
        (tmp_path / "zoo" / role).mkdir(parents=True)
        (tmp_path / "zoo" / role / "a.png").write_bytes(png(1))
    files = {tmp_path / "nst.toml", tmp_path / "zoo" / "settings.toml"}
    for file in files:
        file.write_bytes(BOMBS[name].replace(b"rows", b"max_megapixels") if file.name == "nst.toml" else BOMBS[name])
    failures: list[Any] = []
    with pytest.raises(SettingsError) as of_service:
        load_settings(home=tmp_path)
    failures.append(of_service)
    with pytest.raises(CollectionError) as of_collection:
        read_collection(tmp_path / "zoo", preset="default")
    failures.append(of_collection)
    for failure in failures:
        sentence = str(failure.value)
        assert any(str(file) in sentence for file in files)
        assert sentence[-1] == "."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("max_megapixels = inf", "max_megapixels", id="infinite"),
        pytest.param("settle_seconds = nan", "settle_seconds", id="no number"),
        pytest.param("max_attempts = 0", "max_attempts", id="nothing"),
    ],
)
def test_numbers_of_the_service_that_are_none_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "nst.toml").write_text(text)
    with pytest.raises(SettingsError, match=f"^{sentence}"):
        load_settings(home=tmp_path)


def test_the_settings_of_the_service_may_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "nst.toml").write_bytes(b"\xef\xbb\xbfsettle_seconds = 7\r\n")
    assert load_settings(home=tmp_path).settle_seconds == 7
