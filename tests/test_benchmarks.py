"""The benchmarks run from one command, and leave their figures and a table of contents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import presets, sizes
from benchmarks.timing import spread
from nst_engine.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["iteration", "sizes", "presets"]
TIMED = {"median": float, "seconds": [float], "peak_bytes": int}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of a quick run."""
    folder = tmp_path_factory.mktemp("results")
    benchmark("--quick", f"--only={','.join(NAMES)}", f"--results={folder}")
    return folder


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)


def shape(value: Any) -> Any:
    """The keys and types of a JSON value; a list is that of its first item."""
    match value:
        case dict():
            return {key: shape(item) for key, item in value.items()}
        case list():
            return [shape(item) for item in value[:1]]
        case _:
            return type(value)


def rows_of(table: str) -> list[list[str]]:
    """The cells of all Markdown tables in a text, without the lines below their heads."""
    lines = [line for line in table.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_they_leave_a_page_and_the_figures_of_each_and_a_table_of_contents(results: Path) -> None:
    assert {path.name for path in results.iterdir()} == {
        "README.md",
        "measured.json",
        *(f"{name}.{kind}" for name in NAMES for kind in ("md", "json")),
    }
    measured = json.loads((results / "measured.json").read_text())
    versions = {"Python": str, "nst": str, "TensorFlow": str, "Keras": str, "Prefect": str}
    noted = {"date": str, "machine": str, "versions": versions, "minutes": float}
    assert shape(measured) == dict.fromkeys(NAMES, noted)
    head, *rows = rows_of((results / "README.md").read_text())
    assert head == ["benchmark", "measures", "figures", "date", "minutes", "machine", "versions"]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        (f"[{name}]({name}.md)", f"[JSON]({name}.json)", measured[name]["date"]) for name in NAMES
    ]


def test_the_iteration_has_a_row_a_scheme_and_pytorchs_where_it_is_installed(results: Path) -> None:
    found = json.loads((results / "iteration.json").read_text())
    has_torch = "torch-float32" in found
    nst = {**TIMED, "losses": [float]}
    torch = {**nst, "layout": str, "versions": {"Python": str, "PyTorch": str}}
    assert shape(found) == {
        "rows": int,
        "columns": int,
        "weights": str,
        "xla": bool,
        "cores": int,
        "versions": {"Python": str, "TensorFlow": str, "Keras": str},
        "gflop": float,
        "product": {"name": str, "device": str, "float32": float, "bfloat16": float},
        "keras": TIMED,
        "float32": nst,
        "bfloat16": nst,
        **({"torch-float32": torch, "torch-bfloat16": torch} if has_torch else {}),
    }
    page = (results / "iteration.md").read_text()
    assert [row[0] for row in rows_of(page)] == [
        "",
        "Keras example: three pictures an iteration",
        "nst, float32",
        "nst, bfloat16",
        *(["PyTorch, float32", "PyTorch, bfloat16"] if has_torch else []),
        "matrix product, 2048 x 2048, float32",
        "matrix product, 2048 x 2048, bfloat16",
    ]
    assert ("PyTorch is not installed here" in page) is not has_torch


def test_the_sizes_have_a_row_a_size_and_precision(results: Path) -> None:
    found = json.loads((results / "sizes.json").read_text())
    precisions = list(found["measured"][0]["precisions"])
    assert precisions in (["float32"], ["float32", "bfloat16"])
    nst = {"how": str, "estimate_bytes": int, **TIMED}
    row = {"rows": int, "columns": int, "precisions": dict.fromkeys(precisions, nst)}
    assert {key: shape(value) for key, value in found.items()} == {
        "device": str,
        "cores": int,
        "versions": {"Python": str, "TensorFlow": str},
        "preset": str,
        "optimizer": str,
        "weights": str,
        "max_memory_gb": type(None),
        "measured": [{**row, "keras": TIMED}],
    }
    assert [shape(size) for size in found["measured"]] == [{**row, "keras": TIMED}, row]
    head, *cells = rows_of((results / "sizes.md").read_text())
    assert len(head) == 10
    assert [line[:3] for line in cells] == [
        [size, precision, "As a whole"] for size in ("32 x 42", "48 x 64") for precision in precisions
    ]
    assert all(re.fullmatch(r"\d+\.\d\d+ \(\d+\.\d\d+ to \d+\.\d\d+\)", line[5]) for line in cells)
    # The Keras example is given the smaller size only.
    assert [all(line[7:]) for line in cells] == [line[0] == "32 x 42" for line in cells]


