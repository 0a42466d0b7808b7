"""Arrays on disk: they compute as those in memory, take no memory, and neither kill their process nor leave a file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nst_engine import arrays
from nst_engine.errors import DiskSpaceError

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(5)
PLACES = pytest.mark.parametrize("disk", [False, True], ids=["in memory", "on disk"])
SHAPES = pytest.mark.parametrize("shape", [(1,), (7, 5, 3), (40, 1, 3), (2, 90), (201,)], ids=str)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK_NUMBERS", 20)


def numbers(shape: tuple[int, ...], *, disk: bool) -> NDArray[np.float32]:
    return arrays.placed(RANDOM.normal(0, 50, shape).astype(np.float32), on_disk=disk)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own, with its arrays in a folder of the test."""

    def child(script: str, folder: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        return subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )

    return child


@PLACES
def test_new_arrays_are_where_and_what_they_should_be(disk: bool) -> None:
    first = arrays.empty((4, 5, 3), np.float32, on_disk=disk)
    first[...] = 2
    like = arrays.empty_like(first)
    other = arrays.empty_like(first[1:3, 2], (2, 9), np.uint8)
    nothing = arrays.zeros_like(first)
    made = [first, like, other, nothing]
    assert [(type(array), array.shape, array.dtype.name) for array in made] == [
        (np.ndarray, (4, 5, 3), "float32"),
        (np.ndarray, (4, 5, 3), "float32"),
        (np.ndarray, (2, 9), "uint8"),
        (np.ndarray, (4, 5, 3), "float32"),
    ]
    views = [first[2], first.ravel(), first[..., ::-1], first.reshape(5, 12)]
    assert [arrays.on_disk(array) for array in made + views] == [disk] * 8
    assert [first.sum(), nothing.any()] == [120, False]


