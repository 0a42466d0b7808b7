from __future__ import annotations

import hashlib
import logging
import pickle
import tracemalloc
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from flows import checkpoint
from nst_engine.transfer import TransferState
from tests.transfer_state import finished_transfer


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def state() -> TransferState:
    return finished_transfer()


def saved(path: Path, payload: bytes, *, by: str = version("nst"), digest: bytes | None = None) -> None:
    digest = digest or hashlib.sha256(payload).digest()
    path.write_bytes(f"nst checkpoint {by}\n".encode() + payload + digest)


def test_comes_back_as_it_was_and_leaves_nothing_else(state: TransferState, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, state)
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert pickle.dumps(loaded) == pickle.dumps(pickle.loads(pickle.dumps(state)))
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_written_and_read_without_a_copy_in_memory(state: TransferState, tmp_path: Path) -> None:
    picture = np.arange(3_000_000, dtype=np.float32).reshape(1000, 1000, 3)
    # Twelve megabytes each.
    large = replace(state, picture=picture, gradient=picture + 1, best_picture=picture - 1)
    path = tmp_path / "checkpoint"
    tracemalloc.start()
    checkpoint.save(path, large)
    _, saving = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    loaded = checkpoint.load(path)
    _, loading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded is not None
    assert loaded.gradient is not None
    assert loaded.gradient.tobytes() == large.gradient.tobytes()
    assert saving < 3e6
    assert loading < 40e6


def test_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.load(tmp_path / "checkpoint") is None
    assert caplog.records == []


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999], ids=["empty", "in-the-header", "half", "all-but-the-end"])
def test_cut_off(state: TransferState, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: float) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, state)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert checkpoint.load(path) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()


def test_what_this_version_did_not_write_whole_is_never_unpickled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, mark = tmp_path / "checkpoint", tmp_path / "mark"
    payload = pickle.dumps(Evil(mark))
    saved(path, payload, by="0.0.1")
    assert checkpoint.load(path) is None
    saved(path, payload, digest=bytes(32))
    assert checkpoint.load(path) is None
    path.write_bytes(payload)
    assert checkpoint.load(path) is None
    reasons = ["another version of nst wrote it", "it is cut off or damaged", "another version of nst wrote it"]
    assert [record.getMessage() for record in caplog.records] == [
        f"The checkpoint {path} is not used: {reason}; the job starts anew." for reason in reasons
    ]
    assert not mark.exists()
    # The same bytes in a whole file are unpickled: what keeps the others out is what is around them.
    saved(path, payload)
    with pytest.raises(AttributeError):
        checkpoint.load(path)
    assert mark.exists()


def test_a_failed_write_leaves_the_old_one(state: TransferState, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, state)
    before = path.read_bytes()
    # The hidden part cannot be written where a folder has its name.
    (tmp_path / ".checkpoint.nst.part").mkdir()
    with pytest.raises(IsADirectoryError):
        checkpoint.save(path, state)
    assert path.read_bytes() == before
