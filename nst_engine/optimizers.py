"""The optimisers: SGD with exponential decay, Adam, and L-BFGS with a line search. Each has an explicit state
and takes one step from one evaluated picture to the next, so that a saved state goes on as if it had never
been stopped. Pictures and gradients are float32 (rows, columns, 3) NumPy arrays, in memory or on disk (see
`arrays`), and what a step makes of them is where they are; none is changed. Sums are taken in float64 in a fixed
order, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from nst_engine.arrays import blockwise, blockwise_sum, placed, zeros_like
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation
from nst_engine.images import display_range
from nst_engine.smoothing import smooth

Evaluate = Callable[[np.ndarray], Evaluation]

_ARMIJO: Final = 1e-4
_CURVATURE: Final = 0.9
_LINE_SEARCH_EVALUATIONS: Final = 20
_FIRST_MOVE: Final = 8.0
"""Grey levels, root mean square, that L-BFGS' first trial moves the pixels by: of 1, 2, 4, 8, 16 and 32 the one that
took the fewest evaluations in 9 of 12 comparisons (three losses of each of four pairs, three presets, 128 rows)."""


@dataclass(frozen=True)
class SgdState:
    """SGD keeps nothing: the decayed learning rate follows from the iteration."""


@dataclass(frozen=True)
class AdamState:
    """Adam's first and second moments, float32 as the picture, and the number of steps that they are made of."""

    first: np.ndarray
    second: np.ndarray
    steps: int = 0


@dataclass(frozen=True)
class LbfgsState:
    """L-BFGS' last steps s and gradient differences y, flat float32, oldest first."""

    steps: tuple[np.ndarray, ...] = ()
    differences: tuple[np.ndarray, ...] = ()


OptimizerState = SgdState | AdamState | LbfgsState


@dataclass(frozen=True)
class Step:
    """The picture after one step with its evaluation, the optimiser's next state and the step's rate.

    `rate` is the learning rate of SGD and Adam and the step length along L-BFGS' direction. `converged` says
    that no better picture was found; the picture is then the one that the step began with.
    """

    picture: np.ndarray
    evaluation: Evaluation
    state: OptimizerState
    rate: float
    converged: bool = False


def initial_state(config: TransferConfig, picture: np.ndarray) -> OptimizerState:
    """The state of the config's optimiser before its first step."""
    match config.optimizer:
        case "sgd":
            return SgdState()
        case "adam":
            return AdamState(zeros_like(picture), zeros_like(picture))
        case "lbfgs":
            return LbfgsState()


def placed_state(state: OptimizerState, *, on_disk: bool) -> OptimizerState:
    """The same state with its arrays on disk or in memory; raises DiskSpaceError."""
    match state:
        case SgdState():
            return state
        case AdamState(first, second, steps):
            return AdamState(placed(first, on_disk=on_disk), placed(second, on_disk=on_disk), steps)
        case LbfgsState(steps, differences):
            return LbfgsState(
                tuple(placed(step, on_disk=on_disk) for step in steps),
                tuple(placed(difference, on_disk=on_disk) for difference in differences),
            )


def take_step(
    config: TransferConfig,
    state: OptimizerState,
    *,
    iteration: int,
    picture: np.ndarray,
    evaluation: Evaluation,
    evaluate: Evaluate,
) -> Step:
    """One iteration from `picture`, whose evaluation is known; `iteration` counts from 1."""
    if isinstance(state, LbfgsState):
        return _lbfgs_step(config, state, picture, evaluation, evaluate)
    rate = config.learning_rate * config.decay_rate ** ((iteration - 1) / config.decay_steps)
    if isinstance(state, AdamState):
        moved, state = _adam_move(config, state, picture, evaluation.gradient, rate=rate)
    else:
        moved = _plus(picture, -rate, evaluation.gradient)
    if config.clip:
        moved = blockwise(lambda part: np.clip(part, *display_range()), moved, out=moved)
    return Step(moved, evaluate(moved), state, rate)


def _adam_move(
    config: TransferConfig, state: AdamState, picture: np.ndarray, gradient: np.ndarray, *, rate: float
) -> tuple[np.ndarray, AdamState]:
    """Kingma and Ba, arXiv:1412.6980, in the form at the end of its section 2, which Keras uses too."""
    beta_1, beta_2, epsilon = np.float32(config.beta_1), np.float32(config.beta_2), np.float32(config.epsilon)
    first = blockwise(lambda m, g: m + (g - m) * (1 - beta_1), state.first, gradient)
    second = blockwise(lambda v, g: v + (np.square(g) - v) * (1 - beta_2), state.second, gradient)
    steps = state.steps + 1
    corrected = np.float32(rate * np.sqrt(1 - config.beta_2**steps) / (1 - config.beta_1**steps))
    moved = blockwise(lambda x, m, v: x - corrected * m / (np.sqrt(v) + epsilon), picture, first, second)
    return moved, AdamState(first, second, steps)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return blockwise_sum(lambda x, y: np.multiply(x, y, dtype=np.float64), a, b)


