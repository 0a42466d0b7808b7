"""The content's colours in a transfer: matching the colours of one picture to those of another, and where the settings
`preserve_color`, `color_when` and `color_space` want that done (Gatys, Bethge, Hertzmann and Shechtman, Preserving
Color in Neural Artistic Style Transfer, arXiv:1606.05897). Pictures are RGB (rows, columns, 3), uint8 or floating with
values 0..255, and what is made of one has its type. Large ones are worked on block by block."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from nst_engine.arrays import blocks, blockwise, release
from nst_engine.color_spaces import from_rgb, to_rgb
from nst_engine.config import ColorSpace, TransferConfig
from nst_engine.images import MEAN_BGR, Input, Picture, preprocess, resize

_LEVELS: Final = 1 << 16
"""Of a channel's histogram: a hundredth of a grey level each."""
_LEAST_VARIANCE: Final = 1.0
"""In a direction in which colours vary less than by a grey level, or a just noticeable difference of Lab and Luv, there
is only noise, which would be seen if it were stretched."""


def luminance_only(picture: np.ndarray, content: np.ndarray, space: ColorSpace) -> np.ndarray:
    """`picture` in the colours of `content`, of the same size: its luminance in `space` with the content's chroma."""

    def combined(part: np.ndarray, other: np.ndarray) -> np.ndarray:
        colors = from_rgb(_floating(other).astype(_floating(part).dtype), space)
        colors[..., 0] = from_rgb(_floating(part), space)[..., 0]
        return _as(part, to_rgb(colors, space))

    return blockwise(combined, picture, content)


def match_linear(picture: np.ndarray, target: np.ndarray, space: ColorSpace) -> np.ndarray:
    """`picture` with the mean and the covariance that the colours of `target` have in `space`.

    Of the maps that do so it is the product of the symmetric square roots, S_target^1/2 S_picture^-1/2, that of
    Hertzmann's image analogies, which the paper found better than Cholesky's. A picture of hardly any colours, such as
    a grey one, gets none.
    """
    mean, covariance = _moments(picture, space)
    target_mean, target_covariance = _moments(target, space)
    matrix = _root(target_covariance) @ _inverse_root(covariance)

    def matched(colors: np.ndarray) -> np.ndarray:
        centred = (colors - mean.astype(colors.dtype)).reshape(-1, 3)
        moved: np.ndarray = centred @ matrix.T.astype(colors.dtype) + target_mean.astype(colors.dtype)
        return moved.reshape(colors.shape)

    return _mapped(matched, picture, space)


def match_histogram(picture: np.ndarray, target: np.ndarray, space: ColorSpace) -> np.ndarray:
    """`picture` with the histogram that each channel of `target` has in `space`.

    Equal values stay equal: all of them take the value at the middle of their share.
    """
    shares = [(np.cumsum(counts) - counts / 2) / counts.sum() for counts in _histograms(picture, space)]
    sums = [np.cumsum(counts) / counts.sum() for counts in _histograms(target, space)]
    lowest, step = _levels(space)
    found = [np.searchsorted(sum_, share) for sum_, share in zip(sums, shares, strict=True)]
    # A sum of shares may end a rounding error below 1.
    tables = np.minimum(np.stack(found), _LEVELS - 1) * step[:, np.newaxis] + lowest[:, np.newaxis]

    def matched(colors: np.ndarray) -> np.ndarray:
        level = _level(colors, space)
        return np.stack([tables[channel][level[..., channel]] for channel in range(3)], axis=-1).astype(colors.dtype)

    return _mapped(matched, picture, space)


def grey(picture: np.ndarray, space: ColorSpace) -> np.ndarray:
    """`picture` without colours, of the same luminance in `space`."""
    return _in_grey(lambda luminance: luminance, picture, space)


def matched_style(config: TransferConfig, style: Picture, content: Picture) -> Picture:
    """The style as it is worked with beside that content, which is in its colours.

    That is the style itself unless the config wants colours matched before; as luminance it is grey, with the mean and
    the deviation of the content's.
    """
    space = config.color_space
    if config.color_when == "after" or config.preserve_color == "no":
        return style
    match config.preserve_color:
        case "linear":
            return match_linear(style, content, space)
        case "histogram":
            return match_histogram(style, content, space)
        case "luminance":
            (mean, deviation), (wanted, wanted_deviation) = (_luminance(of, space) for of in (style, content))
            gain = wanted_deviation / deviation if deviation**2 > _LEAST_VARIANCE else 0.0
            return _in_grey(lambda luminance: (luminance - mean) * gain + wanted, style, space)


def works_in_grey(config: TransferConfig) -> bool:
    """Whether content and styles are reduced to their luminance before all else."""
    return config.preserve_color == "luminance" and config.color_when == "before"


