from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from cluster_processes import ClusterProcesses, eventually, worker_process
from numpy.typing import NDArray

from flows import checkpoint, gpu
from flows.errors import ClusterLostError, WorkerLostError
from flows.optimisation import LocalOptimisation, RemoteOptimisation, Stretch, Work
from flows.tasks import CLUSTER_PATIENCE_SECONDS
from nst_engine import arrays
from nst_engine.config import TransferConfig
from nst_engine.errors import EngineError, NotFiniteError
from nst_engine.pictures import Pictures, fit_pictures
from nst_engine.presets import find_preset
from nst_engine.transfer import LossPoint, TransferState

if TYPE_CHECKING:
    from nst_engine.engine import Engine

CHUNK_SECONDS = 0.2
LONG = 100_000


class Cluster(ClusterProcesses):
    """One scheduler and one worker, and the job that the tests give them."""

    def start(self) -> None:
        self.scheduler = self.start_scheduler()
        self.worker = self.start_worker()
        self.wait_for_workers()

    def optimise(self, job: Job, **options: Any) -> RemoteOptimisation:
        resume = options.pop("resume", None)
        # As long as a job has: a worker that was killed takes its time to be there again on a busy machine.
        options = {"priority": 0.0, "patience_seconds": CLUSTER_PATIENCE_SECONDS} | options
        return RemoteOptimisation(self.address, job.work(resume), **options)

    def worker_process(self) -> psutil.Process:
        return worker_process(self.worker)

    def kill_worker_process(self) -> None:
        process = self.worker_process()
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Job:
    """What is computed."""

    config: TransferConfig
    pictures: Pictures

    def with_(self, **settings: Any) -> Job:
        return replace(self, config=self.config.with_overrides(settings))

    def work(self, resume: TransferState | None = None) -> Work:
        return Work(self.config, self.pictures, resume=resume, chunk_seconds=CHUNK_SECONDS, snapshot_every=None)


