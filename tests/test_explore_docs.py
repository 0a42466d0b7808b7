"""Every command line in docs/explore.md is one that nst understands, and its settings are such as a job may have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from flows.cli import app
from flows.sweep import parse_settings, variants
from nst_engine.config import TransferConfig

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "explore.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.split("\n")
]
SWEEPS = re.findall(r"^\| .* \| `(--set .*)` \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", list(filter(None, COMMANDS)))
def test_each_command_line_is_understood(line: str) -> None:
    nst, name, *arguments = shlex.split(line)
    assert nst == "nst"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments) as context:
        for setting in context.params.get("settings") or []:
            assert setting.partition("=")[0] in TransferConfig.model_fields


@pytest.mark.parametrize("options", SWEEPS)
def test_each_question_of_the_paper_is_a_sweep_that_can_be_run(options: str) -> None:
    axes, fixed = parse_settings([part for part in shlex.split(options) if part != "--set"])
    configs = [TransferConfig().with_overrides({**fixed, **variant.overrides}) for variant in variants(axes)]
    assert len(configs) == len({config.model_dump_json() for config in configs}) > 1


def test_there_are_commands_and_sweeps() -> None:
    assert ({line.split()[1] for line in COMMANDS if line}, len(SWEEPS)) == (
        {"features", "reconstruct", "sweep", "compare"},
        4,
    )
