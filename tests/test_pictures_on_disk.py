"""Transfers whose pictures are on disk: the same picture bit for bit, and what is left of their state on its way."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flows import checkpoint, chunks
from flows.optimisation import LocalOptimisation, Work
from nst_engine import arrays
from nst_engine.arrays import on_disk
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.memory import MemoryPlan
from nst_engine.optimizers import AdamState, LbfgsState, SgdState, initial_state
from nst_engine.pictures import Pictures, fit_pictures, initial_picture
from nst_engine.transfer import Budget, TransferState, advance, start

OPTIMIZERS = pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
# The losses of the presets that use it: the usual ones are too steep.
SGD = {
    "content_weight": 2.5e-8,
    "style_weight": 1e-6,
    "content_normalization": "keras",
    "gram_normalization": "keras",
    "tv_form": "keras",
    "tv_weight": 1e-6,
    "learning_rate": 20.0,
}
STATES = {"sgd": SgdState, "adam": AdamState, "lbfgs": LbfgsState}


class OnDisk(Engine):
    """An engine that has the pictures of all sizes on disk, or of the finest scale only."""

    only_above = 0

    def memory_plan(self, config: TransferConfig, pictures: Pictures, *, precision: str) -> MemoryPlan:
        plan = super().memory_plan(config, pictures, precision=precision)
        return replace(plan, on_disk=len(pictures.content) > self.only_above)


@pytest.fixture(scope="module")
def disk_engine() -> OnDisk:
    return OnDisk("cpu")


@pytest.fixture
def configured(weights_choice: str) -> Callable[..., TransferConfig]:
    def configured(**settings: Any) -> TransferConfig:
        few = {
            "rows": 48,
            "content_layers": "block2_conv2",
            "style_layers": "block1_conv1,block2_conv1",
            "iterations": 5,
            "learning_rate": 4.0,
            "precision": "float32",
            "weights": weights_choice,
            "history": 3,
        }
        return TransferConfig().with_overrides(few | (SGD if settings["optimizer"] == "sgd" else {}) | settings)

    return configured


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 700)


def large_arrays(state: TransferState) -> list[NDArray[np.float32]]:
    """All arrays of a state that are as large as its picture, in one order."""
    optimizer = list[NDArray[np.float32]]()
    match state.optimizer:
        case AdamState(first, second):
            optimizer = [first, second]
        case LbfgsState(steps, differences):
            optimizer = [*steps, *differences]
    assert state.gradient is not None
    return [state.picture, state.best_picture, state.gradient, *optimizer]


def assert_equal(ours: TransferState, theirs: TransferState) -> None:
    pairs = list(zip(large_arrays(ours), large_arrays(theirs), strict=True))
    assert [mine.tobytes() == other.tobytes() for mine, other in pairs] == [True] * len(pairs)
    assert (ours.losses, ours.best_loss, ours.iteration) == (theirs.losses, theirs.best_loss, theirs.iteration)
    np.testing.assert_array_equal(ours.result(), theirs.result())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optimizer": "sgd", "init": "noise"}, id="sgd"),
        pytest.param({"optimizer": "adam", "clip": True, "keep": "best", "init": "grey"}, id="adam"),
        pytest.param({"optimizer": "lbfgs", "init": "style"}, id="lbfgs"),
        pytest.param({"optimizer": "adam", "scales": 2, "iterations": 6, "clip": True}, id="two scales"),
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_same_bits_as_in_memory(
    engine: Engine,
    disk_engine: OnDisk,
    configured: Callable[..., TransferConfig],
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    settings: dict[str, Any],
) -> None:
    config = configured(**settings)
    pictures = fit_pictures(config, content, [style])
    ends = []
    for chosen, place in ((engine, False), (disk_engine, True)):
        state, first = start(chosen, config, pictures)
        states, points = [state], [first]
        while not state.finished:
            state, more = advance(chosen, state, Budget(iterations=2))
            states.append(state)
            points += more
        assert {on_disk(array) for state in states for array in large_arrays(state)} == {place}
        ends.append((state, [replace(point, seconds=0.0) for point in points]))
    (memory, memory_points), (disk, disk_points) = ends
    assert disk_points == memory_points
    assert_equal(disk, memory)


@pytest.mark.parametrize("init", ["content", "style", "grey", "noise"])
def test_the_first_picture_does_not_depend_on_blocks(
    configured: Callable[..., TransferConfig],
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    init: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configured(optimizer="adam", init=init)
    pictures = fit_pictures(config, content, [style])
    expected = initial_picture(config, pictures)
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 700)
    in_blocks = [initial_picture(config, pictures.placed(on_disk=place)) for place in (False, True)]
    assert [on_disk(picture) for picture in in_blocks] == [False, True]
    assert {picture.tobytes() for picture in in_blocks} == {expected.tobytes()}


@OPTIMIZERS
def test_from_one_place_to_the_other(
    engine: Engine,
    disk_engine: OnDisk,
    configured: Callable[..., TransferConfig],
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    optimizer: str,
) -> None:
    """A state that an engine gets from another with more or less memory goes on as if nothing had been."""
    config = configured(optimizer=optimizer)
    state, _ = start(engine, config, fit_pictures(config, content, [style]))
    expected, _ = advance(engine, state, Budget())
    for chosen, iterations, place in ((engine, 1, False), (disk_engine, 2, True), (engine, 2, False)):
        state, _ = advance(chosen, state, Budget(iterations=iterations))
        assert {on_disk(array) for array in large_arrays(state)} == {place}
    assert_equal(state, expected)


def test_only_the_finest_scale_on_disk(
    engine: Engine, configured: Callable[..., TransferConfig], content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = configured(optimizer="adam", scales=2, iterations=6)
    pictures = fit_pictures(config, content, [style])
    finest = OnDisk("cpu")
    finest.only_above = 24
    state, _ = start(finest, config, pictures)
    assert (on_disk(state.picture), state.picture.shape[0]) == (False, 24)
    state, _ = advance(finest, state, Budget())
    assert {on_disk(array) for array in large_arrays(state)} == {True}
    expected, _ = advance(engine, start(engine, config, pictures)[0], Budget())
    assert_equal(state, expected)


@OPTIMIZERS
def test_what_travels_of_a_state_on_disk_goes_on_with_a_new_optimiser(
    engine: Engine,
    disk_engine: OnDisk,
    configured: Callable[..., TransferConfig],
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    optimizer: str,
    tmp_path: Path,
) -> None:
    config = configured(optimizer=optimizer, keep="best")
    state, _ = start(disk_engine, config, fit_pictures(config, content, [style]))
    state, _ = advance(disk_engine, state, Budget(iterations=3))
    pickled = pickle.loads(pickle.dumps(state))
    checkpoint.save(tmp_path / "checkpoint", state)
    saved = checkpoint.load(tmp_path / "checkpoint")
    assert saved is not None
    assert (tmp_path / "checkpoint").stat().st_size < 2.2 * state.picture.nbytes + 20_000
    for arrived, place in ((pickled, False), (pickled.arrived(), True), (saved, True)):
        assert (on_disk(arrived.picture), on_disk(arrived.best_picture)) == (place, place)
        assert (arrived.gradient, arrived.optimizer, arrived.losses) == (None, None, state.losses)
        np.testing.assert_array_equal(arrived.picture, state.picture)
        np.testing.assert_array_equal(arrived.result(), state.result())

    anew = replace(state, optimizer=initial_state(config, state.picture)).placed(on_disk=False)
    expected, expected_points = advance(engine, anew, Budget())
    for arrived, chosen in ((saved, disk_engine), (pickled, engine)):
        end, points = advance(chosen, arrived, Budget())
        assert [point.losses for point in points] == [point.losses for point in expected_points]
        assert_equal(end, expected)
        assert type(end.optimizer) is STATES[optimizer]


def test_a_finished_state_travels_with_its_result(
    disk_engine: OnDisk, configured: Callable[..., TransferConfig], content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = configured(optimizer="sgd", iterations=1)
    pictures = fit_pictures(config, content, [style])
    state, _ = advance(disk_engine, start(disk_engine, config, pictures)[0], Budget())
    arrived = pickle.loads(pickle.dumps(state)).arrived()
    assert advance(disk_engine, arrived, Budget()) == (arrived, [])
    np.testing.assert_array_equal(arrived.result(), state.result())
    assert chunks.take_snapshot(arrived).jpeg == chunks.take_snapshot(state).jpeg


def test_an_optimisation_resumed_from_a_checkpoint(
    disk_engine: OnDisk,
    configured: Callable[..., TransferConfig],
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    config = configured(optimizer="lbfgs", iterations=8)
    pictures = fit_pictures(config, content, [style])
    state, _ = advance(disk_engine, start(disk_engine, config, pictures)[0], Budget(iterations=4))
    checkpoint.save(tmp_path / "checkpoint", state)
    work = Work(config, pictures, checkpoint.load(tmp_path / "checkpoint"), chunk_seconds=0.05, snapshot_every=3)
    with LocalOptimisation(disk_engine, work) as optimisation:
        stretches = [stretch for stretch in optimisation.stretches() if stretch is not None]
        end = optimisation.state()
    points = [point for stretch in stretches for point in stretch.points]
    assert [point.iteration for point in points] == [5, 6, 7, 8]
    assert [snapshot.iteration for stretch in stretches for snapshot in stretch.snapshots] == [6]
    assert (points[-1].losses, end.finished) == (end.losses, True)
    assert end.losses.total < state.losses.total
