"""The parts of the service killed with -9 at the stages of a job, in an order drawn from a seed: all jobs complete,
each with one result, the same bit for bit as if nothing had happened."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np

from nst_engine.engine import Engine
from nst_engine.images import decode
from nst_engine.pictures import fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import Budget, advance, start
from storage.models import Job, JobState
from tests.service_process import STYLE, Service, content_of, files_under

SEED = 20261122
POINTS = 25
PARTS = ("gpu-worker", "scheduler", "flow", "flow-worker", "sensor", "service", "prefect")
STAGES = ("claim", "preprocess", "optimise", "publish")
SETTINGS: dict[str, Any] = {
    "rows": 48,
    "iterations": 100,
    "weights": "random",
    "precision": "float32",
    "optimizer": "adam",
    "content_layers": "block2_conv2",
    "style_layers": "block1_conv1,block2_conv1",
}


def test_a_job_survives_the_death_of_any_part_at_any_stage(tmp_path: Path, engine: Engine) -> None:
    points = random.Random(SEED).sample(list(itertools.product(PARTS, STAGES)), POINTS)
    service = Service(
        tmp_path,
        chunk_seconds=0.3,
        checkpoint_seconds=0.5,
        lease_seconds=6,
        max_attempts=30,
        burst=100,
        max_submitted=3,
    )
    try:
        service.start()
        for number, (part, stage) in enumerate(points):
            # Settings that change nothing but make each job one of its own.
            settings = "".join(f"{key} = {value!r}\n" for key, value in {**SETTINGS, "seed": number}.items())
            service.drop_pair(f"{number:02}-{part}-{stage}", settings=settings.replace("'", '"'))
            kill_at(service, number, part, stage)
        names = [f"{number:02}-{part}-{stage}" for number, (part, stage) in enumerate(points)]
        jobs = service.wait_for_end(*names, seconds=240)
        check(service, jobs, names, expected(engine))
    finally:
        service.close()


def kill_at(service: Service, number: int, part: str, stage: str) -> None:
    """Wait until the job is at that stage, then kill -9 the part; a killed service is started again."""
    name = f"{number:02}-{part}-{stage}"
    service.wait(f"{name} is at {stage}", lambda: is_at(service, name, stage), seconds=240)
    if part == "service":
        service.kill()
        service.start()
        return
    killed = service.wait(f"there is a {part} to kill", lambda: kill(service, name, part))
    assert killed


def is_at(service: Service, name: str, stage: str) -> bool:
    found = [job for job in service.jobs() if job.name == name]
    if not found:
        return False
    (job,) = found
    if stage == "claim" or job.state is JobState.COMPLETED:
        return True
    if not job.attempts or job.state is not JobState.RUNNING:
        return False
    if stage == "optimise":
        return (service.workspace.job_folder(job.id) / "checkpoint").exists()
    order = ("preprocess", "optimise", "deprocess", "publish")
    phase = job.attempts[-1].phase
    return phase is not None and order.index(phase) >= order.index(stage)


def kill(service: Service, name: str, part: str) -> list[int]:
    """Kill the part, or of the flows the one of this job, if it has one already; returns the processes."""
    processes = service.part(part)
    attempts = service.job(name).attempts
    if part == "flow" and attempts:
        processes = [attempts[-1].pid]
    killed = []
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            killed.append(process)
    # The flow of a job that was too quick has ended by itself.
    return killed or (attempts[-1:] and [attempts[-1].pid])


def expected(engine: Engine) -> Any:
    config = find_preset("default").config.with_overrides(SETTINGS)
    state, _ = start(engine, config, fit_pictures(config, content_of(0), [STYLE]))
    state, _ = advance(engine, state, Budget())
    return state.result()


def check(service: Service, jobs: list[Job], names: list[str], result: Any) -> None:
    assert {job.name: (job.state, job.error) for job in service.jobs()} == dict.fromkeys(
        names, (JobState.COMPLETED, None)
    )
    assert len(service.jobs()) == len(names)
    assert sorted(path.name for path in service.workspace.outbox.iterdir()) == sorted(names)
    assert files_under(service.workspace.inbox) == set()
    service.wait("the folders of all jobs are removed", lambda: files_under(service.workspace.work) == set())
    assert files_under(service.workspace.rejected) == set()
    for job in jobs:
        folder = service.workspace.outbox / job.name
        assert files_under(folder) == {
            "result.png",
            "loss.png",
            "job.json",
            "content.png",
            "style.png",
            "settings.toml",
        }
        assert np.array_equal(decode(folder / "result.png"), result), job.name
        assert np.array_equal(decode(folder / "content.png"), content_of(0))
        assert [point.iteration for point in service.store.losses(job.id)] == list(range(101)), job.name
    resumed = [job for job in jobs if job.name.endswith(("flow-optimise", "service-optimise"))]
    assert resumed
    for job in resumed:
        assert max(attempt.first_iteration or 0 for attempt in job.attempts) > 0, job.name
