"""What runs on a GPU worker: plain functions that a scheduler can name, each a chunk of work on the process's one warm
engine. Nothing is kept between them but that engine's caches."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

from distributed import Worker, WorkerPlugin

from flows import chunks
from flows.chunks import Chunk, Stretch
from nst_engine.config import TransferConfig
from nst_engine.errors import EngineError
from nst_engine.pictures import Pictures
from nst_engine.startup import load_tensorflow
from nst_engine.transfer import TransferState

if TYPE_CHECKING:
    from nst_engine.engine import Engine

GPU: Final = "GPU"
"""The Dask resource that a worker has one of and that everything that computes takes."""

_engines: Final = list["Engine"]()


class EnginePlugin(WorkerPlugin):
    """Gives a Dask worker its engine on `device` ("auto", "cpu", "gpu", "gpu:N") before it takes any work."""

    name = "nst-engine"

    def __init__(self, device: str) -> None:
        self.device = device

    def setup(self, worker: Worker) -> None:
        """Load TensorFlow and the device; where there is none such, say so and let the worker fail to start."""
        load_tensorflow()
        from nst_engine.engine import Engine

        try:
            _engines[:] = [Engine(self.device)]
        except EngineError as error:
            # Dask would wrap it, lose its cause on the way to the nanny, and print three tracebacks.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            sys.stderr.write(f"{error}\n")
            raise


def begin(config: TransferConfig, pictures: Pictures) -> Chunk:
    """See `chunks.begin`."""
    return chunks.begin(_engine(), config, pictures)


def resume(state: TransferState) -> Chunk:
    """See `chunks.resume`."""
    return chunks.resume(_engine(), state)


def advance(chunk: Chunk, seconds: float) -> Chunk:
    """See `chunks.advance`."""
    return chunks.advance(_engine(), chunk, seconds=seconds)


def report(chunk: Chunk) -> Stretch:
    """What is new in a chunk, without its state, which is large and stays here."""
    return chunk.stretch


def _engine() -> Engine:
    return _engines[0]
