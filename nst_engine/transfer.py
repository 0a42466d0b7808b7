"""The optimisation as a state machine: `start` gives the state before the first iteration, `advance` takes a
state some iterations further and returns the next state and the loss points in between. A state is made of
arrays and numbers and can be pickled; nothing else is kept, so a state goes on in any process, on any machine
with the same weights, and in float32 on the same machine ends bit for bit as if it had never been stopped (unless
the picture is too large for the memory, see `TransferState.portable`). Importing this module does not import
TensorFlow: whoever only keeps and hands on states needs none."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nst_engine.arrays import blockwise, blockwise_sum, on_disk, placed
from nst_engine.color import recolored
from nst_engine.config import TransferConfig
from nst_engine.errors import NotFiniteError, WeightsError
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.images import deprocess, display_range
from nst_engine.optimizers import Evaluate, OptimizerState, initial_state, placed_state, take_step
from nst_engine.pictures import Pictures, at_scale, enlarge, initial_picture
from nst_engine.scales import last_iteration

if TYPE_CHECKING:
    from nst_engine.engine import Engine


@dataclass(frozen=True)
class LossPoint:
    """The losses after `iteration` iterations; 0 is the initial picture.

    `rate` is the step's learning rate (for L-BFGS its step length) and `seconds` the time spent optimising
    since the start, whatever the number of stops in between. `scale` counts from 1, the coarsest; losses of
    different scales are not to be compared.
    """

    iteration: int
    losses: Losses
    rate: float
    seconds: float
    scale: int = 1


@dataclass(frozen=True)
class TransferState:
    """All that is needed to go on: settings, pictures, the current picture with its losses and gradient, the best
    one of its scale so far, the optimiser's state, and what computes it (precision and weights).

    `pictures` have their working size. `picture`, `gradient` and `best_picture` are float32 (rows, columns, 3), BGR
    and mean-centred, of the size of `scale`, which counts from 1, the coarsest. They and the optimiser's arrays are
    together in memory or on disk. `gradient` and `optimizer` are None in a portable state of a picture on disk.
    `converged` says that no further step lowers the loss at that scale. `average` is None unless the config keeps it:
    that of the scale's first picture and those of its iterations, `averaged` in all. `least_losses` are, where the
    config stops early, the least loss of the scale before its last `patience` iterations and after each of them.
    """

    config: TransferConfig
    pictures: Pictures
    precision: str
    weights_name: str
    weights_sha256: str
    picture: np.ndarray
    losses: Losses
    gradient: np.ndarray | None
    optimizer: OptimizerState | None
    iteration: int
    best_picture: np.ndarray
    best_loss: float
    seconds: float
    converged: bool = False
    scale: int = 1
    average: np.ndarray | None = None
    averaged: int = 0
    least_losses: tuple[float, ...] = ()

    @property
    def stalled(self) -> bool:
        """Whether the least loss of this scale fell by too small a share in the last `patience` iterations."""
        if len(self.least_losses) <= self.config.patience:
            return False
        before, now = self.least_losses[0], self.least_losses[-1]
        return now > (1 - self.config.min_improvement) * before

    @property
    def scale_finished(self) -> bool:
        """Whether all iterations of this scale are done, or no further one lowers the loss, or not by enough."""
        return self.converged or self.stalled or self.iteration >= last_iteration(self.config, self.scale)

    @property
    def finished(self) -> bool:
        """Whether the finest scale is finished."""
        return self.scale_finished and self.scale == self.config.scales

    def result(self, *, bits: Literal[8, 16] = 8) -> np.ndarray:
        """The picture that the config keeps, the last, the best or the average, in the colours that it asks for.

        RGB (rows, columns, 3), uint8 or with 16 bits uint16.
        """
        match self.config.keep:
            case "best":
                kept = self.best_picture
            case "average":
                assert self.average is not None
                kept = self.average
            case "last":
                kept = self.picture
        return self.shown(kept, bits=bits)

    def shown(self, picture: np.ndarray, *, bits: Literal[8, 16] = 8) -> np.ndarray:
        """One of this state's pictures, as RGB, in the colours that the result will have."""
        return deprocess(recolored(self.config, picture, self.pictures.content_in_color), bits=bits)

    def portable(self) -> TransferState:
        """What is pickled of this state: all of it, or of a picture on disk all but the gradient and the optimiser's.

        Those would be up to 21 pictures more, gigabytes. Who goes on from it computes the gradient again and begins
        the optimiser anew: L-BFGS finds its next steps without the last ones, and Adam without its moments.
        """
        return replace(self, gradient=None, optimizer=None) if on_disk(self.picture) else self

    def __getstate__(self) -> dict[str, Any]:
        return vars(self.portable())

    def arrived(self) -> TransferState:
        """This state as it comes out of a pickle, on disk again if it was there; raises DiskSpaceError."""
        return self if self.gradient is not None else self.placed(on_disk=True)

    def placed(self, *, on_disk: bool) -> TransferState:
        """The same state with its large arrays on disk or in memory, itself where they are; raises DiskSpaceError."""
        picture = placed(self.picture, on_disk=on_disk)
        best = picture if self.best_picture is self.picture else placed(self.best_picture, on_disk=on_disk)
        average = None if self.average is None else placed(self.average, on_disk=on_disk)
        if picture is self.picture:
            return self
        return replace(
            self,
            picture=picture,
            best_picture=best,
            average=average,
            gradient=None if self.gradient is None else placed(self.gradient, on_disk=on_disk),
            optimizer=None if self.optimizer is None else placed_state(self.optimizer, on_disk=on_disk),
        )


