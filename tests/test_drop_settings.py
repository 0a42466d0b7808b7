"""The settings file of a drop: what it may say, and the one sentence with the line for what it may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.drop_settings import DropSettings, SettingsFile, read_drop_settings, read_settings_file
from flows.toml_file import MAX_BYTES, MAX_LINE
from nst_engine.config import TransferConfig
from nst_engine.errors import ConfigError
from nst_engine.presets import PRESETS

DEFAULT = TransferConfig()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sunset.toml"


def read(path: Path, text: str) -> DropSettings:
    path.write_bytes(text.encode())
    return read_drop_settings(path, preset="default")


def refusal(path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as failure:
        read(path, text)
    return str(failure.value).replace(str(path), "FILE")


def test_no_file_means_the_preset() -> None:
    yuan = read_drop_settings(None, preset="yuan-2018")
    assert yuan == DropSettings("yuan-2018", PRESETS["yuan-2018"].config, name=None, priority=0, force=False)


@pytest.mark.parametrize("given", [None, "a file"])
def test_the_default_preset_must_exist(path: Path, given: str | None) -> None:
    path.write_text("rows = 64")
    with pytest.raises(ConfigError, match=r"^There is no preset 'defualt'; did you mean 'default'\?"):
        read_drop_settings(path if given else None, preset="defualt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", DropSettings("default", DEFAULT), id="empty"),
        pytest.param("rows = 64", DropSettings("default", DEFAULT.with_overrides({"rows": 64})), id="a setting"),
        pytest.param(
            'name = "Evening"\npriority = -10\nforce = true',
            DropSettings("default", DEFAULT, name="Evening", priority=-10, force=True),
            id="a drop's own",
        ),
        pytest.param("priority = 10\nforce = false", DropSettings("default", DEFAULT, priority=10), id="first"),
        pytest.param(
            'iterations = 7\npreset = "yuan-2018"',
            DropSettings("yuan-2018", PRESETS["yuan-2018"].config.with_overrides({"iterations": 7})),
            id="a setting over another preset",
        ),
        pytest.param(
            "style_layers = {block1_conv1 = 1.0, block2_conv1 = 3}",
            DropSettings("default", DEFAULT.with_overrides({"style_layers": {"block1_conv1": 1.0, "block2_conv1": 3}})),
            id="inline table",
        ),
        pytest.param(
            "[style_layers]\nblock1_conv1 = 1.0",
            DropSettings("default", DEFAULT.with_overrides({"style_layers": {"block1_conv1": 1.0}})),
            id="table",
        ),
        pytest.param(
            'content_layers = ["block4_conv2"]',
            DropSettings("default", DEFAULT.with_overrides({"content_layers": ["block4_conv2"]})),
            id="list",
        ),
        pytest.param(
            "\ufefflong_edge = 512\r\nclip = false\r\n",
            DropSettings("default", DEFAULT.with_overrides({"long_edge": 512, "clip": False})),
            id="from Windows",
        ),
        *(
            pytest.param(
                f'weights = "{weights}"',
                DropSettings("default", DEFAULT.with_overrides({"weights": weights})),
                id=weights,
            )
            for weights in ("imagenet", "random")
        ),
    ],
)
def test_what_a_file_may_say(path: Path, text: str, expected: DropSettings) -> None:
    assert read(path, text) == expected


SENTENCES = {
    "unknown key": (
        "rows = 64\nitertions = 3",
        "FILE, line 2: itertions: there is no such setting; did you mean 'iterations'?",
    ),
    "unknown key near a drop's own": (
        "prioritee = 3",
        "FILE, line 1: prioritee: there is no such setting; did you mean 'priority'?",
    ),
    "unknown table": ("\n[transfer]\nrows = 64", "FILE, line 2: transfer: there is no such setting."),
    "value": (
        "# small\n\nrows = 8",
        "FILE, line 3: rows = 8: input should be greater than or equal to 16 (rows of the result, the columns follow "
        "the content's shape; content: its own size).",
    ),
    "first wrong setting, not first line": (
        "iterations = 0\nrows = 8",
        "FILE, line 2: rows = 8: input should be greater than or equal to 16 (rows of the result, the columns follow "
        "the content's shape; content: its own size).",
    ),
    "two that exclude each other": (
        "rows = 64\nseed = 1\nlong_edge = 64\nkeep = 'best'",
        "FILE, line 3: Give either rows or long_edge, and 'none' for the other.",
    ),
    "one that excludes the preset's": (
        "keep = 'best'\npreset = 'yuan-2018'\noptimizer = 'lbfgs'",
        "FILE, line 3: clip works with sgd and adam, not with lbfgs; set clip=false.",
    ),
    "unknown layer in a table": (
        "[style_layers]\nblock1_conv1 = 1\nblock3_conv9 = 1",
        "FILE, line 3: style_layers: VGG19 has no convolution 'block3_conv9'; did you mean 'block3_conv4'?",
    ),
    "unknown layer in dotted keys": (
        "style_layers.block1_conv1 = 1\n'style_layers' . \"block3_conv9\" = 1",
        "FILE, line 2: style_layers: VGG19 has no convolution 'block3_conv9'; did you mean 'block3_conv4'?",
    ),
    "unknown layer in a list of several lines": (
        "rows = 64\nstyle_layers = [\n  'block1_conv1',\n  'block3_conv9',\n]",
        "FILE, line 2: style_layers: VGG19 has no convolution 'block3_conv9'; did you mean 'block3_conv4'?",
    ),
    "weight in an inline table": (
        "rows = 64\ncontent_layers = {block5_conv2 = -1}",
        "FILE, line 2: content_layers.block5_conv2 = -1: input should be greater than 0 (content layers and their "
        "weights).",
    ),
    "no layer": (
        "[content_layers]",
        "FILE, line 1: content_layers: needs at least one layer, such as block1_conv1.",
    ),
    "table for a number": (
        "rows.high = 3",
        "FILE, line 1: rows = {'high': 3}: input should be a valid integer (rows of the result, the columns follow the "
        "content's shape; content: its own size).",
    ),
    "no such preset": (
        "rows = 64\npreset = 'defualt'",
        "FILE, line 2: There is no preset 'defualt'; did you mean 'default'? 'nst presets' lists them.",
    ),
    "preset no text": (
        "preset = 3",
        'FILE, line 1: preset = 3: is not a preset; write it in quotes, as in preset = "default".',
    ),
    "blank name": (
        "name = ' '",
        "FILE, line 1: name = ' ': is not a name; write it in quotes, as in name = \"default\".",
    ),
    "priority too high": (
        "priority = 11",
        "FILE, line 1: priority = 11: is not a whole number from -10 to 10; higher goes first.",
    ),
    "priority too low": (
        "priority = -11",
        "FILE, line 1: priority = -11: is not a whole number from -10 to 10; higher goes first.",
    ),
    "priority true": (
        "priority = true",
        "FILE, line 1: priority = True: is not a whole number from -10 to 10; higher goes first.",
    ),
    "priority a fraction": (
        "priority = 1.0",
        "FILE, line 1: priority = 1.0: is not a whole number from -10 to 10; higher goes first.",
    ),
    "force as text": (
        'force = "yes"',
        "FILE, line 1: force = 'yes': is neither true nor false; write one of them, without quotes.",
    ),
    "relative weights": (
        "weights = 'models/vgg19.h5'",
        "FILE, line 1: weights = models/vgg19.h5: a drop cannot name a file; write imagenet, which is the weight file "
        "of the service, or random.",
    ),
    "weights elsewhere": (
        "weights = '/etc/passwd'",
        "FILE, line 1: weights = /etc/passwd: a drop cannot name a file; write imagenet, which is the weight file of "
        "the service, or random.",
    ),
    "syntax": (
        "rows = 64\nkeep = best",
        "FILE, line 2: is not valid TOML (invalid value at column 8); mend that line.",
    ),
    "syntax at the end": (
        "rows = 64\nkeep = \n\n",
        "FILE, line 2: is not valid TOML (invalid value at column 8); mend that line.",
    ),
    "syntax at the very end": (
        "rows = 64\nkeep = ",
        "FILE, line 2: is not valid TOML (invalid value); mend that line.",
    ),
    "same key twice": (
        "rows = 64\nrows = 65\nseed = 1",
        "FILE, line 2: is not valid TOML (cannot overwrite a value at column 10); mend that line.",
    ),
    "nested without end": (
        f"rows = {'[' * (MAX_LINE - 10)}",
        "FILE: is nested too deeply; settings are lines such as rows = 400.",
    ),
    "a line too long": (
        f"rows = 64\n{'a.' * MAX_LINE}a = 1",
        f"FILE, line 2: is longer than {MAX_LINE} characters; break it into lines.",
    ),
    "too large": (
        "# long\n" * (MAX_BYTES // 7 + 1),
        "FILE: is larger than 0.1 MB; a file of settings is a few lines of TOML.",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_one_sentence_for_what_is_wrong(path: Path, text: str, sentence: str) -> None:
    assert refusal(path, text) == sentence


LOOKALIKES = '''
# rows = 1
name = """
rows = 2
\\""" [style_layers] \\"""
""""
weights = \'\'\'
/models # "rows" = 3
[style_layers]\'\'\'
preset = "default" # rows = 4 """
style_layers = [ # ]
  "block1_conv1", # [
  """
  block2_conv1""",
]
init = "content" # ] "
'''


def read_of_anybody(path: Path, text: str) -> SettingsFile:
    path.write_text(text)
    return read_settings_file(path, preset="default", own_keys=("name", "preset"), may_name_weights=True)


@pytest.mark.parametrize("line", ["rows = 8", '"rows" = 8', "'rows'=8", ' "r\\u006fws"\t= 8'])
def test_the_line_is_that_of_the_key_and_not_of_what_looks_like_it(path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as failure:
        read_of_anybody(path, f"{LOOKALIKES}{line}\n")
    assert str(failure.value).startswith(f"{path}, line 17: rows = 8: ")


def test_the_lookalikes_themselves_are_read(path: Path) -> None:
    settings = read_of_anybody(path, f"{LOOKALIKES}rows = 64")
    assert (settings.config.rows, settings.own["name"]) == (64, 'rows = 2\n""" [style_layers] """\n"')


def test_nested_lists_open_no_table(path: Path) -> None:
    text = 'style_layers = [\n"block1_conv1",\n]\nseed = [\n["rows"]\n]\nrows = 8'
    assert refusal(path, text).startswith("FILE, line 7: rows = 8: ")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(
            b"rows = 64\nname = '\xe9'", "FILE, line 2: is not UTF-8 text; save the file as UTF-8.", id="Latin-1"
        ),
        pytest.param(
            "rows = 64".encode("utf-16"), "FILE, line 1: is not UTF-8 text; save the file as UTF-8.", id="UTF-16"
        ),
    ],
)
def test_not_utf_8(path: Path, data: bytes, sentence: str) -> None:
    path.write_bytes(data)
    with pytest.raises(ConfigError) as failure:
        read_drop_settings(path, preset="default")
    assert str(failure.value).replace(str(path), "FILE") == sentence


def test_a_file_at_the_limit_is_read(path: Path) -> None:
    line = "rows = 64\n"
    assert read(path, line + "#" * 9 + ("\n" + "#" * 9) * ((MAX_BYTES - len(line) - 9) // 10)).config.rows == 64


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_unreadable(path: Path, kind: str) -> None:
    reason = {"missing": "No such file or directory", "folder": "Is a directory"}[kind]
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ConfigError) as failure:
        read_drop_settings(path, preset="default")
    assert str(failure.value) == f"{path}: cannot be read ({reason}); put a file there that this user may read."


def test_the_four_keys_are_no_settings_of_a_transfer() -> None:
    own: dict[str, Any] = {"preset": "default", "name": "a", "priority": 1, "force": True}
    assert not own.keys() & TransferConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("text", "init"),
    [
        ("rows = 64", "picture"),
        ('preset = "paper-fig4"', "picture"),
        ('init = "grey"', "grey"),
        (None, "picture"),
    ],
    ids=["no init", "the preset's init", "the file's init", "no file"],
)
def test_a_drop_with_an_initial_picture_begins_with_it_unless_the_file_says_otherwise(
    path: Path, text: str | None, init: str
) -> None:
    if text is not None:
        path.write_text(text)
    given = path if text is not None else None
    with_initial = read_drop_settings(given, preset="default", with_initial=True)
    without = read_drop_settings(given, preset="default")
    assert with_initial == replace(without, config=without.config.with_overrides({"init": init}))
