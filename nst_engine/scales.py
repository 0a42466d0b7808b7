"""The scales of one transfer, from 1, the coarsest, to `config.scales`, the size of the result: which iterations are
done at each, and how large its pictures are. Only numbers: whoever tells the progress needs no pictures."""

from __future__ import annotations

from nst_engine.config import TransferConfig


def last_iteration(config: TransferConfig, scale: int) -> int:
    """The iteration with which that scale ends, counted from the first of all; one that converges ends before it."""
    if scale == config.scales:
        return config.iterations
    if config.scale_iterations is not None:
        return config.scale_iterations * scale
    return config.iterations * scale // config.scales


def iterations_left(config: TransferConfig, *, iteration: int, scale: int) -> float:
    """What is left to do after `iteration`, reached at `scale`, in iterations of that scale.

    The work of an iteration goes with its number of pixels.
    """
    left = 0.0
    for later in range(scale, config.scales + 1):
        ends = last_iteration(config, later)
        left += (ends - iteration) * config.scale_factor ** (2 * (later - scale))
        iteration = ends
    return left


def scaled_size(config: TransferConfig, size: tuple[int, int], *, scale: int) -> tuple[int, int]:
    """(rows, columns) at `scale` of a picture whose working size is `size`."""
    shrinks = config.scale_factor ** (config.scales - scale)
    return round(size[0] / shrinks), round(size[1] / shrinks)
