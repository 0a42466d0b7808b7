"""The table of what other engines offer names settings, options and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from flows.cli import app
from flows.settings import Settings
from nst_engine.config import TransferConfig

ROOT = Path(__file__).resolve().parents[1]
ROWS = re.findall(r"^\| (.*?) \| (.*?) \| `(.*?)::(.*?)` \|$", (ROOT / "docs" / "engines.md").read_text(), re.MULTILINE)
OPTIONS = {
    option
    for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    for parameter in command.params
    for option in parameter.opts
}


@pytest.mark.parametrize(("here", "file", "test"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_it_names_is_there(here: str, file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / "tests" / file).read_text()
    assert set(re.findall(r"--[a-z-]+", here)) <= OPTIONS
    for key, values in re.findall(r"`(?:[^`]*--set )?(\w+)=([^`]*)`", here):
        TransferConfig().with_overrides({"bits": 8, "optimizer": "adam", "keep_metadata": True, key: values})
    for key in re.findall(r"`(\w+_\w+)`", here):
        assert key in Settings.model_fields


def test_it_has_every_row() -> None:
    assert len(ROWS) > 30
