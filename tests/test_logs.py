"""What the service says on its terminal and writes into its files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.logs import LOGGER, line_file, speak


@pytest.fixture(autouse=True)
def logger() -> Iterator[logging.Logger]:
    """The logger of the service, put back as it was."""
    logger = logging.getLogger(LOGGER)
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_a_line_for_people_has_the_time_and_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    speak(as_json=False).info("%s: done, %s", "lake", "/out/lake")
    out, err = capsys.readouterr()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d lake: done, /out/lake\n", out)
    assert err == ""


def test_a_line_for_machines_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    speak(as_json=True).warning('a "name"\nin two lines, café')
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert {key: said[key] for key in ("level", "message")} == {
        "level": "warning",
        "message": 'a "name"\nin two lines, café',
    }
    assert said.keys() == {"time", "level", "message"}
    assert "café" in line
    time = datetime.fromisoformat(said["time"])
    assert -0.001 <= (time - before).total_seconds() < 60


def test_an_exception_goes_into_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    logger = speak(as_json=True)
    try:
        1 // 0  # noqa: B018
    except ZeroDivisionError:
        logger.exception("failed")
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"]) == ("error", "failed")
    assert said["traceback"].endswith("ZeroDivisionError: integer division or modulo by zero")


def test_speaking_again_says_nothing_twice_and_nothing_finer_than_info(capsys: pytest.CaptureFixture[str]) -> None:
    speak(as_json=True)
    logger = speak(as_json=False)
    logger.debug("detail")
    logger.info("once")
    out = capsys.readouterr().out
    assert (out.count("\n"), out.endswith(" once\n")) == (1, True)


def write(handler: logging.Handler, line: str) -> None:
    handler.handle(logging.makeLogRecord({"msg": line}))


def test_a_file_takes_lines_as_they_are_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "prefect.log"
    for line in ("100 % done", "ü"):
        handler = line_file(path)
        write(handler, line)
        handler.close()
    assert path.read_text(encoding="utf-8") == "100 % done\nü\n"


def test_files_are_rotated_and_five_old_ones_kept(tmp_path: Path) -> None:
    handler = line_file(tmp_path / "prefect.log")
    for number in range(20):
        write(handler, f"{number:02} {'x' * 999_000}")
    handler.close()
    firsts = {path.name: path.read_text()[:2] for path in tmp_path.iterdir()}
    assert firsts == {
        "prefect.log": "18",
        "prefect.log.1": "16",
        "prefect.log.2": "14",
        "prefect.log.3": "12",
        "prefect.log.4": "10",
        "prefect.log.5": "08",
    }
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000_000
