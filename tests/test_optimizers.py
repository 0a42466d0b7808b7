"""The optimisers: SGD and Adam against Keras', L-BFGS against SciPy's."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from scipy.optimize import minimize

from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.images import display_range
from nst_engine.optimizers import AdamState, Evaluate, LbfgsState, SgdState, Step, initial_state, take_step
from nst_engine.pictures import fit_pictures, initial_picture

Floats = NDArray[np.float64]
SHAPE = (4, 5, 3)
CURVATURES = np.random.default_rng(1).uniform(0.05, 1.0, SHAPE)
MINIMUM = np.random.default_rng(2).normal(0, 20, SHAPE)
START = np.random.default_rng(3).normal(0, 40, SHAPE).astype(np.float32)


def evaluation_of(value: float, gradient: Floats) -> Evaluation:
    return Evaluation(Losses(value, value, 0.0, 0.0, {}), gradient.astype(np.float32))


def quadratic(picture: NDArray[Any]) -> Evaluation:
    away = picture.astype(np.float64) - MINIMUM
    return evaluation_of(float((CURVATURES * away**2).sum() / 2), CURVATURES * away)


class Counting:
    """A function of a picture that keeps the total of every evaluation."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self.totals: list[float] = []

    def __call__(self, picture: NDArray[Any]) -> Evaluation:
        evaluation = self._evaluate(picture)
        self.totals.append(evaluation.losses.total)
        return evaluation


def steps(config: TransferConfig, evaluate: Evaluate, picture: NDArray[Any], count: int) -> list[Step]:
    """So many steps, fewer when one says that it converged."""
    state, evaluation, taken = initial_state(config, picture), evaluate(picture), list[Step]()
    for iteration in range(1, count + 1):
        step = take_step(config, state, iteration=iteration, picture=picture, evaluation=evaluation, evaluate=evaluate)
        taken.append(step)
        picture, evaluation, state = step.picture, step.evaluation, step.state
        if step.converged:
            break
    return taken


def config(**settings: Any) -> TransferConfig:
    return TransferConfig().with_overrides(settings)


SGD = {"optimizer": "sgd", "learning_rate": 0.7, "decay_rate": 0.8, "decay_steps": 6}
ADAM = {"optimizer": "adam", "learning_rate": 3.0, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        pytest.param(
            SGD,
            lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.7, 6, 0.8)),
            id="sgd",
        ),
        pytest.param(ADAM, lambda: keras.optimizers.Adam(3.0, beta_1=0.8, beta_2=0.95, epsilon=1e-3), id="adam"),
        pytest.param(
            {**ADAM, "decay_rate": 0.5, "decay_steps": 10},
            lambda: keras.optimizers.Adam(
                keras.optimizers.schedules.ExponentialDecay(3.0, 10, 0.5), beta_1=0.8, beta_2=0.95, epsilon=1e-3
            ),
            id="adam with decay",
        ),
    ],
)
def test_same_steps_as_keras(settings: dict[str, Any], theirs: Callable[[], Any]) -> None:
    optimizer, variable = theirs(), tf.Variable(START)
    expected = []
    for _ in range(20):
        optimizer.apply_gradients([(tf.constant(quadratic(variable.numpy()).gradient), variable)])
        expected.append(variable.numpy())
    taken = steps(config(**settings), quadratic, START, 20)
    np.testing.assert_allclose([step.picture for step in taken], expected, rtol=1e-5, atol=1e-4)
    assert taken[-1].evaluation.losses.total < 0.5 * quadratic(START).losses.total


def test_the_learning_rate_decays_from_the_first_iteration_on() -> None:
    rates = [step.rate for step in steps(config(**SGD), quadratic, START, 13)]
    assert rates == pytest.approx([0.7 * 0.8 ** (iteration / 6) for iteration in range(13)])


@pytest.mark.parametrize("settings", [SGD, ADAM], ids=["sgd", "adam"])
def test_clip_keeps_every_pixel_displayable(settings: dict[str, Any]) -> None:
    low, high = display_range()
    far = np.full(SHAPE, 200, np.float32)
    (free,) = steps(config(**settings), quadratic, far, 1)
    (clipped,) = steps(config(**settings, clip=True), quadratic, far, 1)
    assert (free.picture > high).any()
    np.testing.assert_array_equal(clipped.picture, np.clip(free.picture, low, high))
    assert clipped.evaluation.losses == quadratic(clipped.picture).losses


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("sgd", SgdState), ("adam", AdamState), ("lbfgs", LbfgsState)],
)
def test_initial_state(optimizer: str, expected: type) -> None:
    state = initial_state(config(optimizer=optimizer), START)
    assert type(state) is expected
    if isinstance(state, AdamState):
        for moment in (state.first, state.second):
            assert (moment.shape, moment.dtype, moment.any()) == (SHAPE, np.float32, False)
    if isinstance(state, LbfgsState):
        assert state == LbfgsState((), ())


def rosenbrock(picture: NDArray[Any]) -> Evaluation:
    """The valley (1 - x)^2 + 100 (y - x^2)^2 of neighbours x, y in a chain; its minimum is all ones."""
    chain = picture.astype(np.float64).ravel()
    x, y = chain[:-1], chain[1:]
    gradient = np.zeros_like(chain)
    gradient[:-1] += -2 * (1 - x) - 400 * x * (y - x**2)
    gradient[1:] += 200 * (y - x**2)
    return evaluation_of(float(((1 - x) ** 2 + 100 * (y - x**2) ** 2).sum()), gradient.reshape(picture.shape))


