"""What the service costs beyond the engine: a real `nst up` on a temporary home, its one GPU worker on the CPU, small
pictures, seeded weights. Each part is a table; run it on a machine that does nothing else.

python -m benchmarks.service [--idle-seconds 600] [--only warmth,cold,latency,thousand,cancel,overtake,idle]
    [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.service_jobs import (
    ITERATIONS,
    PATIENCE_SECONDS,
    ROWS,
    at_work,
    cancel_by_api,
    cancel_by_command,
    cancelled_at,
    cpu_seconds,
    drop_pairs,
    end_jobs,
    engine_seconds,
    has_loss,
    in_phase,
    memory_of,
    moment_of,
    move_in,
    parts_of,
    run_alone,
    settings_of,
    stage_pairs,
    wait_until_completed,
    wait_until_idle,
    wait_until_still,
    wait_when,
)
from benchmarks.timing import spread
from flows.settings import Settings
from nst_engine.images import encode_png
from nst_engine.samples import content_sample, style_sample
from nst_engine.startup import load_tensorflow
from storage.jobs import utc_now
from tests.service_process import REPOSITORY, Service, running_service

# The most that a config allows: hours.
LONG = 1_000_000
WARM_JOBS, ALONE_JOBS = 50, 3
COLD_RUNS = 5
DROPS = 5
THOUSAND, THOUSAND_ROWS = 1000, 32
CANCELS = 3
OVERTAKES = 3
LONG_AT_ONCE = 3
# Two jobs are a burst, so that three long ones are; all else is as nobody has set it, unlike in the tests.
SETTINGS = {
    "burst": 1,
    "bulk_at_once": LONG_AT_ONCE,
    **{
        name: Settings.model_fields[name].default
        for name in ("settle_seconds", "lease_seconds", "start_seconds", "chunk_seconds")
    },
}
CHUNK_SECONDS: float = SETTINGS["chunk_seconds"]


@dataclass(frozen=True)
class Table:
    """What a part found: a caption, the columns' heads and the rows, in words."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [f"| {' | '.join(cells)} |" for cells in (self.head, *self.rows)]
        return "\n".join([self.caption, "", lines[0], "|---" * len(self.head) + "|", *lines[1:]])


def main() -> None:
    """Measure the parts that are asked for, each service after the other, and print a table of each."""
    parser = argparse.ArgumentParser(description="Measure what the service costs beyond the engine.")
    parser.add_argument("--idle-seconds", type=float, default=600, help="how long the idle service is looked at")
    parser.add_argument("--json", type=Path, help="write all tables to this file too")
    parser.add_argument("--only", type=_names, default=[*PARTS], help=f"some of {','.join(PARTS)}")
    options = parser.parse_args()
    print(_machine(), flush=True)
    tables: dict[str, Table] = {}
    # The thousand jobs are left undone, so they have a service of their own.
    for names in ([name for name in PARTS if name != "thousand"], ["thousand"]):
        wanted = [name for name in names if name in options.only]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as home, running_service(Path(home), **SETTINGS) as service:
            # The first job of a service also pays for the engine's trace.
            run_alone(service, "first")
            for name in wanted:
                tables[name] = PARTS[name](service, options.idle_seconds)
                print(f"\n{tables[name]}", flush=True)
    if options.json:
        report = {"machine": _machine(), "tables": {name: asdict(table) for name, table in tables.items()}}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: give some of {','.join(PARTS)}")
    return names


def _machine() -> str:
    load_tensorflow()
    from nst_engine.hardware import cpu_model

    versions = ", ".join(f"{name} {version(name.lower())}" for name in ("TensorFlow", "Prefect", "Distributed"))
    return (
        f"{cpu_model()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; {ROWS} rows, Adam, "
        f"{ITERATIONS} iterations, float32, weights random; the service has its defaults, but burst = "
        f"{SETTINGS['burst']}. Engine seconds are those of a job's last loss point."
    )


