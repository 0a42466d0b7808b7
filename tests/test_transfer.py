"""The transfer as a state machine: stopping, resuming elsewhere, loss points, budgets, failures."""

import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import NotFiniteError, WeightsError
from nst_engine.images import deprocess, display_range
from nst_engine.optimizers import initial_state, take_step
from nst_engine.pictures import Pictures, fit_pictures, initial_picture
from nst_engine.transfer import Budget, LossPoint, TransferState, advance, start
from nst_engine.vgg19 import CONVOLUTIONS

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 8
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {
        "optimizer": "sgd",
        "learning_rate": 20.0,
        "decay_rate": 0.9,
        "decay_steps": 5,
        "content_layers": "block5_conv2",
        "content_weight": 2.5e-8,
        "style_weight": 1e-6,
        "content_normalization": "keras",
        "gram_normalization": "keras",
        "tv_form": "keras",
        "tv_weight": 1e-6,
    },
    "adam": {"optimizer": "adam", "learning_rate": 4.0, "clip": True, "keep": "best"},
    "lbfgs": {"optimizer": "lbfgs", "history": 3},
    "remembering": {
        "optimizer": "adam",
        "learning_rate": 4.0,
        "keep": "average",
        "average_decay": 0.8,
        "min_improvement": 1e-6,
        "patience": 4,
        "preserve_color": "linear",
        "color_when": "before",
        "init": "style",
        "init_noise": 0.2,
    },
}
RESUME = """
import pickle, sys
from pathlib import Path
from nst_engine.engine import Engine
from nst_engine.transfer import Budget, advance

engine = Engine("cpu")
ends = {}
for name, state in pickle.loads(Path(sys.argv[1]).read_bytes()).items():
    points = []
    while not state.finished:
        # Through a pickle after every second iteration, as from checkpoint to checkpoint.
        state, more = advance(engine, pickle.loads(pickle.dumps(state)), Budget(iterations=2))
        points += more
    ends[name] = state, points
Path(sys.argv[2]).write_bytes(pickle.dumps(ends))
"""


@pytest.fixture(scope="module")
def pictures(quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]) -> Pictures:
    """Working pictures of `quick`, rows x columns 32 x 42 and about as many pixels."""
    return fit_pictures(quick, content, [style])


def timeless(points: list[LossPoint]) -> list[LossPoint]:
    """Loss points without what differs from run to run."""
    return [replace(point, seconds=0.0) for point in points]


