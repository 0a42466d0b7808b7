"""The pictures of one transfer: content and styles at working size and at each scale, and the picture it starts
from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image

from nst_engine.arrays import blocks, blockwise, empty_like, on_disk, placed, release
from nst_engine.color import grey, matched_style, works_in_grey
from nst_engine.config import MAX_SIDE, TransferConfig
from nst_engine.errors import ConfigError, ImageError
from nst_engine.images import MAX_PIXELS, MEAN_BGR, MIN_SIDE, display_range, preprocess, resize, target_size
from nst_engine.masks import feathered
from nst_engine.scales import scaled_size

_SHAPE_TOLERANCE: Final = 0.02
"""What a mask's columns : rows may differ by from its picture's, as a share: sizes are whole numbers of pixels."""


@dataclass(frozen=True)
class Pictures:
    """The decoded pictures of one transfer at working size: uint8 RGB (rows, columns, 3).

    `initial` has the content's size. Masks are uint8 (rows, columns), 255 inside: `masks`, none or one a style, say
    where of the content each style goes and have its size; `style_masks`, none or one (or None) a style, say which part
    of each style counts and have its size. `colors` is the content in its colours where `content` is without.
    """

    content: np.ndarray
    styles: tuple[np.ndarray, ...]
    initial: np.ndarray | None = None
    masks: tuple[np.ndarray, ...] = ()
    style_masks: tuple[np.ndarray | None, ...] = ()
    colors: np.ndarray | None = None

    @property
    def content_in_color(self) -> np.ndarray:
        """The content with the colours that it was given with."""
        return self.content if self.colors is None else self.colors

    def digest(self) -> str:
        """SHA-256 over all pixels and shapes."""
        pictures = digest_of(self.content, *self.styles)
        others = (self.initial, self.colors, *self.masks, None, *self.style_masks)
        if all(other is None for other in others):
            return pictures
        digests = [None if other is None else digest_of(other) for other in others]
        return hashlib.sha256(f"{pictures} {digests}".encode()).hexdigest()

    def placed(self, *, on_disk: bool) -> Pictures:
        """The same pictures on disk or in memory, and so all that is made from them; raises DiskSpaceError."""

        def there(picture: np.ndarray) -> np.ndarray:
            return placed(picture, on_disk=on_disk)

        return self.each(picture=there, mask=there)

    def each(
        self, *, picture: Callable[[np.ndarray], np.ndarray], mask: Callable[[np.ndarray], np.ndarray]
    ) -> Pictures:
        """What `picture` makes of every picture, and `mask` of every mask."""
        return Pictures(
            content=picture(self.content),
            styles=tuple(map(picture, self.styles)),
            initial=None if self.initial is None else picture(self.initial),
            masks=tuple(map(mask, self.masks)),
            style_masks=tuple(None if one is None else mask(one) for one in self.style_masks),
            colors=None if self.colors is None else picture(self.colors),
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
    return _at_every_scale(config, _size_by_rule(config, content))


def style_size(config: TransferConfig, style: tuple[int, ...], *, content: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) at which a style of that shape is worked on beside a content of `content` (rows, columns).

    Raises ImageError when it is too narrow for the network at that size or at a coarser scale, or too large.
    """
    shaped_as_content = config.style_fit in ("stretch", "crop")
    if config.style_size is not None:
        size = target_size(content if shaped_as_content else style, long_edge=config.style_size)
        return _at_every_scale(config, _allowed(size, setting="style_size"))
    size = content if shaped_as_content else _size_in_own_shape(config, style, content=content)
    if config.style_scale != 1:
        size = round(size[0] * config.style_scale), round(size[1] * config.style_scale)
        return _at_every_scale(config, _allowed(size, setting="style_scale"))
    return size if shaped_as_content else _at_every_scale(config, size)


def _size_by_rule(config: TransferConfig, shape: tuple[int, ...]) -> tuple[int, int]:
    if config.rows == "content":
        return shape[0], shape[1]
    return target_size(shape, rows=config.rows, long_edge=config.long_edge)


