"""The measurement of how far one service goes, run small: a real service feeds workers that sleep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.scale import FEWEST_PAIRS, PARTS
from tests.service_process import REPOSITORY

JOB_SECONDS = 0.5


def test_two_sleeping_workers_take_the_pairs_of_a_burst(tmp_path: Path) -> None:
    figures = tmp_path / "scale.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.scale", "--workers", "2", "--job-seconds", str(JOB_SECONDS)),
            *("--seconds", "1", "--rows", "48", "--iterations", "20", "--json", str(figures)),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(figures.read_text())
    [step] = report.pop("steps")
    assert report == {"job_seconds": JOB_SECONDS, "seconds": 1, "rows": 48, "iterations": 20, "at_once": None}
    assert (step["workers"], step["at_once"], step["pairs"]) == (2, 4, FEWEST_PAIRS)
    # Two that sleep half a second for each of twelve pairs cannot be done sooner.
    assert step["seconds"] >= FEWEST_PAIRS * JOB_SECONDS / 2
    assert set(step["cpu_seconds"]) == set(PARTS)
    assert min(step["cpu_seconds"].values()) > 0
    [heading, rule, row] = done.stdout.splitlines()[-3:]
    assert heading.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(f"| 2 | 4 | {FEWEST_PAIRS} | {step['jobs_an_hour']:,.0f} | 14,400 |")