def assert_same_end(ours: TransferState, theirs: TransferState) -> None:
    """Both states are equal bit for bit but for the seconds."""
    for name in ("picture", "best_picture"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_array_equal(ours.gradient, theirs.gradient)
    assert ours.losses == theirs.losses
    for mine, other in zip(vars(ours.optimizer).values(), vars(theirs.optimizer).values(), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (ours.iteration, ours.best_loss, ours.converged) == (theirs.iteration, theirs.best_loss, theirs.converged)
    assert (ours.averaged, ours.least_losses) == (theirs.averaged, theirs.least_losses)
    np.testing.assert_array_equal(ours.average, theirs.average)
    np.testing.assert_array_equal(ours.result(), theirs.result())


def run(engine: Engine, config: TransferConfig, pictures: Pictures) -> tuple[TransferState, list[LossPoint]]:
    """All iterations at once; the points begin with that of the initial picture."""
    state, first = start(engine, config, pictures)
    state, points = advance(engine, state, Budget())
    return state, [first, *points]


def test_resumed_in_another_process_it_ends_bit_for_bit_the_same(
    engine: Engine, weights_choice: str, content: NDArray[np.uint8], style: NDArray[np.uint8], tmp_path: Path
) -> None:
    stopped: dict[str, TransferState] = {}
    whole: dict[str, tuple[TransferState, list[LossPoint]]] = {}
    for optimizer, settings in OPTIMIZERS.items():
        config = TransferConfig().with_overrides(
            {**settings, "rows": 32, "iterations": ITERATIONS, "precision": "float32", "weights": weights_choice}
        )
        pictures = fit_pictures(config, content, [style])
        whole[optimizer] = run(engine, config, pictures)
        state, _ = start(engine, config, pictures)
        stopped[f"{optimizer} 0"] = state
        for until in (1, 3, 6):
            state, _ = advance(engine, state, Budget(iterations=until - state.iteration))
            stopped[f"{optimizer} {until}"] = state

    (tmp_path / "stopped").write_bytes(pickle.dumps(stopped))
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path / "stopped", tmp_path / "ends"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    ends: dict[str, tuple[TransferState, list[LossPoint]]] = pickle.loads((tmp_path / "ends").read_bytes())

    assert set(ends) == set(stopped)
    for name, (state, points) in ends.items():
        optimizer, until = name.split()
        expected, expected_points = whole[optimizer]
        assert timeless(points) == timeless(expected_points[int(until) + 1 :]), name
        assert_same_end(state, expected)
        assert state.seconds > stopped[name].seconds


def moving(engine: Engine, config: TransferConfig, pictures: Pictures, *, optimizer: str, by: float) -> TransferConfig:
    """`config` with an optimiser that moves some pixel by about so many grey levels at its first step."""
    steepest = np.abs(start(engine, config, pictures)[0].gradient).max()
    rate = float(by / steepest) if optimizer == "sgd" else by
    return config.with_overrides({"optimizer": optimizer, "learning_rate": rate})


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
def test_chunks_do_not_matter(engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str) -> None:
    config = moving(engine, quick, pictures, optimizer=optimizer, by=4.0)
    expected, expected_points = run(engine, config, pictures)
    for size in (1, 4):
        state, first = start(engine, config, pictures)
        points = [first]
        while not state.finished:
            state, more = advance(engine, state, Budget(iterations=size))
            assert len(more) <= size
            points += more
        assert timeless(points) == timeless(expected_points)
        assert_same_end(state, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
def test_it_takes_the_optimisers_steps(
    engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str
) -> None:
    config = moving(engine, quick, pictures, optimizer=optimizer, by=4.0)
    evaluate = engine.evaluator(config, pictures, precision="float32")
    picture = initial_picture(config, pictures)
    evaluation, memory, rates = evaluate(picture), initial_state(config, picture), []
    for iteration in range(1, config.iterations + 1):
        step = take_step(config, memory, iteration=iteration, picture=picture, evaluation=evaluation, evaluate=evaluate)
        picture, evaluation, memory = step.picture, step.evaluation, step.state
        rates.append(step.rate)
    state, points = run(engine, config, pictures)
    np.testing.assert_array_equal(state.picture, picture)
    assert state.losses == evaluation.losses
    assert [point.rate for point in points] == [0.0, *rates]


def test_a_fresh_engine_gives_the_same_bits(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    ours, points = run(engine, quick, pictures)
    theirs, other_points = run(Engine("cpu"), quick, pictures)
    assert timeless(points) == timeless(other_points)
    assert_same_end(ours, theirs)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param({"content_layers": "block2_conv1"}, id="another content layer"),
        pytest.param({"content_layers": "block4_conv2"}, id="a deeper content layer"),
        pytest.param({"gram_normalization": "keras", "tv_weight": 0}, id="other losses"),
    ],
)
def test_an_engine_that_knows_the_style_from_another_job_gives_the_same_bits(
    quick: TransferConfig, pictures: Pictures, before: dict[str, Any]
) -> None:
    cold, points = run(Engine("cpu"), quick, pictures)
    knowing = Engine("cpu")
    other = Pictures(np.ascontiguousarray(pictures.content[::-1, :40]), (255 - pictures.styles[0], *pictures.styles))
    start(knowing, quick.with_overrides(before), other)
    warm, warm_points = run(knowing, quick, pictures)
    assert timeless(warm_points) == timeless(points)
    assert_same_end(warm, cold)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"style_layers": "block1_conv1,block2_conv2"}, id="style layers"),
        pytest.param({"pooling": "average"}, id="pooling"),
        pytest.param({"precision": "bfloat16"}, id="precision"),
        pytest.param({"weights": "random"}, id="weights"),
    ],
)
def test_targets_are_only_used_where_they_are_right(
    quick: TransferConfig, pictures: Pictures, changes: dict[str, Any]
) -> None:
    """Of another network or other layers there are targets of the same pictures, which must not be taken."""
    config = quick.with_overrides(changes)
    fresh, _ = start(Engine("cpu"), config, pictures)
    knowing = Engine("cpu")
    start(knowing, quick, pictures)
    state, _ = start(knowing, config, pictures)
    assert state.losses == fresh.losses


