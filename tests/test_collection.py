"""What a collection's folder asks for: pairs, names, settings, and what is wrong with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.collection import Pair, Problem, collection_names, misnamed_collections, read_collection
from flows.errors import CollectionError
from flows.pair_names import pair_names
from nst_engine.presets import PRESETS
from storage.workspace import safe_name
from tests.service_process import REPOSITORY, free_port

DEFAULT = PRESETS["default"].config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection of two contents and two styles."""
    folder = tmp_path / "wedding"
    put(folder, "contents/lake.jpg", "contents/2025/lake.jpg", "styles/starry.jpg", "styles/wave.png")
    return folder


def put(folder: Path, *files: str, text: str = "") -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def names(folder: Path) -> list[str]:
    return [pair.name for pair in read_collection(folder, preset="default").pairs]


def refusal(folder: Path) -> str:
    with pytest.raises(CollectionError) as failure:
        read_collection(folder, preset="default")
    return str(failure.value).replace(str(folder), "FOLDER")


def test_a_folder_of_folders_gives_the_names_of_its_collections(tmp_path: Path) -> None:
    assert collection_names(tmp_path / "collections") == []
    put(tmp_path / "collections", "b/contents/x.jpg", "a/styles/x.jpg", ".hidden/x", "@eaDir/x", "readme.txt")
    assert collection_names(tmp_path / "collections") == ["a", "b"]


def test_a_collection_whose_name_is_no_utf_8_is_told_of_and_leaves_the_others_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    put(home / "collections", "zoo/contents/lake.jpg", "zoo/styles/wave.png")
    (home / "collections" / os.fsdecode(b"b\xe9te")).mkdir()
    sentence = f"{home}/collections/b?te: has a name that is no UTF-8; rename that folder."
    assert collection_names(home / "collections") == ["zoo"]
    assert misnamed_collections(home / "collections") == [sentence]
    assert f"{sentence}\n" in nst(home, "collections").stdout


def test_collections_that_cannot_be_read_are_told_of(tmp_path: Path) -> None:
    put(tmp_path, "collections")
    with pytest.raises(
        CollectionError, match=r"/collections: cannot be read \(Not a directory\); mend its permissions"
    ):
        collection_names(tmp_path / "collections")


def test_every_content_meets_every_style_under_the_preset_of_the_service(folder: Path) -> None:
    put(
        folder,
        "contents/.DS_Store",
        "contents/Thumbs.db",
        "styles/half.jpg.part",
        "styles/@eaDir/wave.png",
        "notes.txt",
    )
    yuan = PRESETS["yuan-2018"].config
    contents, styles = folder / "contents", folder / "styles"
    collection = read_collection(folder, preset="yuan-2018")
    assert (collection.name, collection.folder, collection.problems) == ("wedding", folder, ())
    assert collection.pairs == (
        Pair(contents / "2025/lake.jpg", styles / "starry.jpg", "2025.lake_starry", "yuan-2018", yuan, 0),
        Pair(contents / "2025/lake.jpg", styles / "wave.png", "2025.lake_wave.png", "yuan-2018", yuan, 0),
        Pair(contents / "lake.jpg", styles / "starry.jpg", "lake_starry", "yuan-2018", yuan, 0),
        Pair(contents / "lake.jpg", styles / "wave.png", "lake_wave.png", "yuan-2018", yuan, 0),
    )


def test_names_with_an_underscore_have_two_between_them(folder: Path) -> None:
    put(folder, "contents/golden_gate.jpg", "styles/starry_night.jpg")
    (folder / "styles/starry.jpg").unlink()
    (folder / "styles/wave.png").unlink()
    assert names(folder) == ["2025.lake__starry_night", "golden_gate__starry_night", "lake__starry_night"]


