"""What L-BFGS takes for the inverse Hessian before it knows better. The loss of a picture bends least along its coarse
structure, so a step is scaled by spatial frequency: a discrete cosine transform (which mirrors the picture at its
borders), a weight for each frequency, and the way back. It is symmetric and positive, as an inverse Hessian must be."""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.fft

from nst_engine.arrays import BLOCK_NUMBERS, blocks, empty_like, release

_COARSEST: Final = 0.02
"""In cycles a pixel: frequencies far below it count alike."""


def smooth(picture: np.ndarray, *, power: float) -> np.ndarray:
    """`picture`, float32 (rows, columns, 3), with each spatial frequency f weighted by (f + 0.02)^-power.

    f is in cycles a pixel. The result is new and where the picture is; the work is done in blocks that depend on its
    shape alone.
    """
    rows, columns, _ = picture.shape
    by_row = (np.arange(rows, dtype=np.float32) / (2 * rows))[:, np.newaxis]
    by_column = (np.arange(columns, dtype=np.float32) / (2 * columns))[np.newaxis]
    found = empty_like(picture)
    for block in blocks(picture):
        found[block] = scipy.fft.dct(picture[block], axis=1, norm="ortho")
        release(picture, found)
    width = max(1, BLOCK_NUMBERS * columns // picture.size)
    for start in range(0, columns, width):
        block = slice(start, start + width)
        spectrum = scipy.fft.dct(found[:, block], axis=0, norm="ortho")
        spectrum *= ((np.hypot(by_row, by_column[:, block]) + np.float32(_COARSEST)) ** np.float32(-power))[..., None]
        found[:, block] = scipy.fft.idct(spectrum, axis=0, norm="ortho", overwrite_x=True)
        release(found)
    for block in blocks(found):
        found[block] = scipy.fft.idct(found[block], axis=1, norm="ortho")
        release(found)
    return found
