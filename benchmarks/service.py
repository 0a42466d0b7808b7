"""What the service costs beyond the engine: a real `nst up` on a temporary home, its one GPU worker on the CPU, small
pictures, seeded weights. Each part is a table; run it on a machine that does nothing else.

python -m benchmarks.service [--idle-seconds 600] [--only warmth,cold,latency,thousand,cancel,overtake,idle]
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
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from flows.attempt import Phase
from flows.settings import Settings
from nst_engine.images import encode_png
from nst_engine.samples import content_sample, style_sample
from nst_engine.startup import load_tensorflow
from storage.jobs import utc_now
from storage.models import Job, JobState
from tests.service_process import ENDED, REPOSITORY, Service, running_service

ROWS, ITERATIONS = 64, 40
# The most that a config allows: hours.
LONG = 1_000_000
WARM_JOBS, ALONE_JOBS = 50, 3
COLD_RUNS = 5
DROPS = 5
THOUSAND, THOUSAND_ROWS = 1000, 32
CANCELS = 3
OVERTAKES = 3
LONG_AT_ONCE = 3
PATIENCE_SECONDS = 900
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
PHASES: tuple[Phase, ...] = ("preprocess", "optimise", "deprocess", "publish")
# A GPU worker that takes less of a core for so long computes nothing.
STILL_CORES, STILL_SECONDS, SAMPLE_SECONDS = 0.2, 1.0, 0.1
_seeds = itertools.count()


def main() -> None:
    """Measure the parts that are asked for, each service after the other, and print a table of each."""
    parser = argparse.ArgumentParser(description="Measure what the service costs beyond the engine.")
    parser.add_argument("--idle-seconds", type=float, default=600, help="how long the idle service is looked at")
    parser.add_argument("--only", type=_names, default=[*PARTS], help=f"some of {','.join(PARTS)}")
    options = parser.parse_args()
    print(_machine(), flush=True)
    # The thousand jobs are left undone, so they have a service of their own.
    for names in ([name for name in PARTS if name != "thousand"], ["thousand"]):
        wanted = [name for name in names if name in options.only]
        if not wanted:
            continue
        with tempfile.TemporaryDirectory() as home, running_service(Path(home), **SETTINGS) as service:
            # The first job of a service also pays for the engine's trace.
            _alone(service, "first")
            for name in wanted:
                print(f"\n{PARTS[name](service, options.idle_seconds)}", flush=True)


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


def _warmth(service: Service, _idle_seconds: float) -> str:
    alone = statistics.median(
        _engine_seconds(service, _alone(service, f"alone{number}").id) for number in range(ALONE_JOBS)
    )
    jobs = _completed(service, _drop(service, [f"warm{number}" for number in range(WARM_JOBS)]))
    spans = sorted((_time(job.finished_at), _time(job.started_at)) for job in jobs)
    wall = _seconds(min(started for _, started in spans), spans[-1][0])
    engine = sum(_engine_seconds(service, job.id) for job in jobs)
    ahead = sum(started < before for (before, _), (_, started) in itertools.pairwise(spans))
    processes = len({job.attempts[-1].pid for job in jobs})
    _wait_until_idle(service)
    return _table(
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


def _cold(service: Service, _idle_seconds: float) -> str:
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
        settings = [f"--set={key}={value}" for key, value in _settings(ROWS, ITERATIONS).items()]
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
        engine.append(_engine_seconds(service, json.loads(done.stdout)["id"]))
    beyond = [seconds - own for seconds, own in zip(whole, engine, strict=True)]
    return _table(
        f"A cold process a job: `nst run`, {COLD_RUNS} times one after the other, on a Prefect server that runs. Its "
        "engine seconds include the trace, which a warm engine has.",
        ("", "seconds: median (least to most)"),
        [
            ("the whole process", _spread(whole)),
            ("the engine", _spread(engine)),
            ("**beyond the engine**", f"**{_spread(beyond)}**"),
        ],
    )


def _latency(service: Service, _idle_seconds: float) -> str:
    drops = []
    for number in range(DROPS):
        (name,) = _drop(service, [f"single{number}"])
        moved = utc_now()
        optimised, first_loss = _when(service, name, _in_phase("optimise")), _when(service, name, _has_loss)
        (job,) = _completed(service, [name])
        moments = (_time(job.created_at), _time(job.started_at), optimised, first_loss, _time(job.finished_at))
        drops.append([*(_seconds(moved, moment) for moment in moments), _engine_seconds(service, job.id)])
        _wait_until_idle(service)
    steps = (
        "until the job is recorded",
        "until its process has taken it up",
        "until its phase optimise",
        "until its first loss",
        "**until the result is there**",
        "of the engine in this",
    )
    return _table(
        f"A single drop into an idle service, {DROPS} times: seconds after its last file was moved into the inbox, "
        f"where it has to lie still for {SETTINGS['settle_seconds']:g} s; phase and first loss are looked for 20 times "
        "a second.",
        ("", "seconds: median (least to most)"),
        [(step, _spread(seconds)) for step, seconds in zip(steps, zip(*drops, strict=True), strict=True)],
    )


def _thousand(service: Service, _idle_seconds: float) -> str:
    names = [f"many{number:04}" for number in range(THOUSAND)]
    files = _stage(service, names, rows=THOUSAND_ROWS, iterations=ITERATIONS)
    goal = sum(service.store.counts().values()) + THOUSAND
    began = utc_now()
    _move_in(service, files)
    moved = utc_now()
    service.wait(
        f"{THOUSAND} jobs are recorded",
        lambda: sum(service.store.counts().values()) >= goal,
        seconds=PATIENCE_SECONDS,
    )
    created = [job.created_at for job in service.jobs() if job.name in set(names)]
    return _table(
        f"{THOUSAND} pairs of {THOUSAND_ROWS} rows with a settings file each ({len(files)} files) moved into the "
        "inbox at once; the service is stopped when they are recorded.",
        ("until", "seconds after the first file was moved"),
        [
            ("the last file is moved", f"{_seconds(began, moved):.2f}"),
            ("the first job is recorded", f"{_seconds(began, min(created)):.1f}"),
            (f"**all {len(created)} jobs are recorded**", f"**{_seconds(began, max(created)):.1f}**"),
        ],
    )


def _cancel(service: Service, _idle_seconds: float) -> str:
    ways = (("command", "`nst cancel`", _cancel_by_command), ("api", "Prefect's API", _cancel_by_api))
    rows = []
    for key, way, cancel in ways:
        cancelled, still = [], []
        for number in range(CANCELS):
            job = _at_work(service, _drop(service, [f"alone-{key}-{number}"], iterations=LONG))
            began = utc_now()
            cancel(service, job)
            still.append(_seconds(began, _still(service)))
            cancelled.append(_seconds(began, _cancelled_at(service, job)))
            _wait_until_idle(service)
        rows.append((f"{way}, a job alone", _spread(cancelled), _spread(still)))
    for key, way, cancel in ways:
        # So many that always as many are at work.
        names = [f"burst-{key}-{number}" for number in range(LONG_AT_ONCE + CANCELS - 1)]
        _drop(service, names, iterations=LONG)
        cancelled = []
        for _ in range(CANCELS):
            job = _at_work(service, names)
            began = utc_now()
            cancel(service, job)
            cancelled.append(_seconds(began, _cancelled_at(service, job)))
        _end(service, names)
        rows.append((f"{way}, the job of a burst that has the GPU", _spread(cancelled), ""))
    return _table(
        f"Cancelling a job in mid-work, {CANCELS} times each: seconds from the start of the command or request, median "
        f"(least to most). A chunk takes {CHUNK_SECONDS:g} s; of a burst {LONG_AT_ONCE} jobs are at work at once.",
        ("", "until the job is cancelled", "until the GPU worker stands still"),
        rows,
    )


def _overtake(service: Service, _idle_seconds: float) -> str:
    rows = [_overtaking(service, "an idle service")]
    names = _drop(service, [f"bulk{number}" for number in range(LONG_AT_ONCE)], iterations=LONG)
    _at_work(service, names)
    rows.append(_overtaking(service, f"a burst of {LONG_AT_ONCE} long jobs"))
    _end(service, names)
    return _table(
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
        (name,) = _drop(service, [f"one-into-{where.replace(' ', '-')}-{number}"], iterations=1)
        began = _when(service, name, _in_phase("optimise"))
        first.append(_seconds(began, _when(service, name, _has_loss)))
        # The losses are written when the optimisation ends, and then the next phase begins.
        second.append(_seconds(began, _when(service, name, _in_phase("deprocess"))))
        (job,) = _completed(service, [name])
        others.append(second[-1] - _engine_seconds(service, job.id))
    chunks = [seconds / CHUNK_SECONDS for seconds in second]
    return where, _spread(first), _spread(second), _spread(chunks), _spread(others)


def _idle(service: Service, idle_seconds: float) -> str:
    _wait_until_idle(service)
    parts = {
        "up": [service.process_id],
        "prefect": service.part("prefect"),
        "scheduler": service.part("scheduler"),
        "gpu-worker nanny": service.processes("flows.cluster worker"),
        "gpu-worker": service.part("gpu-worker"),
        "flow-worker": service.part("flow-worker"),
        "sensor": service.part("sensor"),
    }
    known = {pid for pids in parts.values() for pid in pids}
    parts["other processes"] = [pid for pid in service.processes("") if pid not in known]
    before = {name: sum(map(_cpu_seconds, pids)) for name, pids in parts.items()}
    began = time.monotonic()
    time.sleep(idle_seconds)
    spent = {name: sum(map(_cpu_seconds, pids)) - before[name] for name, pids in parts.items()}
    seconds = time.monotonic() - began
    memory = {name: sum(map(_memory, pids)) for name, pids in parts.items()}
    figures = [(name, spent[name], memory[name]) for name in parts]
    figures.append(("**all**", sum(spent.values()), sum(memory.values())))
    return _table(
        f"Idle for {seconds:.0f} s after {sum(service.store.counts().values())} jobs.",
        ("part", "CPU seconds", "of one core", "memory (PSS)"),
        [(name, f"{cpu:.2f}", f"{cpu / seconds:.2%}", f"{size / 1e6:.0f} MB") for name, cpu, size in figures],
    )


def _settings(rows: int, iterations: int) -> dict[str, object]:
    """The settings of a job; the seed does nothing here but make each job another one, so that none is reused."""
    return {
        "rows": rows,
        "iterations": iterations,
        "optimizer": "adam",
        "precision": "float32",
        "weights": "random",
        "seed": next(_seeds),
    }


def _drop(service: Service, names: Sequence[str], *, iterations: int = ITERATIONS) -> Sequence[str]:
    """Move pairs of these names into the inbox at once; returns the names."""
    _move_in(service, _stage(service, names, rows=ROWS, iterations=iterations))
    return names


def _stage(service: Service, names: Sequence[str], *, rows: int, iterations: int) -> list[Path]:
    """Write the pairs' files beside the inbox, on the same disk."""
    staging = service.home / "staging"
    staging.mkdir(exist_ok=True)
    pictures = {"content": content_sample(rows, rows * 5 // 4), "style": style_sample(rows, rows)}
    for role, picture in pictures.items():
        encode_png(picture, staging / f"{role}.png")
    data = {role: (staging / f"{role}.png").read_bytes() for role in pictures}
    files = []
    for name in names:
        settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in _settings(rows, iterations).items())
        contents = {f"{name}.toml": settings.encode()} | {f"{name}_{role}.png": data[role] for role in pictures}
        for file, content in contents.items():
            (staging / file).write_bytes(content)
            files.append(staging / file)
    return files


def _move_in(service: Service, files: Sequence[Path]) -> None:
    for file in files:
        file.rename(service.workspace.inbox / file.name)


def _alone(service: Service, name: str) -> Job:
    (job,) = _completed(service, _drop(service, [name]))
    _wait_until_idle(service)
    return job


def _completed(service: Service, names: Sequence[str]) -> list[Job]:
    """Wait until these jobs, the newest ones, are completed."""

    def look() -> list[Job]:
        _require_no_failure(service)
        # The counts cost the machine next to nothing; the jobs themselves would.
        if service.store.counts()[JobState.COMPLETED] < len(names):
            return []
        jobs = service.store.recent(limit=len(names))
        done = sorted(job.name for job in jobs if job.state is JobState.COMPLETED) == sorted(names)
        return jobs if done else []

    return service.wait(f"{names[0]} and those with it are completed", look, seconds=PATIENCE_SECONDS)


def _require_no_failure(service: Service) -> None:
    counts = service.store.counts()
    if counts[JobState.FAILED] or counts[JobState.REJECTED]:
        raise AssertionError(f"A job has failed, which none should.\n{service.report()}")


def _when(service: Service, name: str, condition: Callable[[Job], bool]) -> datetime:
    """Wait until the newest job has this name and fulfils the condition; returns when that was seen."""

    def look() -> datetime | None:
        newest = service.store.recent(limit=1)[0]
        _require_no_failure(service)
        return utc_now() if newest.name == name and condition(newest) else None

    return _time(service.wait(f"{name} has got so far", look, seconds=PATIENCE_SECONDS))


def _in_phase(phase: Phase) -> Callable[[Job], bool]:
    later = PHASES[PHASES.index(phase) :]
    return lambda job: bool(job.attempts) and job.attempts[-1].phase in later


def _has_loss(job: Job) -> bool:
    # Noted with the loss of iteration 0, which itself is written later.
    return bool(job.attempts) and job.attempts[-1].device is not None


def _at_work(service: Service, names: Sequence[str]) -> Job:
    """Wait until the oldest running one of these jobs, which goes first, is optimised; returns it."""

    def look() -> Job | None:
        _require_no_failure(service)
        running = [job for job in service.store.recent(limit=100, state=JobState.RUNNING) if job.name in names]
        return running[-1] if running and _has_loss(running[-1]) else None

    job = service.wait(f"one of {names[0]} and those with it is optimised", look, seconds=PATIENCE_SECONDS)
    assert job is not None
    return job


def _cancel_by_command(service: Service, job: Job) -> None:
    done = service.command("cancel", job.id)
    if done.returncode != 0:
        raise AssertionError(done.stderr)


def _cancel_by_api(service: Service, job: Job) -> None:
    service.api("POST", f"flow_runs/{job.attempts[-1].flow_run_id}/set_state", {"state": {"type": "CANCELLING"}})


def _cancelled_at(service: Service, job: Job) -> datetime:
    service.wait(f"{job.name} is cancelled", lambda: service.store.state_of(job.id) is JobState.CANCELLED)
    return _time(service.store.get(job.id).finished_at)


def _still(service: Service) -> datetime:
    """Wait until the GPU worker computes nothing any more; returns when it was last seen to."""
    (worker,) = service.part("gpu-worker")
    busy, spent = utc_now(), _cpu_seconds(worker)
    while (now := utc_now()).timestamp() - busy.timestamp() < STILL_SECONDS:
        # The system offers no event to wait for.
        time.sleep(SAMPLE_SECONDS)
        before, spent = spent, _cpu_seconds(worker)
        if spent - before > STILL_CORES * SAMPLE_SECONDS:
            busy = now
    return busy


def _end(service: Service, names: Sequence[str]) -> None:
    """Cancel those of the jobs that have not ended, and wait until the service is idle."""
    for job in service.jobs():
        if job.name in names and job.state not in ENDED:
            service.store.ask_cancel(job.id)
    service.wait_for_end(*names)
    _wait_until_idle(service)


def _wait_until_idle(service: Service) -> None:
    service.wait("no flow runs", lambda: not service.part("flow"))


def _engine_seconds(service: Service, job_id: str) -> float:
    return service.store.losses(job_id)[-1].seconds


def _cpu_seconds(pid: int) -> float:
    """Seconds of the CPU that a process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    """Bytes of memory of a process; what it shares with others is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _time(moment: datetime | None) -> datetime:
    assert moment is not None
    return moment


def _seconds(began: datetime, ended: datetime) -> float:
    return (ended - began).total_seconds()


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([caption, "", lines[0], "|---" * len(head) + "|", *lines[1:]])


PARTS: dict[str, Callable[[Service, float], str]] = {
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