def test_links_are_not_followed_and_cost_all_their_pairs(folder: Path, tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/secret.jpg")
    (folder / "contents" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "secret.jpg")
    (folder / "styles" / "more").symlink_to(tmp_path / "elsewhere")
    collection = read_collection(folder, preset="default")
    assert len(collection.pairs) == 4
    assert collection.problems == (
        Problem("contents/link.jpg", "is a link or no file; put the file itself there.", 2),
        Problem("styles/more", "is a link or no file; put the file itself there.", 2),
    )


def test_a_name_that_is_no_utf_8_has_a_pair_with_a_name_that_is(folder: Path) -> None:
    (folder / "contents" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    assert "caf___starry" in names(folder)


def test_settings_count_for_all_pairs(folder: Path) -> None:
    put(folder, "settings.toml", text='preset = "yuan-2018"\niterations = 7\npriority = -3\n')
    config = PRESETS["yuan-2018"].config.with_overrides({"iterations": 7})
    pairs = read_collection(folder, preset="default").pairs
    assert [(pair.preset, pair.config, pair.priority) for pair in pairs] == [("yuan-2018", config, -3)] * 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param("rows = 3", "FOLDER/settings.toml, line 1: rows = 3: input should be greater", id="value"),
        pytest.param("\nrovs = 3", "FOLDER/settings.toml, line 2: rovs: there is no such setting; did", id="key"),
        pytest.param("force = true", "FOLDER/settings.toml, line 1: force: there is no such setting", id="a drop's"),
        pytest.param("priority = 11", "FOLDER/settings.toml, line 1: priority = 11: is not a whole", id="priority"),
        pytest.param("pairs = 'some'", "FOLDER/settings.toml, line 1: pairs = 'some': is none of 'all'", id="pairs"),
        pytest.param("weights = 'vgg.h5'", "FOLDER/settings.toml, line 1: weights = vgg.h5: is a rela", id="weights"),
        pytest.param("pairs = 'pairs.csv'", "FOLDER/pairs.csv: is not there; make it, or set pairs", id="no list"),
        pytest.param("preset = 'x'", "FOLDER/settings.toml, line 1: There is no preset 'x'", id="preset"),
        pytest.param("=", "FOLDER/settings.toml, line 1: is not valid TOML", id="syntax"),
    ],
)
def test_wrong_settings_refuse_the_collection(folder: Path, settings: str, said: str) -> None:
    put(folder, "settings.toml", text=settings)
    assert refusal(folder).startswith(said)


def test_a_wrong_preset_of_the_service_is_told_of(folder: Path) -> None:
    with pytest.raises(CollectionError, match="There is no preset 'defualt'"):
        read_collection(folder, preset="defualt")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param([], "FOLDER: cannot be read (No such file or directory); make that folder, with", id="nothing"),
        pytest.param(
            ["contents/a.jpg"],
            "FOLDER/styles: cannot be read (No such file or directory); put the pictures to paint like there.",
            id="no styles",
        ),
        pytest.param(
            ["styles/a.jpg", "contents"],
            "FOLDER/contents: cannot be read (Not a directory); put the pictures to paint there.",
            id="a file in place of a folder",
        ),
        pytest.param(
            ["styles/a.jpg", "contents/.hidden"],
            "FOLDER/contents: holds no pictures; put the pictures to paint there.",
            id="empty",
        ),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path, files: list[str], said: str) -> None:
    put(tmp_path / "wedding", *files)
    assert refusal(tmp_path / "wedding").startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("content,style,iterations\n2025/lake.jpg,wave.png,9\nlake.jpg,starry.jpg,\n", id="plain"),
        pytest.param(
            "\ufeffContent;Style;Iterations\r\n2025\\lake.jpg;wave.png;9\r\nlake.jpg;starry.jpg\r\n;;\r\n",
            id="from Excel",
        ),
        pytest.param('"style", iterations ,content,\nwave.png,9,"2025/lake.jpg",\n\nstarry.jpg,,lake.jpg', id="order"),
    ],
)
def test_a_list_of_pairs_takes_the_place_of_all_pairs(folder: Path, text: str) -> None:
    put(folder, "pairs.csv", text=text)
    put(folder, "settings.toml", text="iterations = 5")
    collection = read_collection(folder, preset="default")
    assert collection.problems == ()
    assert [(pair.name, pair.config) for pair in collection.pairs] == [
        ("2025.lake_wave.png", DEFAULT.with_overrides({"iterations": 9})),
        ("lake_starry", DEFAULT.with_overrides({"iterations": 5})),
    ]


def test_the_settings_may_ask_for_all_pairs_beside_a_list(folder: Path) -> None:
    put(folder, "pairs.csv", text="content,style\nlake.jpg,wave.png\n")
    assert len(names(folder)) == 1
    put(folder, "settings.toml", text='pairs = "all"')
    assert len(names(folder)) == 4


