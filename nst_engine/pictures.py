"""The pictures of one transfer: content and styles at working size, and the picture it starts from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from nst_engine.config import TransferConfig
from nst_engine.images import MEAN_BGR, display_range, preprocess, resize, target_size


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of one transfer at working size: uint8 RGB (rows, columns, 3)."""

    content: np.ndarray
    styles: tuple[np.ndarray, ...]

    def digest(self) -> str:
        """SHA-256 over all pixels and shapes."""
        sha256 = hashlib.sha256()
        for picture in (self.content, *self.styles):
            sha256.update(repr(picture.shape).encode())
            sha256.update(np.ascontiguousarray(picture).data)
        return sha256.hexdigest()


def fit_pictures(config: TransferConfig, content: np.ndarray, styles: list[np.ndarray]) -> Pictures:
    """Resize decoded pictures, uint8 RGB, to the sizes at which the config works.

    Raises ImageError when a picture is too narrow for the network at that size.
    """
    rows, columns = target_size(content.shape, rows=config.rows, long_edge=config.long_edge)
    return Pictures(
        content=resize(content, rows=rows, columns=columns),
        styles=tuple(_fit_style(config, style, rows=rows, columns=columns) for style in styles),
    )


def _fit_style(config: TransferConfig, style: np.ndarray, *, rows: int, columns: int) -> np.ndarray:
    if config.style_fit == "stretch":
        return resize(style, rows=rows, columns=columns)
    if config.style_fit == "edge":
        size = target_size(style.shape, rows=config.rows, long_edge=config.long_edge)
    else:
        scale = float(np.sqrt(rows * columns / (style.shape[0] * style.shape[1])))
        size = target_size(style.shape, rows=round(style.shape[0] * scale), long_edge=None)
    return resize(style, rows=size[0], columns=size[1])


def initial_picture(config: TransferConfig, pictures: Pictures) -> np.ndarray:
    """The preprocessed picture that the optimisation starts from, of the content's size."""
    rows, columns = pictures.content.shape[:2]
    match config.init:
        case "content":
            return preprocess(pictures.content)
        case "style":
            return preprocess(resize(pictures.styles[0], rows=rows, columns=columns))
        case "grey":
            return np.broadcast_to(np.float32(127.5) - np.array(MEAN_BGR, np.float32), (rows, columns, 3)).copy()
        case "noise":
            low, high = display_range()
            noise = np.random.default_rng(config.seed).random((rows, columns, 3), dtype=np.float32)
            return low + noise * (high - low)
