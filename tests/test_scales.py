"""Coarse to fine: the sizes and iterations of each scale, what goes on from one to the next, and stopping anywhere."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.gallery import curve, documents
from flows.progress import Progress
from flows.report import loss_rows, plot_losses, scale_ends
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import ConfigError, ImageError, NotFiniteError
from nst_engine.images import deprocess, display_range, resize
from nst_engine.optimizers import initial_state, take_step
from nst_engine.pictures import Pictures, at_scale, content_size, enlarge, fit_pictures, initial_picture, style_size
from nst_engine.scales import iterations_left, last_iteration, scaled_size
from nst_engine.transfer import Budget, LossPoint, TransferState, advance, start
from storage.models import Job, JobState
from storage.models import LossPoint as StoredLossPoint
from tests.gallery_home import serving
from tests.test_cli import NST, environment

ROOT = Path(__file__).resolve().parents[1]
RESUME = """
import pickle, sys
from pathlib import Path
from nst_engine.engine import Engine
from nst_engine.transfer import Budget, advance

engine = Engine("cpu")
ends = {name: advance(engine, state, Budget()) for name, state in pickle.loads(Path(sys.argv[1]).read_bytes()).items()}
Path(sys.argv[2]).write_bytes(pickle.dumps(ends))
"""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-3, "decay_rate": 0.9, "decay_steps": 5},
    "adam": {"optimizer": "adam", "learning_rate": 4.0, "clip": True, "keep": "best"},
    "lbfgs": {"optimizer": "lbfgs", "history": 3},
}


@pytest.fixture(scope="module")
def quick(weights_choice: str) -> TransferConfig:
    """Three scales of three iterations each on two blocks."""
    return TransferConfig().with_overrides(
        {
            "rows": 64,
            "scales": 3,
            "scale_factor": 2,
            "iterations": 9,
            "content_layers": "block2_conv2",
            "style_layers": "block1_conv1,block2_conv1",
            "optimizer": "adam",
            "learning_rate": 4.0,
            "epsilon": 1e-15,
            "precision": "float32",
            "weights": weights_choice,
        }
    )


@pytest.fixture(scope="module")
def pictures(quick: TransferConfig, content: NDArray[np.uint8], style: NDArray[np.uint8]) -> Pictures:
    return fit_pictures(quick, content, [style])


def run(engine: Engine, config: TransferConfig, pictures: Pictures) -> tuple[TransferState, list[LossPoint]]:
    state, first = start(engine, config, pictures)
    state, points = advance(engine, state, Budget())
    return state, [first, *points]


def timeless(points: list[LossPoint]) -> list[LossPoint]:
    return [replace(point, seconds=0.0) for point in points]


def assert_same_end(ours: TransferState, theirs: TransferState) -> None:
    """Both states are equal bit for bit but for the seconds."""
    for name in ("picture", "best_picture"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    np.testing.assert_array_equal(ours.gradient, theirs.gradient)
    assert ours.losses == theirs.losses
    for mine, other in zip(vars(ours.optimizer).values(), vars(theirs.optimizer).values(), strict=True):
        np.testing.assert_array_equal(mine, other)
    ours_numbers, theirs_numbers = (
        (state.iteration, state.scale, state.best_loss, state.converged, state.finished) for state in (ours, theirs)
    )
    assert ours_numbers == theirs_numbers


@pytest.mark.parametrize(
    ("settings", "ends", "left"),
    [
        pytest.param({}, [100], [100], id="one scale"),
        pytest.param({"scales": 2}, [50, 100], [50 + 50 * 4, 50], id="equal shares"),
        pytest.param({"scales": 3, "scale_factor": 3}, [33, 66, 100], [33 + 33 * 9 + 34 * 81, 33 + 34 * 9, 34], id="3"),
        pytest.param({"scales": 2, "scale_iterations": 80}, [80, 100], [80 + 20 * 4, 20], id="a number of its own"),
        pytest.param({"scales": 3, "iterations": 3}, [1, 2, 3], [21, 5, 1], id="one iteration each"),
    ],
)
def test_iterations_of_each_scale(settings: dict[str, Any], ends: list[int], left: list[float]) -> None:
    config = TransferConfig().with_overrides({"iterations": 100, **settings})
    scales = range(1, config.scales + 1)
    assert [last_iteration(config, scale) for scale in scales] == ends
    begins = [0, *ends[:-1]]
    assert [iterations_left(config, iteration=begins[scale - 1], scale=scale) for scale in scales] == left
    assert iterations_left(config, iteration=ends[-1], scale=config.scales) == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param(
            {"scales": 4, "iterations": 3},
            "iterations = 3 leave none for the finest of 4 scales; give at least 4 in all, or fewer scales or "
            "scale_iterations.",
            id="fewer iterations than scales",
        ),
        pytest.param(
            {"scales": 3, "scale_iterations": 50},
            "iterations = 100 leave none for the finest of 3 scales; give at least 101 in all, or fewer scales or "
            "scale_iterations.",
            id="all at the coarser scales",
        ),
    ],
)
def test_iterations_that_cannot_be_shared(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as failure:
        TransferConfig().with_overrides({"iterations": 100, **settings})
    assert str(failure.value) == sentence


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("scales", [1, 10], [0, 11, 1.5]),
        ("scale_factor", [1.001, 10], [1, 10.1, "nan"]),
        ("scale_iterations", [1, None, 1_000_000], [0, 2.5]),
    ],
)
def test_ranges(setting: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(TransferConfig().with_overrides({setting: value}), setting) == value
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^{setting} = "):
            TransferConfig().with_overrides({setting: value})
    assert TransferConfig(scale_iterations=3).with_overrides({"scale_iterations": "none"}).scale_iterations is None


def test_pictures_of_each_scale(quick: TransferConfig, pictures: Pictures) -> None:
    sizes = [pictures.content.shape[:2], pictures.styles[0].shape[:2]]
    assert sizes == [(64, 85), (74, 74)]
    found = [at_scale(quick, pictures, scale) for scale in (1, 2, 3)]
    assert [(p.content.shape[:2], p.styles[0].shape[:2]) for p in found] == [
        ((16, 21), (18, 18)),
        ((32, 42), (37, 37)),
        ((64, 85), (74, 74)),
    ]
    np.testing.assert_array_equal(found[0].content, resize(pictures.content, rows=16, columns=21))
    assert found[2].digest() == pictures.digest()


def test_a_style_that_is_stretched_has_the_content_s_size_at_each_scale(quick: TransferConfig) -> None:
    config = quick.with_overrides({"style_fit": "stretch", "scale_factor": 1.7})
    pictures = fit_pictures(config, np.zeros((101, 147, 3), np.uint8), [np.zeros((90, 60, 3), np.uint8)])
    for scale in (1, 2, 3):
        fitted = at_scale(config, pictures, scale)
        assert fitted.content.shape == fitted.styles[0].shape


def test_a_picture_too_small_for_so_many_scales() -> None:
    config = TransferConfig().with_overrides({"rows": 60, "scales": 3})
    sentence = (
        "the picture is too small for 3 scales: of 60 x 120 pixels (rows x columns) the coarsest would leave 15 x 30, "
        "and each side needs at least 16; ask for fewer scales or a larger picture."
    )
    with pytest.raises(ImageError) as failure:
        content_size(config, (600, 1200))
    assert str(failure.value) == sentence
    with pytest.raises(ImageError, match="too small for 3 scales"):
        style_size(config, (600, 3000), content=(64, 100))
    assert scaled_size(config.with_overrides({"rows": 64}), (64, 128), scale=1) == (16, 32)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_chunks_do_not_matter(engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str) -> None:
    config = quick.with_overrides(OPTIMIZERS[optimizer])
    expected, expected_points = run(engine, config, pictures)
    assert [(point.iteration, point.scale) for point in expected_points] == [
        (iteration, max(1, math.ceil(iteration / 3))) for iteration in range(10)
    ]
    for size in (1, 2, 3):
        state, first = start(engine, config, pictures)
        points = [first]
        while not state.finished:
            state, more = advance(engine, pickle.loads(pickle.dumps(state)), Budget(iterations=size))
            assert 0 < len(more) <= size
            points += more
        assert timeless(points) == timeless(expected_points)
        assert_same_end(state, expected)


def test_resumed_at_any_scale_in_another_process_it_ends_bit_for_bit_the_same(
    engine: Engine, quick: TransferConfig, pictures: Pictures, tmp_path: Path
) -> None:
    stopped: dict[str, TransferState] = {}
    whole: dict[str, tuple[TransferState, list[LossPoint]]] = {}
    for optimizer, settings in OPTIMIZERS.items():
        config = quick.with_overrides(settings)
        whole[optimizer] = run(engine, config, pictures)
        state, _ = start(engine, config, pictures)
        for until in (2, 3, 5, 7):
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_takes_the_optimisers_steps_at_every_scale(
    engine: Engine, quick: TransferConfig, pictures: Pictures, optimizer: str
) -> None:
    config = quick.with_overrides(OPTIMIZERS[optimizer])
    fitted = [at_scale(config, pictures, scale) for scale in (1, 2, 3)]
    picture, losses = initial_picture(config, fitted[0]), list[float]()
    for scale, here in enumerate(fitted):
        evaluate = engine.evaluator(config, here, precision="float32")
        if scale:
            picture = enlarge(picture, (here.content.shape[0], here.content.shape[1]))
            picture = np.clip(picture, *display_range()) if config.clip else picture
        evaluation, memory = evaluate(picture), initial_state(config, picture)
        for iteration in range(scale * 3 + 1, scale * 3 + 4):
            step = take_step(
                config, memory, iteration=iteration, picture=picture, evaluation=evaluation, evaluate=evaluate
            )
            picture, evaluation, memory = step.picture, step.evaluation, step.state
            losses.append(evaluation.losses.total)
    state, points = run(engine, config, pictures)
    np.testing.assert_array_equal(state.picture, picture)
    assert [point.losses.total for point in points[1:]] == losses


def test_the_state_has_the_size_of_its_scale(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    state, first = start(engine, quick, pictures)
    seen = [(state.iteration, state.scale, state.picture.shape[:2])]
    while not state.finished:
        state, _ = advance(engine, state, Budget(iterations=3))
        assert state.best_picture.shape == state.picture.shape == state.gradient.shape
        seen.append((state.iteration, state.scale, state.picture.shape[:2]))
    assert seen == [(0, 1, (16, 21)), (3, 1, (16, 21)), (6, 2, (32, 42)), (9, 3, (64, 85))]
    assert first.scale == 1
    assert state.result().shape == (64, 85, 3)


def test_best_is_the_best_of_the_finest_scale(engine: Engine, quick: TransferConfig, pictures: Pictures) -> None:
    """Losses weighed otherwise would be lowest at the coarsest scale: its Gram matrices are quickly matched."""
    config = quick.with_overrides({"keep": "best", "content_weight": 0, "tv_weight": 1.0})
    state, points = run(engine, config, pictures)
    assert min(point.losses.total for point in points if point.scale == 1) < state.best_loss
    assert state.best_loss <= min(point.losses.total for point in points if point.scale == 3)
    evaluate = engine.evaluator(config, pictures, precision="float32")
    assert evaluate(state.best_picture).losses.total == state.best_loss
    np.testing.assert_array_equal(state.result(), deprocess(state.best_picture))


def test_a_scale_that_converges_goes_on_to_the_next_at_once(
    engine: Engine, quick: TransferConfig, pictures: Pictures
) -> None:
    """From the content without any style there is nothing to lower at the coarsest; enlarging loses sharpness."""
    config = quick.with_overrides({"optimizer": "lbfgs", "style_weight": 0, "tv_weight": 0, "scales": 2})
    state, points = run(engine, config, pictures)
    assert [(point.iteration, point.scale) for point in points] == [(0, 1), (1, 1), *((n, 2) for n in range(2, 10))]
    assert points[1].losses.total == 0
    totals = [point.losses.total for point in points[2:]]
    assert totals == sorted(totals, reverse=True)
    assert (state.iteration, state.scale, state.finished) == (9, 2, True)


def test_a_loss_that_is_not_finite_carries_the_best_picture_of_its_scale(
    engine: Engine, quick: TransferConfig, pictures: Pictures
) -> None:
    state, _ = start(engine, quick, pictures)
    state, _ = advance(engine, state, Budget(iterations=4))
    with pytest.raises(NotFiniteError) as failure:
        advance(engine, replace(state, config=quick.with_overrides({"learning_rate": 1e30})), Budget())
    assert str(failure.value).startswith("The loss is ")
    assert "at iteration 5;" in str(failure.value)
    np.testing.assert_array_equal(failure.value.best, deprocess(state.best_picture))


def test_coarse_to_fine_comes_further_with_as_much_work(
    engine: Engine, content: NDArray[np.uint8], style: NDArray[np.uint8], standin_weights: Path
) -> None:
    """16 iterations of a quarter of the pixels and 26 of all cost as much as 30."""
    one = TransferConfig().with_overrides(
        {"rows": 64, "init": "noise", "iterations": 30, "precision": "float32", "weights": str(standin_weights)}
    )
    two = one.with_overrides({"scales": 2, "scale_factor": 2, "scale_iterations": 16, "iterations": 42})
    assert iterations_left(two, iteration=0, scale=1) / 4 == 30
    ends = [run(engine, config, fit_pictures(config, content, [style]))[0].best_loss for config in (one, two)]
    assert ends[1] < 0.95 * ends[0]


def test_an_enlarged_picture_is_smooth_and_in_place() -> None:
    rows, columns = np.mgrid[0:16, 0:24].astype(np.float32)
    ramp = np.stack([3 * rows - 100, 5 * columns, rows + columns], axis=-1)
    large = enlarge(ramp, (32, 48))
    assert (large.shape, large.dtype) == ((32, 48, 3), np.float32)
    # Away from the border a plane stays the same plane, read at the centres of the smaller pixels.
    fine_rows, fine_columns = (np.mgrid[0:32, 0:48].astype(np.float32) - 0.5) / 2
    expected = np.stack([3 * fine_rows - 100, 5 * fine_columns, fine_rows + fine_columns], axis=-1)
    np.testing.assert_allclose(large[6:-6, 6:-6], expected[6:-6, 6:-6], atol=1e-3)
    np.testing.assert_array_equal(large, enlarge(ramp.copy(), (32, 48)))


@pytest.mark.parametrize(
    ("scale", "position", "seconds"),
    [
        pytest.param(1, "iteration 2 of 9 (scale 1 of 3)", 1 + 3 * 4 + 3 * 16, id="coarsest"),
        pytest.param(3, "iteration 8 of 9 (scale 3 of 3)", 1, id="finest"),
    ],
)
def test_the_time_left_counts_larger_scales_for_more(
    quick: TransferConfig, scale: int, position: str, seconds: float
) -> None:
    here = Progress(quick, 2 if scale == 1 else 8, scale, 1.0, 1.0)
    assert (here.position, here.seconds_left) == (position, seconds)


def loss_point(iteration: int, scale: int, total: float) -> StoredLossPoint:
    return StoredLossPoint(
        iteration=iteration,
        attempt=1,
        total=total,
        content=0.0,
        style=total,
        tv=0.0,
        layers={"style/block1_conv1": total},
        learning_rate=None,
        seconds=iteration * 4.0**scale,
        scale=scale,
    )


CURVE = [
    loss_point(iteration, scale, total)
    for iteration, scale, total in [
        (0, 1, 90.0),
        (1, 1, 20.0),
        (2, 2, 400.0),
        (3, 2, 50.0),
        (4, 3, 800.0),
        (5, 3, 80.0),
    ]
]


def test_curves_and_tables_know_the_scale(tmp_path: Path) -> None:
    assert scale_ends(CURVE) == [1, 3]
    assert scale_ends(CURVE[:2]) == scale_ends([]) == []
    drawn = curve.draw(CURVE)
    assert drawn is not None
    width = drawn.right - drawn.left
    assert drawn.scales == [pytest.approx(drawn.left + width * part / 5, abs=0.1) for part in (1, 3)]
    assert [row["scale"] for row in loss_rows(CURVE)] == [1, 1, 2, 2, 3, 3]
    plot_losses(CURVE, tmp_path / "three.png", title="lake")
    plot_losses([loss_point(p.iteration, 1, p.total) for p in CURVE], tmp_path / "one.png", title="lake")
    with Image.open(tmp_path / "three.png") as three, Image.open(tmp_path / "one.png") as one:
        changed = np.asarray(three.convert("L")) != np.asarray(one.convert("L"))
    (columns,) = np.nonzero(changed.any(axis=0))
    left, right = columns[columns < columns.mean()], columns[columns > columns.mean()]
    assert max(np.ptp(left), np.ptp(right)) <= 3, "two thin upright lines and nothing else"
    assert changed[:, left].any(axis=1).mean() > 0.5


def test_the_gallery_says_how_far_a_job_of_several_scales_is() -> None:
    config = TransferConfig(iterations=9, scales=3)
    job = Job(name="lake", config=config.model_dump(), state=JobState.RUNNING, attempts=[], result_columns=None)
    found = documents.progress_of(job, CURVE[:4])
    assert (found.iteration, found.iterations, found.loss, found.scale) == (3, 9, "50", "scale 2 of 3")
    # Since iteration 1: two in 48 - 4 seconds. Three more of this scale and three of four times the pixels are left.
    assert found.left == "6 min"
    assert dict(documents.facts(job, CURVE))["Loss"] == "800 → 80"


def test_a_run_from_the_command_line(tmp_path: Path, content_file: Path, style_file: Path, weight_file: Path) -> None:
    def nst(*arguments: object) -> str:
        command = [NST, *map(str, arguments)]
        done = subprocess.run(
            command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    scales = ("--set", "scales=3", "--set", "iterations=7", "--set", "scale_iterations=2", "--snapshot-every", "2")
    more = ("--rows", "64", "--weights", weight_file, "--device", "cpu", "--precision", "float32")
    nst("run", content_file, style_file, *more, *scales)
    rows = list(csv.DictReader(io.StringIO(nst("losses", "lake_swirls", "--csv"))))
    assert [(row["iteration"], row["scale"]) for row in rows] == [
        (str(iteration), scale) for iteration, scale in enumerate("11122333")
    ]
    document = json.loads(nst("show", "lake_swirls", "--json"))
    assert [point["scale"] for point in document["losses"]] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert (document["config"]["scales"], document["config"]["scale_iterations"]) == (3, 2)
    folder = Path(document["result"]["folder"])
    sizes = {}
    for path in [folder / "result.png", *sorted((folder / "snapshots").iterdir())]:
        with Image.open(path) as image:
            sizes[path.name] = image.size
    assert sizes == {
        "result.png": (85, 64),
        "000000.jpg": (21, 16),
        "000002.jpg": (21, 16),
        "000004.jpg": (42, 32),
        "000006.jpg": (85, 64),
    }
    with Image.open(folder / "timelapse.webp") as film:
        assert (film.size, film.n_frames) == ((85, 64), 5)  # type: ignore[attr-defined]
    with serving(tmp_path / "home") as address:
        page = httpx.get(f"{address}/jobs/{document['id']}", timeout=30).text
    assert page.count('<path class="scale"') == 2
    assert "<dt>scales</dt><dd>3</dd>" in page
