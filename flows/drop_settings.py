"""The settings file beside a drop, NAME.toml or settings.toml: any setting of a transfer over a preset, and what
only a drop has (its preset, name, priority, force, snapshot_every). Whatever is wrong with it is one sentence with its
line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from flows.toml_file import read_toml
from nst_engine.config import RANDOM_WEIGHTS, TransferConfig, did_you_mean
from nst_engine.errors import ConfigError
from nst_engine.presets import find_preset

MAX_PRIORITY: Final = 10
MAX_SNAPSHOTS: Final = 1000
_OWN_KEYS: Final = ("preset", "name", "priority", "force", "snapshot_every")
ALL_PAIRS: Final = "all"
PAIRS_CHOICES: Final = (ALL_PAIRS, "pairs.csv")
"""What a collection's settings may say of its pairs."""
_LAYER_KEYS: Final = ("content_layers", "style_layers")
_MAX_PARTS: Final = 2
_NAMED_WEIGHTS: Final = ("imagenet", RANDOM_WEIGHTS)
# Scanned from the left, a quote outside of these always begins one of them.
_STRING_OR_COMMENT: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*",
    re.DOTALL,
)
_KEY_PART: Final = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_STATEMENT: Final = re.compile(
    rf"[ \t]*(?P<table>\[{{0,2}})[ \t]*(?P<key>{_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART})*)[ \t]*[=\]]"
)


@dataclass(frozen=True)
class DropSettings:
    """What a drop asks for. `priority` is -10..10, higher first; `force` computes again what is already done; the
    picture after every `snapshot_every` iterations is kept.
    """

    preset: str
    config: TransferConfig
    name: str | None = None
    priority: int = 0
    force: bool = False
    snapshot_every: int | None = None


@dataclass(frozen=True)
class SettingsFile:
    """What a settings file gives: the whole config, a transfer's settings as they stand in it, and the other keys."""

    config: TransferConfig
    overrides: Mapping[str, Any]
    own: Mapping[str, Any]


def read_drop_settings(path: Path | None, *, preset: str, with_initial: bool = False) -> DropSettings:
    """The settings in the file at `path`, over those of the preset it names, else of `preset`; None is an empty file.

    A drop `with_initial` has a picture to start from, and starts from it unless the file has another `init`. Raises
    ConfigError, one sentence with the file, the line and the key.
    """
    default = DropSettings(preset, find_preset(preset).config)
    given = (
        None if path is None else read_settings_file(path, preset=preset, own_keys=_OWN_KEYS, may_name_weights=False)
    )
    settings = default if given is None else replace(default, config=given.config, **given.own)
    if with_initial and (given is None or "init" not in given.overrides):
        return replace(settings, config=settings.config.with_overrides({"init": "picture"}))
    return settings


def read_settings_file(path: Path, *, preset: str, own_keys: Collection[str], may_name_weights: bool) -> SettingsFile:
    """What the file at `path` gives over the preset it names, else over `preset`; beside a transfer's settings it may
    have the `own_keys`, and as `weights` the path of a file where it `may_name_weights`.

    Raises ConfigError, one sentence with the file, the line and the key.
    """
    default = find_preset(preset)
    text, given = read_toml(path)
    for key, value in given.items():
        problem = setting_problem(key, value, own_keys=own_keys)
        if key == "weights" and value not in _NAMED_WEIGHTS and not may_name_weights:
            # Whoever may drop a picture may not let the service read any of its files.
            problem = (
                f" = {value}: a drop cannot name a file; write imagenet, which is the weight file of the service, or "
                "random."
            )
        if problem:
            raise ConfigError(f"{_place(path, text, key)}: {key}{problem}")
    try:
        base = find_preset(given["preset"]).config if "preset" in given else default.config
    except ConfigError as error:
        raise ConfigError(f"{_place(path, text, 'preset')}: {error}") from error
    overrides = {key: value for key, value in given.items() if key not in own_keys}
    try:
        config = base.with_overrides(overrides)
    except ConfigError as error:
        raise ConfigError(f"{_place(path, text, *_culprit(base, overrides, str(error)))}: {error}") from error
    if "snapshot_every" in given:
        problem = snapshots_problem(given["snapshot_every"], iterations=config.iterations)
        if problem:
            raise ConfigError(f"{_place(path, text, 'snapshot_every')}: snapshot_every = {problem}")
    return SettingsFile(config, overrides, {key: given[key] for key in own_keys if key in given})


