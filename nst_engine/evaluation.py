"""What is known of a picture once it has been evaluated: the parts of its loss and the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Losses:
    """The parts of the loss of one picture: total = content + style + tv.

    `content`, `style` and `tv` carry their weights (content_weight and so on). `layers` has each layer's own
    loss without any weight, as "content/block5_conv2", so that jobs with other weights compare.
    """

    total: float
    content: float
    style: float
    tv: float
    layers: dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The losses of a picture and the gradient of the total, float32 (rows, columns, 3)."""

    losses: Losses
    gradient: np.ndarray