def _plus(a: np.ndarray, factor: float, b: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """a + factor * b, in float32."""
    return blockwise(lambda x, y: x + np.float32(factor) * y, a, b, out=out)


def _lbfgs_step(
    config: TransferConfig, state: LbfgsState, picture: np.ndarray, evaluation: Evaluation, evaluate: Evaluate
) -> Step:
    """Nocedal and Wright, Numerical Optimization, algorithm 7.5."""
    gradient = evaluation.gradient.ravel()
    direction = _lbfgs_direction(config, state, evaluation.gradient)
    slope = _dot(gradient, direction)
    if state.steps and slope >= 0:
        state = LbfgsState()
        direction = _lbfgs_direction(config, state, evaluation.gradient)
        slope = _dot(gradient, direction)
    if slope == 0:
        return Step(picture, evaluation, state, 0.0, converged=True)
    # The first step has no curvature to go by.
    first_length = 1.0 if state.steps else _FIRST_MOVE * float(np.sqrt(gradient.size / _dot(direction, direction)))
    found = _line_search(picture, evaluation, direction, slope, first_length, evaluate)
    if found is None:
        if not state.steps:
            return Step(picture, evaluation, state, 0.0, converged=True)
        return _lbfgs_step(config, LbfgsState(), picture, evaluation, evaluate)
    length, moved, next_evaluation = found
    step = blockwise(np.subtract, moved, picture).ravel()
    difference = blockwise(np.subtract, next_evaluation.gradient.ravel(), gradient)
    # A pair of no curvature would make the direction uphill.
    if _dot(step, difference) > 1e-10 * _dot(difference, difference):
        state = LbfgsState((*state.steps, step)[-config.history :], (*state.differences, difference)[-config.history :])
    return Step(moved, next_evaluation, state, length)


def _lbfgs_direction(config: TransferConfig, state: LbfgsState, gradient: np.ndarray) -> np.ndarray:
    """The two-loop recursion, Nocedal and Wright, algorithm 7.4: minus the inverse Hessian times g, flat.

    Where they begin with a multiple of the identity (7.20), this does with the same multiple of `smoothing.smooth`.
    """

    def smoothed(flat: np.ndarray) -> np.ndarray:
        # Noise is fine structure that has to go first: smoother steps would leave it longer.
        return smooth(flat.reshape(gradient.shape), power=0.5 if config.init == "noise" else 1.0).ravel()

    direction = blockwise(np.negative, gradient.ravel())
    pairs = list(zip(state.steps, state.differences, strict=True))
    products = [_dot(step, difference) for step, difference in pairs]
    shares = []
    for (step, difference), product in zip(reversed(pairs), reversed(products), strict=True):
        share = _dot(step, direction) / product
        shares.append(share)
        direction = _plus(direction, -share, difference, out=direction)
    direction = smoothed(direction)
    if pairs:
        last = pairs[-1][1]
        scale = np.float32(products[-1] / _dot(last, smoothed(last)))
        direction = blockwise(lambda part: part * scale, direction, out=direction)
    for (step, difference), product, share in zip(pairs, products, reversed(shares), strict=True):
        direction = _plus(direction, share - _dot(difference, direction) / product, step, out=direction)
    return direction


def _line_search(
    picture: np.ndarray,
    evaluation: Evaluation,
    direction: np.ndarray,
    slope: float,
    length: float,
    evaluate: Evaluate,
) -> tuple[float, np.ndarray, Evaluation] | None:
    """A step length that meets the weak Wolfe conditions, by bracketing with cubic interpolation.

    Rectified, max-pooled losses have kinks, where strong Wolfe conditions may not be met by any step; the weak
    ones can (Lewis and Overton, Nonsmooth optimization via quasi-Newton methods, 2013). None when the best
    of all tried steps does not lower the loss.
    """
    start = evaluation.losses.total
    low: tuple[float, float, float] = (0.0, start, slope)
    high: tuple[float, float, float] | None = None
    best: tuple[float, np.ndarray, Evaluation] | None = None
    path = direction.reshape(picture.shape)
    for _ in range(_LINE_SEARCH_EVALUATIONS):
        moved = _plus(picture, length, path)
        tried = evaluate(moved)
        total = tried.losses.total
        tried_slope = _dot(tried.gradient.ravel(), direction)
        finite = bool(np.isfinite(total) and np.isfinite(tried_slope))
        if finite and total < (best[2].losses.total if best else start):
            best = (length, moved, tried)
        if not finite or total > start + _ARMIJO * length * slope:
            high = (length, total if finite else np.inf, tried_slope)
        elif tried_slope < _CURVATURE * slope:
            low = (length, total, tried_slope)
        else:
            return length, moved, tried
        length = _between(low, high) if high else 4 * length
    return best


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """The minimum of the cubic through both ends, kept off them by a tenth of the interval."""
    (a, value_a, slope_a), (b, value_b, slope_b) = low, high
    width = b - a
    middle = a + width / 2
    if not np.isfinite(value_b):
        return a + width / 10
    d1 = slope_a + slope_b - 3 * (value_a - value_b) / (a - b)
    square = d1 * d1 - slope_a * slope_b
    if square < 0:
        return middle
    d2 = float(np.sqrt(square))
    denominator = slope_b - slope_a + 2 * d2
    if denominator == 0:
        return middle
    length = b - width * (slope_b + d2 - d1) / denominator
    return float(min(max(length, a + width / 10), b - width / 10))
