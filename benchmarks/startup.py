"""How long the command takes to answer: medians of whole processes, started one after another.

python -m benchmarks.startup [--repeats 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from storage.database import open_database

COMMANDS = (("nst", "--help"), ("nst", "jobs"), ("nst", "presets"))


def main() -> None:
    """Time each command in a home with an empty database and print a table."""
    parser = argparse.ArgumentParser(description="Measure how long the command takes to answer.")
    parser.add_argument("--repeats", type=int, default=9, help="processes of each command")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as home:
        open_database(Path(home) / "nst.db").close()
        print("| command | seconds: median (least to most) |\n|---|---|")
        for command in COMMANDS:
            seconds = [_seconds(command, home) for _ in range(repeats)]
            print(
                f"| `{' '.join(command)}` | {statistics.median(seconds):.2f} "
                f"({min(seconds):.2f} to {max(seconds):.2f}) |"
            )


def _seconds(command: tuple[str, ...], home: str) -> float:
    path = Path(sys.executable).parent / command[0]
    began = time.perf_counter()
    subprocess.run([path, *command[1:]], env={**os.environ, "NST_HOME": home}, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
