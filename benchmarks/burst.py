"""How the Prefect server holds a burst: many jobs as in-process subflows of one run, some at once, each with four tiny
tasks, a progress artifact that moves and a markdown artifact, while another process asks the API all the time.

python -m benchmarks.burst [--jobs 250] [--at-once 12] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextvars
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from flows.lifeline import Lifeline
from flows.prefect_server import api_url, server_environment, wait_until_healthy
from nst_engine.startup import load_tensorflow

ROOT = Path(__file__).resolve().parents[1]
MOVES = 5
MARKDOWN_BYTES = 40_000
ASK_SECONDS = 0.1
# Longer than the server's freeze that the benchmark would show.
PATIENCE_SECONDS = 120
# The four tasks, and the one by which the run around them shows a subflow.
TASK_RUNS_A_JOB = 5
QUESTIONS = (("health", None), ("flow_runs/filter", {"limit": 50}), ("artifacts/latest/filter", {"limit": 10}))


@dataclass
class Answers:
    """What the API answered while the burst ran: seconds of each answer, and each failure in words."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Burst:
    """What became of a burst: its seconds, the jobs by their state, what the API answered meanwhile, and how many
    seconds after its end the last of its task runs was recorded as completed."""

    seconds: float
    states: dict[str, int]
    answers: Answers
    lag: float


def main() -> None:
    """Start a server in a temporary home, run the burst on it and print a table; or be the process that runs it."""
    parser = argparse.ArgumentParser(description="Measure how the Prefect server holds a burst of jobs.")
    parser.add_argument("--jobs", type=int, default=250, help="subflows in all")
    parser.add_argument("--at-once", type=int, default=12, help="subflows that run at once")
    parser.add_argument("--json", type=Path, help="write all figures to this file too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_run_jobs(options.jobs, options.at_once)))
        return
    with tempfile.TemporaryDirectory() as home, server(Path(home)) as url:
        burst = run_burst(url, jobs=options.jobs, at_once=options.at_once)
    print(_table(burst, options.jobs, options.at_once))
    if options.json:
        report = {
            "cores": os.cpu_count(),
            "versions": _versions(),
            "jobs": options.jobs,
            "at_once": options.at_once,
            **asdict(burst),
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def run_burst(url: str, *, jobs: int, at_once: int) -> Burst:
    """Run `jobs` subflows in a process of their own on the API at `url`, `at_once` at a time, and watch the API."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        # A request that is refused counts, instead of being made again.
        "PREFECT_CLIENT_MAX_RETRIES": "0",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
    }
    command = [sys.executable, "-m", "benchmarks.burst", "--child", f"--jobs={jobs}", f"--at-once={at_once}"]
    goal = _completed_task_runs(url) + jobs * TASK_RUNS_A_JOB
    with asking(url) as answers:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lag = _seconds_until_recorded(url, goal, answers)
    found = json.loads(done.stdout.splitlines()[-1])
    return Burst(found["seconds"], found["states"], answers, lag)


@contextmanager
def server(home: Path) -> Iterator[str]:
    """The Prefect server of that home in a process of its own; gives the address of its API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Lifeline() as lifeline:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.prefect_server", f"--port={port}"],
            cwd=ROOT,
            env={**os.environ, **server_environment(home, host="127.0.0.1", port=port), **lifeline.environment()},
            pass_fds=(lifeline.child_fd,),
        )
        url = api_url("127.0.0.1", port)
        wait_until_healthy(url, timeout=PATIENCE_SECONDS, alive=lambda: process.poll() is None)
        yield url
    process.wait()


@contextmanager
def asking(url: str) -> Iterator[Answers]:
    """Ask that API about once in a tenth of a second what a dashboard asks, until the block ends."""
    answers, done = Answers(), threading.Event()

    def ask() -> None:
        for question, body in itertools.cycle(QUESTIONS):
            began = time.perf_counter()
            try:
                answer_of(f"{url}/{question}", body)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                answers.errors.append(f"{question}: {error}")
            answers.seconds.append(time.perf_counter() - began)
            if done.wait(ASK_SECONDS):
                return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()


def answer_of(url: str, body: object) -> Any:
    """What the API answers: to a POST with that body as JSON, to a GET without one."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        return json.loads(answer.read())


def _completed_task_runs(url: str) -> int:
    return int(answer_of(f"{url}/task_runs/count", {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}))


def _seconds_until_recorded(url: str, goal: int, answers: Answers) -> float:
    began = time.perf_counter()
    while (recorded := _completed_task_runs(url)) < goal:
        if time.perf_counter() - began > PATIENCE_SECONDS:
            answers.errors.append(f"{goal - recorded} task runs are not recorded")
            break
        # The API offers no event to wait for.
        time.sleep(ASK_SECONDS)
    return time.perf_counter() - began


def _run_jobs(jobs: int, at_once: int) -> dict[str, object]:
    import httpx
    from prefect import flow, task
    from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

    @task
    def prepare(number: int) -> int:
        return number

    @task
    def optimise(number: int) -> int:
        # Typed for asynchronous callers too.
        artifact = cast("UUID", create_progress_artifact(0.0, key=f"progress-{number}"))
        for move in range(1, MOVES + 1):
            update_progress_artifact(artifact, 100.0 * move / MOVES)
        return number

    @task
    def picture(number: int) -> int:
        create_markdown_artifact("x" * MARKDOWN_BYTES, key=f"picture-{number}")
        return number

    @task
    def publish(number: int) -> int:
        return number

    @flow
    def job(number: int) -> int:
        return publish(picture(optimise(prepare(number))))

    def outcome(number: int) -> str:
        try:
            return str(job(number, return_state=True).name)
        except httpx.HTTPError as error:
            return str(error).partition("\n")[0]

    @flow
    def burst() -> dict[str, object]:
        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(contextvars.copy_context().run, outcome, number) for number in range(jobs)]
            names = [future.result() for future in running]
        return {
            "seconds": time.perf_counter() - began,
            "states": {name: names.count(name) for name in sorted(set(names))},
        }

    return burst()


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version()} | {name: version(name.lower()) for name in ("Prefect", "FastAPI")}


def _table(burst: Burst, jobs: int, at_once: int) -> str:
    # Imported after the measurement, as it needs TensorFlow.
    load_tensorflow()
    from nst_engine.hardware import cpu_model

    answers = burst.answers
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    lines = [
        f"{cpu_model()}, {os.cpu_count()} cores; {versions}; {jobs} jobs, "
        f"{at_once} at once, of four tasks, {MOVES} progress updates and {MARKDOWN_BYTES // 1000} KB of markdown each.",
        "",
        "| | |",
        "|---|---|",
        f"| all jobs | {burst.seconds:.0f} s |",
        f"| states of the jobs | {', '.join(f'{count} {name}' for name, count in burst.states.items())} |",
        f"| last task run recorded after | {burst.lag:.1f} s |",
        f"| answers of the API meanwhile | {len(answers.seconds)} |",
        f"| median answer | {statistics.median(answers.seconds) * 1000:.0f} ms |",
        f"| slowest answer | {max(answers.seconds):.2f} s |",
        f"| errors | {len(answers.errors)} |",
        *(f"| | {error} |" for error in answers.errors),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
