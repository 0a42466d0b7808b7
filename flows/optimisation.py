"""The optimisation of one job as its flow sees it: a run of stretches, computed in this process or on a cluster of
GPU workers, and the state that it has come to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from flows import chunks
from flows.chunks import Chunk, Environment, Stretch, Work
from flows.errors import ClusterLostError
from nst_engine.transfer import TransferState

if TYPE_CHECKING:
    from nst_engine.engine import Engine

__all__ = ["Environment", "LocalOptimisation", "Optimisation", "RemoteOptimisation", "Stretch", "Work"]

# The caller hears of us at least this often: it has a lease to renew and may have been told to stop.
_PULSE_SECONDS: Final = 0.5

Value = TypeVar("Value")


class Optimisation(Protocol):
    """One job's optimisation, a context manager: leaving it, also in the middle, stops it and frees its device."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def stretches(self) -> Iterator[Stretch | None]:
        """A Stretch for each chunk, until one is finished, and None twice a second while nothing is new. Call it once.

        The first has the loss point of iteration 0 or, when resumed, none. After a loss of the cluster stretches
        come again from an earlier iteration on. Raises EngineError for what is wrong with the job itself.
        """
        ...

    def state(self) -> TransferState:
        """The state after the stretch that came last; there must have been one.

        While the cluster is lost it is the state to go on from, which is that of an earlier stretch.
        """
        ...


class LocalOptimisation:
    """The optimisation in this process, on `engine`. Leaving it in the middle of a chunk waits for that chunk."""

    def __init__(self, engine: Engine, work: Work) -> None:
        self._engine = engine
        self._work = work
        self._chunk: Chunk | None = None
        # One iteration may take minutes on a CPU: it must not keep the caller from its lease.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="optimise")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def stretches(self) -> Iterator[Stretch | None]:
        """See Optimisation."""
        work, every = self._work, self._work.snapshot_every
        if work.resume is None:
            step = self._thread.submit(chunks.begin, self._engine, work.config, work.pictures, snapshot_every=every)
        else:
            step = self._thread.submit(chunks.resume, self._engine, work.resume)
        while True:
            self._chunk = chunk = yield from _pulse(step)
            yield chunk.stretch
            if chunk.stretch.finished:
                return
            step = self._thread.submit(
                chunks.advance, self._engine, chunk, seconds=work.chunk_seconds, snapshot_every=every
            )

    def state(self) -> TransferState:
        """See Optimisation."""
        if self._chunk is None:
            raise RuntimeError("There is no state before the first stretch.")
        return self._chunk.state


class RemoteOptimisation:
    """The optimisation on a GPU worker of the Dask cluster at `address` ("tcp://host:port"). Where jobs wait for the
    same GPU, the chunks of higher `priority` go first. A scheduler at "tls://host:port" is shown the `certificates` of
    this folder.

    A lost worker or scheduler costs what was computed since the last `state()`. Raises ClusterLostError when no
    scheduler answered for `patience_seconds`, and WorkerLostError when the job's workers die again and again at
    the same place.
    """

    def __init__(
        self,
        address: str,
        work: Work,
        *,
        priority: float,
        patience_seconds: float,
        certificates: Path | None = None,
    ) -> None:
        # Imported here: Dask costs a second, and `nst run` needs none.
        from flows.conversation import Conversation

        self._conversation = Conversation(
            address, work, priority=priority, patience_seconds=patience_seconds, certificates=certificates
        )
        # Dask's own blocking client would keep the caller from its lease whenever the cluster hangs.
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._step: Future[Stretch] | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            if self._step is not None:
                self._step.cancel()
            self._submit(self._conversation.close()).result()
            self._submit(_cancel_other_tasks()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def stretches(self) -> Iterator[Stretch | None]:
        """See Optimisation."""
        while True:
            self._step = self._submit(self._conversation.next_stretch())
            stretch = yield from _pulse(self._step, self._thread)
            yield stretch
            if stretch.finished:
                return

    def state(self) -> TransferState:
        """See Optimisation."""
        return _last(_pulse(self._submit(self._conversation.state()), self._thread))

    def _submit(self, coroutine: Coroutine[Any, Any, Value]) -> Future[Value]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _pulse(step: Future[Value], thread: threading.Thread | None = None) -> Generator[None, None, Value]:
    """None again and again until the step is done, then its result.

    Raises ClusterLostError when `thread`, which does it, has died.
    """
    while not wait([step], timeout=_PULSE_SECONDS).done:
        if thread is not None and not thread.is_alive():
            raise ClusterLostError("The thread that talks to the GPU workers has died; see the log of this process.")
        yield None
    return step.result()


def _last(pulses: Generator[None, None, Value]) -> Value:
    """What comes after all the pulses."""
    while True:
        try:
            next(pulses)
        except StopIteration as done:
            value: Value = done.value
            return value


async def _cancel_other_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