def _warmth(service: Service, _idle_seconds: float) -> Table:
    alone = statistics.median(
        engine_seconds(service, run_alone(service, f"alone{number}").id) for number in range(ALONE_JOBS)
    )
    jobs = wait_until_completed(service, drop_pairs(service, [f"warm{number}" for number in range(WARM_JOBS)]))
    spans = sorted((moment_of(job.finished_at), moment_of(job.started_at)) for job in jobs)
    wall = _seconds(min(started for _, started in spans), spans[-1][0])
    engine = sum(engine_seconds(service, job.id) for job in jobs)
    ahead = sum(started < before for (before, _), (_, started) in itertools.pairwise(spans))
    processes = len({job.attempts[-1].pid for job in jobs})
    wait_until_idle(service)
    return Table(
        f"A burst of {WARM_JOBS} pairs, dropped at once. The same cores prepare and publish other jobs meanwhile, "
        "which slows the engine down; so what a job costs beyond it is given in two ways.",
        ("", ""),
        [
            ("from the first job's start to the last one's finish", f"{wall:.1f} s"),
            ("of the engine, all jobs", f"{engine:.1f} s"),
            ("**beyond the engine, a job**", f"**{(wall - engine) / WARM_JOBS:.2f} s**"),
            (f"of the engine, a job alone before: median of {ALONE_JOBS}", f"{alone:.2f} s"),
            ("**beyond the engine as it is alone, a job**", f"**{wall / WARM_JOBS - alone:.2f} s**"),
            ("jobs that began before the one ahead of them had finished", f"{ahead} of {WARM_JOBS}"),
            ("processes that they ran in", f"{processes}"),
        ],
    )


