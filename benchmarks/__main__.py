"""All benchmarks, or some of them, one after the other: each one's table as Markdown and all its figures as JSON go to
benchmarks/results/, with a table of contents that says what was measured where and when.

    python -m benchmarks [--only sizes,tiling] [--quick] [--torch-python PATH] [--results FOLDER]
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
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What the table of contents is made from.
MEASURED = "measured.json"
VERSIONS = ("nst", "TensorFlow", "Keras", "Prefect")


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark measures, and the arguments with which it takes as little time as it can."""

    measures: str
    quick: tuple[str, ...]


BENCHMARKS = {
    "iteration": Benchmark(
        "one iteration, against the Keras example, PyTorch and the machine's plain matrix product",
        ("--rows=32", "--repeats=1"),
    ),
    "sizes": Benchmark(
        "one evaluation and its peak memory, by the size of the picture",
        ("--rows=32,48", "--repeats=1", "--keras-up-to=32"),
    ),
    "tiling": Benchmark("one evaluation as a whole and in tiles", ("--case=96x128:0", "--precision=float32")),
    "style_targets": Benchmark(
        "what a collection saves by the style's targets being kept", ("--rows=32", "--contents=1", "--iterations=1")
    ),
    "time_to_quality": Benchmark("how soon a picture is as good as another optimiser's", ("--quick",)),
    "presets": Benchmark("what every preset makes of one pair", ("--only=paper-fig5", "--rows=32", "--iterations=1")),
    "long_life": Benchmark("the memory of a process that serves many jobs", ("--jobs=10", "--sizes=2", "--rows=80")),
    "startup": Benchmark("how long the command takes to answer", ("--repeats=1",)),
    "throughput": Benchmark(
        "jobs an hour through the service, against the bare engine", ("--pairs=2", "--rows=32", "--iterations=2")
    ),
    "service": Benchmark("what the service costs beyond the engine", ("--only=idle", "--idle-seconds=2")),
    "burst": Benchmark("how the Prefect server holds a burst of jobs", ("--jobs=4", "--at-once=2")),
    "gallery": Benchmark("how fast the gallery answers with many jobs", ("--jobs=2000", "--repeats=1")),
}


def main() -> None:
    """Run the benchmarks that are asked for; those that fail are named at the end, with exit code 1."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run the benchmarks and write their results.")
    parser.add_argument("--only", type=_names, default=[*BENCHMARKS], help=f"some of {','.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="as small as can be: to try them, not to measure")
    parser.add_argument("--torch-python", help="a Python that has PyTorch, for iteration; by default this one")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder for what is found")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    machine = _machine()
    failed = []
    for name in options.only:
        print(f"{name}: {BENCHMARKS[name].measures}", file=sys.stderr, flush=True)
        arguments = list(BENCHMARKS[name].quick) if options.quick else []
        if name == "iteration" and options.torch_python:
            arguments.append(f"--torch-python={options.torch_python}")
        began = time.monotonic()
        if not _run(name, arguments, options.results):
            failed.append(name)
            continue
        _note(options.results, name, machine | {"minutes": round((time.monotonic() - began) / 60, 1)})
    if failed:
        raise SystemExit(f"These benchmarks failed, and their earlier results are as they were: {', '.join(failed)}.")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: give some of {','.join(BENCHMARKS)}")
    return names


def _machine() -> dict[str, Any]:
    # In a process of its own: TensorFlow's settings here would reach every benchmark through the environment.
    ask = (
        "from nst_engine.startup import load_tensorflow; load_tensorflow(); "
        "from nst_engine.hardware import devices; print('; '.join(device.description for device in devices()))"
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{done.stdout.strip()}, {os.cpu_count()} cores",
        "versions": {"Python": platform.python_version(), **{name: version(name.lower()) for name in VERSIONS}},
    }


def _run(name: str, arguments: list[str], results: Path) -> bool:
    """Run one benchmark and put its results in their place; whether it went well."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", f"--json={figures}", *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return False
        (results / f"{name}.md").write_text(f"{done.stdout.strip()}\n", encoding="utf-8")
        (results / f"{name}.json").write_text(figures.read_text(encoding="utf-8"), encoding="utf-8")
    return True


def _note(results: Path, name: str, measured: dict[str, Any]) -> None:
    """Write down where and when a benchmark was run, and the table of contents anew."""
    path = results / MEASURED
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = measured
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    (results / "README.md").write_text(_contents(known), encoding="utf-8")


def _contents(known: dict[str, Any]) -> str:
    lines = [
        "# What was measured",
        "",
        "`python -m benchmarks` measures all of it anew, `python -m benchmarks --only NAME,NAME` some of it. Each page "
        "is what the benchmark of that name printed.",
        "",
        "| benchmark | measures | figures | date | minutes | machine | versions |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, benchmark in BENCHMARKS.items():
        if name in known:
            found = known[name]
            versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
            lines.append(
                f"| [{name}]({name}.md) | {benchmark.measures} | [JSON]({name}.json) | {found['date']} "
                f"| {found['minutes']} | {found['machine']} | {versions} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
