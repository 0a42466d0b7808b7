"""The contact sheet: where each picture is, what stands where there is none, and that it stays bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import contact_sheet, lettering
from flows.contact_sheet import MAX_COLUMNS, MAX_ROWS, Cell, draw_contact_sheet
from nst_engine.images import encode_png
from storage.errors import WorkspaceError

STEP = 186
LEFT, TOP = 230, 130
RED, GREEN = (200, 30, 30), (30, 160, 40)
GREY = (238, 238, 238)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox" / "wedding" / "contact-sheet-n1.jpg"


def plain(tmp_path: Path, name: str, colour: tuple[int, int, int], *, rows: int, columns: int) -> Path:
    path = tmp_path / name
    encode_png(np.full((rows, columns, 3), colour, np.uint8), path)
    return path


def draw(cells: list[Cell], path: Path, title: str = "wedding") -> Image.Image:
    draw_contact_sheet(cells, title=title, path=path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with Image.open(path) as sheet:
        assert sheet.format == "JPEG"
        return sheet.convert("RGB")


def cell_of(sheet: Image.Image, row: int, column: int) -> Image.Image:
    x, y = LEFT + STEP * column, TOP + STEP * row
    return sheet.crop((x + 3, y + 3, x + 183, y + 183))


def is_near(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(value - wanted) <= 6 for value, wanted in zip(pixel, colour, strict=True))


def ink(image: Image.Image) -> int:
    """How many pixels are much darker than grey."""
    return int((np.asarray(image.convert("L")) < 190).sum())


def test_each_picture_is_where_its_content_and_style_meet_and_keeps_its_shape(tmp_path: Path, path: Path) -> None:
    red = plain(tmp_path, "red.png", RED, rows=100, columns=200)
    green = plain(tmp_path, "green.png", GREEN, rows=400, columns=100)
    sheet = draw([Cell("lake", "starry", red, ""), Cell("sea", "wave", green, "")], path)
    wide, tall = cell_of(sheet, 0, 0), cell_of(sheet, 1, 1)
    for picture, colour, inside, outside in (
        (wide, RED, [(14, 90), (165, 90), (90, 54)], [(90, 44), (90, 136), (4, 90)]),
        (tall, GREEN, [(90, 14), (90, 165), (74, 90)], [(64, 90), (116, 90), (90, 4)]),
    ):
        assert all(is_near(picture.getpixel(place), colour) for place in inside)
        assert all(is_near(picture.getpixel(place), GREY) for place in outside)
    # Pairs that nobody asked for have a dash.
    assert 0 < ink(cell_of(sheet, 0, 1)) < 60


@pytest.mark.parametrize("note", ["failed: the picture is damaged", "word " * 300, "x" * 2000, "失敗"])
def test_a_note_stands_inside_the_cell_of_a_pair_without_a_picture(path: Path, note: str) -> None:
    cell = cell_of(draw([Cell("lake", "starry", None, note)], path), 0, 0)
    assert ink(cell) > 20
    assert ink(cell.crop((10, 4, 170, 176))) == ink(cell)


def test_a_picture_that_cannot_be_read_leaves_a_note(tmp_path: Path, path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    sheet = draw([Cell("a", "s", broken, ""), Cell("b", "s", tmp_path / "gone.png", "")], path)
    assert ink(cell_of(sheet, 0, 0)) > 200
    assert ink(cell_of(sheet, 1, 0)) > 200


@pytest.mark.parametrize("name", ["x" * 500, "море " * 60, "a\nb\x01\udcff", "", "x", "שלום"])
def test_names_and_titles_of_any_length_stay_in_their_columns(tmp_path: Path, path: Path, name: str) -> None:
    red = plain(tmp_path, "red.png", RED, rows=64, columns=64)
    sheet = draw([Cell(name, name, red, ""), Cell(name, "x", red, "")], path, title=name)
    assert sheet.width <= 2 * 40 + 190 + 6 * STEP
    # The margins and what is between the columns of names and pictures.
    for box in ((0, 0, 38, sheet.height), (LEFT - 12, TOP, LEFT, sheet.height), (sheet.width - 38, 0, sheet.width, 40)):
        assert ink(sheet.crop(box)) == 0


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a_really_long_style_by_a_painter_1889.jpg", ("a_rea", "9.jpg")), ("short.jpg", ("short.jpg", "short.jpg"))],
)
def test_a_long_name_loses_its_middle(text: str, kept: tuple[str, str]) -> None:
    font = lettering.font("plain", 14)
    cut = lettering.cut(text, font, 174)
    assert (cut.startswith(kept[0]), cut.endswith(kept[1])) == (True, True)
    assert font.getlength(cut) <= 174


def test_a_large_collection_is_shown_in_part_and_says_so(path: Path) -> None:
    cells = [
        Cell(f"c{row}", f"s{column}", None, "ok") for row in range(MAX_ROWS + 1) for column in range(MAX_COLUMNS + 1)
    ]
    sheet = draw(cells, path)
    assert sheet.size == (2 * 40 + 190 + MAX_COLUMNS * STEP, TOP + MAX_ROWS * STEP + 40 + 34)
    assert ink(sheet.crop((40, sheet.height - 60, 700, sheet.height - 38))) > 200
    assert contact_sheet._remark({"contents": (61, MAX_ROWS), "styles": (13, MAX_COLUMNS)}) == (
        "Shown are the first 60 of 61 contents and the first 12 of 13 styles; the others are in the same folder."
    )
    assert contact_sheet._remark({"contents": (60, MAX_ROWS), "styles": (12, MAX_COLUMNS)}) == ""


def test_a_sheet_replaces_the_one_before_and_a_disk_that_refuses_is_told_of(path: Path) -> None:
    first = draw([Cell("a", "s", None, "running")], path)
    second = draw([Cell("a", "s", None, "failed: later"), Cell("b", "s", None, "done")], path)
    assert first.size != second.size
    with pytest.raises(WorkspaceError, match=r"^The picture .* cannot be written \(File exists\); check"):
        draw_contact_sheet([], title="", path=path / "sheet.jpg")
