"""Where each style counts: masks by their definition, the samples they leave, and a whole transfer under them."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError, ImageError
from nst_engine.evaluation import Evaluation
from nst_engine.images import preprocess
from nst_engine.masks import SAMPLES, Guide, feathered
from nst_engine.memory import plan_memory
from nst_engine.pictures import Pictures
from nst_engine.samples import content_sample, style_sample

if TYPE_CHECKING:
    from nst_engine.engine import Engine

LAYERS = ["block1_conv1", "block2_conv2", "block3_conv1"]


def left_half(rows: int, columns: int) -> NDArray[np.uint8]:
    mask = np.zeros((rows, columns), np.uint8)
    mask[:, : columns // 2] = 255
    return mask


def test_a_guide_without_a_mask_counts_positions() -> None:
    assert Guide.of(LAYERS, (21, 30, 3), sampled=False) == Guide(
        size=(21, 30),
        positions={"block1_conv1": 630.0, "block2_conv2": 150.0, "block3_conv1": 35.0},
        picture_positions=630.0,
        weights={},
        places={},
    )


def test_a_mask_is_averaged_as_the_poolings_go() -> None:
    mask = np.random.default_rng(1).integers(0, 256, (21, 30), np.uint8)
    guide = Guide.of(LAYERS, mask.shape, sampled=False, mask=mask)
    halves = mask[:20].reshape(10, 2, 15, 2).mean((1, 3)) / 255
    quarters = halves[:, :14].reshape(5, 2, 7, 2).mean((1, 3))
    assert list(guide.weights) == [1, 2, 4]
    for stride, expected in ((1, mask / 255), (2, halves), (4, quarters)):
        assert guide.weights[stride].dtype == np.float32
        np.testing.assert_allclose(guide.weights[stride], expected, rtol=1e-6)
    assert guide.positions == pytest.approx(
        {"block1_conv1": mask.sum() / 255, "block2_conv2": halves.sum(), "block3_conv1": quarters.sum()}, rel=1e-6
    )
    assert guide.picture_positions == guide.positions["block1_conv1"]
    owned = (slice(2, 5), slice(4, 15))
    np.testing.assert_array_equal(guide.where("block2_conv2", owned)["weights"], guide.weights[2][2:5, 4:15])


def test_feather_blurs_with_a_gaussian() -> None:
    mask = left_half(40, 60)
    found = feathered(mask, 8) / 255
    distance = np.arange(60)[:, np.newaxis] - np.arange(-60, 120)
    kernel = np.exp(-(distance**2) / (2 * 4.0**2))
    edge = (kernel * (np.arange(-60, 120) < 30)).sum(1) / kernel.sum(1)
    # Pillow blurs with boxes.
    np.testing.assert_allclose(found, np.broadcast_to(edge, (40, 60)), atol=0.02)
    np.testing.assert_array_equal(feathered(mask, 0), mask)


@pytest.mark.parametrize("mask", [None, left_half(90, 120)], ids=["everywhere", "masked"])
def test_samples_are_spread_evenly_and_each_tile_has_its_own(mask: NDArray[np.uint8] | None) -> None:
    guide = Guide.of(["block1_conv1"], (90, 120), sampled=True, mask=mask)
    places = guide.places["block1_conv1"]
    assert len(places) == SAMPLES
    rows, columns = np.divmod(places, 120)
    assert columns.max() < (120 if mask is None else 60)
    # As many in each third of the rows, but for those at the edges.
    assert np.histogram(rows, [0, 30, 60, 90])[0] == pytest.approx([SAMPLES / 3] * 3, abs=2)
    found = np.full(SAMPLES, -1)
    for down in (slice(0, 31), slice(31, 90)):
        for across in (slice(0, 50), slice(50, 120)):
            local = guide.where("block1_conv1", (down, across))["places"]
            here = local >= 0
            assert (found[here] == -1).all()
            width = across.stop - across.start
            found[here] = (down.start + local[here] // width) * 120 + across.start + local[here] % width
    np.testing.assert_array_equal(found, places)


def test_few_positions_are_all_sampled() -> None:
    places = Guide.of(LAYERS, (21, 30), sampled=True).places
    np.testing.assert_array_equal(places["block3_conv1"], np.arange(35))


def test_a_mask_with_nothing_inside_at_a_layer_is_refused() -> None:
    mask = np.zeros((21, 30), np.uint8)
    mask[20, 29] = 255
    with pytest.raises(ImageError) as refused:
        Guide.of(LAYERS, mask.shape, sampled=False, mask=mask, name="style 2")
    assert str(refused.value) == (
        "The mask of style 2 has nothing inside at block2_conv2, whose map has 10 x 15 positions; give it a larger "
        "area or ask for more rows."
    )


CONFIG = TransferConfig().with_overrides(
    {"weights": "random", "precision": "float32", "content_layers": "block1_conv2", "style_layers": "block2_conv1"}
)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(content_sample(48, 64), (style_sample(40, 52), style_sample(52, 40)[::-1]))


def evaluated(engine: "Engine", pictures: Pictures, **settings: Any) -> Evaluation:
    config = CONFIG.with_overrides(settings)
    picture = preprocess(pictures.content[:, ::-1])
    return engine.evaluator(config, pictures, precision="float32")(picture)


def test_masks_all_over_change_nothing(engine: "Engine", pictures: Pictures) -> None:
    white = np.full((48, 64), 255, np.uint8)
    masked = replace(
        pictures,
        masks=(white, white),
        style_masks=tuple(np.full(style.shape[:2], 255, np.uint8) for style in pictures.styles),
    )
    expected, found = (evaluated(engine, given) for given in (pictures, masked))
    assert found.losses.total == pytest.approx(expected.losses.total, rel=1e-6)
    np.testing.assert_allclose(found.gradient, expected.gradient, atol=1e-5 * np.abs(expected.gradient).max())


def test_each_style_goes_where_its_mask_is(engine: "Engine", pictures: Pictures) -> None:
    left = left_half(48, 64)
    only_style = {"content_weight": 0, "tv_weight": 0}
    single = replace(pictures, styles=pictures.styles[:1], masks=(left,))
    gradient = evaluated(engine, single, **only_style).gradient
    # What block2_conv1 sees around a position is 10 pixels wide.
    assert np.abs(gradient[:, :30]).max() > 0
    np.testing.assert_array_equal(gradient[:, 32 + 10 :], 0)
    both = evaluated(engine, replace(pictures, masks=(left, 255 - left)), **only_style).gradient
    assert np.abs(both[:, 32 + 10 :]).max() > 0
    # Half the weight of one style alone.
    np.testing.assert_allclose(both[:, :20], gradient[:, :20] / 2, atol=1e-5 * np.abs(gradient).max())


def test_an_engine_forgets_no_mask(engine: "Engine", pictures: Pictures) -> None:
    left, top = left_half(48, 64), left_half(64, 48).T
    style_masks = tuple(left_half(*style.shape[:2]) for style in pictures.styles)
    found = [
        evaluated(engine, given).losses.total
        for given in (
            pictures,
            replace(pictures, masks=(left, top)),
            replace(pictures, masks=(top, left)),
            replace(pictures, style_masks=style_masks),
            replace(pictures, style_masks=(None, style_masks[1])),
        )
    ]
    assert len(set(found)) == 5


def test_a_transfer_needs_a_weight_for_each_style(engine: "Engine", pictures: Pictures) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluated(engine, pictures, style_weights="1,2,3")
    assert str(refused.value) == "style_weights gives 3 weights for 2 styles; give one for each, in their order."


def test_the_plan_counts_masks_and_what_is_matched() -> None:
    def needed(masks: int = 0, **settings: Any) -> int:
        config = TransferConfig().with_overrides({"optimizer": "adam", **settings})
        return plan_memory(config, [(480, 640)] * 3, precision="float32", memory=None, masks=masks).bytes

    plain = needed()
    first_map = 480 * 640 * 64 * 4
    # What was measured on top of it at that size, in copies of the first map, see `memory`.
    measured = {
        "histogram": (needed(style_loss="histogram"), 1.1),
        "masks": (needed(masks=2), 2.2),
        "masks and statistics": (needed(masks=2, style_loss="gram,moments,histogram"), 4.4),
        "normalised": (needed(normalize_gradients=True), 0.1),
        "l2": (needed(pooling="l2"), 0.6),
    }
    assert {name for name, (found, copies) in measured.items() if found < plain + copies * first_map} == set()
    assert needed(balance=1, equal_layers=True, style_weights="2,1") == plain
