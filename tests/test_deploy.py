"""What is in deploy/: the systemd units are valid, tight, and say what nst understands."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.exits import WRONG_INPUT
from flows.settings import Settings

UNITS = Path(__file__).resolve().parents[1] / "deploy" / "systemd"
MOST_EXPOSED = 1.5
"""As deploy/README.md states it; systemd calls 10 unsafe."""

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture(params=["nst.service", "nst-worker.service"])
def unit(request: pytest.FixtureRequest) -> Path:
    return UNITS / str(request.param)


@needs_systemd
def test_a_unit_is_valid(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # Only an installed command is executable.
    copy.write_text(unit.read_text().replace("/opt/nst/.venv/bin/nst", "/usr/bin/env"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_a_unit_is_no_more_exposed_than_stated(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", unit], capture_output=True, text=True, check=True
    )
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSED


def test_a_unit_names_what_nst_knows(unit: Path) -> None:
    text = unit.read_text()
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    service = parser["Service"]
    variables = set(re.findall(r"\bNST_([A-Z_]+)\b", text)) - {""}
    assert {name.lower() for name in variables} <= set(Settings.model_fields)
    assert service["ExecStart"].split()[1:] in (["up", "--log-json"], ["worker", "--log-json"])
    # Of what a restart does not mend.
    assert service["RestartPreventExitStatus"] == str(WRONG_INPUT)