def test_the_presets_have_a_row_each(results: Path) -> None:
    found = json.loads((results / "presets.json").read_text())
    parts = {"total": float, "content": float, "style": float, "tv": float}
    run = {"preset": str, "optimizer": str, "precision": str, "seconds": float, "first": parts, "last": parts}
    numbers = dict.fromkeys(("iterations_of_preset", "scales", "columns", "iterations"), int)
    assert shape(found) == {
        "device": str,
        "cores": int,
        "load": [float],
        "versions": {"Python": str, "TensorFlow": str},
        "rows": int,
        "most_iterations": int,
        "weights": str,
        "runs": [run | numbers],
    }
    (only,) = found["runs"]
    assert only["last"]["total"] < only["first"]["total"]
    head, *rows = rows_of((results / "presets.md").read_text())
    assert len(head) == 8
    assert [row[:3] for row in rows] == [["`paper-fig5`", "SGD", "1 (40)"]]


@pytest.mark.parametrize(
    ("preset", "most", "iterations"),
    [
        pytest.param("keras-2016", 200, (200, None), id="fewer"),
        pytest.param("default", 200, (60, None), id="its own"),
        pytest.param("crowson", 200, (200, 40), id="five scales"),
        pytest.param("crowson", 3, (5, 1), id="one a scale at least"),
    ],
)
def test_a_preset_has_at_most_so_many_iterations(preset: str, most: int, iterations: tuple[int, int | None]) -> None:
    own = PRESETS[preset].config
    config = presets.shortened(own, rows=64, iterations=most, weights="random")
    changed = {"rows": 64, "long_edge": None, "weights": "random"}
    assert (config.iterations, config.scale_iterations) == iterations
    assert config.model_dump() == own.model_dump() | changed | dict(
        zip(("iterations", "scale_iterations"), iterations, strict=True)
    )


def test_the_sheet_has_the_pair_and_every_result(tmp_path: Path) -> None:
    red, blue = (np.full((30, 40, 3), color, np.uint8) for color in ((220, 20, 20), (20, 20, 220)))
    names = ("default", "paper-fig4", "paper-fig5", "crowson")
    path = tmp_path / "sheet.png"
    runs = [{"preset": name, "iterations": 3, "seconds": 1.5} for name in names]
    presets.draw(path, {"content": red, "style": red, **dict.fromkeys(names, blue)}, runs, title="One pair")
    pixels = np.asarray(Image.open(path)).reshape(-1, 3)
    assert [int((pixels == color).all(1).sum()) for color in (red[0, 0], blue[0, 0])] == [2 * 1200, 4 * 1200]


def ending(how: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys; {how}"]


def test_a_child_that_the_kernel_kills_costs_its_own_row_only() -> None:
    killed = sizes.measurement(ending("os.kill(os.getpid(), signal.SIGKILL)"))
    assert killed == {"killed": True}
    found = {"how": "As a whole", "estimate_bytes": 2e9, "median": 2.0, "seconds": [2.0], "peak_bytes": 1e9}
    size = {"rows": 100, "columns": 200}
    measured = [
        {**size, "precisions": {"float32": killed, "bfloat16": found}, "keras": found},
        {**size, "precisions": {"float32": found}, "keras": killed},
    ]
    whole = {"preset": "default", "optimizer": "adam", "weights": "random", "max_memory_gb": None}
    report = {**whole, "device": "cpu", "cores": 2, "versions": {}, "measured": measured}
    own, keras = ["As a whole", "2.00", "1.00", "2.00 (2.00 to 2.00)", "100,000"], ["2.00 (2.00 to 2.00)", "1.00"]
    assert rows_of(sizes.table(report))[1:] == [
        ["100 x 200", "float32", "killed", "", "", "", "", *keras, ""],
        ["100 x 200", "bfloat16", *own, *keras, "1.0"],
        ["100 x 200", "float32", *own, "killed", "", ""],
    ]


def test_a_child_that_fails_by_itself_ends_the_benchmark() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        sizes.measurement(ending("sys.exit(1)"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param([0.5, 0.02, 1.0], "0.50 (0.02 to 1.00)", id="hundredths"),
        pytest.param([0.0123, 0.004, 0.02], "0.01230 (0.00400 to 0.02000)", id="finer"),
    ],
)
def test_short_times_have_more_digits(seconds: list[float], text: str) -> None:
    assert spread(seconds) == text


def test_the_bare_engine_does_no_more_pairs_than_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks.throughput", "--pairs=2", "--bare-pairs=3"]
    refused = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2,
        "throughput.py: error: --bare-pairs is 3; give 1 to 2, the number of pairs.",
    )


def test_a_benchmark_that_does_not_exist_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        benchmark("--only=sizes,speed")
    assert refused.value.returncode == 2