def _size_in_own_shape(config: TransferConfig, style: tuple[int, ...], *, content: tuple[int, int]) -> tuple[int, int]:
    if config.style_fit == "edge":
        return _size_by_rule(config, style)
    scale = float(np.sqrt(content[0] * content[1] / (style[0] * style[1])))
    return target_size(style, rows=round(style[0] * scale), long_edge=None)


def _allowed(size: tuple[int, int], *, setting: str) -> tuple[int, int]:
    """`size` itself, of a style, unless it is too small for the network or larger than a picture may be."""
    rows, columns = size
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{setting} makes the style too small: it would have {rows} x {columns} pixels (rows x columns), and each "
            f"side needs at least {MIN_SIDE}; give more."
        )
    if max(size) > MAX_SIDE or rows * columns > MAX_PIXELS:
        raise ImageError(
            f"{setting} makes the style too large: it would have {rows} x {columns} pixels (rows x columns), and at "
            f"most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all are allowed; give less."
        )
    return size


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


def fit_pictures(
    config: TransferConfig,
    content: np.ndarray,
    styles: Sequence[np.ndarray],
    *,
    initial: np.ndarray | None = None,
    masks: Sequence[np.ndarray] = (),
    style_masks: Sequence[np.ndarray | None] = (),
) -> Pictures:
    """Resize decoded pictures, uint8 RGB, and masks, uint8 (rows, columns), to the sizes at which the config works.

    Masks are feathered there, so that coarser scales have the same edges.
    With one mask fewer than styles, but at least one, the last style takes what no other mask covers; styles without a
    style mask count as a whole. Raises ImageError when a picture is too narrow for the network at that size or at a
    coarser scale, or too large, or a mask does not belong to its picture, and ConfigError when the config starts from a
    picture and none is given.
    """
    if config.init == "picture":
        _given(initial)
    check_masks(
        content.shape,
        [style.shape for style in styles],
        masks=[mask.shape for mask in masks],
        style_masks=[None if mask is None else mask.shape for mask in style_masks],
    )
    size = content_size(config, content.shape)
    sizes = [style_size(config, style.shape, content=size) for style in styles]
    of_styles = [*style_masks, *[None] * (len(styles) - len(style_masks))] if style_masks else []
    if config.style_fit == "crop":
        styles = [_middle(style, size) for style in styles]
        of_styles = [None if mask is None else _middle(mask, size) for mask in of_styles]
    fitted = Pictures(
        content=_fit(content, size),
        styles=tuple(map(_fit, styles, sizes)),
        initial=None if initial is None else _fit(initial, size),
        masks=_complete([_fit_mask(mask, size) for mask in masks], styles=len(styles)),
        style_masks=tuple(
            None if mask is None else _fit_mask(mask, own) for mask, own in zip(of_styles, sizes, strict=False)
        ),
    ).each(picture=lambda picture: picture, mask=lambda mask: feathered(mask, config.feather))
    return _in_wanted_colors(config, fitted)


def _in_wanted_colors(config: TransferConfig, pictures: Pictures) -> Pictures:
    """The pictures with those colours that the config wants them to have before all else."""
    styles = tuple(matched_style(config, style, pictures.content) for style in pictures.styles)
    if not works_in_grey(config):
        return replace(pictures, styles=styles)
    return replace(
        pictures,
        content=grey(pictures.content, config.color_space),
        styles=styles,
        initial=None if pictures.initial is None else grey(pictures.initial, config.color_space),
        colors=pictures.content,
    )


def at_scale(config: TransferConfig, pictures: Pictures, scale: int) -> Pictures:
    """The pictures at `scale`, all made smaller alike from those at working size, which are those of the finest."""

    def size(picture: np.ndarray) -> tuple[int, int]:
        return scaled_size(config, (picture.shape[0], picture.shape[1]), scale=scale)

    return pictures.each(
        picture=lambda picture: _fit(picture, size(picture)), mask=lambda mask: _fit_mask(mask, size(mask))
    )


