"""An optimisation in pieces of about a second: what one piece is, and how an engine computes it. A chunk is all that
is needed for the next one, so a job can go on in any process that has an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nst_engine.config import TransferConfig
from nst_engine.pictures import Pictures
from nst_engine.transfer import Budget, LossPoint, TransferState
from nst_engine.transfer import advance as advance_state
from nst_engine.transfer import start as start_state

if TYPE_CHECKING:
    from nst_engine.engine import Engine


@dataclass(frozen=True)
class Environment:
    """What computed a chunk: the weights, the precision of the feature maps, and the device as "cpu AMD EPYC ..."."""

    weights_name: str
    weights_sha256: str
    precision: str
    device: str


@dataclass(frozen=True)
class Stretch:
    """What is new after a chunk: its loss points, and how far the optimisation is.

    `iteration` iterations are done and `seconds` were spent optimising since the start, whatever the stops.
    """

    points: tuple[LossPoint, ...]
    iteration: int
    finished: bool
    converged: bool
    seconds: float
    environment: Environment

    @property
    def begins_after(self) -> int:
        """The iteration that it goes on from; -1 at the start, whose point is that of iteration 0."""
        return self.iteration - len(self.points)


@dataclass(frozen=True)
class Chunk:
    """The state after one piece of work, and what was new in it."""

    state: TransferState
    stretch: Stretch


def begin(engine: Engine, config: TransferConfig, pictures: Pictures) -> Chunk:
    """The chunk before the first iteration, with the loss of the initial picture; raises as `transfer.start`."""
    state, point = start_state(engine, config, pictures)
    return _chunk(engine, state, [point])


def resume(engine: Engine, state: TransferState) -> Chunk:
    """A chunk that holds `state` and no new loss point: no work is done."""
    return _chunk(engine, state, [])


def advance(engine: Engine, chunk: Chunk, *, seconds: float) -> Chunk:
    """The chunk after `chunk`, of about so many seconds and at least one iteration; raises as `transfer.advance`."""
    return _chunk(engine, *advance_state(engine, chunk.state, Budget(seconds=seconds)))


def _chunk(engine: Engine, state: TransferState, points: list[LossPoint]) -> Chunk:
    environment = Environment(
        weights_name=state.weights_name,
        weights_sha256=state.weights_sha256,
        precision=state.precision,
        device=f"{engine.device.name} {engine.device.description}",
    )
    stretch = Stretch(
        points=tuple(points),
        iteration=state.iteration,
        finished=state.finished,
        converged=state.converged,
        seconds=state.seconds,
        environment=environment,
    )
    return Chunk(state, stretch)
