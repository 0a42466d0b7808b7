"""An optimisation in pieces of about a second: what one piece is, and how an engine computes it. A chunk is all that
is needed for the next one, so a job can go on in any process that has an engine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from PIL import Image

from nst_engine.config import TransferConfig
from nst_engine.errors import OutOfMemoryError
from nst_engine.memory import MemoryPlan
from nst_engine.pictures import Pictures
from nst_engine.transfer import Budget, LossPoint, TransferState
from nst_engine.transfer import advance as advance_state
from nst_engine.transfer import start as start_state

if TYPE_CHECKING:
    from nst_engine.engine import Engine

SNAPSHOT_SIDE: Final = 1600
"""Pixels of a snapshot's longer side at the most."""
_SNAPSHOT_QUALITY: Final = 90
# A chunk with more of them ends before its time: they all wait in memory until it is done.
_SNAPSHOTS_A_CHUNK: Final = 32


@dataclass(frozen=True)
class Work:
    """What is asked of an optimisation: the pictures and settings, and the state to go on from where there is one.

    It is done in chunks of about `chunk_seconds`, with a snapshot every `snapshot_every` iterations; None: with none.
    """

    config: TransferConfig
    pictures: Pictures
    resume: TransferState | None
    chunk_seconds: float
    snapshot_every: int | None


@dataclass(frozen=True)
class Snapshot:
    """The picture after `iteration` iterations, whichever the config keeps in the end, as the bytes of a JPEG file."""

    iteration: int
    jpeg: bytes


@dataclass(frozen=True)
class Environment:
    """What computed a chunk: the weights, the precision of the feature maps, the device as "cpu AMD EPYC ...", and how
    it goes about its memory.
    """

    weights_name: str
    weights_sha256: str
    precision: str
    device: str
    memory: MemoryPlan


@dataclass(frozen=True)
class Stretch:
    """What is new after a chunk: its loss points and snapshots, and how far the optimisation is.

    `iteration` iterations are done, the last at `scale`, which counts from 1, the coarsest; `seconds` were spent
    optimising since the start, whatever the stops. `converged`: no further step lowers the loss; `stalled`: the loss no
    longer fell by the config's min_improvement.
    """

    points: tuple[LossPoint, ...]
    snapshots: tuple[Snapshot, ...]
    iteration: int
    scale: int
    finished: bool
    converged: bool
    seconds: float
    environment: Environment
    stalled: bool = False

    @property
    def begins_after(self) -> int:
        """The iteration that it goes on from; -1 at the start, whose point is that of iteration 0."""
        return self.iteration - len(self.points)


@dataclass(frozen=True)
class Chunk:
    """The state after one piece of work, and what was new in it."""

    state: TransferState
    stretch: Stretch


@contextmanager
def _memory_errors_told() -> Iterator[None]:
    """What the engine does not catch itself: it goes on in tiles, but of nothing else is there a smaller way."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(
            f"The memory ran out between two evaluations ({error}); ask for fewer rows, or let other programs leave "
            "more memory."
        ) from error


@_memory_errors_told()
def begin(engine: Engine, config: TransferConfig, pictures: Pictures, *, snapshot_every: int | None) -> Chunk:
    """The chunk before the first iteration, with the loss of the initial picture; raises as `transfer.start`,
    and OutOfMemoryError for a MemoryError.

    MemoryNeededError comes before any work, also where a coarser scale would fit.
    """
    engine.memory_plan(config, pictures, precision=engine.precision(config))
    state, point = start_state(engine, config, pictures)
    return _chunk(engine, state, [point], [] if snapshot_every is None else [take_snapshot(state)])


def resume(engine: Engine, state: TransferState) -> Chunk:
    """A chunk that holds `state` and nothing new: no work is done."""
    return _chunk(engine, state, [], [])


@_memory_errors_told()
def advance(engine: Engine, chunk: Chunk, *, seconds: float, snapshot_every: int | None) -> Chunk:
    """The chunk after `chunk`, of about so many seconds and at least one iteration.

    Raises as `transfer.advance`, and OutOfMemoryError for a MemoryError.
    """
    ends = monotonic() + seconds
    state, points, snapshots = chunk.state, list[LossPoint](), list[Snapshot]()
    while True:
        until_due = None if snapshot_every is None else snapshot_every - state.iteration % snapshot_every
        budget = Budget(iterations=until_due, seconds=ends - monotonic())
        state, new = advance_state(engine, state, budget)
        points += new
        if len(new) == until_due:
            snapshots.append(take_snapshot(state))
        if state.finished or monotonic() >= ends or len(snapshots) == _SNAPSHOTS_A_CHUNK:
            return _chunk(engine, state, points, snapshots)


def early_end(config: TransferConfig, last: Stretch) -> str:
    """What is to be said of an optimisation that ended before all its iterations were done, to follow other words."""
    if last.converged:
        return "; no further step lowers it"
    if last.stalled:
        return f"; it no longer fell by {100 * config.min_improvement:.4g} % in {config.patience} iterations"
    return ""


def take_snapshot(state: TransferState) -> Snapshot:
    """The current picture of a state, in the colours that the result will have, at most SNAPSHOT_SIDE long."""
    image = Image.fromarray(state.shown(state.picture))
    image.thumbnail((SNAPSHOT_SIDE, SNAPSHOT_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Colours at full resolution: strokes are as fine as outlines.
    image.save(file, "JPEG", quality=_SNAPSHOT_QUALITY, subsampling="4:4:4")
    return Snapshot(state.iteration, file.getvalue())


def _chunk(engine: Engine, state: TransferState, points: list[LossPoint], snapshots: list[Snapshot]) -> Chunk:
    environment = Environment(
        weights_name=state.weights_name,
        weights_sha256=state.weights_sha256,
        precision=state.precision,
        device=f"{engine.device.name} {engine.device.description}",
        memory=engine.memory_plan(state.config, state.pictures, precision=state.precision),
    )
    stretch = Stretch(
        points=tuple(points),
        snapshots=tuple(snapshots),
        iteration=state.iteration,
        scale=state.scale,
        finished=state.finished,
        converged=state.converged,
        seconds=state.seconds,
        environment=environment,
        stalled=state.stalled,
    )
    return Chunk(state, stretch)
