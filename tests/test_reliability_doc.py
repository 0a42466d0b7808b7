"""The table of faults names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(
    r"^\| (.*?) \| .*? \| .*? \| `(.*?)::(.*?)` \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("file", "test"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_it_names_is_there(file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / "tests" / file).read_text()


def test_it_has_every_row() -> None:
    assert len(ROWS) > 40