def test_loss_points(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    config = quick.with_overrides(
        {
            "content_layers": "block1_conv2:0.25,block2_conv2:2",
            "style_layers": "block1_conv1:3,block2_conv1:0.5",
            "content_weight": 0.5,
            "style_weight": 1e-3,
            "tv_weight": 0.01,
            "decay_rate": 0.5,
            "decay_steps": 4,
        }
    )
    state, points = run(engine, config, pictures)
    assert [point.iteration for point in points] == list(range(7))
    assert [point.rate for point in points] == [0.0, *(pytest.approx(4 * 0.5 ** (i / 4)) for i in range(6))]
    seconds = [point.seconds for point in points]
    assert seconds == sorted(seconds)
    assert seconds[-1] == state.seconds
    assert points[-1].losses == state.losses
    for point in points[1:]:
        losses = point.losses
        assert set(losses.layers) == {
            "content/block1_conv2",
            "content/block2_conv2",
            "style/block1_conv1",
            "style/block2_conv1",
        }
        content = 0.25 * losses.layers["content/block1_conv2"] + 2 * losses.layers["content/block2_conv2"]
        style = 3 * losses.layers["style/block1_conv1"] + 0.5 * losses.layers["style/block2_conv1"]
        assert (losses.content, losses.style) == pytest.approx((0.5 * content, 1e-3 * style), rel=1e-6)
        assert losses.total == pytest.approx(losses.content + losses.style + losses.tv, rel=1e-6)
        assert min(losses.content, losses.style, losses.tv) > 0


def test_the_loss_falls(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    _, points = run(engine, quick.with_overrides({"optimizer": "lbfgs"}), pictures)
    totals = [point.losses.total for point in points]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.5 * totals[0]


@pytest.mark.parametrize(
    ("budget", "done"),
    [
        pytest.param(Budget(), [1, 2, 3, 4, 5, 6], id="no limit"),
        pytest.param(Budget(iterations=4), [1, 2, 3, 4], id="iterations"),
        pytest.param(Budget(iterations=99), [1, 2, 3, 4, 5, 6], id="more than there are"),
        pytest.param(Budget(seconds=0.0), [1], id="at least one, seconds"),
        pytest.param(Budget(iterations=0), [1], id="at least one, iterations"),
        pytest.param(Budget(iterations=2, seconds=600.0), [1, 2], id="what comes first"),
    ],
)
def test_budget(engine: Engine, quick: TransferConfig, pictures: Pictures, budget: Budget, done: list[int]) -> None:
    state, _ = start(engine, quick, pictures)
    state, points = advance(engine, state, budget)
    assert [point.iteration for point in points] == done
    assert (state.iteration, state.finished) == (done[-1], done[-1] == 6)


def test_a_finished_state_stays_as_it_is(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    state, _ = run(engine, quick, pictures)
    assert advance(engine, state, Budget()) == (state, [])


def test_lbfgs_is_finished_where_no_lower_loss_is_to_be_found(
    engine: Engine, quick: TransferConfig, pictures: Pictures
) -> None:
    config = quick.with_overrides({"optimizer": "lbfgs", "style_weight": 0, "tv_weight": 0})
    state, points = run(engine, config, pictures)
    assert (state.iteration, state.converged, state.finished) == (1, True, True)
    assert [(point.losses.total, point.rate) for point in points] == [(0.0, 0.0), (0.0, 0.0)]
    np.testing.assert_array_equal(state.result(), pictures.content)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learning_rate_that_is_too_high(
    engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str
) -> None:
    config = quick.with_overrides({"optimizer": optimizer, "learning_rate": 1e30})
    state, _ = start(engine, config, pictures)
    with pytest.raises(NotFiniteError) as failure:
        advance(engine, state, Budget())
    sentence = str(failure.value)
    assert sentence.startswith(("The loss is inf at iteration 1;", "The loss is nan at iteration 1;"))
    assert sentence.endswith(
        "; the likely cause is that the learning rate of 1e+30 is too high for these loss weights; try a tenth."
    )
    np.testing.assert_array_equal(failure.value.best, deprocess(state.picture))


def test_loss_weights_that_are_too_large(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    config = quick.with_overrides({"tv_weight": 1e38})
    with pytest.raises(NotFiniteError) as failure:
        start(engine, config, pictures)
    assert str(failure.value) == (
        "The loss is inf at iteration 0; the likely cause is that the weights or the loss weights are too large."
    )
    assert failure.value.best is None


def test_other_weights_on_resume(tmp_path: Path, quick: TransferConfig, pictures: Pictures) -> None:
    path = tmp_path / "mine.h5"
    config = quick.with_overrides({"weights": str(path)})
    states = []
    for value in (0.01, 0.02):
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            for layer in CONVOLUTIONS:
                group = file.create_group(layer.name)
                group.attrs["weight_names"] = [b"kernel", b"bias"]
                shape = (3, 3, layer.input_channels, layer.channels)
                group.create_dataset("kernel", shape, "f4", fillvalue=value)
                group.create_dataset("bias", (layer.channels,), "f4")
        states.append(start(Engine("cpu"), config, pictures)[0])
    first, second = states
    assert first.weights_name == "mine.h5"
    with pytest.raises(WeightsError) as failure:
        advance(Engine("cpu"), first, Budget())
    assert str(failure.value) == (
        f"This transfer was started with the weights mine.h5 ({first.weights_sha256[:12]}), but here '{path}' means "
        f"mine.h5 ({second.weights_sha256[:12]}); give it the same file."
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_clip_keeps_the_picture_displayable(
    engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str
) -> None:
    low, high = display_range()

    def leaves_the_range(clip: bool) -> bool:
        config = moving(engine, quick, pictures, optimizer=optimizer, by=100.0).with_overrides({"clip": clip})
        state, _ = advance(engine, start(engine, config, pictures)[0], Budget(iterations=2))
        return bool(((state.picture < low) | (state.picture > high)).any())

    assert (leaves_the_range(False), leaves_the_range(True)) == (True, False)


def test_keep_best(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    """The last iteration jumps so far that its picture is not the best."""
    state, first = start(engine, quick, pictures)
    seen, points = [state.picture], [first]
    for rate in (4.0, 4.0, 4.0, 4.0, 4.0, 100.0):
        state = replace(state, config=quick.with_overrides({"learning_rate": rate}))
        state, more = advance(engine, state, Budget(iterations=1))
        seen.append(state.picture)
        points += more
    totals = [point.losses.total for point in points]
    best = int(np.argmin(totals))
    assert 0 < best < len(totals) - 1
    assert state.best_loss == totals[best]
    np.testing.assert_array_equal(state.best_picture, seen[best])
    np.testing.assert_array_equal(state.result(), deprocess(seen[-1]))
    kept = replace(state, config=quick.with_overrides({"keep": "best"}))
    np.testing.assert_array_equal(kept.result(), deprocess(seen[best]))


def test_several_styles_share_the_style_loss(
    engine: Engine, quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = quick.with_overrides({"init": "grey"})
    styles = [style, style[::2, :, ::-1], 255 - style[:, :60]]
    together, *single = (
        start(engine, config, fit_pictures(config, content, chosen))[1].losses
        for chosen in (styles, *([one] for one in styles))
    )
    assert len({losses.style for losses in single}) == 3
    assert together.style == pytest.approx(np.mean([losses.style for losses in single]), rel=1e-5)
    assert {losses.content for losses in single} == {together.content}


def test_bfloat16_gives_nearly_the_same_loss(
    engine: Engine, weights_choice: str, content: NDArray[np.uint8], style: NDArray[np.uint8]
) -> None:
    config = TransferConfig().with_overrides({"rows": 48, "weights": weights_choice, "init": "style"})
    pictures = fit_pictures(config, content, [style])
    picture = initial_picture(config, pictures)
    single, half = (
        engine.evaluator(config, pictures, precision=precision)(picture) for precision in ("float32", "bfloat16")
    )
    assert half.losses.total == pytest.approx(single.losses.total, rel=0.02)
    assert half.losses.content == pytest.approx(single.losses.content, rel=0.02)
    assert half.losses.style == pytest.approx(single.losses.style, rel=0.02)
    assert half.losses != single.losses, "both ran in the same precision"
    assert half.gradient.dtype == np.float32
    ours, theirs = half.gradient.ravel(), single.gradient.ravel()
    assert ours @ theirs > 0.95 * math.sqrt((ours @ ours) * (theirs @ theirs))


def test_the_state_remembers_what_computes_it(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    state, first = start(engine, quick, pictures)
    loaded = engine.weights(quick.weights)
    assert (state.weights_name, state.weights_sha256, state.precision) == (loaded.name, loaded.sha256, "float32")
    assert (state.iteration, state.best_loss, state.finished) == (0, first.losses.total, False)
    assert (first.iteration, first.rate, first.losses) == (0, 0.0, state.losses)
    np.testing.assert_array_equal(state.result(), pictures.content)
