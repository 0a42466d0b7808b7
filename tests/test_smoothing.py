"""The first guess of the inverse Hessian: symmetric, positive, and of the weight of each frequency that it says."""

from __future__ import annotations

import numpy as np
import pytest

import nst_engine.smoothing
from nst_engine.arrays import on_disk, placed
from nst_engine.smoothing import smooth

NUMBERS = np.random.default_rng(3)


def picture(rows: int = 21, columns: int = 34) -> np.ndarray:
    return NUMBERS.standard_normal((rows, columns, 3)).astype(np.float32)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize(("down", "across"), [(0, 0), (3, 0), (0, 7), (20, 33)])
def test_each_frequency_has_its_weight(down: int, across: int, power: float) -> None:
    """A wave keeps its shape and is divided by a power of its frequency, in cycles a pixel, and 0.02."""
    rows, columns = 21, 34
    waves = np.cos(np.pi * down * (np.arange(rows)[:, None] + 0.5) / rows) * np.cos(
        np.pi * across * (np.arange(columns)[None] + 0.5) / columns
    )
    wave = (waves[..., None] * np.array([1.0, -2.0, 0.5])).astype(np.float32)
    frequency = np.hypot(down / (2 * rows), across / (2 * columns))
    np.testing.assert_allclose(smooth(wave, power=power), wave / (frequency + 0.02) ** power, rtol=1e-4, atol=1e-4)


def test_it_is_symmetric_and_positive() -> None:
    one, other = picture(), picture()
    assert np.vdot(one, smooth(other, power=1.0)) == pytest.approx(np.vdot(smooth(one, power=1.0), other), rel=1e-4)
    assert np.vdot(one, smooth(one, power=1.0)) > 0


def test_it_leaves_the_picture_and_gives_another() -> None:
    given = picture()
    before = given.copy()
    found = smooth(given, power=1.0)
    np.testing.assert_array_equal(given, before)
    assert (found.shape, found.dtype, np.shares_memory(found, given)) == (given.shape, np.float32, False)


@pytest.mark.parametrize("numbers", [1, 500, 10_000], ids=["line by line", "in blocks", "at once"])
def test_blocks_and_place_change_nothing(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    given = picture()
    whole = smooth(given, power=1.0)
    monkeypatch.setattr(nst_engine.smoothing, "BLOCK_NUMBERS", numbers)
    monkeypatch.setattr(nst_engine.arrays, "BLOCK_NUMBERS", numbers)
    in_memory, mapped = smooth(given, power=1.0), smooth(placed(given, on_disk=True), power=1.0)
    np.testing.assert_allclose(in_memory, whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(mapped, in_memory)
    assert on_disk(mapped)
    assert not on_disk(in_memory)