def _cold(service: Service, _idle_seconds: float) -> Table:
    """`nst run` for the service's home and on its Prefect server, so that only the process is cold."""
    folder = service.home / "cold"
    folder.mkdir()
    encode_png(content_sample(ROWS, ROWS * 5 // 4), folder / "content.png")
    encode_png(style_sample(ROWS, ROWS), folder / "style.png")
    environment = {
        **service.environment,
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_API_URL": f"http://127.0.0.1:{service.port}/api",
        "PREFECT_HOME": str(service.home / "prefect"),
    }
    whole, engine = [], []
    for _ in range(COLD_RUNS):
        settings = [f"--set={key}={value}" for key, value in settings_of(ROWS, ITERATIONS).items()]
        command = ["run", "content.png", "style.png", "--json", f"--home={service.home}", *settings]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        whole.append(time.perf_counter() - began)
        engine.append(engine_seconds(service, json.loads(done.stdout)["id"]))
    beyond = [seconds - own for seconds, own in zip(whole, engine, strict=True)]
    return Table(
        f"A cold process a job: `nst run`, {COLD_RUNS} times one after the other, on a Prefect server that runs. Its "
        "engine seconds include the trace, which a warm engine has.",
        ("", "seconds: median (least to most)"),
        [
            ("the whole process", spread(whole)),
            ("the engine", spread(engine)),
            ("**beyond the engine**", f"**{spread(beyond)}**"),
        ],
    )


def _latency(service: Service, _idle_seconds: float) -> Table:
    drops = []
    for number in range(DROPS):
        (name,) = drop_pairs(service, [f"single{number}"])
        moved = utc_now()
        optimised, first_loss = wait_when(service, name, in_phase("optimise")), wait_when(service, name, has_loss)
        (job,) = wait_until_completed(service, [name])
        moments = (
            moment_of(job.created_at),
            moment_of(job.started_at),
            optimised,
            first_loss,
            moment_of(job.finished_at),
        )
        drops.append([*(_seconds(moved, moment) for moment in moments), engine_seconds(service, job.id)])
        wait_until_idle(service)
    steps = (
        "until the job is recorded",
        "until its process has taken it up",
        "until its phase optimise",
        "until its first loss",
        "**until the result is there**",
        "of the engine in this",
    )
    return Table(
        f"A single drop into an idle service, {DROPS} times: seconds after its last file was moved into the inbox, "
        f"where it has to lie still for {SETTINGS['settle_seconds']:g} s; phase and first loss are looked for 20 times "
        "a second.",
        ("", "seconds: median (least to most)"),
        [(step, spread(seconds)) for step, seconds in zip(steps, zip(*drops, strict=True), strict=True)],
    )


def _thousand(service: Service, _idle_seconds: float) -> Table:
    names = [f"many{number:04}" for number in range(THOUSAND)]
    files = stage_pairs(service, names, rows=THOUSAND_ROWS, iterations=ITERATIONS)
    goal = sum(service.store.counts().values()) + THOUSAND
    began = utc_now()
    move_in(service, files)
    moved = utc_now()
    service.wait(
        f"{THOUSAND} jobs are recorded",
        lambda: sum(service.store.counts().values()) >= goal,
        seconds=PATIENCE_SECONDS,
    )
    created = [job.created_at for job in service.jobs() if job.name in set(names)]
    return Table(
        f"{THOUSAND} pairs of {THOUSAND_ROWS} rows with a settings file each ({len(files)} files) moved into the "
        "inbox at once; the service is stopped when they are recorded.",
        ("until", "seconds after the first file was moved"),
        [
            ("the last file is moved", f"{_seconds(began, moved):.2f}"),
            ("the first job is recorded", f"{_seconds(began, min(created)):.1f}"),
            (f"**all {len(created)} jobs are recorded**", f"**{_seconds(began, max(created)):.1f}**"),
        ],
    )


def _cancel(service: Service, _idle_seconds: float) -> Table:
    ways = (("command", "`nst cancel`", cancel_by_command), ("api", "Prefect's API", cancel_by_api))
    rows = []
    for key, way, cancel in ways:
        cancelled, still = [], []
        for number in range(CANCELS):
            job = at_work(service, drop_pairs(service, [f"alone-{key}-{number}"], iterations=LONG))
            began = utc_now()
            cancel(service, job)
            still.append(_seconds(began, wait_until_still(service)))
            cancelled.append(_seconds(began, cancelled_at(service, job)))
            wait_until_idle(service)
        rows.append((f"{way}, a job alone", spread(cancelled), spread(still)))
    for key, way, cancel in ways:
        # So many that always as many are at work.
        names = [f"burst-{key}-{number}" for number in range(LONG_AT_ONCE + CANCELS - 1)]
        drop_pairs(service, names, iterations=LONG)
        cancelled = []
        for _ in range(CANCELS):
            job = at_work(service, names)
            began = utc_now()
            cancel(service, job)
            cancelled.append(_seconds(began, cancelled_at(service, job)))
        end_jobs(service, names)
        rows.append((f"{way}, the job of a burst that has the GPU", spread(cancelled), ""))
    return Table(
        f"Cancelling a job in mid-work, {CANCELS} times each: seconds from the start of the command or request, median "
        f"(least to most). A chunk takes {CHUNK_SECONDS:g} s; of a burst {LONG_AT_ONCE} jobs are at work at once.",
        ("", "until the job is cancelled", "until the GPU worker stands still"),
        rows,
    )


def _overtake(service: Service, _idle_seconds: float) -> Table:
    rows = [_overtaking(service, "an idle service")]
    names = drop_pairs(service, [f"bulk{number}" for number in range(LONG_AT_ONCE)], iterations=LONG)
    at_work(service, names)
    rows.append(_overtaking(service, f"a burst of {LONG_AT_ONCE} long jobs"))
    end_jobs(service, names)
    return Table(
        f"A drop of one iteration, {OVERTAKES} times each: seconds from the start of its phase optimise, looked at 20 "
        "times a second, median (least to most). They hold the import of Dask, the wait for the GPU and its own work. "
        f"A chunk of the bulk jobs takes {CHUNK_SECONDS:g} s; what they computed meanwhile is at most the last column, "
        "since loss points have no time of day.",
        (
            "dropped into",
            "until its first loss",
            "until the loss of iteration 1",
            "the same in chunks",
            "the same without its own engine seconds",
        ),
        rows,
    )


def _overtaking(service: Service, where: str) -> tuple[str, ...]:
    first, second, others = [], [], []
    for number in range(OVERTAKES):
        (name,) = drop_pairs(service, [f"one-into-{where.replace(' ', '-')}-{number}"], iterations=1)
        began = wait_when(service, name, in_phase("optimise"))
        first.append(_seconds(began, wait_when(service, name, has_loss)))
        # The losses are written when the optimisation ends, and then the next phase begins.
        second.append(_seconds(began, wait_when(service, name, in_phase("deprocess"))))
        (job,) = wait_until_completed(service, [name])
        others.append(second[-1] - engine_seconds(service, job.id))
    chunks = [seconds / CHUNK_SECONDS for seconds in second]
    return where, spread(first), spread(second), spread(chunks), spread(others)


def _idle(service: Service, idle_seconds: float) -> Table:
    wait_until_idle(service)
    parts = parts_of(service)
    before = {name: sum(map(cpu_seconds, pids)) for name, pids in parts.items()}
    began = time.monotonic()
    time.sleep(idle_seconds)
    spent = {name: sum(map(cpu_seconds, pids)) - before[name] for name, pids in parts.items()}
    seconds = time.monotonic() - began
    memory = {name: sum(map(memory_of, pids)) for name, pids in parts.items()}
    figures = [(name, spent[name], memory[name]) for name in parts]
    figures.append(("**all**", sum(spent.values()), sum(memory.values())))
    return Table(
        f"Idle for {seconds:.0f} s after {sum(service.store.counts().values())} jobs.",
        ("part", "CPU seconds", "of one core", "memory (PSS)"),
        [(name, f"{cpu:.2f}", f"{cpu / seconds:.2%}", f"{size / 1e6:.0f} MB") for name, cpu, size in figures],
    )


def _seconds(began: datetime, ended: datetime) -> float:
    return (ended - began).total_seconds()


PARTS: dict[str, Callable[[Service, float], Table]] = {
    "warmth": _warmth,
    "cold": _cold,
    "latency": _latency,
    "thousand": _thousand,
    "cancel": _cancel,
    "overtake": _overtake,
    "idle": _idle,
}


if __name__ == "__main__":
    main()