def setting_problem(key: str, value: Any, *, own_keys: Collection[str]) -> str | None:
    """What is wrong with a key, or with a value that no TransferConfig would refuse; to be said after the key."""
    if key not in own_keys and key not in TransferConfig.model_fields:
        return f": there is no such setting{did_you_mean(key, (*TransferConfig.model_fields, *own_keys))}"
    if key in ("preset", "name") and not (isinstance(value, str) and value.strip()):
        return f' = {value!r}: is not a {key}; write it in quotes, as in {key} = "default".'
    if key == "priority" and (type(value) is not int or abs(value) > MAX_PRIORITY):
        return f" = {value!r}: is not a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}; higher goes first."
    if key == "pairs" and value not in PAIRS_CHOICES:
        return f" = {value!r}: is none of {', '.join(map(repr, PAIRS_CHOICES))}; write one of them, in quotes."
    if key == "force" and not isinstance(value, bool):
        return f" = {value!r}: is neither true nor false; write one of them, without quotes."
    if isinstance(value, bool) and key in TransferConfig.model_fields:
        field = TransferConfig.model_fields[key]
        if field.annotation is not bool:
            # Pydantic takes it for 0 or 1.
            return f" = {str(value).lower()}: cannot be true or false ({field.description})."
    if key == "weights" and isinstance(value, str) and value not in _NAMED_WEIGHTS and not Path(value).is_absolute():
        return f" = {value}: is a relative path; give the absolute path of a file, or imagenet or random."
    return None


def snapshots_problem(every: object, *, iterations: int) -> str | None:
    """What is wrong with a snapshot every so many of the iterations, from its value on; None where nothing is."""
    if type(every) is not int or every < 1:
        return f"{every!r}: is not a whole number of iterations from 1 on."
    number = iterations // every + 1
    if number > MAX_SNAPSHOTS:
        return (
            f"{every}: makes {number} snapshots of {iterations} iterations, and a job keeps at most {MAX_SNAPSHOTS}; "
            f"give {iterations // MAX_SNAPSHOTS + 1} or more."
        )
    return None


def _culprit(base: TransferConfig, overrides: Mapping[str, Any], sentence: str) -> tuple[str, ...]:
    """The first key in the file with which the sentence is said; of layers, the first that is refused by itself."""
    given: dict[str, Any] = {}
    for key, value in overrides.items():
        given[key] = value
        if _refusal(base, given) == sentence:
            layers = value if key in _LAYER_KEYS and isinstance(value, dict) else {}
            return next(((key, name) for name in layers if _refusal(base, {key: {name: layers[name]}})), (key,))
    raise AssertionError(f"no key of {overrides} leads to: {sentence}")


def _refusal(base: TransferConfig, overrides: Mapping[str, Any]) -> str | None:
    try:
        base.with_overrides(overrides)
    except ConfigError as error:
        return str(error)
    return None


def _place(path: Path, text: str, *keys: str) -> str:
    """The file and the line where the key is given, or else the nearest key around it."""
    lines = _lines(text)
    line = next(lines[keys[:length]] for length in range(len(keys), 0, -1) if keys[:length] in lines)
    return f"{path}, line {line}"


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line, from 1, in which each key and table of a valid TOML text first appears, but for inline tables."""
    # Nothing in a comment or in a string of several lines may look like a statement.
    masked = _STRING_OR_COMMENT.sub(lambda found: _masked(found[0]), text)
    table: tuple[str, ...] = ()
    lines: dict[tuple[str, ...], int] = {}
    open_brackets = 0
    for number, line in enumerate(masked.split("\n"), start=1):
        if not open_brackets and (statement := _STATEMENT.match(line)):
            keys = _parts(statement["key"])
            if statement["table"]:
                table = keys
            else:
                keys = (*table, *keys)
            # No key that is asked for has more parts.
            for length in range(1, min(len(keys), _MAX_PARTS) + 1):
                lines.setdefault(keys[:length], number)
        bare = _STRING_OR_COMMENT.sub("", line)
        open_brackets += bare.count("[") - bare.count("]")
    return lines


def _masked(token: str) -> str:
    return re.sub(r"[^\n]", " ", token) if token.startswith(("#", '"""', "'''")) else token


def _parts(key: str) -> tuple[str, ...]:
    inner = tomllib.loads(f"{key} = 0")
    parts = []
    while isinstance(inner, dict):
        (part,) = inner
        parts.append(part)
        inner = inner[part]
    return tuple(parts)