def test_a_row_may_name_its_preset_and_size(folder: Path) -> None:
    put(
        folder,
        "pairs.csv",
        text="content,style,preset,long_edge,style_layers,priority,clip\n"
        'lake.jpg,wave.png,yuan-2018,100,"block1_conv1:2,block2_conv1:1",4,false\n',
    )
    put(folder, "settings.toml", text="rows = 64\npriority = 2")
    (pair,) = read_collection(folder, preset="default").pairs
    layers = {"block1_conv1": 2.0, "block2_conv1": 1.0}
    config = PRESETS["yuan-2018"].config.with_overrides({"long_edge": 100, "style_layers": layers, "clip": False})
    assert (pair.preset, pair.config, pair.priority) == ("yuan-2018", config, 4)


def test_a_decomposed_name_is_found_by_its_composed_form(folder: Path) -> None:
    put(folder, "contents/cafe\u0301.jpg", "pairs.csv", text="content,style\ncaf\u00e9.jpg,wave.png\n")
    (pair,) = read_collection(folder, preset="default").pairs
    assert pair.content.name == "cafe\u0301.jpg"


def test_a_bad_row_fails_only_itself(folder: Path) -> None:
    (folder / "contents" / "link.jpg").symlink_to(folder / "contents" / "lake.jpg")
    rows = [
        "content,style,rows,preset,priority,weights,snapshot_every",
        "lake.jpg,wave.png,64",
        "laek.jpg,wave.png,",
        ",starry.jpg",
        "lake.jpg,../wave.png",
        "lake.jpg,wave.png,65",
        "lake.jpg,starry.jpg,many",
        "lake.jpg,starry.jpg,,no-such",
        "lake.jpg,starry.jpg,,,high",
        "lake.jpg,starry.jpg,,,,vgg.h5",
        "link.jpg,starry.jpg",
        "lake.jpg,starry.jpg,,,,,often",
        "lake.jpg,starry.jpg,64,,,,,more",
        "lake.jpg,starry.jpg,66",
    ]
    put(folder, "pairs.csv", text="\n".join(rows))
    collection = read_collection(folder, preset="default")
    assert [(pair.name, pair.config.rows) for pair in collection.pairs] == [("lake_starry", 66), ("lake_wave.png", 64)]
    reasons = [
        "there is no laek.jpg in contents/; did you mean 'lake.jpg'?",
        "names no content; give its path in contents/.",
        "there is no ../wave.png in styles/; did you mean 'wave.png'?",
        "names the same pair as line 2; keep one of them.",
        "rows = many: input should be a valid integer, unable to parse string as an integer (rows of the result, ",
        "There is no preset 'no-such'. 'nst presets' lists them.",
        "priority = 'high': is not a whole number from -10 to 10; higher goes first.",
        "weights = vgg.h5: is a relative path; give the absolute path of a file, or imagenet or random.",
        "link.jpg in contents/ is a link or no file; put the file itself there.",
        "snapshot_every = 'often': is not a whole number of iterations from 1 on.",
        "has a cell without a column; put text with a separator in it in quotes.",
    ]
    assert [problem.file for problem in collection.problems] == [f"pairs.csv, line {line}" for line in range(3, 14)]
    assert {problem.pairs for problem in collection.problems} == {1}
    for problem, reason in zip(collection.problems, reasons, strict=True):
        assert problem.reason.startswith(reason)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(
            b"content,stile\n", "FOLDER/pairs.csv, line 1: there is no column 'stile'; did you m", id="column"
        ),
        pytest.param(b"lake.jpg,wave.png\n", "FOLDER/pairs.csv, line 1: there is no column 'lake.jpg'.", id="header"),
        pytest.param(b"content,rows\n", "FOLDER/pairs.csv, line 1: has no column style; begin the", id="no style"),
        pytest.param(b"", "FOLDER/pairs.csv, line 1: has no column content and no column style; beg", id="empty"),
        pytest.param(b"content,style,style\n", "FOLDER/pairs.csv, line 1: has the column 'style' twice", id="twice"),
        pytest.param(
            b"content,style\n,\n", "FOLDER/pairs.csv: names no pair; add a row for each, or del", id="no rows"
        ),
        pytest.param(b"content,style\ncaf\xe9.jpg,a", "FOLDER/pairs.csv, line 2: is not UTF-8 text", id="Latin-1"),
        pytest.param(b'content,style\na,"b', "FOLDER/pairs.csv, line 2: is not valid CSV (", id="quote"),
    ],
)
def test_a_list_that_cannot_be_used_refuses_the_collection(folder: Path, data: bytes, said: str) -> None:
    (folder / "pairs.csv").write_bytes(data)
    assert refusal(folder).startswith(said)