@dataclass(frozen=True)
class Budget:
    """How far one call of `advance` goes: so many iterations, or until so many seconds have passed.

    At least one iteration is done. None means no limit.
    """

    iterations: int | None = None
    seconds: float | None = None


def start(engine: Engine, config: TransferConfig, pictures: Pictures) -> tuple[TransferState, LossPoint]:
    """The state before the first iteration and its loss point, with targets computed once for all.

    Raises WeightsError when the weights are not to be had, NotFiniteError when the loss is not a number from the
    first, MemoryNeededError when there is too little memory, and DiskSpaceError when there is too little room on disk.
    """
    began = time.perf_counter()
    precision, loaded = engine.precision(config), engine.weights(config.weights)
    coarsest = _pictures_at(engine, config, pictures, scale=1, precision=precision)
    picture = initial_picture(config, coarsest)
    evaluation = _evaluator(engine, config, coarsest, precision=precision)(picture)
    _check_finite(evaluation, iteration=0, config=config, best=None)
    state = TransferState(
        config=config,
        pictures=pictures,
        precision=precision,
        weights_name=loaded.name,
        weights_sha256=loaded.sha256,
        picture=picture,
        losses=evaluation.losses,
        gradient=evaluation.gradient,
        optimizer=initial_state(config, picture),
        iteration=0,
        best_picture=picture,
        best_loss=evaluation.losses.total,
        seconds=time.perf_counter() - began,
    )
    return _remembering(state), LossPoint(0, evaluation.losses, 0.0, state.seconds)


def advance(engine: Engine, state: TransferState, budget: Budget) -> tuple[TransferState, list[LossPoint]]:
    """Take `state` further within `budget` and return the next state and a loss point an iteration.

    A scale that is finished is left with the first iteration of the next, not before: the iterations that it did
    not need are then done at that one.

    Raises NotFiniteError, which carries the best picture, when the loss leaves the finite numbers, WeightsError
    when this engine's weights are not those that the state was started with, and DiskSpaceError as `start`.
    """
    began = time.perf_counter()
    config = state.config
    loaded = engine.weights(config.weights)
    if loaded.sha256 != state.weights_sha256:
        raise WeightsError(
            f"This transfer was started with the weights {state.weights_name} ({state.weights_sha256[:12]}), but here "
            f"'{config.weights}' means {loaded.name} ({loaded.sha256[:12]}); give it the same file."
        )
    pictures = _pictures_at(engine, config, state.pictures, scale=state.scale, precision=state.precision)
    state = state.placed(on_disk=on_disk(pictures.content))
    evaluate = _evaluator(engine, config, pictures, precision=state.precision)
    spent, points = state.seconds, list[LossPoint]()
    while not state.finished and not _used_up(budget, done=len(points), seconds=time.perf_counter() - began):
        if state.scale_finished:
            state, evaluate = _next_scale(engine, state)
        iteration = state.iteration + 1
        step = take_step(
            config,
            state.optimizer or initial_state(config, state.picture),
            iteration=iteration,
            picture=state.picture,
            evaluation=_evaluation(state, evaluate),
            evaluate=evaluate,
        )
        _check_finite(step.evaluation, iteration=iteration, config=config, best=state)
        better = step.evaluation.losses.total < state.best_loss
        best_loss = step.evaluation.losses.total if better else state.best_loss
        average = _averaged(state, step.picture)
        state = replace(
            state,
            picture=step.picture,
            losses=step.evaluation.losses,
            gradient=step.evaluation.gradient,
            optimizer=step.state,
            iteration=iteration,
            best_picture=step.picture if better else state.best_picture,
            best_loss=best_loss,
            seconds=spent + time.perf_counter() - began,
            converged=step.converged,
            average=average,
            averaged=0 if average is None else state.averaged + 1,
            # One more than there is patience: what it was before, and after each.
            least_losses=(*state.least_losses, best_loss)[-config.patience - 1 :] if state.least_losses else (),
        )
        points.append(LossPoint(iteration, step.evaluation.losses, step.rate, state.seconds, state.scale))
    return state, points