def barrier(picture: NDArray[Any]) -> Evaluation:
    """A convex function that is not a number outside -1 < x < 1, with its minimum near one side."""
    x = picture.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = -np.log(1 - x**2) - 20 * x
        gradient = 2 * x / (1 - x**2) - 20
    return evaluation_of(float(values.sum()), gradient)


class TestLbfgs:
    def test_reaches_what_scipy_reaches_in_as_many_evaluations(
        self, engine: Engine, weights_choice: str, content: NDArray[np.uint8], style: NDArray[np.uint8]
    ) -> None:
        settings = config(rows=48, precision="float32", weights=weights_choice)
        pictures = fit_pictures(settings, content, [style])
        evaluate = engine.evaluator(settings, pictures, precision="float32")
        picture = initial_picture(settings, pictures)
        theirs, ours = Counting(evaluate), Counting(evaluate)

        def flat(point: Floats) -> tuple[float, Floats]:
            evaluation = theirs(point.reshape(picture.shape).astype(np.float32))
            return evaluation.losses.total, evaluation.gradient.ravel().astype(np.float64)

        options = {"maxcor": 10, "maxfun": 40, "ftol": 0, "gtol": 0}
        minimize(flat, picture.ravel().astype(np.float64), jac=True, method="L-BFGS-B", options=options)
        steps(settings, ours, picture, 40)
        assert theirs.totals[0] == ours.totals[0]
        needed = {}
        for evaluations in (10, 20, 40):
            level = min(theirs.totals[:evaluations])
            needed[evaluations] = next((count for count, total in enumerate(ours.totals, 1) if total <= level), np.inf)
        assert all(count <= 1.1 * evaluations for evaluations, count in needed.items()), needed

    def test_goes_down_a_curved_valley(self) -> None:
        start = np.tile(np.float32([-1.2, 1.0, -0.5]), (2, 2, 1))
        counted = Counting(rosenbrock)
        taken = steps(config(), counted, start, 300)
        np.testing.assert_allclose(taken[-1].picture, 1, atol=1e-4)
        totals = [step.evaluation.losses.total for step in taken]
        assert totals == sorted(totals, reverse=True)
        # What comes after that are line searches that find nothing lower than float32's rounding.
        assert next(count for count, total in enumerate(counted.totals, 1) if total <= 1e-8) < 150
        assert len(counted.totals) < 400

    def test_remembers_no_more_than_history(self) -> None:
        start = np.tile(np.float32([-1.2, 1.0, -0.5]), (2, 2, 1))
        pairs = [
            (len(step.state.steps), len(step.state.differences))
            for step in steps(config(history=3), rosenbrock, start, 8)
            if isinstance(step.state, LbfgsState)
        ]
        assert pairs == [(1, 1), (2, 2), *[(3, 3)] * 6]

    def test_steps_meet_the_weak_wolfe_conditions(self) -> None:
        picture, evaluation, state = START, quadratic(START), initial_state(config(), START)
        for iteration in range(1, 9):
            step = take_step(
                config(), state, iteration=iteration, picture=picture, evaluation=evaluation, evaluate=quadratic
            )
            moved = (step.picture - picture).astype(np.float64)
            slope, slope_there = ((at.gradient * moved).sum() for at in (evaluation, step.evaluation))
            assert step.evaluation.losses.total <= evaluation.losses.total + 1e-4 * slope * (1 - 1e-6)
            assert slope_there >= 0.9 * slope
            picture, evaluation, state = step.picture, step.evaluation, step.state

    def test_comes_back_from_where_the_loss_is_not_a_number(self) -> None:
        counted = Counting(barrier)
        start = np.zeros((2, 2, 3), np.float32)
        taken = steps(config(), counted, start, 40)
        assert np.isnan(counted.totals).any(), "no trial left the domain, so this test shows nothing"
        assert all(np.isfinite(step.evaluation.losses.total) for step in taken)
        # Where 2x / (1 - x^2) = 20.
        np.testing.assert_allclose(taken[-1].picture, (np.sqrt(401) - 1) / 20, atol=1e-5)

    @pytest.mark.parametrize("remembered", [False, True], ids=["first step", "later step"])
    def test_a_stationary_point_is_the_end(self, remembered: bool) -> None:
        at = MINIMUM.astype(np.float32)
        still = evaluation_of(1.0, np.zeros(SHAPE))
        ones = np.ones(at.size, np.float32)
        state = LbfgsState((ones,), (ones,)) if remembered else LbfgsState()
        counted = Counting(quadratic)
        step = take_step(config(), state, iteration=5, picture=at, evaluation=still, evaluate=counted)
        assert (step.converged, step.rate, step.picture is at, step.evaluation is still) == (True, 0.0, True, True)
        assert not counted.totals

    def test_no_lower_loss_along_the_gradient_is_the_end(self) -> None:
        """A gradient that is not the function's, as rounding makes it near a minimum."""

        def rising(picture: NDArray[Any]) -> Evaluation:
            return evaluation_of(float(np.abs(picture).sum()), np.ones(SHAPE))

        start = np.zeros(SHAPE, np.float32)
        ones = np.ones(start.size, np.float32)
        counted = Counting(rising)
        step = take_step(
            config(),
            LbfgsState((ones,), (ones,)),
            iteration=3,
            picture=start,
            evaluation=rising(start),
            evaluate=counted,
        )
        assert (step.converged, step.picture is start, step.evaluation.losses.total) == (True, True, 0.0)
        # Once along its direction and once more, with its memory gone, along the gradient.
        assert len(counted.totals) == 40
