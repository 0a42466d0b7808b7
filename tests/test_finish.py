"""How a transfer ends: the average of its pictures, and stopping when the loss hardly falls any more."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flows import chunks
from flows.chunks import early_end
from nst_engine.arrays import on_disk
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.images import deprocess
from nst_engine.pictures import Pictures, fit_pictures
from nst_engine.transfer import Budget, LossPoint, TransferState, advance, start

ITERATIONS = 8


@pytest.fixture(scope="module")
def quick(quick: TransferConfig) -> TransferConfig:
    return quick.with_overrides({"iterations": ITERATIONS})


@pytest.fixture(scope="module")
def pictures(quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]) -> Pictures:
    return fit_pictures(quick, content, [style])


def one_by_one(
    engine: Engine, config: TransferConfig, pictures: Pictures
) -> tuple[list[TransferState], list[LossPoint]]:
    """The states after each iteration, the first before any, and all loss points."""
    state, first = start(engine, config, pictures)
    states, points = [state], [first]
    while not state.finished:
        state, more = advance(engine, state, Budget(iterations=1))
        states.append(state)
        points += more
    return states, points


def whole(engine: Engine, config: TransferConfig, pictures: Pictures) -> TransferState:
    return advance(engine, start(engine, config, pictures)[0], Budget())[0]


def average(pictures: list[NDArray[np.float32]], decay: float) -> NDArray[np.float64]:
    """Of each picture 1 - decay, times decay for each that came after it, over the sum of these weights."""
    weights = [(1 - decay) * decay ** (len(pictures) - 1 - index) for index in range(len(pictures))]
    total = sum(weight * picture.astype(np.float64) for weight, picture in zip(weights, pictures, strict=True))
    return np.asarray(total / sum(weights))


@pytest.mark.parametrize("decay", [0.01, 0.7, 0.99])
def test_average(engine: Engine, quick: TransferConfig, pictures: Pictures, decay: float) -> None:
    config = quick.with_overrides({"keep": "average", "average_decay": decay})
    states, _ = one_by_one(engine, config, pictures)
    for done, state in enumerate(states, 1):
        assert state.average is not None
        assert state.averaged == done
        expected = average([before.picture for before in states[:done]], decay)
        np.testing.assert_allclose(state.average, expected, atol=1e-3)
        np.testing.assert_array_equal(state.result(), deprocess(state.average))
    assert not np.array_equal(states[-1].result(), deprocess(states[-1].picture))


def test_without_it_nothing_is_averaged(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    plain = whole(engine, quick, pictures)
    averaging = whole(engine, quick.with_overrides({"keep": "average"}), pictures)
    assert (plain.average, plain.averaged, plain.least_losses) == (None, 0, ())
    np.testing.assert_array_equal(plain.picture, averaging.picture)
    np.testing.assert_array_equal(plain.result(), deprocess(plain.picture))


def test_at_a_new_scale_the_average_begins_anew(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = quick.with_overrides({"keep": "average", "average_decay": 0.7, "scales": 2})
    states, _ = one_by_one(engine, config, fit_pictures(config, content, [style]))
    assert [state.scale for state in states] == [1] * 5 + [2] * 4
    # The first picture of the finer scale is seen by no one: with it there is one more than iterations.
    assert [state.averaged for state in states] == [1, 2, 3, 4, 5, 2, 3, 4, 5]
    later = average([state.picture for state in states[6:]], 0.7)
    last = states[-1].average
    assert last is not None
    assert last.shape == states[-1].picture.shape
    weight = 1 - sum(0.3 * 0.7**index for index in range(3)) / (1 - 0.7**5)
    first_two = (last - (1 - weight) * later) / weight
    begun = states[5].average
    np.testing.assert_allclose(first_two, begun, atol=1e-2)


def test_the_average_goes_with_the_state(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    config = quick.with_overrides({"keep": "average", "average_decay": 0.7})
    state, _ = advance(engine, start(engine, config, pictures)[0], Budget(iterations=3))
    there = state.placed(on_disk=True)
    # Of a picture on disk only what cannot be computed again is pickled.
    back = pickle.loads(pickle.dumps(there)).arrived()
    for moved in (there, back):
        assert moved.average is not None
        assert on_disk(moved.average)
        np.testing.assert_array_equal(moved.average, state.average)
    assert back.averaged == 4
    assert not on_disk(there.placed(on_disk=False).average)


def least(points: list[LossPoint]) -> list[float]:
    """The least loss until each point."""
    return list(np.minimum.accumulate([point.losses.total for point in points]))


def first_stall(points: list[LossPoint], *, share: float, patience: int) -> int | None:
    """The first iteration after which the least loss had fallen by less than that share in so many iterations."""
    falls = least(points)
    for now in range(patience, len(falls)):
        if 1 - falls[now] / falls[now - patience] < share:
            return now
    return None


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("patience", [1, 3, 5])
def test_it_stops_when_the_loss_hardly_falls(
    engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str, patience: int
) -> None:
    config = quick.with_overrides({"optimizer": optimizer, "iterations": 14})
    states, points = one_by_one(engine, config, pictures)
    falls = least(points)
    # A share that lies between those of two iterations, so that it stops somewhere in the middle.
    shares = sorted(1 - falls[now] / falls[now - patience] for now in range(patience, len(falls)))
    share = (shares[len(shares) // 2 - 1] + shares[len(shares) // 2]) / 2
    expected = first_stall(points, share=share, patience=patience)
    assert expected is not None
    assert patience <= expected < 14
    stopping = config.with_overrides({"min_improvement": share, "patience": patience})
    stopped, stopped_points = one_by_one(engine, stopping, pictures)
    assert [state.stalled for state in stopped] == [False] * expected + [True]
    assert (stopped[-1].iteration, stopped[-1].finished, stopped[-1].converged) == (expected, True, False)
    assert [point.losses for point in stopped_points] == [point.losses for point in points[: expected + 1]]
    np.testing.assert_array_equal(stopped[-1].picture, states[expected].picture)
    assert len(stopped[-1].least_losses) == patience + 1
    at_once = whole(engine, stopping, pictures)
    assert at_once.iteration == expected
    np.testing.assert_array_equal(at_once.result(), stopped[-1].result())


def test_a_share_that_is_always_reached_stops_nothing(
    engine: Engine, quick: TransferConfig, pictures: Pictures
) -> None:
    config = quick.with_overrides({"optimizer": "lbfgs", "min_improvement": 1e-9, "patience": 2})
    state = whole(engine, config, pictures)
    assert (state.iteration, state.stalled, state.finished) == (ITERATIONS, False, True)


def test_a_scale_that_stops_leaves_its_iterations_to_the_next(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = quick.with_overrides(
        {"optimizer": "lbfgs", "scales": 2, "scale_iterations": 5, "min_improvement": 0.999, "patience": 2}
    )
    states, points = one_by_one(engine, config, fit_pictures(config, content, [style]))
    assert [point.scale for point in points] == [1, 1, 1, 2, 2]
    assert [state.stalled for state in states] == [False, False, True, False, True]
    assert states[-1].finished
    # What is compared at the finer scale begins with its own first picture.
    assert [len(state.least_losses) for state in states] == [1, 2, 3, 2, 3]


def test_resumed_at_every_iteration_it_ends_the_same(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    """With everything on, through a pickle each time and on an engine that is fresh in the middle."""
    config = quick.with_overrides(
        {
            "optimizer": "lbfgs",
            "scales": 2,
            "keep": "average",
            "average_decay": 0.8,
            "min_improvement": 0.02,
            "patience": 3,
            "preserve_color": "luminance",
            "color_when": "before",
            "color_space": "luv",
            "init": "picture",
            "init_noise": 0.2,
            "style_fit": "crop",
            "style_scale": 1.25,
        }
    )
    pictures = fit_pictures(config, content, [style], initial=255 - content)
    expected = whole(engine, config, pictures)
    state, other = start(engine, config, pictures)[0], Engine("cpu")
    while not state.finished:
        chosen = other if state.iteration % 3 == 1 else engine
        state, _ = advance(chosen, pickle.loads(pickle.dumps(state)), Budget(iterations=1))
    arrays = ("picture", "best_picture", "average", "gradient")
    assert [getattr(state, name).tobytes() == getattr(expected, name).tobytes() for name in arrays] == [True] * 4
    facts = [
        (end.iteration, end.averaged, end.least_losses, end.losses, end.stalled, end.pictures.digest())
        for end in (state, expected)
    ]
    assert facts[0] == facts[1]
    assert state.result().tobytes() == expected.result().tobytes()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param({}, "", id="all iterations"),
        pytest.param(
            {"min_improvement": 0.999, "patience": 2}, "; it no longer fell by 99.9 % in 2 iterations", id="stalled"
        ),
        pytest.param(
            {"style_weight": 0, "tv_weight": 0, "min_improvement": 0.01}, "; no further step lowers it", id="converged"
        ),
    ],
)
def test_what_is_said_of_the_end(
    engine: Engine, quick: TransferConfig, pictures: Pictures, settings: dict[str, Any], sentence: str
) -> None:
    config = quick.with_overrides({"optimizer": "lbfgs"} | settings)
    chunk = chunks.begin(engine, config, pictures, snapshot_every=None)
    while not chunk.stretch.finished:
        chunk = chunks.advance(engine, chunk, seconds=60, snapshot_every=None)
    assert early_end(config, chunk.stretch) == sentence


def test_a_loss_of_nothing_has_not_stalled(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    config = quick.with_overrides({"min_improvement": 0.5, "patience": 1})
    state, _ = start(engine, config, pictures)
    assert replace(state, least_losses=(0.0, 0.0)).stalled is False
    assert replace(state, least_losses=(1.0, 0.5)).stalled is False
    assert replace(state, least_losses=(1.0, math.nextafter(0.5, 1))).stalled is True
