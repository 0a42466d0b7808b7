"""GPU workers that compute nothing: each takes a job as one with a GPU does, sleeps as long as that would compute, and
gives back the content as the picture, with made-up losses. Many of them fit on one machine, which shows what the rest
of the service can do.

python -m benchmarks.sleeping_workers --scheduler ADDRESS --workers N --job-seconds S
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import dask
from distributed import Worker, get_worker

from flows import gpu
from flows.chunks import Chunk, Environment, Stretch
from flows.cluster import CLUSTER_CONFIG
from flows.edition import edition
from flows.lifeline import end_with_parent
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Losses
from nst_engine.images import preprocess
from nst_engine.memory import MemoryPlan
from nst_engine.optimizers import initial_state
from nst_engine.pictures import Pictures
from nst_engine.transfer import LossPoint, TransferState

READY = "They have joined."


class _AtOnce:
    """In the place of the one engine's turns: every worker of this process has a GPU of its own."""

    def take(self, _priority: float, compute: Callable[[Any], Chunk]) -> Chunk:
        worker = get_worker()
        worker.log_event(gpu.TURNS, {"worker": worker.address, "chunk": worker.get_current_task()})
        return compute(None)


class _Sleeper:
    """In the place of `flows.chunks`: a job's iterations take `job_seconds` in all."""

    def __init__(self, job_seconds: float) -> None:
        self._job_seconds = job_seconds

    def begin(self, _engine: None, config: TransferConfig, pictures: Pictures, *, snapshot_every: int | None) -> Chunk:
        picture = preprocess(pictures.content)
        state = TransferState(
            config=config,
            pictures=pictures,
            precision="float32",
            weights_name="none",
            weights_sha256="0" * 64,
            picture=picture,
            losses=_losses(0),
            gradient=picture / 7,
            optimizer=initial_state(config, picture),
            iteration=0,
            best_picture=picture,
            best_loss=1.0,
            seconds=0.0,
        )
        return self._chunk(state, first=0)

    def resume(self, _engine: None, state: TransferState) -> Chunk:
        return self._chunk(state, first=state.iteration + 1)

    def advance(self, _engine: None, chunk: Chunk, *, seconds: float, snapshot_every: int | None) -> Chunk:
        state = chunk.state
        a_second = state.config.iterations / self._job_seconds
        iteration = min(state.config.iterations, state.iteration + max(1, round(a_second * seconds)))
        slept = (iteration - state.iteration) / a_second
        time.sleep(slept)
        after = replace(state, iteration=iteration, losses=_losses(iteration), seconds=state.seconds + slept)
        return self._chunk(after, first=state.iteration + 1)

    def _chunk(self, state: TransferState, *, first: int) -> Chunk:
        points = [
            LossPoint(number, _losses(number), rate=1.0, seconds=state.seconds)
            for number in range(first, state.iteration + 1)
        ]
        environment = Environment(
            weights_name=state.weights_name,
            weights_sha256=state.weights_sha256,
            precision=state.precision,
            device="none",
            memory=MemoryPlan(None, 0),
        )
        return Chunk(
            state,
            Stretch(
                points=tuple(points),
                snapshots=(),
                iteration=state.iteration,
                scale=1,
                finished=state.finished,
                converged=False,
                seconds=state.seconds,
                environment=environment,
            ),
        )


def _losses(iteration: int) -> Losses:
    total = 1 / (1 + iteration)
    return Losses(total, total / 4, total / 2, total / 4, {"style/block1_conv1": total})


async def _work(address: str, *, workers: int, job_seconds: float, folder: str) -> None:
    vars(gpu)["chunks"] = _Sleeper(job_seconds)
    gpu._turns[:] = [cast("Any", _AtOnce())]
    started = await asyncio.gather(
        *(
            Worker(
                address,
                name=f"sleeper-{number}",
                nthreads=2,
                resources={gpu.GPU: 1, edition(): 1},
                memory_limit=0,
                local_directory=folder,
                dashboard=False,
            )
            for number in range(workers)
        )
    )
    print(READY, flush=True)
    await asyncio.gather(*(worker.finished() for worker in started))


def main() -> None:
    """Join the scheduler and work until it ends, or this process is."""
    parser = argparse.ArgumentParser(description="GPU workers that sleep.")
    parser.add_argument("--scheduler", required=True, help="the scheduler's address")
    parser.add_argument("--workers", type=int, required=True, help="how many")
    parser.add_argument("--job-seconds", type=float, required=True, help="how long each computes a job")
    options = parser.parse_args()
    end_with_parent()
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(CLUSTER_CONFIG):
        asyncio.run(_work(options.scheduler, workers=options.workers, job_seconds=options.job_seconds, folder=folder))


if __name__ == "__main__":
    main()
