"""What makes two jobs the same, and what does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.fingerprint import fingerprint
from nst_engine.config import TransferConfig
from nst_engine.errors import WeightsError
from storage.new import NewSource

CONFIG = TransferConfig(weights="random")


def source(role: Any, sha256: str, **changes: Any) -> NewSource:
    made = NewSource(
        role=role,
        original_path=f"/in/{sha256}.png",
        file_name=f"{role}.png",
        sha256=sha256,
        bytes=9,
        rows=20,
        columns=20,
    )
    return replace(made, **changes)


SOURCES = [source("content", "a"), source("style", "b"), source("style", "c")]


def test_the_same_again_wherever_it_lay() -> None:
    moved = [replace(each, original_path="/elsewhere/x.png", file_name="x.png") for each in SOURCES]
    made = fingerprint(SOURCES, CONFIG)
    assert fingerprint(moved, TransferConfig.model_validate(CONFIG.model_dump())) == made
    assert (len(made), set(made) <= set("0123456789abcdef")) == (64, True)


@pytest.mark.parametrize(
    "sources",
    [
        pytest.param([source("content", "x"), *SOURCES[1:]], id="another content"),
        pytest.param([*SOURCES[:2], source("style", "x")], id="another style"),
        pytest.param([SOURCES[0], SOURCES[2], SOURCES[1]], id="the styles in another order"),
        pytest.param(SOURCES[:2], id="one style less"),
        pytest.param([source("content", "b"), source("style", "a"), SOURCES[2]], id="content and style exchanged"),
        pytest.param([source("style", "a"), *SOURCES[1:]], id="another role"),
    ],
)
def test_other_pictures_are_another_job(sources: list[NewSource]) -> None:
    assert fingerprint(sources, CONFIG) != fingerprint(SOURCES, CONFIG)


OTHER_SETTINGS: list[dict[str, Any]] = [
    {"rows": 401},
    {"iterations": 101},
    {"style_weight": 2e-6},
    {"seed": 7},
    {"precision": "float32"},
    {"optimizer": "adam"},
    {"style_layers": {"block1_conv1": 0.5}},
    {"scales": 2},
]


@pytest.mark.parametrize("settings", OTHER_SETTINGS, ids=[next(iter(each)) for each in OTHER_SETTINGS])
def test_any_other_setting_is_another_job(settings: dict[str, Any]) -> None:
    assert fingerprint(SOURCES, CONFIG.with_overrides(settings)) != fingerprint(SOURCES, CONFIG)


def test_at_one_scale_the_factor_between_scales_does_not_count() -> None:
    assert fingerprint(SOURCES, CONFIG.with_overrides({"scale_factor": 3})) == fingerprint(SOURCES, CONFIG)


def test_what_was_done_before_there_were_scales_is_the_same_job_still() -> None:
    before = CONFIG.with_overrides({"iterations": 100})
    assert fingerprint(SOURCES, before) == "b03aa91ae5955abbbfe1b932dfcdfcc2c9298bb122da30a170f64c650b54a384"


def test_weights_count_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, copy = tmp_path / "first.h5", tmp_path / "copy.h5"
    first.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    config = CONFIG.with_overrides({"weights": "imagenet"})

    def with_weights(path: Path) -> str:
        monkeypatch.setenv("NST_VGG19_WEIGHTS", str(path))
        return fingerprint(SOURCES, config)

    made = with_weights(first)
    assert with_weights(copy) == made
    before = copy.stat()
    copy.write_bytes(b"changed")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert with_weights(copy) != made
    assert with_weights(first) == made
    assert fingerprint(SOURCES, CONFIG) != made


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no such file"):
        fingerprint(SOURCES, CONFIG.with_overrides({"weights": str(tmp_path / "none.h5")}))


def test_weights_that_will_be_fetched_are_those_that_keras_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NST_VGG19_WEIGHTS", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    config = CONFIG.with_overrides({"weights": "imagenet"})
    made = fingerprint(SOURCES, config)
    assert made == fingerprint(SOURCES, config)
    assert made != fingerprint(SOURCES, CONFIG)
