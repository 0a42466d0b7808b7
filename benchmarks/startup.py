"""How long the command takes to answer: medians of whole processes, started one after another.

python -m benchmarks.startup [--repeats 9] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import spread
from storage.database import open_database

COMMANDS = (("nst", "--help"), ("nst", "jobs"), ("nst", "presets"))


def main() -> None:
    """Time each command in a home with an empty database and print a table."""
    parser = argparse.ArgumentParser(description="Measure how long the command takes to answer.")
    parser.add_argument("--repeats", type=int, default=9, help="processes of each command")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        open_database(Path(home) / "nst.db").close()
        seconds = {" ".join(command): [_seconds(command, home) for _ in range(options.repeats)] for command in COMMANDS}
    print("| command | seconds: median (least to most) |\n|---|---|")
    for command, found in seconds.items():
        print(f"| `{command}` | {spread(found)} |")
    if options.json:
        report = {"cores": os.cpu_count(), "versions": {"Python": platform.python_version()}, "seconds": seconds}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _seconds(command: tuple[str, ...], home: str) -> float:
    path = Path(sys.executable).parent / command[0]
    began = time.perf_counter()
    subprocess.run([path, *command[1:]], env={**os.environ, "NST_HOME": home}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