def _remembering(state: TransferState) -> TransferState:
    """The state at the first picture of its scale, with what the config wants remembered of pictures and losses."""
    averages = state.config.keep == "average"
    return replace(
        state,
        average=state.picture if averages else None,
        averaged=1 if averages else 0,
        least_losses=(state.best_loss,) if state.config.min_improvement else (),
    )


def _averaged(state: TransferState, picture: np.ndarray) -> np.ndarray | None:
    """The running average with one more picture, whose weight is 1 - average_decay over the sum of all weights."""
    if state.average is None:
        return None
    decay = state.config.average_decay
    weight = np.float32((1 - decay) / (1 - decay ** (state.averaged + 1)))
    return blockwise(lambda average, new: average + weight * (new - average), state.average, picture)


def _pictures_at(engine: Engine, config: TransferConfig, pictures: Pictures, *, scale: int, precision: str) -> Pictures:
    """The pictures at that scale, on disk where the memory plan has there what is made of them."""
    scaled = at_scale(config, pictures, scale)
    return scaled.placed(on_disk=engine.memory_plan(config, scaled, precision=precision).on_disk)


def _evaluator(engine: Engine, config: TransferConfig, pictures: Pictures, *, precision: str) -> Evaluate:
    """The engine's evaluator of these pictures, whose gradients are where the pictures are."""
    evaluate = engine.evaluator(config, pictures, precision=precision)
    place = on_disk(pictures.content)

    def evaluate_there(picture: np.ndarray) -> Evaluation:
        evaluation = evaluate(picture)
        return replace(evaluation, gradient=placed(evaluation.gradient, on_disk=place))

    return evaluate_there


def _evaluation(state: TransferState, evaluate: Evaluate) -> Evaluation:
    """What is known of the state's picture, computed again where the state came without its gradient."""
    if state.gradient is None:
        return evaluate(state.picture)
    return Evaluation(state.losses, state.gradient)


def _next_scale(engine: Engine, state: TransferState) -> tuple[TransferState, Evaluate]:
    """The state with which the next scale begins, after as many iterations, and the loss there.

    It goes on from the last picture, whichever the config keeps. The optimiser begins anew. L-BFGS' steps and
    differences are of another function. Adam's moments could be resized, but the gradient changes more than they
    say: an enlarged picture is blurred, and what undoes that is most of it at first. With them the loss fell more
    slowly than without.
    """
    config, scale = state.config, state.scale + 1
    pictures = _pictures_at(engine, config, state.pictures, scale=scale, precision=state.precision)
    rows, columns = pictures.content.shape[:2]
    picture = enlarge(placed(state.picture, on_disk=on_disk(pictures.content)), (rows, columns))
    if config.clip:
        picture = blockwise(lambda part: np.clip(part, *display_range()), picture, out=picture)
    evaluate = _evaluator(engine, config, pictures, precision=state.precision)
    evaluation = evaluate(picture)
    _check_finite(evaluation, iteration=state.iteration, config=config, best=state)
    begun = replace(
        state,
        scale=scale,
        picture=picture,
        losses=evaluation.losses,
        gradient=evaluation.gradient,
        optimizer=initial_state(config, picture),
        best_picture=picture,
        best_loss=evaluation.losses.total,
        converged=False,
    )
    return _remembering(begun), evaluate


def _used_up(budget: Budget, *, done: int, seconds: float) -> bool:
    if done == 0:
        return False
    return (budget.iterations is not None and done >= budget.iterations) or (
        budget.seconds is not None and seconds >= budget.seconds
    )


def _check_finite(
    evaluation: Evaluation, *, iteration: int, config: TransferConfig, best: TransferState | None
) -> None:
    """Raise NotFiniteError, with the best picture of the state `best`, unless loss and gradient are finite."""
    total = evaluation.losses.total
    gradient = evaluation.gradient
    if np.isfinite(total) and blockwise_sum(np.isfinite, gradient) == gradient.size:
        return
    if iteration == 0:
        cause = "the weights or the loss weights are too large"
    elif config.optimizer == "lbfgs":
        cause = "the loss weights are too large"
    else:
        cause = f"the learning rate of {config.learning_rate:g} is too high for these loss weights; try a tenth"
    what = "gradient is not finite" if np.isfinite(total) else f"loss is {total:g}"
    raise NotFiniteError(
        f"The {what} at iteration {iteration}; the likely cause is that {cause}.",
        best=None if best is None else best.shown(best.best_picture),
    )
