"""The state of a transfer for tests of what is done with one."""

from __future__ import annotations

import numpy as np

from nst_engine.config import TransferConfig
from nst_engine.evaluation import Losses
from nst_engine.optimizers import initial_state
from nst_engine.pictures import Pictures
from nst_engine.transfer import TransferState


def finished_transfer() -> TransferState:
    """A finished transfer, as small as can be: 16 x 20 pixels, 12 iterations."""
    config = TransferConfig().with_overrides({"rows": 16, "iterations": 12})
    picture = np.arange(16 * 20 * 3, dtype=np.float32).reshape(16, 20, 3)
    return TransferState(
        config=config,
        pictures=Pictures(content=np.zeros((16, 20, 3), np.uint8), styles=(np.ones((16, 16, 3), np.uint8),)),
        precision="float32",
        weights_name="random",
        weights_sha256="ab" * 32,
        picture=picture,
        losses=Losses(3.0, 1.0, 1.5, 0.5, {"style/block1_conv1": 1.5}),
        gradient=picture / 7,
        optimizer=initial_state(config, picture),
        iteration=12,
        best_picture=picture,
        best_loss=3.0,
        seconds=4.5,
    )