def _given(initial: np.ndarray | None) -> np.ndarray:
    if initial is None:
        raise ConfigError("init = picture needs a picture to start from, and none is given; give one, or another init.")
    return initial


def check_masks(
    content: tuple[int, ...],
    styles: Sequence[tuple[int, ...]],
    *,
    masks: Sequence[tuple[int, ...]],
    style_masks: Sequence[tuple[int, ...] | None],
) -> None:
    """Raise ImageError unless masks of these shapes, (rows, columns), belong to pictures of these, (rows, columns, 3).

    There may be one mask fewer than styles, and a style may have none of its own.
    """
    if masks and len(masks) not in (len(styles) - 1, len(styles)):
        raise ImageError(
            f"there are {len(masks)} masks for {len(styles)} styles; give one a style, or leave out the last style's."
        )
    if len(style_masks) > len(styles):
        raise ImageError(f"there are {len(style_masks)} style masks for {len(styles)} styles; give one a style.")
    for number, mask in enumerate(masks, 1):
        _check_shape(mask, content, name=f"mask {number}", whose="the content")
    for number, (of_style, style) in enumerate(zip(style_masks, styles, strict=False), 1):
        if of_style is not None:
            _check_shape(of_style, style, name=f"style mask {number}", whose=f"style {number}")


def _check_shape(mask: tuple[int, ...], picture: tuple[int, ...], *, name: str, whose: str) -> None:
    rows, columns = picture[:2]
    if abs(mask[1] * rows / (mask[0] * columns) - 1) > _SHAPE_TOLERANCE:
        raise ImageError(
            f"{name} has another shape than {whose}: {mask[0]} x {mask[1]} pixels (rows x columns), "
            f"{whose} {rows} x {columns}; make it from that picture."
        )


def _complete(masks: list[np.ndarray], *, styles: int) -> tuple[np.ndarray, ...]:
    """The masks and, where one is missing, that of what they leave."""
    if not masks or len(masks) == styles:
        return tuple(masks)

    def rest(*parts: np.ndarray) -> np.ndarray:
        covered = sum(part.astype(np.int32) for part in parts)
        return np.clip(255 - covered, 0, 255).astype(np.uint8)

    return *masks, blockwise(rest, *masks)


def _middle(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture or mask, as much of it as has the shape (rows, columns) of `size`."""
    rows, columns = picture.shape[:2]
    kept_rows = min(rows, max(1, round(columns * size[0] / size[1])))
    kept_columns = min(columns, max(1, round(rows * size[1] / size[0])))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    return picture[top : top + kept_rows, left : left + kept_columns]


def _fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at that size (rows, columns), each pixel the mean of those it stands for."""
    if mask.shape == size:
        return mask
    resized = np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.BOX))
    return placed(resized, on_disk=on_disk(mask))


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
    """The preprocessed picture that the optimisation starts from, of the content's size.

    Raises ConfigError when that is a given picture and there is none.
    """
    begun = _picture_to_start_from(config, pictures)
    share = np.float32(config.init_noise)
    # Of noise the noise is a part already.
    if share == 0 or config.init == "noise":
        return begun
    noise = _noise(config, pictures.content)
    return blockwise(lambda part, random: (1 - share) * part + share * random, begun, noise, out=noise)


def _picture_to_start_from(config: TransferConfig, pictures: Pictures) -> np.ndarray:
    rows, columns = pictures.content.shape[:2]
    match config.init:
        case "content":
            return preprocess(pictures.content)
        case "style":
            return preprocess(resize(pictures.styles[0], rows=rows, columns=columns))
        case "picture":
            return preprocess(_given(pictures.initial))
        case "grey":
            grey = np.float32(127.5) - np.array(MEAN_BGR, np.float32)
            return blockwise(lambda part: np.broadcast_to(grey, part.shape).copy(), pictures.content)
        case "noise":
            return _noise(config, pictures.content)


def _noise(config: TransferConfig, content: np.ndarray) -> np.ndarray:
    low, high = display_range()
    random = np.random.default_rng(config.seed)
    return blockwise(lambda part: low + random.random(part.shape, dtype=np.float32) * (high - low), content)
