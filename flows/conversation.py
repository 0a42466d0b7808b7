"""The conversation of one job with a Dask cluster of GPU workers: it hands over the pictures or a saved state, submits
one chunk after another, one ahead so that the GPU never waits, and takes the reports. The chunks stay on the worker.

What is handed over is data, not a task that Dask could repeat, and each chunk is released when the next one is done:
so Dask forgets how a chunk came about, and when a worker dies it does not repeat the job from its first iteration but
says that its chunks are gone. The conversation then goes on from the last state that it has fetched. The death counts
against the job whose chunk the worker was at, not against those that waited there."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

from distributed import Client, Future, KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm.core import FatalCommClosedError

from flows import gpu
from flows.certificates import dask_security
from flows.chunks import Chunk, Stretch, Work
from flows.edition import edition, edition_of
from flows.errors import ClusterLostError, WorkerLostError
from nst_engine.transfer import TransferState

logger = logging.getLogger(__name__)
# What it prints of a lost connection is a traceback; what is done about it is said here.
logging.getLogger("distributed.client").setLevel(logging.CRITICAL)

# One try of several: within it Dask waits twice as long before each attempt, and would notice a scheduler late.
_CONNECT_SECONDS: Final = 3.0
_LOOK_FOR_WORKER_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 3.0
_PIECES_AT_ONCE: Final = 3
"""The last one, the one that is waited for and the one ahead."""
_DEATHS_ALLOWED: Final = 1
"""As many workers may die in a row with nothing new between: two at one place are the job's own doing."""


@dataclass(frozen=True)
class _Piece:
    """A chunk on a worker and the report of what is new in it."""

    chunk: Future[Any]
    report: Future[Any]


@dataclass(frozen=True)
class _Turn:
    """A chunk, by its key, that a worker has begun at that moment of the scheduler's clock."""

    moment: float
    worker: str
    chunk: str


class _GoneError(Exception):
    """The chunks are no longer on any worker: so many have died with them."""

    def __init__(self, reason: str, *, deaths: int = 1) -> None:
        super().__init__(reason)
        self.deaths = deaths


