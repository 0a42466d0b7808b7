"""The rules of the inbox: a listing in, all drops and all that waits out."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.inbox import Assessment, Drop, Entry, Waiting, assess, is_junk, is_litter

STRAY = "is not part of a pair; name it NAME_content.EXT or NAME_style.EXT, or see README.txt in the home folder"
FOLDER = "waits: put it into a folder of its own together with its"


def entry(path: str, kind: Literal["file", "folder", "link", "other"] = "file") -> Entry:
    return Entry(Path(path), kind, size=1, mtime_ns=1, inode=1)


def drop(name: str, kind: Any, content: str, *styles: str, **rest: Any) -> Drop:
    problem = rest.pop("problem", None)
    several = {
        key: tuple(Path(path) if path else None for path in rest.pop(key, ()))
        for key in ("others", "masks", "style_masks")
    }
    named: dict[str, Any] = {key: Path(path) for key, path in rest.items()} | several
    return Drop(name, kind, Path(content), tuple(Path(path) for path in styles), problem=problem, **named)


def pair(name: str, content: str, *styles: str, **rest: Any) -> Drop:
    return drop(name, "pair", content, *styles, **rest)


def folder(path: str, content: str, *styles: str, **rest: Any) -> Drop:
    return drop(Path(path).name, "folder", content, *styles, folder=path, **rest)


def styled(name: str, content: str, *styles: str, **rest: Any) -> Drop:
    return drop(name, "style folder", content, *styles, **rest)


CASES: dict[str, tuple[list[str], list[Drop], dict[str, str]]] = {
    "nothing": ([], [], {}),
    # Pairs
    "pair": (
        ["sunset_content.jpg", "sunset_style.png"],
        [pair("sunset", "sunset_content.jpg", "sunset_style.png")],
        {},
    ),
    "pair with dots": (["a.content.jpg", "a.style.jpg"], [pair("a", "a.content.jpg", "a.style.jpg")], {}),
    "pair with hyphens": (["a-content.jpg", "a-style.jpg"], [pair("a", "a-content.jpg", "a-style.jpg")], {}),
    "pair with two separators": (["a-content.jpg", "a.style.jpg"], [pair("a", "a-content.jpg", "a.style.jpg")], {}),
    "case of role and name": (
        ["Sunset_CONTENT.JPG", "sUNSET_Style.Png"],
        [pair("Sunset", "Sunset_CONTENT.JPG", "sUNSET_Style.Png")],
        {},
    ),
    "the content's spelling, also where the style comes first": (
        ["SUNSET_style.jpg", "sunset_content.jpg"],
        [pair("sunset", "sunset_content.jpg", "SUNSET_style.jpg")],
        {},
    ),
    "composed and decomposed letters": (
        ["caf\u00e9_content.jpg", "cafe\u0301_style.jpg"],
        [pair("caf\u00e9", "caf\u00e9_content.jpg", "cafe\u0301_style.jpg")],
        {},
    ),
    "separators, spaces and roles in the name": (
        ["my_style - 2_content.jpg", "my_style - 2_style.jpg"],
        [pair("my_style - 2", "my_style - 2_content.jpg", "my_style - 2_style.jpg")],
        {},
    ),
    "any extension": (["a_content.xyz", "a_style.txt"], [pair("a", "a_content.xyz", "a_style.txt")], {}),
    "pair with settings": (
        ["sunset_content.jpg", "sunset_style.jpg", "SUNSET.TOML"],
        [pair("sunset", "sunset_content.jpg", "sunset_style.jpg", settings="SUNSET.TOML")],
        {},
    ),
    "several styles by number": (
        ["a_content.jpg", "a_style10.jpg", "a_style2.jpg", "a_style.jpg", "a_style0.jpg"],
        [pair("a", "a_content.jpg", "a_style.jpg", "a_style0.jpg", "a_style2.jpg", "a_style10.jpg")],
        {},
    ),
    "numbered styles only": (
        ["a_content.jpg", "a_style2.jpg", "a_style1.jpg"],
        [pair("a", "a_content.jpg", "a_style1.jpg", "a_style2.jpg")],
        {},
    ),
    "pairs by content": (
        [
            "b_content.jpg",
            "b_style.jpg",
            "a_content.jpg",
            "a_style.jpg",
            "deep/er/c_content.jpg",
            "deep/er/c_style.jpg",
        ],
        [
            pair("a", "a_content.jpg", "a_style.jpg"),
            pair("b", "b_content.jpg", "b_style.jpg"),
            pair("c", "deep/er/c_content.jpg", "deep/er/c_style.jpg"),
        ],
        {},
    ),
    "pairs by content, not by name": (
        ["a/z_content.jpg", "a/z_style.jpg", "z/a_content.jpg", "z/a_style.jpg"],
        [pair("z", "a/z_content.jpg", "a/z_style.jpg"), pair("a", "z/a_content.jpg", "z/a_style.jpg")],
        {},
    ),
    "halves in two folders": (
        ["trip/a_content.jpg", "other/a_style.jpg"],
        [],
        {
            "other/a_style.jpg": "waits for other/a_content.*",
            "trip/a_content.jpg": "waits for trip/a_style.*",
        },
    ),
    "folders of two spellings are two": (
        ["trip/a_content.jpg", "Trip/a_style.jpg"],
        [],
        {"Trip/a_style.jpg": "waits for Trip/a_content.*", "trip/a_content.jpg": "waits for trip/a_style.*"},
    ),
    "content alone": (["sunset_content.jpg"], [], {"sunset_content.jpg": "waits for sunset_style.*"}),
    "style alone": (["sunset_style2.jpg"], [], {"sunset_style2.jpg": "waits for sunset_content.*"}),
    "content with settings": (
        ["Sunset_content.jpg", "sunset.toml"],
        [],
        {"Sunset_content.jpg": "waits for Sunset_style.*", "sunset.toml": "waits for Sunset_style.*"},
    ),
    "settings alone": (["sunset.toml"], [], {"sunset.toml": "waits for sunset_content.* and sunset_style.*"}),
    "two contents": (
        ["a_content.jpg", "A-content.png", "a_style.jpg", "a.toml", "b_content.jpg", "b_style.jpg"],
        [pair("b", "b_content.jpg", "b_style.jpg")],
        dict.fromkeys(
            ("A-content.png", "a_content.jpg", "a_style.jpg", "a.toml"),
            "waits because a has more than one content (A-content.png, a_content.jpg); keep one",
        ),
    ),
    "two files for one style": (
        ["trip/a_content.jpg", "trip/a_style.jpg", "trip/a_style.png", "trip/a_style1.jpg"],
        [],
        {
            f"trip/{name}": "waits because trip/a has more than one style (a_style.jpg, a_style.png); keep one, or "
            "number them trip/a_style1.* and trip/a_style2.*"
            for name in ("a_content.jpg", "a_style.jpg", "a_style.png", "a_style1.jpg")
        },
    ),
    "two files for one number": (
        ["a_content.jpg", "a_style1.jpg", "a_style01.jpg"],
        [],
        dict.fromkeys(
            ("a_content.jpg", "a_style1.jpg", "a_style01.jpg"),
            "waits because a has more than one style1 (a_style01.jpg, a_style1.jpg); keep one, or number them "
            "a_style1.* and a_style2.*",
        ),
    ),
    "two files of settings": (
        ["a_content.jpg", "a_style.jpg", "a.toml", "A.toml"],
        [],
        dict.fromkeys(
            ("a_content.jpg", "a_style.jpg", "a.toml", "A.toml"),
            "waits because a has more than one file of settings (A.toml, a.toml); keep one",
        ),
    ),
    "nearly a pair": (
        [
            "a_contents.jpg",
            "a_style_1.jpg",
            "_content.jpg",
            "acontent.jpg",
            "a_style",
            "a_content.",
            "a_style\u0661.jpg",
            "a_\u017ftyle.jpg",
        ],
        [],
        dict.fromkeys(
            (
                "a_contents.jpg",
                "a_style_1.jpg",
                "_content.jpg",
                "acontent.jpg",
                "a_style",
                "a_content.",
                "a_style\u0661.jpg",
                "a_\u017ftyle.jpg",
            ),
            STRAY,
        ),
    ),
    "a stray picture": (["trip/photo.jpg", "photo.jpg"], [], {"photo.jpg": STRAY, "trip/photo.jpg": STRAY}),
    # Masks and initial pictures
    "pair with a mask, a style mask and an initial picture": (
        ["a_content.jpg", "a_init.jpg", "a_mask.png", "a_style.jpg", "a_stylemask.png", "a.toml"],
        [
            pair(
                "a",
                "a_content.jpg",
                "a_style.jpg",
                masks=["a_mask.png"],
                style_masks=["a_stylemask.png"],
                initial="a_init.jpg",
                settings="a.toml",
            )
        ],
        {},
    ),
    "spellings of masks and initial pictures": (
        ["a_content.jpg", "a_style.jpg", "A-MASK.PNG", "a.style_Mask.png", "a_Initial.jpg"],
        [
            pair(
                "a",
                "a_content.jpg",
                "a_style.jpg",
                masks=["A-MASK.PNG"],
                style_masks=["a.style_Mask.png"],
                initial="a_Initial.jpg",
            )
        ],
        {},
    ),
    "masks by their styles' numbers": (
        ["a_content.jpg", "a_mask10.png", "a_mask2.png", "a_style10.jpg", "a_style2.jpg", "a_stylemask10.png"],
        [
            pair(
                "a",
                "a_content.jpg",
                "a_style2.jpg",
                "a_style10.jpg",
                masks=["a_mask2.png", "a_mask10.png"],
                style_masks=[None, "a_stylemask10.png"],
            )
        ],
        {},
    ),
    "one mask fewer than styles": (
        ["a_content.jpg", "a_mask1.png", "a_style1.jpg", "a_style2.jpg"],
        [pair("a", "a_content.jpg", "a_style1.jpg", "a_style2.jpg", masks=["a_mask1.png"])],
        {},
    ),
    "a mask without a number is the first style's": (
        ["a_content.jpg", "a_mask.png", "a_style3.jpg", "a_style5.jpg", "a_stylemask.png"],
        [
            pair(
                "a",
                "a_content.jpg",
                "a_style3.jpg",
                "a_style5.jpg",
                masks=["a_mask.png"],
                style_masks=["a_stylemask.png", None],
            )
        ],
        {},
    ),
    "mask 1 is that of a style without a number": (
        ["a_content.jpg", "a_mask1.png", "a_mask2.png", "a_style.jpg", "a_style2.jpg"],
        [pair("a", "a_content.jpg", "a_style.jpg", "a_style2.jpg", masks=["a_mask1.png", "a_mask2.png"])],
        {},
    ),
    "folder with masks and an initial picture": (
        ["trip/content.jpg", "trip/init.jpg", "trip/mask.png", "trip/style.jpg", "trip/StyleMask.png", "trip/b.txt"],
        [
            folder(
                "trip",
                "trip/content.jpg",
                "trip/style.jpg",
                masks=["trip/mask.png"],
                style_masks=["trip/StyleMask.png"],
                initial="trip/init.jpg",
                others=["trip/b.txt"],
            )
        ],
        {},
    ),
    "folder named as a job names its files": (
        [
            "trip/content.jpg",
            "trip/style1.jpg",
            "trip/style2.jpg",
            "trip/mask1.png",
            "trip/mask2.png",
            "trip/style_mask2.png",
            "trip/initial.png",
        ],
        [
            folder(
                "trip",
                "trip/content.jpg",
                "trip/style1.jpg",
                "trip/style2.jpg",
                masks=["trip/mask1.png", "trip/mask2.png"],
                style_masks=[None, "trip/style_mask2.png"],
                initial="trip/initial.png",
            )
        ],
        {},
    ),
    "style folder with a style mask": (
        ["swirls/style.jpg", "swirls/stylemask.png", "swirls/lake.jpg"],
        [styled("lake_swirls", "swirls/lake.jpg", "swirls/style.jpg", style_masks=["swirls/stylemask.png"])],
        {},
    ),
    "style folder that may be a folder on its way": (
        ["trip/style.jpg", "trip/mask.png", "trip/init.jpg"],
        [],
        {"trip/init.jpg": "waits for trip/content.*", "trip/mask.png": "waits for trip/content.*"},
    ),
    "style folder with a style mask of no style": (
        ["swirls/style.jpg", "swirls/stylemask2.png", "swirls/lake.jpg"],
        [],
        {
            "swirls/lake.jpg": "waits because swirls has a stylemask that belongs to none of its styles "
            "(stylemask2.png); give it the number of its style, or take it away"
        },
    ),
    "masks alone": (
        ["a_mask.png", "b_content.jpg", "b_stylemask2.png", "trip/mask.png", "c_init.png", "c_style.jpg"],
        [],
        {
            "a_mask.png": "waits for a_content.* and a_style.*",
            "b_content.jpg": "waits for b_style.*",
            "b_stylemask2.png": "waits for b_style.*",
            "c_init.png": "waits for c_content.*",
            "c_style.jpg": "waits for c_content.*",
            "trip/mask.png": "waits for trip/content.* and trip/style.*",
        },
    ),
    "masks in the inbox itself": (
        ["mask2.png", "stylemask.png", "init.jpg"],
        [],
        {
            "init.jpg": "waits: put it into a folder of its own together with its content and style, or name it "
            "NAME_init.jpg",
            "mask2.png": "waits: put it into a folder of its own together with its content and style, or name it "
            "NAME_mask2.png",
            "stylemask.png": "waits: put it into a folder of its own together with its content and style, or name it "
            "NAME_stylemask.png",
        },
    ),
    "two files for one mask": (
        ["trip/content.jpg", "trip/style.jpg", "trip/mask.png", "trip/mask.gif"],
        [],
        {
            f"trip/{name}": "waits because trip has more than one mask (mask.gif, mask.png); keep one, or number them "
            "trip/mask1.* and trip/mask2.*"
            for name in ("content.jpg", "style.jpg", "mask.png", "mask.gif")
        },
    ),
    "two initial pictures": (
        ["a_content.jpg", "a_style.jpg", "a_init.png", "a_initial.png"],
        [],
        dict.fromkeys(
            ("a_content.jpg", "a_style.jpg", "a_init.png", "a_initial.png"),
            "waits because a has more than one initial picture (a_init.png, a_initial.png); keep one",
        ),
    ),
    "more masks than styles": (
        ["a_content.jpg", "a_mask1.png", "a_mask2.png", "a_style.jpg"],
        [
            pair(
                "a",
                "a_content.jpg",
                "a_style.jpg",
                masks=["a_mask1.png"],
                others=["a_mask2.png"],
                problem="a has a mask that belongs to none of its styles (a_mask2.png); give it the number of its "
                "style, or take it away",
            )
        ],
        {},
    ),
    "style masks of no style": (
        ["trip/content.jpg", "trip/style1.jpg", "trip/stylemask2.png", "trip/stylemask.png", "trip/stylemask1.png"],
        [
            folder(
                "trip",
                "trip/content.jpg",
                "trip/style1.jpg",
                style_masks=["trip/stylemask.png"],
                others=["trip/stylemask1.png", "trip/stylemask2.png"],
                problem="trip has a stylemask that belongs to none of its styles (stylemask1.png, stylemask2.png); "
                "give it the number of its style, or take it away",
            )
        ],
        {},
    ),
    "masks with a gap": (
        ["a_content.jpg", "a_style1.jpg", "a_style2.jpg", "a_style3.jpg", "a_mask3.png"],
        [
            pair(
                "a",
                "a_content.jpg",
                "a_style1.jpg",
                "a_style2.jpg",
                "a_style3.jpg",
                masks=["a_mask3.png"],
                problem="a has masks, but none for a_style1.jpg, a_style2.jpg; only the last style can go without "
                "one, and takes what the others leave",
            )
        ],
        {},
    ),
    "nearly masks": (
        ["a_masks.png", "a_mask_1.png", "amask.png", "a_init2.png", "a_inits.png", "_mask.png", "a_stylesmask.png"],
        [],
        dict.fromkeys(
            ("a_masks.png", "a_mask_1.png", "amask.png", "a_init2.png", "a_inits.png", "_mask.png", "a_stylesmask.png"),
            STRAY,
        ),
    ),
    # Roles directly in the inbox
    "roles in the inbox itself": (
        ["content.jpg", "Style1.png", "settings.toml", "photo.jpg"],
        [],
        {
            "content.jpg": f"{FOLDER} style, or name it NAME_content.jpg",
            "Style1.png": f"{FOLDER} content, or name it NAME_Style1.png",
            "settings.toml": "waits for settings_content.* and settings_style.*",
            "photo.jpg": STRAY,
        },
    ),
    "a style in the inbox itself makes it no style folder": (
        ["style.jpg", "photo.jpg"],
        [],
        {"photo.jpg": STRAY, "style.jpg": f"{FOLDER} content, or name it NAME_style.jpg"},
    ),
    # Folder drops
    "folder": (
        ["trip/content.jpg", "trip/style.jpg"],
        [folder("trip", "trip/content.jpg", "trip/style.jpg")],
        {},
    ),
    "folder with everything": (
        [
            "Trip/Content.JPG",
            "Trip/STYLE2.png",
            "Trip/style.png",
            "Trip/Settings.TOML",
            "Trip/notes.txt",
            "Trip/raw/1.jpg",
            "Trip/.DS_Store",
            "Trip/@eaDir/thumb.jpg",
            "Trip/style3.jpg.part",
        ],
        [
            folder(
                "Trip",
                "Trip/Content.JPG",
                "Trip/style.png",
                "Trip/STYLE2.png",
                settings="Trip/Settings.TOML",
                others=["Trip/notes.txt", "Trip/raw/1.jpg"],
            )
        ],
        {},
    ),
    "folder in a folder": (
        ["a/b/content.jpg", "a/b/style.jpg", "a/photo.jpg"],
        [folder("a/b", "a/b/content.jpg", "a/b/style.jpg")],
        {"a/photo.jpg": STRAY},
    ),
    "a folder drop takes all below": (
        [
            "a/content.jpg",
            "a/style.jpg",
            "a/b/content.jpg",
            "a/b/style.jpg",
            "a/c/style.jpg",
            "a/c/photo.jpg",
            "a/x_content.jpg",
            "a/x_style.jpg",
        ],
        [
            folder(
                "a",
                "a/content.jpg",
                "a/style.jpg",
                others=[
                    "a/b/content.jpg",
                    "a/b/style.jpg",
                    "a/c/photo.jpg",
                    "a/c/style.jpg",
                    "a/x_content.jpg",
                    "a/x_style.jpg",
                ],
            )
        ],
        {},
    ),
    "folder with two files for one style": (
        ["trip/content.jpg", "trip/style.jpg", "trip/style.png"],
        [folder("trip", "trip/content.jpg", "trip/style.jpg", "trip/style.png")],
        {},
    ),
    "folder without a style": (
        ["trip/content.jpg", "trip/settings.toml", "trip/photo.jpg"],
        [],
        {
            "trip/content.jpg": "waits for trip/style.*",
            "trip/settings.toml": "waits for trip/style.*",
            "trip/photo.jpg": STRAY,
        },
    ),
    "folder with settings only": (
        ["trip/settings.toml"],
        [],
        {"trip/settings.toml": "waits for trip/content.* and trip/style.*"},
    ),
    "folder with two contents": (
        ["trip/content.jpg", "trip/Content.png", "trip/style.jpg", "trip/settings.toml", "trip/photo.jpg"],
        [],
        {
            **{
                f"trip/{name}": "waits because trip has more than one content (Content.png, content.jpg); keep one"
                for name in ("content.jpg", "Content.png", "style.jpg", "settings.toml")
            },
            "trip/photo.jpg": STRAY,
        },
    ),
    "folder with two files of settings": (
        ["trip/content.jpg", "trip/style.jpg", "trip/settings.toml", "trip/Settings.toml"],
        [],
        {
            f"trip/{name}": "waits because trip has more than one file of settings (Settings.toml, settings.toml); "
            "keep one"
            for name in ("content.jpg", "style.jpg", "settings.toml", "Settings.toml")
        },
    ),
    "pair named settings": (
        ["trip/settings_content.jpg", "trip/settings_style.jpg", "trip/settings.toml"],
        [pair("settings", "trip/settings_content.jpg", "trip/settings_style.jpg", settings="trip/settings.toml")],
        {},
    ),
    # Style folders
    "style folder": (
        ["swirls/style.jpg", "swirls/lake.jpg", "swirls/Tree.PNG"],
        [
            styled("Tree_swirls", "swirls/Tree.PNG", "swirls/style.jpg"),
            styled("lake_swirls", "swirls/lake.jpg", "swirls/style.jpg"),
        ],
        {},
    ),
    "style folder at rest": (["swirls/style.jpg", "swirls/style2.jpg", "swirls/Settings.toml"], [], {}),
    "style folder with several styles and settings": (
        ["a/swirls/Style2.jpg", "a/swirls/style.webp", "a/swirls/settings.toml", "a/swirls/lake.avif"],
        [
            styled(
                "lake_swirls",
                "a/swirls/lake.avif",
                "a/swirls/style.webp",
                "a/swirls/Style2.jpg",
                settings="a/swirls/settings.toml",
            )
        ],
        {},
    ),
    "style folder with all kinds of pictures": (
        ["s/style.jpg", *(f"s/{suffix}.{suffix}" for suffix in ("avif", "bmp", "gif", "jpeg", "tif", "tiff", "webp"))],
        [
            styled(f"{suffix}_s", f"s/{suffix}.{suffix}", "s/style.jpg")
            for suffix in ("avif", "bmp", "gif", "jpeg", "tif", "tiff", "webp")
        ],
        {},
    ),
    "style folder with other things": (
        ["swirls/style.jpg", "swirls/notes.txt", "swirls/lake.toml", "swirls/raw/photo.jpg", "swirls/noname"],
        [],
        {
            "swirls/notes.txt": STRAY,
            "swirls/noname": STRAY,
            "swirls/lake.toml": "waits for swirls/lake_content.* and swirls/lake_style.*",
            "swirls/raw/photo.jpg": STRAY,
        },
    ),
    "style folder with pairs": (
        [
            "swirls/style.jpg",
            "swirls/settings.toml",
            "swirls/a_content.jpg",
            "swirls/a_style.jpg",
            "swirls/b_content.jpg",
            "swirls/settings_content.jpg",
            "swirls/settings_style.jpg",
        ],
        [
            pair("a", "swirls/a_content.jpg", "swirls/a_style.jpg"),
            pair("settings", "swirls/settings_content.jpg", "swirls/settings_style.jpg"),
        ],
        {"swirls/b_content.jpg": "waits for swirls/b_style.*"},
    ),
    "folder drop in a style folder": (
        ["swirls/style.jpg", "swirls/trip/content.jpg", "swirls/trip/style.jpg", "swirls/lake.jpg"],
        [
            styled("lake_swirls", "swirls/lake.jpg", "swirls/style.jpg"),
            folder("swirls/trip", "swirls/trip/content.jpg", "swirls/trip/style.jpg"),
        ],
        {},
    ),
    "style folder with two files of settings": (
        ["swirls/style.jpg", "swirls/settings.toml", "swirls/Settings.toml", "swirls/lake.jpg"],
        [],
        {
            "swirls/lake.jpg": "waits because swirls has more than one file of settings (Settings.toml, "
            "settings.toml); keep one"
        },
    ),
    # Names
    "junk": (
        [
            ".hidden_content.jpg",
            ".git/a_content.jpg",
            "a_content.jpg.part",
            "@eaDir/a_content.jpg",
            "trip.download/content.jpg",
            "trip.download/style.jpg",
        ],
        [],
        {},
    ),
    "a name that is not UTF-8": (["caf\udce9_content.jpg"], [], {"caf\udce9_content.jpg": "waits for caf?_style.*"}),
}


@pytest.mark.parametrize(("paths", "drops", "waiting"), CASES.values(), ids=CASES)
def test_rules(paths: list[str], drops: list[Drop], waiting: dict[str, str]) -> None:
    folders = {parent for path in paths for parent in Path(path).parents if parent != Path()}
    entries = [*map(entry, paths), *(entry(str(folder), "folder") for folder in folders)]
    shown = {path: path.encode(errors="replace").decode() for path in waiting}
    assert assess(entries) == Assessment(
        drops=tuple(drops),
        waiting=tuple(
            sorted(
                (Waiting(Path(path), f"{shown[path]} {reason}") for path, reason in waiting.items()),
                key=lambda each: each.path,
            )
        ),
    )


def test_links_and_other_things_wait_and_stand_for_no_file() -> None:
    entries = [
        entry("a_content.jpg"),
        entry("a_style.jpg", "link"),
        entry("elsewhere", "link"),
        entry("pipe_content.jpg", "other"),
        entry(".hidden", "link"),
        entry("trip", "folder"),
        entry("trip/content.jpg"),
        entry("trip/style.jpg"),
        entry("trip/style2.jpg", "link"),
        entry("swirls", "folder"),
        entry("swirls/style.jpg"),
        entry("swirls/content.jpg", "other"),
        entry("swirls/lake.jpg", "link"),
    ]
    link, other = "is a link; drop the file itself", "is a device, a pipe or a socket; drop the file itself"
    waiting = {
        "a_content.jpg": "waits for a_style.*",
        "a_style.jpg": link,
        "elsewhere": link,
        "pipe_content.jpg": other,
        "swirls/content.jpg": other,
        "swirls/lake.jpg": link,
        "trip/style2.jpg": link,
    }
    assert assess(entries) == Assessment(
        drops=(folder("trip", "trip/content.jpg", "trip/style.jpg"),),
        waiting=tuple(Waiting(Path(path), f"{path} {reason}") for path, reason in waiting.items()),
    )


def test_a_folder_named_like_a_picture_is_a_folder() -> None:
    entries = [entry("a_content.jpg"), entry("a_style.jpg", "folder"), entry("a_style.jpg/b_style.jpg")]
    assert assess(entries) == Assessment(
        drops=(),
        waiting=(
            Waiting(Path("a_content.jpg"), "a_content.jpg waits for a_style.*"),
            Waiting(Path("a_style.jpg/b_style.jpg"), "a_style.jpg/b_style.jpg waits for a_style.jpg/b_content.*"),
        ),
    )


@pytest.mark.parametrize(
    ("made", "files", "taken"),
    [
        pytest.param(pair("a", "c", "s1", "s2"), "c s1 s2", "c s1 s2", id="pair"),
        pytest.param(pair("a", "c", "s", settings="t"), "c s t", "c s t", id="pair with settings"),
        pytest.param(
            folder("f", "c", "s", settings="t", others=["o1", "o2"]), "c s t o1 o2", "c s t o1 o2", id="folder"
        ),
        pytest.param(styled("a", "c", "s1", "s2", settings="t"), "c s1 s2 t", "c", id="style folder"),
        pytest.param(
            pair("a", "c", "s1", "s2", masks=["m1", "m2"], style_masks=[None, "n2"], initial="i", settings="t"),
            "c s1 s2 n2 m1 m2 i t",
            "c s1 s2 n2 m1 m2 i t",
            id="masks and an initial picture",
        ),
        pytest.param(styled("a", "c", "s", style_masks=["n"]), "c s n", "c", id="style folder with a style mask"),
    ],
)
def test_files_and_taken(made: Drop, files: str, taken: str) -> None:
    assert (made.files, made.taken) == (tuple(map(Path, files.split())), tuple(map(Path, taken.split())))


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "._a.jpg", ".hidden", ".@__thumb", ".fuse_hidden01", ".nfs01", "~$a.docx", "~a.jpg", "a.jpg~",
        "a.jpg.part", "a.PARTIAL", "a.crdownload", "a.jpg.download", "a.filepart", "a.tmp", "a.Temp", "a.swp",
        "Thumbs.db", "THUMBS.DB", "ehthumbs.db", "Desktop.ini", "@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX",
        "lost+found", "System Volume Information", "Icon\r",
    ],
)  # fmt: skip
def test_junk(name: str) -> None:
    assert is_junk(name)


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "part", "tmp", "a.part.jpg", "thumbs.db.jpg", "a~b.jpg", "party", "apart", "@home", "#1.jpg", "$5.jpg"],
)
def test_no_junk(name: str) -> None:
    assert not is_junk(name)


FOLDERS = ["", "trip/", "trip/deep/", "trip/deep/er/", "Trip/", "@eaDir/", "a_content.jpg/"]
STEMS = ["a", "A", "settings", "cafe\u0301", "content", "style", "", "", "", ""]
ROLES = [
    *("", "_content", "-Content", ".style", "_STYLE1", "_style01", "content", "content", "style", "style", "Style2"),
    *("_mask", "_MASK2", "mask", "mask01", "_stylemask", "Stylemask", "style_mask2", "_init", "Initial"),
]
ENDS = [".jpg", ".jpg", ".jpg", ".PNG", ".toml", ".TOML", ".txt", ".part", ""]
NAMES = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(STEMS), st.sampled_from(ROLES), st.sampled_from(ENDS)),
    st.sampled_from(["content.jpg", "style.jpg", "settings.toml", "lake.jpg"]),
).filter(bool)
LISTINGS = st.dictionaries(
    st.builds("{}{}".format, st.sampled_from(FOLDERS), NAMES), st.sampled_from(["file"] * 9 + ["link"]), max_size=30
).map(
    # A path is not both a file and a folder.
    lambda kinds: {path: kind for path, kind in kinds.items() if not any(p.startswith(f"{path}/") for p in kinds)}
)


def at_home(files: set[Path], drops: tuple[Drop, ...]) -> set[Path]:
    """What style folders keep, told by globs instead of by the rules' own reading of names."""
    found = set()
    for folder in {path.parent for path in files if path.parent != Path()}:
        here = [path for path in files if path.parent == folder]
        contents = [path for path in here if path.stem.lower() == "content" and path.suffix]
        styles = [path for path in here if path.stem.lower().rstrip("0123456789") == "style" and path.suffix]
        masks = [path for path in here if re.fullmatch("style[_.-]?mask[0-9]*[.][^.]+", path.name.lower())]
        settings = [path for path in here if path.name.lower() == "settings.toml"]
        if styles and not contents:
            found.update(styles, masks, settings)
    return found - {path for drop in drops if drop.kind == "folder" for path in drop.files}


