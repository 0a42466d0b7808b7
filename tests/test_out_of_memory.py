"""The memory runs out for real: in processes that may not have more than they have and a little. TensorFlow computes
without oneDNN there, as a GPU does: of oneDNN's operations some die of it instead of saying so. And only what is large
is refused, as on a GPU, whose memory holds nothing else: the C library keeps room for the small things, without which
any part of a process may die."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import tensorflow as tf

from nst_engine.out_of_memory import is_out_of_memory
from storage.models import JobState
from tests.service_process import running_service

REPOSITORY = Path(__file__).resolve().parents[1]
MB = 10**6
MALLOC = {
    # What is larger gets pages of its own, and is refused when there are none.
    "mmap_threshold": MB,
    # What is smaller comes from a heap that grows by this much and never shrinks.
    "top_pad": 256 * MB,
    "trim_threshold": 2**40,
}
ENVIRONMENT = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in MALLOC.items()),
}
# By chance a thread asks for something small just when all is taken; it dies of that, which it would not on a GPU.
TRIES = 4
# A feature map of the whole picture takes 77 MB, and four of them live at once.
ROWS, COLUMNS = 500, 600
LAYERS = {"content_layers": "block1_conv1", "style_layers": "block1_conv1"}

CHILD = """
import json, logging, resource, sys
from nst_engine.startup import load_tensorflow
load_tensorflow()
import numpy as np
from flows import chunks
from nst_engine.config import TransferConfig
from nst_engine.engine import Engine
from nst_engine.errors import OutOfMemoryError
from nst_engine.images import resize
from nst_engine.pictures import Pictures
from nst_engine.samples import content_sample, style_sample

more, rows, columns, layers = json.loads(sys.argv[1])
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("nst_engine").addHandler(handler)
config = TransferConfig().with_overrides(
    {"precision": "float32", "weights": "random", "optimizer": "sgd", "iterations": 1, **layers}
)
content, style = (draw(40, 50) for draw in (content_sample, style_sample))
pictures = Pictures(resize(content, rows=rows, columns=columns), (style,))
engine = Engine("cpu", max_memory=10**12)
# What every transfer needs is there before the limit is, and room for what is small.
chunks.begin(engine, config, Pictures(content, (style,)), snapshot_every=None)
small = [bytes(100_000) for _ in range(1000)]
del small
if more is not None:
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))
found = {"plans": [], "losses": [], "error": None}
try:
    for _ in range(2):
        chunk = chunks.begin(engine, config, pictures, snapshot_every=None)
        while not chunk.stretch.finished:
            chunk = chunks.advance(engine, chunk, seconds=0, snapshot_every=None)
        found["plans"].append(str(chunk.stretch.environment.memory))
        found["losses"].append([chunk.state.losses.total, *chunk.state.losses.layers.values()])
except OutOfMemoryError as error:
    found["error"] = str(error)
# Another picture of that size.
others = Pictures(np.flip(pictures.content, axis=1), (style,))
found["other"] = str(engine.memory_plan(config, others, precision="float32"))
print(json.dumps({**found, "said": said}))
"""


def transfer(*, more: int | None, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, Any]:
    """Two transfers of the same picture by one engine, with so many bytes of memory more than it took to get warm."""
    arguments = json.dumps([more, rows, columns, LAYERS])
    for _ in range(TRIES):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, arguments],
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        if not (done.returncode == -signal.SIGABRT and "std::bad_alloc" in done.stderr):
            break
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_does_not_fit_as_a_whole_is_done_in_tiles_to_the_same_result() -> None:
    whole, tiled = transfer(more=None), transfer(more=250 * MB)
    assert (whole["error"], whole["said"], [plan[:10] for plan in whole["plans"]]) == (None, [], 2 * ["As a whole"])
    assert tiled["error"] is None
    # The second transfer knows it from the first, and is not tried as a whole again.
    assert [plan[:8] for plan in tiled["plans"]] == 2 * ["In tiles"]
    # So little may have been wanting to such a small one that others are tried as a whole.
    assert tiled["other"] == whole["plans"][0]
    [warning] = tiled["said"]
    assert warning == (
        f"The memory did not suffice for {ROWS} x {COLUMNS} pixels: {whole['plans'][0]}. "
        f"From now on: {tiled['plans'][0]}."
    )
    for found, expected in zip(tiled["losses"], whole["losses"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_when_nothing_needs_less_one_sentence_says_so() -> None:
    found = transfer(more=30 * MB, rows=800, columns=1000)
    assert (found["plans"], found["losses"]) == ([], [])
    assert found["error"].startswith("The memory ran out ")
    assert found["error"].endswith("ask for fewer rows, or let other programs leave more memory.")


@pytest.mark.parametrize(
    ("error", "known"),
    [
        pytest.param(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), True, id="TensorFlow"),
        pytest.param(MemoryError("Unable to allocate 5.49 MiB for an array"), True, id="NumPy"),
        pytest.param(tf.errors.InternalError(None, None, "Dst tensor is not initialized."), True, id="a copy to a GPU"),
        pytest.param(
            tf.errors.AbortedError(None, None, "Status:1, message: could not create a primitive"), True, id="oneDNN"
        ),
        pytest.param(
            tf.errors.NotFoundError(None, None, "autotuning failed: CUDNN_STATUS_ALLOC_FAILED"), True, id="cuDNN"
        ),
        pytest.param(tf.errors.NotFoundError(None, None, "no such op"), False, id="something that is not there"),
        pytest.param(tf.errors.InternalError(None, None, "a fault"), False, id="another fault"),
        pytest.param(tf.errors.InvalidArgumentError(None, None, "a shape"), False, id="a wrong shape"),
    ],
)
def test_what_says_that_the_memory_has_run_out(error: Exception, known: bool) -> None:
    assert is_out_of_memory(error) is known


def test_a_job_that_ran_out_of_memory_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    small = 'weights = "random"\nprecision = "float32"\niterations = 1\noptimizer = "adam"\n' + "".join(
        f'{name} = "{layer}"\n' for name, layer in LAYERS.items()
    )
    with running_service(tmp_path) as service:
        service.drop_pair("first", settings=f"rows = 48\n{small}")
        service.wait_for_end("first")
        [worker] = map(psutil.Process, service.part("gpu-worker"))
        worker.rlimit(resource.RLIMIT_AS, (worker.memory_info().vms + 30 * MB, resource.RLIM_INFINITY))
        service.drop_pair("second", settings=f"rows = {ROWS}\n{small}")
        service.wait(
            "the first attempt at it failed",
            lambda: any(job.attempts and job.attempts[0].error for job in service.jobs() if job.name == "second"),
        )
        worker.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        [job] = service.wait_for_end("second")
        assert worker.is_running()
    first, second = job.attempts
    assert str(first.error).startswith("The memory ran out ")
    assert (job.state, second.outcome, second.error) == (JobState.COMPLETED, JobState.COMPLETED, None)