class _TaskError(Exception):
    """The task itself failed: `error` is the job's own, of whatever kind, and no loss of the cluster."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Conversation:
    """See RemoteOptimisation, which is its face. Everything here runs in one event loop."""

    def __init__(
        self, address: str, work: Work, *, priority: float, patience_seconds: float, certificates: Path | None
    ) -> None:
        self._address = address
        self._security = dask_security(address, certificates)
        self._work = work
        self._fetched = work.resume
        self._priority = priority
        self._patience_seconds = patience_seconds
        self._client: Client | None = None
        self._handed_over: Future[Any] | None = None
        self._last: _Piece | None = None
        self._ahead: _Piece | None = None
        self._iteration = -1
        self._farthest = -1
        self._deaths = 0
        self._began = 0.0
        self._own: Final = deque[str](maxlen=_PIECES_AT_ONCE)
        self._warned = False

    async def next_stretch(self) -> Stretch:
        """The next stretch, however often the cluster is lost until then. See RemoteOptimisation for what it raises."""
        while True:
            client = await self._connected()
            try:
                return await self._follow(client)
            except _TaskError as failure:
                raise failure.error from None
            except _GoneError as error:
                try:
                    await self._go_back(client, error)
                except OSError:
                    await self._close_lost()
            except (FutureCancelledError, OSError):
                await self._close_lost()

    async def state(self) -> TransferState:
        """The state after the last stretch, or the last one fetched when that is gone."""
        if self._client is not None and self._last is not None and self._fetched_iteration() != self._iteration:
            try:
                await self._fetch(self._client, self._last)
            except (_GoneError, FutureCancelledError, OSError):
                # next_stretch() finds out for itself, and goes on from the same state.
                logger.info("The state after iteration %d could not be fetched.", self._iteration)
        if self._fetched is None:
            raise RuntimeError("There is no state before the first stretch.")
        return self._fetched

    async def close(self) -> None:
        """Leave the cluster, which drops all chunks; the one that is being computed is the last."""
        self._forget_chunks()
        if self._client is not None:
            client, self._client = self._client, None
            # Of a scheduler that hangs it is enough to hang up.
            with suppress(TimeoutError):
                await client.close(timeout=_CLOSE_SECONDS)  # type: ignore[no-untyped-call]

    async def _close_lost(self) -> None:
        logger.warning("The connection to the scheduler at %s was lost; connecting again.", self._address)
        await self.close()

    async def _connected(self) -> Client:
        if self._client is not None and self._client.status != "running":
            await self._close_lost()
        deadline = monotonic() + self._patience_seconds
        while self._client is None:
            try:
                self._client = await self._connect(seconds=min(_CONNECT_SECONDS, self._patience_seconds))
            except FatalCommClosedError as error:
                raise ClusterLostError(
                    f"The scheduler at {self._address} has other certificates than this job; copy certs/ of "
                    "its home here."
                ) from error
            except OSError as error:
                if monotonic() >= deadline:
                    raise ClusterLostError(
                        f"No scheduler of GPU workers answered at {self._address} for {self._patience_seconds:g} s; "
                        "start it (nst up) or correct the address."
                    ) from error
        return self._client

    async def _connect(self, *, seconds: float) -> Client:
        client = Client(  # type: ignore[no-untyped-call]
            self._address,
            security=self._security,
            asynchronous=True,
            set_as_default=False,
            direct_to_workers=False,
            timeout=seconds,
        )
        try:
            await client
        except asyncio.CancelledError:
            await client.close(timeout=_CLOSE_SECONDS)  # type: ignore[no-untyped-call]
            raise
        return client

    async def _follow(self, client: Client) -> Stretch:
        piece = self._ahead or await self._start(client)
        self._ahead = self._then(client, gpu.advance, piece.chunk, self._work.chunk_seconds, self._work.snapshot_every)
        stretch: Stretch = await _result(client, piece.report)
        if stretch.begins_after != self._iteration:
            # Dask repeated a chunk at the very moment of its release: this one does not follow the last.
            raise _GoneError(f"iteration {self._iteration + 1} was skipped")
        self._handed_over, self._last, self._iteration = None, piece, stretch.iteration
        if stretch.finished or self._fetched is None:
            await self._fetch(client, piece)
        if stretch.iteration > self._farthest:
            self._farthest, self._deaths = stretch.iteration, 0
        return stretch

    async def _start(self, client: Client) -> _Piece:
        await self._wait_for_worker(client)
        data = self._fetched or self._work.pictures
        self._handed_over = await client.scatter(data, hash=False)  # type: ignore[no-untyped-call]
        self._iteration = self._fetched_iteration()
        turns = await _turns(client)
        self._began = turns[-1].moment if turns else 0.0
        if self._fetched is None:
            return self._then(client, gpu.begin, self._work.config, self._handed_over, self._work.snapshot_every)
        return self._then(client, gpu.resume, self._handed_over)

    def _then(self, client: Client, function: Any, *arguments: Any) -> _Piece:
        options = {"pure": False, "priority": self._priority, "retries": 0}
        chunk = client.submit(function, *arguments, self._priority, resources={gpu.GPU: 1, edition(): 1}, **options)
        self._own.append(str(chunk.key))
        return _Piece(chunk, client.submit(gpu.report, chunk, **options))

    async def _wait_for_worker(self, client: Client) -> None:
        # Dask has no event for a worker with a resource.
        while True:
            workers = await _workers(client)
            if any(edition() in worker["resources"] for worker in workers.values()):
                return
            if not self._warned:
                self._warn_of_no_worker(workers)
                self._warned = True
            await asyncio.sleep(_LOOK_FOR_WORKER_SECONDS)

    def _warn_of_no_worker(self, workers: dict[str, dict[str, Any]]) -> None:
        others = [f"{edition_of(worker)} at {at}" for at, worker in workers.items() if gpu.GPU in worker["resources"]]
        if others:
            logger.warning(
                "The GPU workers have another nst than this service, %s: %s; bring all to the same. Waiting for one.",
                edition(),
                ", ".join(others),
            )
        else:
            logger.warning("The scheduler at %s has no GPU worker; waiting for one (nst worker).", self._address)

    async def _fetch(self, client: Client, piece: _Piece) -> None:
        chunk: Chunk = await _result(client, piece.chunk)
        self._fetched = chunk.state.arrived()

    def _fetched_iteration(self) -> int:
        return -1 if self._fetched is None else self._fetched.iteration

    def _forget_chunks(self) -> None:
        self._handed_over = self._last = self._ahead = None

    async def _go_back(self, client: Client, loss: _GoneError) -> None:
        """Forget the chunks, which are gone; WorkerLostError when that has happened to this job too often."""
        alive = await _workers(client)
        turns = [turn for turn in await _turns(client) if turn.moment > self._began and turn.worker not in alive]
        self._forget_chunks()
        # Of a death before anybody's turn it is not known whose doing it was.
        if not turns or turns[-1].chunk in self._own:
            self._deaths += loss.deaths
            if self._deaths > _DEATHS_ALLOWED:
                raise _workers_died(self._deaths)
        logger.warning(
            "The GPU worker was lost after iteration %d (%s); going on from iteration %d.",
            max(self._farthest, 0),
            loss,
            max(self._fetched_iteration(), 0),
        )


async def _result(client: Client, future: Future[Any]) -> Any:
    """The result of a future.

    Raises _TaskError when the task failed, _GoneError when a worker was lost with its chunks, and FutureCancelledError
    or OSError when the scheduler was.
    """
    error = await future.exception()  # type: ignore[no-untyped-call]
    if isinstance(error, KilledWorker):
        raise _GoneError(str(error), deaths=error.allowed_failures + 1) from error
    if error is not None:
        raise _TaskError(error)
    try:
        return await client.gather(future)  # type: ignore[no-untyped-call]
    except FutureCancelledError as cancelled:
        if cancelled.reason == "scheduler-connection-lost":
            raise
        raise _GoneError(cancelled.reason) from cancelled


async def _workers(client: Client) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of its workers, by their addresses."""
    if client.scheduler is None:
        raise ConnectionError("the connection was closed")
    return dict((await client.scheduler.identity(n_workers=-1))["workers"])


async def _turns(client: Client) -> list[_Turn]:
    """The latest turns, the newest last."""
    events = await client.get_events(gpu.TURNS)
    return [_Turn(moment, event["worker"], event["chunk"]) for moment, event in events]


def _workers_died(times: int) -> WorkerLostError:
    return WorkerLostError(
        f"The GPU worker died {times} times while it computed this job; it may need more memory than there is: try a "
        "smaller picture, or look at the worker's log."
    )