@settings(deadline=None)
@given(kinds=LISTINGS, seed=st.randoms(use_true_random=False))
def test_every_file_is_taken_or_waits_or_is_at_home(kinds: dict[str, Any], seed: random.Random) -> None:
    entries = [entry(path, kind) for path, kind in kinds.items()]
    found = assess(entries)
    seed.shuffle(entries)
    assert assess(entries) == found

    listed = {each.path: each.kind for each in entries if not any(map(is_junk, each.path.parts))}
    files = {path for path, kind in listed.items() if kind == "file"}
    home = at_home(files, found.drops)
    fates = Counter(
        [
            *(path for drop in found.drops for path in drop.taken),
            *(each.path for each in found.waiting),
            *home,
        ]
    )
    assert fates == Counter(listed.keys())
    for drop in found.drops:
        assert len(drop.files) == len(set(drop.files))
        assert set(drop.files) <= files
        assert set(drop.files) - set(drop.taken) <= home
    assert all(each.reason.startswith(f"{each.path} ") for each in found.waiting)


@pytest.mark.parametrize("name", ["Thumbs.db", ".DS_Store", "._photo.jpg", "@eaDir", "desktop.ini"])
def test_what_systems_leave_is_litter(name: str) -> None:
    assert is_litter(name)
    assert is_junk(name)


@pytest.mark.parametrize("name", ["photo.jpg", "photo.jpg.part", ".hidden", "~lock", "upload.crdownload"])
def test_what_may_be_somebody_s_is_no_litter(name: str) -> None:
    assert not is_litter(name)