@dataclass(frozen=True)
class Outcome:
    """All that was said of an optimisation, and its last state."""

    points: list[LossPoint]
    last: Stretch
    state: TransferState

    @property
    def facts(self) -> list[object]:
        """What must not depend on where and in which pieces it was computed."""
        return [
            [replace(point, seconds=0.0) for point in self.points],
            (self.last.iteration, self.last.finished, self.last.converged),
            (self.last.environment.weights_sha256, self.last.environment.precision),
            self.state.picture.tobytes(),
            self.state.gradient.tobytes(),
            self.state.iteration,
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as processes:
        processes.start()
        yield processes


@pytest.fixture(scope="module")
def job(content: NDArray[np.uint8], style: NDArray[np.uint8]) -> Job:
    settings = {
        "rows": 48,
        "weights": "random",
        "precision": "float32",
        "iterations": 40,
        "content_layers": "block2_conv2",
        "style_layers": "block1_conv1,block2_conv1",
    }
    config = find_preset("default").config.with_overrides(settings)
    return Job(config, fit_pictures(config, content, [style]))


def local(engine: Engine, job: Job, *, resume: TransferState | None = None) -> LocalOptimisation:
    return LocalOptimisation(engine, job.work(resume))


@pytest.fixture(scope="module")
def expected(engine: Engine, job: Job) -> Outcome:
    """What the job comes to in one process without a stop."""
    with local(engine, job) as optimisation:
        return finish(optimisation)


def finish(
    optimisation: LocalOptimisation | RemoteOptimisation, stretches: Iterator[Stretch | None] | None = None
) -> Outcome:
    """Follow an optimisation to its end; a point that comes again, from another attempt at it, counts once."""
    points: dict[int, LossPoint] = {}
    for stretch in stretches or optimisation.stretches():
        if stretch is not None:
            points |= {point.iteration: point for point in stretch.points}
            last = stretch
    return Outcome(list(points.values()), last, optimisation.state())


def reach(stretches: Iterator[Stretch | None], iteration: int) -> Stretch:
    """The first stretch that comes to this iteration."""
    return next(stretch for stretch in stretches if stretch is not None and stretch.iteration >= iteration)


def test_every_iteration_comes_once_and_the_last_stretch_is_finished(expected: Outcome) -> None:
    assert [point.iteration for point in expected.points] == list(range(41))
    assert (expected.last.finished, expected.last.converged, expected.state.iteration) == (True, False, 40)
    assert expected.last.environment.device.startswith("cpu ")


def test_same_picture_on_a_cluster(cluster: Cluster, job: Job, expected: Outcome) -> None:
    with cluster.optimise(job) as optimisation:
        outcome = finish(optimisation)
    assert outcome.facts == expected.facts
    assert outcome.last.environment == expected.last.environment


def test_same_picture_from_a_checkpoint_in_another_process(
    cluster: Cluster, engine: Engine, job: Job, expected: Outcome, tmp_path: Path
) -> None:
    with cluster.optimise(job) as optimisation:
        reach(optimisation.stretches(), 1)
        checkpoint.save(tmp_path / "checkpoint", optimisation.state())
    resumed = checkpoint.load(tmp_path / "checkpoint")
    assert resumed is not None
    assert 0 < resumed.iteration < 40
    for goes_on in (cluster.optimise(job, resume=resumed), local(engine, job, resume=resumed)):
        with goes_on as optimisation:
            outcome = finish(optimisation)
        rest = Outcome(expected.points[resumed.iteration + 1 :], expected.last, expected.state)
        assert outcome.facts == rest.facts


def test_resuming_what_is_finished_does_nothing(cluster: Cluster, engine: Engine, job: Job, expected: Outcome) -> None:
    for done in (cluster.optimise(job, resume=expected.state), local(engine, job, resume=expected.state)):
        with done as optimisation:
            [stretch] = [stretch for stretch in optimisation.stretches() if stretch is not None]
            assert (stretch.points, stretch.iteration, stretch.finished) == ((), 40, True)
            assert optimisation.state().picture.tobytes() == expected.state.picture.tobytes()


def test_the_caller_hears_of_it_while_nothing_is_new(engine: Engine, content: NDArray[np.uint8], job: Job) -> None:
    # A larger picture and a network that is not warm yet: a second passes before anything is known.
    config = job.config.with_overrides({"rows": 240, "iterations": 1, "pooling": "average"})
    large = Job(config, fit_pictures(config, content, [content]))
    heard = [time.monotonic()]
    with local(engine, large) as optimisation:
        heard += [time.monotonic() for _ in optimisation.stretches()]
    assert len(heard) > 3
    assert max(after - before for before, after in pairwise(heard)) < 1.0


def test_there_is_no_state_before_the_first_stretch(cluster: Cluster, engine: Engine, job: Job) -> None:
    for new in (cluster.optimise(job), local(engine, job)):
        with new as optimisation, pytest.raises(RuntimeError, match="before the first stretch"):
            optimisation.state()


def test_the_error_of_the_engine_arrives_as_itself(cluster: Cluster, engine: Engine, job: Job) -> None:
    diverging = job.with_(optimizer="sgd", learning_rate=1e30)
    errors = []
    for failing in (cluster.optimise(diverging), local(engine, diverging)):
        with failing as optimisation, pytest.raises(EngineError) as caught:
            finish(optimisation)
        errors.append(caught.value)
    remote, here = errors
    assert isinstance(remote, NotFiniteError)
    assert isinstance(here, NotFiniteError)
    assert (str(remote), remote.best is None) == (str(here), False)
    np.testing.assert_array_equal(remote.best, here.best)


def test_an_error_of_the_system_is_no_loss_of_the_cluster(cluster: Cluster, job: Job) -> None:
    with (
        cluster.optimise(job.with_(weights="/" + 300 * "x")) as optimisation,
        pytest.raises(OSError, match="File name too long"),
    ):
        # So many, since it must not go on for ever if it is taken for one.
        list(islice(optimisation.stretches(), 20))


def test_leaving_in_mid_job_frees_the_gpu(cluster: Cluster, job: Job) -> None:
    with cluster.optimise(job.with_(iterations=LONG)) as optimisation:
        reach(optimisation.stretches(), 1)
        began = time.monotonic()
    left = time.monotonic()
    with cluster.client() as client:
        # The chunk in progress is let go when it is done; the one after it never begins.
        eventually(lambda: not any(client.has_what().values()), seconds=3 * CHUNK_SECONDS + 1)
        assert not any(client.processing().values())
    assert left - began < 1.0


def test_higher_priority_overtakes_within_two_chunks(cluster: Cluster, job: Job) -> None:
    done: list[Stretch] = []
    stop = threading.Event()

    def drive(low: RemoteOptimisation) -> None:
        for stretch in low.stretches():
            if stretch is not None:
                done.append(stretch)
            if stop.is_set():
                return

    with cluster.optimise(job.with_(iterations=LONG), priority=-1.0) as low:
        driver = threading.Thread(target=drive, args=(low,))
        driver.start()
        eventually(lambda: len(done) > 2)
        with cluster.optimise(job.with_(iterations=80), priority=1.0) as high:
            before = len(done)
            outcome = finish(high)
            overtaken = len(done) - before
        stop.set()
        driver.join()
    # The job took more chunks than that, and one by one in turn the other would have had as many.
    assert outcome.state.seconds > 5 * CHUNK_SECONDS
    assert overtaken <= 2


def test_a_killed_worker_costs_only_what_was_not_fetched(
    cluster: Cluster, job: Job, expected: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster.optimise(job) as optimisation:
        stretches = optimisation.stretches()
        reach(stretches, 1)
        fetched = optimisation.state()
        cluster.kill_worker_process()
        again = finish(optimisation, stretches)
    rest = Outcome(expected.points[fetched.iteration + 1 :], expected.last, expected.state)
    assert again.facts == rest.facts
    assert any(f"going on from iteration {fetched.iteration}." in record.message for record in caplog.records)


def test_a_killed_scheduler_is_waited_for(
    cluster: Cluster, job: Job, expected: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster.optimise(job) as optimisation:
        stretches = optimisation.stretches()
        reach(stretches, 0)
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        # A state is to be had all the same: what the job would go on from.
        assert optimisation.state().iteration == 0
        cluster.scheduler = cluster.start_scheduler()
        rest = Outcome(expected.points[1:], expected.last, expected.state)
        assert finish(optimisation, stretches).facts == rest.facts
    messages = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert f"The connection to the scheduler at {cluster.address} was lost; connecting again." in messages
    # The scheduler is back before the worker, which is waited for and told of once.
    assert sum("has no GPU worker" in message for message in messages) == 1


def test_a_job_whose_worker_dies_at_the_same_place_fails(cluster: Cluster, job: Job) -> None:
    with cluster.optimise(job.with_(iterations=LONG)) as optimisation:
        stretches = optimisation.stretches()
        reach(stretches, 0)
        killed: set[str] = set()

        def kill_each() -> None:
            for _ in stretches:
                holding = {address for address, keys in client.has_what().items() if keys}
                if new := holding - killed:
                    cluster.worker_process().kill()
                    killed.update(new)

        with cluster.client() as client, pytest.raises(WorkerLostError, match="died 2 times"):
            kill_each()
    assert len(killed) == 2
    cluster.wait_for_workers()


# An engine that has its pictures on disk, which it would not choose for such small ones.
ON_DISK = """
from dataclasses import replace
from flows import gpu
from nst_engine.engine import Engine

class OnDisk(Engine):
    def memory_plan(self, config, pictures, *, precision):
        return replace(super().memory_plan(config, pictures, precision=precision), on_disk=True)

gpu._turns[:] = [gpu._Turns(OnDisk("cpu"))]
"""


def test_pictures_on_disk(tmp_path: Path, job: Job, expected: Outcome) -> None:
    """A worker that keeps them there makes the same picture. What leaves it goes on with a new optimiser."""
    gpu_alone = {"resources": {gpu.GPU: 1}, "pure": False}
    with Cluster(tmp_path) as cluster:
        cluster.start()
        cluster.start_worker()
        cluster.wait_for_workers(2)
        with cluster.client() as client:
            client.run(exec, ON_DISK, {})
            with cluster.optimise(job) as optimisation:
                stretches = optimisation.stretches()
                reach(stretches, 10)
                fetched = optimisation.state()
                whole = finish(optimisation, stretches)
            # Each chunk on the other worker.
            chunk = client.submit(gpu.begin, job.config, job.pictures, None, 0.0, **gpu_alone)
            for iteration in range(1, 4):
                assert chunk.exception() is None
                (holder,) = client.who_has(chunk)[chunk.key]
                (other,) = set(client.scheduler_info()["workers"]) - {holder}
                chunk = client.submit(gpu.advance, chunk, 0.0, None, 0.0, workers=[other], **gpu_alone)
                stretch = client.submit(gpu.report, chunk, pure=False).result()
                assert (stretch.iteration, len(stretch.points)) == (iteration, 1)
        with cluster.optimise(job, resume=fetched) as optimisation:
            resumed = finish(optimisation)
    assert (fetched.gradient, fetched.optimizer, arrays.on_disk(fetched.picture)) == (None, None, True)
    assert [point.losses for point in whole.points] == [point.losses for point in expected.points[-len(whole.points) :]]
    assert whole.state.picture.tobytes() == expected.state.picture.tobytes()
    assert [point.iteration for point in resumed.points] == list(range(fetched.iteration + 1, 41))
    assert resumed.state.losses.total < fetched.losses.total


@pytest.fixture
def without_scheduler(job: Job, tmp_path: Path) -> RemoteOptimisation:
    with ClusterProcesses(tmp_path) as nobody:
        address = nobody.address
    return RemoteOptimisation(address, job.work(), priority=0, patience_seconds=1.5)


def test_no_scheduler_is_an_error_when_patience_ends(without_scheduler: RemoteOptimisation) -> None:
    heard: list[Stretch | None] = []
    with without_scheduler as optimisation, pytest.raises(ClusterLostError, match=r"^No scheduler .* for 1.5 s; .*\.$"):
        heard.extend(optimisation.stretches())
    assert set(heard) == {None}
    assert len(heard) >= 2


def test_one_may_leave_while_there_is_no_scheduler(without_scheduler: RemoteOptimisation) -> None:
    began = time.monotonic()
    with without_scheduler as optimisation:
        assert next(optimisation.stretches()) is None
    assert time.monotonic() - began < 1.0
