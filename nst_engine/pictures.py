"""The pictures of one transfer: content and styles at working size and at each scale, and the picture it starts
from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nst_engine.arrays import blocks, blockwise, empty_like, placed, release
from nst_engine.config import TransferConfig
from nst_engine.errors import ImageError
from nst_engine.images import MEAN_BGR, MIN_SIDE, display_range, preprocess, resize, target_size
from nst_engine.scales import scaled_size


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of one transfer at working size: uint8 RGB (rows, columns, 3)."""

    content: np.ndarray
    styles: tuple[np.ndarray, ...]

    def digest(self) -> str:
        """SHA-256 over all pixels and shapes."""
        return digest_of(self.content, *self.styles)

    def placed(self, *, on_disk: bool) -> Pictures:
        """The same pictures on disk or in memory, and so all that is made from them; raises DiskSpaceError."""
        return Pictures(
            content=placed(self.content, on_disk=on_disk),
            styles=tuple(placed(style, on_disk=on_disk) for style in self.styles),
        )


def digest_of(*pictures: np.ndarray) -> str:
    """SHA-256 over all pixels and shapes of pictures, in their order."""
    sha256 = hashlib.sha256()
    for picture in pictures:
        sha256.update(repr(picture.shape).encode())
        sha256.update(np.ascontiguousarray(picture).data)
        release(picture)
    return sha256.hexdigest()


def content_size(config: TransferConfig, content: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) at which a content of that shape is worked on, at the finest scale.

    Raises ImageError when it is too narrow for the network at that size or at a coarser scale.
    """
    return _at_every_scale(config, target_size(content, rows=config.rows, long_edge=config.long_edge))


def style_size(config: TransferConfig, style: tuple[int, ...], *, content: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) at which a style of that shape is worked on beside a content of `content` (rows, columns).

    Raises ImageError when it is too narrow for the network at that size or at a coarser scale.
    """
    if config.style_fit == "stretch":
        return content
    if config.style_fit == "edge":
        return _at_every_scale(config, target_size(style, rows=config.rows, long_edge=config.long_edge))
    scale = float(np.sqrt(content[0] * content[1] / (style[0] * style[1])))
    return _at_every_scale(config, target_size(style, rows=round(style[0] * scale), long_edge=None))


def _at_every_scale(config: TransferConfig, size: tuple[int, int]) -> tuple[int, int]:
    """`size` itself, when a picture that has it at the finest scale is large enough at the coarsest too."""
    coarsest = scaled_size(config, size, scale=1)
    if min(coarsest) < MIN_SIDE:
        raise ImageError(
            f"the picture is too small for {config.scales} scales: of {size[0]} x {size[1]} pixels (rows x columns) "
            f"the coarsest would leave {coarsest[0]} x {coarsest[1]}, and each side needs at least {MIN_SIDE}; ask "
            "for fewer scales or a larger picture."
        )
    return size


def fit_pictures(config: TransferConfig, content: np.ndarray, styles: list[np.ndarray]) -> Pictures:
    """Resize decoded pictures, uint8 RGB, to the sizes at which the config works.

    Raises ImageError when a picture is too narrow for the network at that size or at a coarser scale.
    """
    size = content_size(config, content.shape)
    return Pictures(
        content=_fit(content, size),
        styles=tuple(_fit(style, style_size(config, style.shape, content=size)) for style in styles),
    )


def at_scale(config: TransferConfig, pictures: Pictures, scale: int) -> Pictures:
    """The pictures at `scale`, all made smaller alike from those at working size, which are those of the finest."""

    def fit(picture: np.ndarray) -> np.ndarray:
        return _fit(picture, scaled_size(config, (picture.shape[0], picture.shape[1]), scale=scale))

    return Pictures(content=fit(pictures.content), styles=tuple(map(fit, pictures.styles)))


def enlarge(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A preprocessed picture, float32 (rows, columns, 3), at a larger `size` (rows, columns), by bicubic splines.

    Nothing is rounded or clipped.
    """
    rows, columns = size
    larger = empty_like(picture, (rows, columns, 3))
    for channel in range(3):
        image = Image.fromarray(np.ascontiguousarray(picture[..., channel]))
        release(picture)
        resized = np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))
        for block in blocks(larger):
            larger[block, :, channel] = resized[block]
            release(larger)
    return larger


def _fit(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize(picture, rows=size[0], columns=size[1])


def initial_picture(config: TransferConfig, pictures: Pictures) -> np.ndarray:
    """The preprocessed picture that the optimisation starts from, of the content's size."""
    rows, columns = pictures.content.shape[:2]
    match config.init:
        case "content":
            return preprocess(pictures.content)
        case "style":
            return preprocess(resize(pictures.styles[0], rows=rows, columns=columns))
        case "grey":
            grey = np.float32(127.5) - np.array(MEAN_BGR, np.float32)
            return blockwise(lambda part: np.broadcast_to(grey, part.shape).copy(), pictures.content)
        case "noise":
            low, high = display_range()
            random = np.random.default_rng(config.seed)
            return blockwise(
                lambda part: low + random.random(part.shape, dtype=np.float32) * (high - low), pictures.content
            )
