"""What runs on a GPU worker: plain functions that a scheduler can name, each a chunk of work on the process's one warm
engine. Nothing is kept between them but that engine's caches."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from distributed import Reschedule, Worker, WorkerPlugin, get_worker

from flows import chunks
from flows.chunks import Chunk, Stretch
from nst_engine.config import TransferConfig
from nst_engine.errors import EngineError
from nst_engine.pictures import Pictures
from nst_engine.startup import load_tensorflow
from nst_engine.transfer import TransferState

if TYPE_CHECKING:
    from nst_engine.engine import Engine

GPU: Final = "GPU"
"""The Dask resource that a worker has one of and that everything that computes takes."""

TURNS: Final = "nst-turns"
"""The topic of the scheduler's events in which a worker says what it begins: {"worker": ADDRESS, "chunk": KEY}."""

_HANDOVER_SECONDS: Final = 0.25


class _Turns:
    """Lets one job after another compute on the engine.

    Dask sends a job's next chunk when it has heard that the last one is done, some hundredths of a second later.
    Until then the engine is kept for it: else a waiting job of lower priority would get every second chunk.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._priority = 0.0
        self._kept_until = 0.0

    def take(self, priority: float, compute: Callable[[Engine], Chunk]) -> Chunk:
        """The chunk that `compute` makes; Reschedule, which sends it back to the queue, when it is not its turn."""
        if priority < self._priority and monotonic() < self._kept_until:
            raise Reschedule
        worker = get_worker()
        worker.log_event(TURNS, {"worker": worker.address, "chunk": worker.get_current_task()})
        chunk = compute(self._engine)
        self._priority = priority
        self._kept_until = 0.0 if chunk.stretch.finished else monotonic() + _HANDOVER_SECONDS
        return chunk


_turns: Final = list[_Turns]()


class EnginePlugin(WorkerPlugin):
    """Gives a Dask worker its engine on `device` ("auto", "cpu", "gpu", "gpu:N") before it takes any work.

    The engine takes at most `max_memory` bytes; None: what is free. `xla` and `deterministic`: see Engine.
    """

    name = "nst-engine"

    def __init__(self, device: str, *, max_memory: int | None, xla: bool, deterministic: bool) -> None:
        self.device = device
        self.max_memory = max_memory
        self.xla = xla
        self.deterministic = deterministic

    def setup(self, worker: Worker) -> None:
        """Load TensorFlow and the device; where there is none such, say so and let the worker fail to start."""
        # Ctrl-C of a terminal comes here too; the nanny ends this process once its jobs are handed over.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        load_tensorflow()
        from nst_engine.engine import Engine

        try:
            engine = Engine(self.device, max_memory=self.max_memory, xla=self.xla, deterministic=self.deterministic)
        except EngineError as error:
            # Dask would wrap it, lose its cause on the way to the nanny, and print three tracebacks.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            sys.stderr.write(f"{error}\n")
            raise
        _turns[:] = [_Turns(engine)]


# Dask's submit() takes `priority=` for itself, so it is given by position here.


def begin(config: TransferConfig, pictures: Pictures, snapshot_every: int | None, priority: float) -> Chunk:
    """See `chunks.begin`."""
    return _turns[0].take(
        priority, lambda engine: chunks.begin(engine, config, pictures, snapshot_every=snapshot_every)
    )


def resume(state: TransferState, priority: float) -> Chunk:
    """See `chunks.resume`."""
    return _turns[0].take(priority, lambda engine: chunks.resume(engine, state))


def advance(chunk: Chunk, seconds: float, snapshot_every: int | None, priority: float) -> Chunk:
    """See `chunks.advance`."""
    return _turns[0].take(
        priority, lambda engine: chunks.advance(engine, chunk, seconds=seconds, snapshot_every=snapshot_every)
    )


def report(chunk: Chunk) -> Stretch:
    """What is new in a chunk, without its state, which is large and stays here."""
    return chunk.stretch
