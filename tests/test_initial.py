"""The picture that a transfer starts from: a given one, and the share of noise in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine import arrays
from nst_engine.arrays import on_disk
from nst_engine.config import Init, TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import ConfigError
from nst_engine.images import preprocess, resize
from nst_engine.pictures import Pictures, fit_pictures, initial_picture
from nst_engine.samples import style_sample
from nst_engine.transfer import start

NONE_GIVEN = "init = picture needs a picture to start from, and none is given; give one, or another init."


def config(**settings: Any) -> TransferConfig:
    return TransferConfig().with_overrides({"rows": 48} | settings)


@pytest.fixture(scope="module")
def given() -> NDArray[np.uint8]:
    """Another picture than content and style, of another size."""
    return np.ascontiguousarray(255 - style_sample(90, 120)[:, ::-1])


@pytest.fixture(scope="module")
def pictures(content: NDArray[np.uint8], style: NDArray[np.uint8], given: NDArray[np.uint8]) -> Pictures:
    return fit_pictures(config(init="picture"), content, [style], initial=given)


def test_from_a_given_picture(pictures: Pictures, given: NDArray[np.uint8]) -> None:
    rows, columns = pictures.content.shape[:2]
    expected = preprocess(resize(given, rows=rows, columns=columns))
    np.testing.assert_array_equal(initial_picture(config(init="picture"), pictures), expected)


def test_none_given(content: NDArray[np.uint8], style: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError) as fitting:
        fit_pictures(config(init="picture"), content, [style])
    with pytest.raises(ConfigError) as starting:
        initial_picture(config(init="picture"), Pictures(content, (style,)))
    assert (str(fitting.value), str(starting.value)) == (NONE_GIVEN, NONE_GIVEN)


@pytest.mark.parametrize("init", ["content", "style", "grey", "picture"])
def test_a_share_of_noise(pictures: Pictures, init: Init) -> None:
    plain = initial_picture(config(init=init), pictures)
    noise = initial_picture(config(init="noise", seed=3), pictures)
    blended = initial_picture(config(init=init, init_noise=0.3, seed=3), pictures)
    assert (blended.shape, blended.dtype) == (plain.shape, np.float32)
    np.testing.assert_allclose(blended, 0.7 * plain.astype(np.float64) + 0.3 * noise, atol=1e-4)
    for share, expected in ((0, plain), (1, noise)):
        same = initial_picture(config(init=init, init_noise=share, seed=3), pictures)
        np.testing.assert_array_equal(same, expected)


def test_noise_is_noise_whatever_its_share(pictures: Pictures) -> None:
    np.testing.assert_array_equal(
        initial_picture(config(init="noise", init_noise=0.3), pictures), initial_picture(config(init="noise"), pictures)
    )


def test_the_same_bits_on_disk(monkeypatch: pytest.MonkeyPatch, pictures: Pictures) -> None:
    asked = config(init="picture", init_noise=0.5)
    expected = initial_picture(asked, pictures)
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 700)
    there = initial_picture(asked, pictures.placed(on_disk=True))
    assert on_disk(there)
    np.testing.assert_array_equal(there, expected)


@pytest.mark.parametrize("scales", [1, 2])
def test_a_transfer_starts_from_it(
    engine: Engine,
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    given: NDArray[np.uint8],
    weights_choice: str,
    scales: int,
) -> None:
    """At the coarsest scale, where it is made as small as the content."""
    asked = config(
        init="picture",
        scales=scales,
        content_layers="block2_conv2",
        style_layers="block1_conv1,block2_conv1",
        precision="float32",
        weights=weights_choice,
    )
    fitted = fit_pictures(asked, content, [style], initial=given)
    state, first = start(engine, asked, fitted)
    assert fitted.initial is not None
    expected = preprocess(resize(fitted.initial, rows=48 // scales, columns=64 // scales))
    np.testing.assert_array_equal(state.picture, expected)
    assert first.losses.content > 0