def recolored(config: TransferConfig, picture: Input, content: Picture) -> Input:
    """What a picture of the transfer, float32 BGR less the means, looks like with the content's colours.

    `content` is in its colours; where the picture is of a coarser scale, it is made as small. The picture itself where
    the config leaves the colours as they come out.
    """
    if config.preserve_color == "no" or (config.color_when == "before" and not works_in_grey(config)):
        return picture
    rows, columns = picture.shape[:2]
    content = resize(content, rows=rows, columns=columns)
    means = np.array(MEAN_BGR, np.float32)
    rgb = blockwise(lambda part: np.clip((part + means)[..., ::-1], 0, 255), picture)
    matching = {"luminance": luminance_only, "histogram": match_histogram, "linear": match_linear}
    return preprocess(matching[config.preserve_color](rgb, content, config.color_space))


def _floating(part: np.ndarray) -> np.ndarray:
    """In float64 what is in whole numbers, so that they come out the same on every machine."""
    return part if part.dtype.kind == "f" else part.astype(np.float64)


def _as(part: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """`rgb` in the type of `part`, rounded and clipped where these are whole numbers."""
    return rgb if part.dtype.kind == "f" else np.clip(np.rint(rgb), 0, 255).astype(part.dtype)


def _mapped(transform: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, space: ColorSpace) -> np.ndarray:
    """The picture whose colours in `space` are what `transform` makes of those of this one."""
    return blockwise(lambda part: _as(part, to_rgb(transform(from_rgb(_floating(part), space)), space)), picture)


def _in_grey(transform: Callable[[np.ndarray], np.ndarray], picture: np.ndarray, space: ColorSpace) -> np.ndarray:
    """The grey picture whose luminance in `space` is what `transform` makes of that of this one."""

    def mapped(part: np.ndarray) -> np.ndarray:
        colors = np.zeros_like(_floating(part))
        colors[..., 0] = transform(from_rgb(_floating(part), space)[..., 0])
        # Of the three channels, equal but for rounding errors, one, so that they are rounded alike.
        return _as(part, to_rgb(colors, space)[..., :1].repeat(3, axis=-1))

    return blockwise(mapped, picture)


def _colors(picture: np.ndarray, space: ColorSpace) -> Iterator[np.ndarray]:
    """The colours of all pixels in `space`, (n, 3), block by block."""
    for block in blocks(picture):
        yield from_rgb(_floating(picture[block]), space).reshape(-1, 3)
        release(picture)


def _moments(picture: np.ndarray, space: ColorSpace) -> tuple[np.ndarray, np.ndarray]:
    """The mean (3,) and the covariance (3, 3) of the colours in `space`, float64."""
    count, total, squares = 0, np.zeros(3), np.zeros((3, 3))
    for colors in _colors(picture, space):
        exact = colors.astype(np.float64)
        count += len(exact)
        total += exact.sum(axis=0)
        squares += exact.T @ exact
    mean = total / count
    return mean, squares / count - np.outer(mean, mean)


def _luminance(picture: np.ndarray, space: ColorSpace) -> tuple[float, float]:
    """Mean and deviation of the luminance."""
    mean, covariance = _moments(picture, space)
    return float(mean[0]), float(np.sqrt(max(covariance[0, 0], 0.0)))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    stretched = values > _LEAST_VARIANCE
    inverse: np.ndarray = (vectors * np.where(stretched, 1 / np.sqrt(np.where(stretched, values, 1)), 0)) @ vectors.T
    return inverse


def _histograms(picture: np.ndarray, space: ColorSpace) -> np.ndarray:
    """How many pixels each channel has at each level, (3, _LEVELS)."""
    counts = np.zeros((3, _LEVELS), np.int64)
    for colors in _colors(picture, space):
        level = _level(colors, space)
        for channel in range(3):
            counts[channel] += np.bincount(level[:, channel], minlength=_LEVELS)
    return counts


def _level(colors: np.ndarray, space: ColorSpace) -> np.ndarray:
    lowest, step = _levels(space)
    level: np.ndarray = np.clip(np.rint((colors - lowest) / step), 0, _LEVELS - 1)
    return level.astype(np.intp)


@functools.cache
def _levels(space: ColorSpace) -> tuple[np.ndarray, np.ndarray]:
    """The lowest level of each channel and the steps between levels: all colours of a screen have one."""
    # The extremes of each channel are corners of the RGB cube, and levels beside them do no harm.
    corners = from_rgb(np.array(list(itertools.product((0.0, 255.0), repeat=3))), space)
    lowest, highest = corners.min(axis=0) - 1, corners.max(axis=0) + 1
    return lowest, (highest - lowest) / (_LEVELS - 1)