@PLACES
@SHAPES
@pytest.mark.usefixtures("small_blocks")
def test_blockwise_gives_the_same_bits(shape: tuple[int, ...], disk: bool) -> None:
    a, b = numbers(shape, disk=disk), numbers(shape, disk=disk)

    def compute(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        return (x + np.float32(0.3) * y) / (np.sqrt(np.abs(y)) + np.float32(1e-3))

    expected, before = compute(a, b), (a.tobytes(), b.tobytes())
    result = arrays.blockwise(compute, a, b)
    assert (result.tobytes(), result.dtype, result.shape) == (expected.tobytes(), expected.dtype, shape)
    assert (arrays.on_disk(result), (a.tobytes(), b.tobytes())) == (disk, before)
    assert arrays.blockwise(compute, a, b, out=a) is a
    assert a.tobytes() == expected.tobytes()


@SHAPES
@pytest.mark.usefixtures("small_blocks")
def test_a_sum_is_the_same_bits_wherever_its_arrays_are(shape: tuple[int, ...]) -> None:
    memory = [numbers(shape, disk=False) for _ in range(2)]
    disk = [arrays.placed(array, on_disk=True) for array in memory]
    sums = [
        arrays.blockwise_sum(lambda x, y: np.multiply(x, y, dtype=np.float64), *pair)
        for pair in (memory, disk, [memory[0], disk[1]])
    ]
    assert len(set(sums)) == 1
    assert sums[0] == pytest.approx(float(np.multiply(*memory, dtype=np.float64).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        pytest.param(
            (7, 5, 3), [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)], id="a row is most of a block"
        ),
        pytest.param((1, 90), [(0, 1)], id="a row is more than a block"),
        pytest.param((5, 2, 3), [(0, 3), (3, 5)], id="several rows"),
        pytest.param((20,), [(0, 20)], id="exactly one"),
        pytest.param((21,), [(0, 20), (20, 21)], id="flat"),
        pytest.param((0, 4), [], id="none"),
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_blocks(shape: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert [(block.start, block.stop) for block in arrays.blocks(np.empty(shape))] == expected


@PLACES
def test_placed(disk: bool) -> None:
    array = numbers((6, 5, 3), disk=disk)
    same, other = (arrays.placed(array, on_disk=place) for place in (disk, not disk))
    assert same is array
    assert (arrays.on_disk(other), other.tobytes()) == (not disk, array.tobytes())
    arrays.release(array, other)
    assert other.tobytes() == array.tobytes()


def test_a_pickle_holds_the_numbers_and_not_the_place() -> None:
    array = numbers((6, 5, 3), disk=True)
    loaded = pickle.loads(pickle.dumps(array, protocol=5))
    assert (arrays.on_disk(loaded), loaded.tobytes()) == (False, array.tobytes())


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from nst_engine.arrays import blockwise, blockwise_sum, empty
from nst_engine.config import TransferConfig
from nst_engine.evaluation import Evaluation, Losses
from nst_engine.optimizers import initial_state, take_step
from nst_engine.images import preprocess

def evaluate(picture):
    total = blockwise_sum(np.square, picture)
    gradient = blockwise(lambda x: x * (1 + x * x / 10000), picture)
    return Evaluation(Losses(total, total, 0.0, 0.0, {}), gradient)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
content = empty((1200, 1400, 3), np.uint8, on_disk=sys.argv[1] == "disk")
content[::3] = 200
picture = preprocess(content)
config = TransferConfig(optimizer="lbfgs", history=10)
state, evaluation = initial_state(config, picture), evaluate(picture)
for iteration in range(1, 7):
    step = take_step(config, state, iteration=iteration, picture=picture, evaluation=evaluation, evaluate=evaluate)
    picture, evaluation, state = step.picture, step.evaluation, step.state
print(len(state.steps), peak() - before)
"""


def test_an_optimiser_of_a_picture_on_disk_takes_no_memory_for_it(
    run: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Twelve arrays of 20 MB and what a step makes."""
    kept, peaks = list[str](), list[int]()
    for place in ("disk", "memory"):
        done = run(MEMORY.replace("sys.argv[1]", repr(place)))
        assert done.stderr == ""
        kept.append(done.stdout.split()[0])
        peaks.append(int(done.stdout.split()[1]))
    assert kept == ["6", "6"]
    assert peaks[0] < 150e6 < 350e6 < peaks[1]


ONE_ARRAY = """
import numpy as np
from nst_engine.arrays import empty
empty((1000, 1000, 3), np.float32, on_disk=True)[...] = 1
"""
TABLE = """
from pathlib import Path
from nst_engine import arrays
arrays.MOUNT_TABLE = Path({table!r})
"""
FAILING = """
from nst_engine.errors import DiskSpaceError
try:
    exec({script!r})
except DiskSpaceError as error:
    print(error)
"""


def test_a_file_that_may_not_be_so_large(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    done = run(limit + FAILING.format(script=ONE_ARRAY))
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])
    assert done.stdout.startswith(f"A large picture needs 0.01 GB more in {tmp_path}, which has ")
    assert done.stdout.endswith(" GB free (File too large); set TMPDIR to a folder with more room.\n")


def test_no_such_folder(run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = run(FAILING.format(script=ONE_ARRAY), tmp_path / "gone")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"A large picture needs 0.01 GB more in {tmp_path / 'gone'} (No such file or directory); "
        "set TMPDIR to a folder with more room.\n",
        "",
    )


@pytest.fixture
def disk_table(tmp_path: Path) -> Path:
    """A table of mounts by which all folders are on one disk."""
    table = tmp_path / "mountinfo"
    table.write_text("21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n")
    return table


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which is in memory; `disk_table` says that it is not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only an administrator can mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_before_anything_is_written(
    run: Callable[..., subprocess.CompletedProcess[str]], tiny_disk: Path, disk_table: Path
) -> None:
    done = run(TABLE.format(table=str(disk_table)) + FAILING.format(script=ONE_ARRAY), tiny_disk)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"A large picture needs 0.01 GB more in {tiny_disk}, which has 0.00 GB free (No space left on device); "
        "set TMPDIR to a folder with more room.\n",
        "",
    )


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system keeps no folder in memory")
def test_a_folder_in_memory_is_not_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    with pytest.raises(DiskSpaceError) as caught:
        arrays.empty((5,), np.float32, on_disk=True)
    assert str(caught.value) == "/dev/shm is kept in memory; set TMPDIR to a folder on a disk."


DISK = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
MEMORY_THERE = "30 21 0:26 / {place} rw master:1 - tmpfs none rw\n"


@pytest.mark.parametrize(
    ("table", "in_memory"),
    [
        pytest.param(DISK, False, id="a disk"),
        pytest.param(DISK + MEMORY_THERE, True, id="the folder itself"),
        pytest.param(DISK + "30 21 0:26 / {parent} rw - ramfs none rw\n", True, id="a folder around it"),
        pytest.param(DISK + MEMORY_THERE.replace("{place}", "{place}er"), False, id="a name that begins so"),
        pytest.param(
            "22 21 8:2 / {place} rw - xfs /dev/sdb rw\n" + MEMORY_THERE.replace("{place}", "/"),
            False,
            id="a disk in memory",
        ),
        pytest.param(
            DISK + MEMORY_THERE + "31 30 8:2 / {place} rw - xfs /dev/sdb rw\n", False, id="one over the other"
        ),
        pytest.param("", False, id="nothing known"),
        pytest.param(None, False, id="another system"),
    ],
)
def test_what_is_mounted_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str | None, in_memory: bool
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(arrays, "MOUNT_TABLE", tmp_path / "mountinfo")
    if table is not None:
        place, parent = (str(path).replace(" ", "\\040") for path in (folder, tmp_path))
        (tmp_path / "mountinfo").write_text(table.format(place=place, parent=parent))
    if in_memory:
        with pytest.raises(DiskSpaceError, match=r" is kept in memory; set TMPDIR to a folder on a disk\.$"):
            arrays.empty((5,), np.float32, on_disk=True)
    else:
        assert arrays.on_disk(arrays.empty((5,), np.float32, on_disk=True))


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    script = (
        f"{ONE_ARRAY}\nkept = empty((10,), np.float32, on_disk=True)\nprint(open('/proc/self/maps').read(), flush=True)"
        "\nprint('END', flush=True)\ninput()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        mapped = list(iter(process.stdout.readline, "END\n"))
        # It is in the folder that TMPDIR names, without a name there, also while it is used.
        assert len([line for line in mapped if str(tmp_path) in line]) == 1
        assert list(tmp_path.iterdir()) == []
        process.kill()
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_nobody_has_any_more_gives_its_room_back(
    tiny_disk: Path, disk_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "MOUNT_TABLE", disk_table)
    monkeypatch.setenv("TMPDIR", str(tiny_disk))
    size = (150_000,)
    held = arrays.empty(size, np.float32, on_disk=True)
    with pytest.raises(DiskSpaceError):
        arrays.empty(size, np.float32, on_disk=True)
    view = held[5:8]
    del held
    with pytest.raises(DiskSpaceError):
        arrays.empty(size, np.float32, on_disk=True)
    del view
    assert arrays.on_disk(arrays.empty(size, np.float32, on_disk=True))
