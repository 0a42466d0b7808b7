"""How many jobs an hour the warm service does, against the same pairs one after the other on the bare engine, and what
one pair costs in a cold process. The service is a real `nst up` on a temporary home, into which all pairs are dropped
at once; both are warm and see the same files. Run it on a machine that does nothing else.

    python -m benchmarks.throughput [--pairs 50] [--bare-pairs N] [--rows 400] [--iterations 40]
        [--weights random|PATH] [--device auto] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.service_jobs import (
    cpu_seconds_of,
    engine_seconds,
    moment_of,
    move_in,
    parts_of,
    wait_until_completed,
    wait_until_idle,
)
from benchmarks.timing import spread
from flows.settings import Settings
from nst_engine.config import TransferConfig
from nst_engine.images import decode, encode_png
from nst_engine.pictures import fit_pictures
from nst_engine.samples import content_sample, style_sample
from nst_engine.startup import load_tensorflow
from nst_engine.transfer import Budget, advance, start
from storage.jobs import utc_now
from tests.service_process import REPOSITORY, Service, running_service

WARM_UP = "first"
COLD_RUNS = 3
# All is as nobody has set it, unlike in the tests.
SETTINGS = {name: Settings.model_fields[name].default for name in ("settle_seconds", "lease_seconds", "start_seconds")}


def main() -> None:
    """Measure the service, the bare engine and the cold process, and print the table; or be the bare engine."""
    options = _options()
    if options.child:
        print(json.dumps(_bare(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs"
        names = _write_pairs(pairs, options)
        with running_service(Path(folder) / "home", device=options.device, **SETTINGS) as service:
            burst = _serve(service, pairs, names)
        bare = _measure_bare(pairs, options)
        cold = [_cold(Path(folder) / "cold", pairs, name, options) for name in names[:COLD_RUNS]]
    report = {
        "device": bare["device"],
        "cores": os.cpu_count(),
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name.lower()) for name in ("TensorFlow", "Prefect", "Distributed")},
        },
        "pairs": options.pairs,
        "bare_pairs": options.bare_pairs,
        "rows": options.rows,
        "columns": _columns(options.rows),
        "iterations": options.iterations,
        "weights": options.weights,
        "precision": bare["precision"],
        "service": burst,
        "bare": bare,
        "cold_seconds": cold,
    }
    print(_table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure jobs an hour through the service and without it.")
    parser.add_argument("--pairs", type=int, default=50, help="pairs that are dropped at once, after one before")
    parser.add_argument("--bare-pairs", type=int, help="how many of them the bare engine does, by default all")
    parser.add_argument("--rows", type=int, default=400, help="rows of the pictures; the columns are 4/3 of them")
    parser.add_argument("--iterations", type=int, default=40, help="iterations of a job")
    parser.add_argument("--weights", default="random", help="random, imagenet or the path of a weight file")
    parser.add_argument("--device", default="auto", help="what computes: auto, cpu, gpu or gpu:N")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare_pairs is None:
        options.bare_pairs = options.pairs
    if not 1 <= options.bare_pairs <= options.pairs:
        parser.error(f"--bare-pairs is {options.bare_pairs}; give 1 to {options.pairs}, the number of pairs.")
    return options


def _columns(rows: int) -> int:
    return rows * 4 // 3


def _config(options: argparse.Namespace) -> TransferConfig:
    return TransferConfig().with_overrides(_settings(options))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "rows": options.rows,
        "iterations": options.iterations,
        "optimizer": "adam",
        "weights": options.weights,
    }


def _write_pairs(folder: Path, options: argparse.Namespace) -> list[str]:
    """Write the files of all pairs, no two with a picture in common, and of the one before; returns the names."""
    folder.mkdir()
    content, style = (draw(options.rows, _columns(options.rows)) for draw in (content_sample, style_sample))
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in _settings(options).items())
    names = [f"pair{number:03}" for number in range(options.pairs)]
    for number, name in enumerate([WARM_UP, *names]):
        encode_png(np.roll(content, number, axis=1), folder / f"{name}_content.png")
        encode_png(np.roll(style, number, axis=1), folder / f"{name}_style.png")
        (folder / f"{name}.toml").write_text(settings)
    return names


def _files(pairs: Path, name: str) -> list[Path]:
    """The settings first: a pair without them would be taken as it is."""
    return [pairs / f"{name}{ending}" for ending in (".toml", "_content.png", "_style.png")]


def _serve(service: Service, pairs: Path, names: Sequence[str]) -> dict[str, Any]:
    """Drop the pairs into the service once it is warm, and wait for the last result."""
    _drop(service, pairs, [WARM_UP])
    wait_until_completed(service, [WARM_UP])
    wait_until_idle(service)
    before = {name: cpu_seconds_of(pids) for name, pids in parts_of(service).items()}
    dropped = utc_now()
    _drop(service, pairs, names)
    jobs = wait_until_completed(service, names)
    # The run's own process ends a little later.
    spent = {
        name: sum(seconds - before[name].get(pid, 0.0) for pid, seconds in cpu_seconds_of(pids).items())
        for name, pids in parts_of(service).items()
    }
    started = sorted(moment_of(job.started_at) for job in jobs)
    finished = sorted(moment_of(job.finished_at) for job in jobs)
    return {
        "wall_seconds": (finished[-1] - started[0]).total_seconds(),
        "from_drop_seconds": (finished[-1] - dropped).total_seconds(),
        "engine_seconds": [engine_seconds(service, job.id) for job in jobs],
        "between_results_seconds": [(later - one).total_seconds() for one, later in itertools.pairwise(finished)],
        "cpu_seconds": spent,
    }


def _drop(service: Service, pairs: Path, names: Sequence[str]) -> None:
    staging = service.home / "staging"
    staging.mkdir(exist_ok=True)
    files = [file for name in names for file in _files(pairs, name)]
    for file in files:
        (staging / file.name).write_bytes(file.read_bytes())
    move_in(service, [staging / file.name for file in files])


def _measure_bare(pairs: Path, options: argparse.Namespace) -> Any:
    arguments = {
        "child": pairs,
        "pairs": options.pairs,
        "bare-pairs": options.bare_pairs,
        "rows": options.rows,
        "iterations": options.iterations,
        "weights": options.weights,
        "device": options.device,
    }
    command = [sys.executable, "-m", "benchmarks.throughput", *(f"--{key}={value}" for key, value in arguments.items())]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _bare(options: argparse.Namespace) -> dict[str, Any]:
    """The pairs one after the other on one warm engine, with nothing but what the pictures need."""
    load_tensorflow()
    from nst_engine.engine import Engine

    engine, config = Engine(options.device), _config(options)

    def paint(name: str) -> float:
        _, content, style = _files(options.child, name)
        pictures = fit_pictures(config, decode(content), [decode(style)])
        state, _ = start(engine, config, pictures)
        state, _ = advance(engine, state, Budget())
        encode_png(state.result(), options.child / f"{name}_result.png")
        return state.seconds

    names = sorted(file.stem for file in options.child.glob("*.toml"))
    names.remove(WARM_UP)
    paint(WARM_UP)
    began, processor = time.perf_counter(), time.process_time()
    seconds = [paint(name) for name in names[: options.bare_pairs]]
    return {
        "device": engine.device.description,
        "precision": engine.precision(config),
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - processor,
        "engine_seconds": seconds,
    }


def _cold(home: Path, pairs: Path, name: str, options: argparse.Namespace) -> float:
    """The seconds of `nst run` of one pair, with no service and nothing else of nst running."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "NST_"))}
    _, content, style = _files(pairs, name)
    settings = [f"--set={key}={value}" for key, value in _settings(options).items()]
    command = ["run", content, style, "--json", f"--home={home}", f"--device={options.device}", *settings]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "flows.cli", *command],
        cwd=pairs,
        env={**kept, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def _table(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    service, bare, pairs, bare_pairs = (report[name] for name in ("service", "bare", "pairs", "bare_pairs"))
    wall, bare_wall = service["wall_seconds"], bare["wall_seconds"]
    own, alone = sum(service["engine_seconds"]), sum(bare["engine_seconds"])
    spent, bare_spent = sum(service["cpu_seconds"].values()), bare["cpu_seconds"]
    some = "" if bare_pairs == pairs else f" The bare engine did {bare_pairs} of the pairs."

    def times(seconds: float, bare_seconds: float) -> str:
        return f"{(seconds / pairs) / (bare_seconds / bare_pairs):.2f}"

    lines = [
        f"{report['device']}, {report['cores']} cores; {versions}; {pairs} pairs of {report['rows']} x "
        f"{report['columns']} pixels, Adam, {report['iterations']} iterations, {report['precision']}, weights "
        f"{report['weights']}; the service has its defaults. Wall time goes from the first job's start to the last "
        f"result; engine seconds are those of the jobs' last loss points; the last column is of the seconds a "
        f"pair.{some}",
        "",
        "| | `nst up`, dropped at once | bare engine, one after the other | times |",
        "|---|---|---|---|",
        f"| wall time, s | {wall:.1f} | {bare_wall:.1f} | {times(wall, bare_wall)} |",
        f"| **jobs an hour** | **{3600 * pairs / wall:,.0f}** | **{3600 * bare_pairs / bare_wall:,.0f}** "
        f"| {(pairs / wall) / (bare_pairs / bare_wall):.2f} |",
        f"| engine seconds | {own:.1f} | {alone:.1f} | {times(own, alone)} |",
        f"| of the wall time | {own / wall:.0%} | {alone / bare_wall:.0%} | |",
        f"| processor seconds | {spent:.1f} | {bare_spent:.1f} | {times(spent, bare_spent)} |",
        f"| wall time from the first file moved in, s | {service['from_drop_seconds']:.1f} | | |",
        "",
        f"`nst run` of one pair in a cold process, {len(report['cold_seconds'])} times: "
        f"{spread(report['cold_seconds'])} s; a pair on the bare warm engine: {bare_wall / bare_pairs:.2f} s.",
        "",
        "Processor seconds of the service's parts meanwhile, and a job:",
        "",
        "| part | seconds | a job |",
        "|---|---|---|",
        *(f"| {part} | {seconds:.1f} | {seconds / pairs:.2f} |" for part, seconds in service["cpu_seconds"].items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