def nst(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NST_", "PREFECT_"))}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments, "--home", str(home)],
        cwd=REPOSITORY,
        env={**kept, "NST_PREFECT_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_list_of_collections_needs_no_service_and_says_what_is_wrong(tmp_path: Path) -> None:
    home = tmp_path / "home"
    none = nst(home, "collections")
    assert (none.returncode, none.stdout) == (
        0,
        f"There are no collections in {home}/collections; make a folder there with contents/ and styles/.\n",
    )
    put(home / "collections", "wedding/contents/lake.jpg", "wedding/styles/wave.png", "empty/notes.txt")
    (home / "collections/wedding/styles/link.jpg").symlink_to("wave.png")
    nothing = {"done": 0, "failed": 0, "last_night": None, "next_night": None}
    missing = (
        f"{home}/collections/empty/contents: cannot be read (No such file or directory); put the pictures to paint"
    )
    link = "styles/link.jpg: is a link or no file; put the file itself there."
    listed = nst(home, "collections", "--json")
    assert json.loads(listed.stdout) == [
        {"name": "empty", "contents": None, "styles": None, "pairs": None, "problems": [], "error": f"{missing} there."}
        | nothing,
        {"name": "wedding", "contents": 1, "styles": 1, "pairs": 1, "problems": [link], "error": None} | nothing,
    ]
    shown = nst(home, "collections").stdout
    assert f"wedding: {link}\n" in shown
    assert f"empty: {missing} there.\n" in shown
    # Looking makes no database.
    assert [path.name for path in home.iterdir()] == ["collections"]


def test_the_schedule_needs_a_service(tmp_path: Path) -> None:
    for option in ("--json", "--pause", "--resume"):
        done = nst(tmp_path, "schedule", option)
        assert (done.returncode, done.stdout) == (3, "")
        said = re.sub(r":\d+/api", ":PORT/api", done.stderr)
        assert said == (
            f"nst: No service runs for {tmp_path} (http://127.0.0.1:PORT/api does not answer); start it with nst up.\n"
        )


# Names of every kind, and names that differ in more than capitals and in what file names must not have.
ANY_NAME = (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
    | st.binary(min_size=1, max_size=60).map(
        lambda data: os.fsdecode(data.replace(b"/", b"").replace(b"\0", b"") or b"a")
    )
).filter(lambda name: name not in (".", ".."))
PLAIN_NAME = st.lists(st.sampled_from(["a", "b", "lake", "img", "7"]), min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from("_-").map(lambda joint: joint.join(words))
)
SUFFIX = st.sampled_from([".jpg", ".jpeg", ".png"])
PLAIN_PATH = st.builds(
    lambda folders, stem, suffix: PurePosixPath(*folders, stem + suffix),
    st.lists(PLAIN_NAME, max_size=2),
    PLAIN_NAME,
    SUFFIX,
)
ANY_PATH = st.builds(lambda parts: PurePosixPath(*parts), st.lists(ANY_NAME, min_size=1, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(ANY_PATH | PLAIN_PATH, ANY_PATH | PLAIN_PATH), max_size=30))
def test_names_are_good_for_files_and_differ_in_more_than_capitals(
    pairs: set[tuple[PurePosixPath, PurePosixPath]],
) -> None:
    made = pair_names(sorted(pairs))
    assert [safe_name(name) for name in made] == made
    assert len({name.casefold() for name in made}) == len(pairs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PLAIN_PATH, PLAIN_PATH), unique=True, min_size=1, max_size=30), st.data())
def test_a_pair_keeps_its_name_when_other_files_come_and_go(
    pairs: list[tuple[PurePosixPath, PurePosixPath]], data: st.DataObject
) -> None:
    kept = data.draw(st.lists(st.sampled_from(pairs), unique=True))
    whole = dict(zip(pairs, pair_names(pairs), strict=True))
    assert pair_names(kept) == [whole[pair] for pair in kept]


def test_two_names_that_a_file_system_could_take_for_one_are_told_apart() -> None:
    style = PurePosixPath("wave.jpg")
    pairs = [(PurePosixPath(name), style) for name in ("Lake.jpg", "lake.jpg", "sea?.jpg", "sea!.jpg", "x" * 150)]
    made = pair_names(pairs)
    assert [re.sub("[0-9a-f]{8}$", "HASH", name) for name in made] == [
        "Lake_wave-HASH",
        "lake_wave-HASH",
        "sea___wave-HASH",
        "sea___wave-HASH",
        f"{'x' * 100}-HASH",
    ]
    assert len(set(made)) == 5
