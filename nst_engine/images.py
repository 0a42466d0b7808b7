"""Pictures between a file and the network: decode, check, orient, resize, encode, preprocess, deprocess.

A *picture* is a uint8 array (rows, columns, 3), sRGB, channels RGB, upright. An *input* is what VGG19 takes:
a float32 array (rows, columns, 3), channels BGR, each less its mean over ImageNet.
"""

import contextlib
import functools
import io
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from nst_engine.arrays import blockwise, on_disk, placed
from nst_engine.errors import ImageError

Picture = NDArray[np.uint8]
WidePicture = NDArray[np.uint16]
Input = NDArray[np.float32]

MEAN_BGR = (103.939, 116.779, 123.68)
MAX_PIXELS = 100_000_000
# Four poolings lie before block5, so fewer pixels a side leave it nothing to look at.
MIN_SIDE = 16

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
_FORMAT_NAMES = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""

_MEANS = np.array(MEAN_BGR, np.float32)

logger = logging.getLogger(__name__)

# Pillow's guard is one number for the whole process and warns or raises at its own sizes; `max_pixels` is
# checked here, after the header and before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


def decode(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in a JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF file, uint8 (rows, columns, 3), upright sRGB.

    EXIF orientation and an embedded colour profile are applied, transparency is laid over white, 16 bits are
    scaled to 8, and of several frames the first is taken.

    Raises ImageError when the file cannot be read, is no such picture, is damaged or incomplete, has more
    than `max_pixels` pixels or a side under MIN_SIDE.
    """
    return np.array(_read(path, max_pixels, _over_white))


def decode_mask(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The mask in such a file, uint8 (rows, columns), upright: 255 is inside.

    That is the luminance of its picture over black; of a picture whose opaque pixels all have one colour, as when
    somebody painted on an empty layer, the opacity. Raises as `decode` does.
    """
    return np.array(_read(path, max_pixels, _as_mask))


def _read(path: Path, max_pixels: int, convert: Callable[[Image.Image, Path], Image.Image]) -> Image.Image:
    """What `convert` makes of the picture in a file, upright; raises ImageError."""
    require_file(path)
    # Pillow maps a file it opens by name into memory, and one that shrinks meanwhile kills the process: it
    # gets an open file instead.
    try:
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            _check_header(image, path, max_pixels)
            image.load()
            upright = UPRIGHT.get(_orientation(image, path))
            converted = convert(image, path)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is no {_FORMAT_NAMES} picture, or its beginning is damaged; "
            "export it again in one of these formats."
        ) from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read; give this user the right to read it.") from error
    except Exception as error:
        # Pillow's decoders raise nearly everything on damaged files: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, EOFError, IndexError, KeyError, TypeError, AssertionError...
        reason = str(error) or type(error).__name__
        raise ImageError(f"{path} is damaged or incomplete ({reason}); copy or export it again.") from error
    return converted if upright is None else converted.transpose(upright)


def target_size(shape: tuple[int, ...], *, rows: int | None = None, long_edge: int | None = None) -> tuple[int, int]:
    """(rows, columns) of a picture of `shape` (rows, columns, ...) scaled to `rows`, or to a longer side of
    `long_edge`; exactly one of the two is given.

    Raises ImageError when a side would come under MIN_SIDE.
    """
    height, width = shape[:2]
    if rows is not None and long_edge is None:
        size = (rows, int(width * rows / height))
    elif long_edge is not None and rows is None:
        scale = long_edge / max(height, width)
        size = (round(height * scale), round(width * scale))
    else:
        raise ValueError("give exactly one of rows and long_edge")
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"the picture is too narrow: {height} x {width} pixels (rows x columns) would become "
            f"{size[0]} x {size[1]}, and each side needs at least {MIN_SIDE}; crop it or ask for more."
        )
    return size


def resize(picture: Picture, *, rows: int, columns: int) -> Picture:
    """`picture` at (rows, columns), by Lanczos; the same array when it already has that size."""
    if picture.shape[:2] == (rows, columns):
        return picture
    resized = np.array(Image.fromarray(picture).resize((columns, rows), Image.Resampling.LANCZOS))
    return placed(resized, on_disk=on_disk(picture))


def preprocess(picture: Picture) -> Input:
    """The input for VGG19, float32 BGR less the means, of a picture, uint8 RGB, of the same shape."""
    return blockwise(lambda part: part[..., ::-1].astype(np.float32) - _MEANS, picture)


def deprocess(array: Input, *, bits: Literal[8, 16] = 8) -> np.ndarray:
    """The picture, RGB, nearest to an input, float32 BGR less the means; clipped to what can be shown.

    With 8 bits uint8, 0 to 255; with 16 uint16, 0 to 65535, where a level of the input is 257.
    """
    return blockwise(_deprocess if bits == 8 else _deprocess_wide, array)


def _deprocess(array: Input) -> Picture:
    shifted = array + _MEANS
    np.rint(shifted, out=shifted)
    np.clip(shifted, 0, 255, out=shifted)
    return np.ascontiguousarray(shifted[..., ::-1].astype(np.uint8))


def _deprocess_wide(array: Input) -> WidePicture:
    shifted = (array + _MEANS) * np.float32(257)
    np.rint(shifted, out=shifted)
    np.clip(shifted, 0, 65535, out=shifted)
    return np.ascontiguousarray(shifted[..., ::-1].astype(np.uint16))


def display_range() -> tuple[Input, Input]:
    """The least and the greatest input a picture can have, each float32 (3,) in BGR."""
    low = -_MEANS
    return low, np.float32(255) + low


@functools.cache
def srgb_profile() -> bytes:
    """The colour profile of sRGB that results carry, the same bytes each time: the time it was made is left out."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(profile)


def encode_png(picture: Picture, path: Path) -> None:
    """Write a picture as an 8-bit RGB PNG and nothing else, as in `writing`; raises ImageError."""
    with writing(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write a picture into, under a temporary name beside `path`; at the end it is synced and renamed to it.

    Raises ImageError when it cannot be written; after that or any other error what was at `path` is untouched.
    """
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ImageError(
            f"{path} cannot be written ({error.strerror or error}); "
            "check that its folder exists, may be written to and has space."
        ) from error


def require_file(path: Path) -> None:
    """Raise ImageError unless there is a regular file at `path` that is not empty and may be read."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist; check the name.") from error
    except OSError as error:
        raise ImageError(
            f"{path} cannot be reached ({error.strerror}); check its folder and your rights to it."
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path} is a folder; name a picture file.")
    # Opening a pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path} is no regular file; name a picture file.")
    if not os.access(path, os.R_OK):
        raise ImageError(f"{path} may not be read; give this user the right to read it.")
    if status.st_size == 0:
        raise ImageError(f"{path} is empty; copy it again.")


def _check_header(image: Image.Image, path: Path, max_pixels: int) -> None:
    columns, rows = image.size
    if rows * columns > max_pixels:
        raise ImageError(
            f"{path} has {rows * columns:,} pixels ({rows} x {columns}, rows x columns) and at most "
            f"{max_pixels:,} are allowed; make it smaller."
        )
    if min(rows, columns) < MIN_SIDE:
        raise ImageError(
            f"{path} has {rows} x {columns} pixels (rows x columns) and each side needs at least {MIN_SIDE}; "
            "use a larger picture."
        )
    if image.mode in {"I", "F"}:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ImageError(f"{path} has {kind} pixels, which nst does not read; save it with 8 or 16 bits a channel.")


def _orientation(image: Image.Image, path: Path) -> int:
    """The EXIF orientation, 1 to 8; 1 when the EXIF data cannot be read."""
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, and fails on tags it cannot write.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error) as error:
        logger.warning("%s has damaged EXIF data (%s); it is taken as upright.", path, error)
        return 1


def _over_white(image: Image.Image, path: Path) -> Image.Image:
    """The decoded image in sRGB, mode RGB, with what is transparent laid over white."""
    rgb, alpha = _parts(image, path)
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _as_mask(image: Image.Image, path: Path) -> Image.Image:
    """The decoded image as a mask, mode L."""
    rgb, alpha = _parts(image, path)
    grey = rgb.convert("L")
    if alpha is None:
        return grey
    least, most = alpha.getextrema()
    if least != most and _has_one_colour(rgb, alpha.point(lambda level: 255 if level > 127 else 0)):
        return alpha
    black = Image.new("L", grey.size)
    black.paste(grey, mask=alpha)
    return black


def _has_one_colour(rgb: Image.Image, where: Image.Image) -> bool:
    """Whether the pixels of an RGB image under a mask, mode L, are all alike."""
    counts = np.array(rgb.histogram(where)).reshape(3, 256)
    return bool(((counts > 0).sum(axis=1) <= 1).all())


def _parts(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """The decoded image in sRGB, mode RGB, without its transparency, and that as its opacity, mode L."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in {"1", "L", "LA", "La"} else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    return _to_srgb(image, profile, path), alpha


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, mode L, or LA where one grey value stands for transparent."""
    wide = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """An image without transparency in sRGB, mode RGB; a profile that cannot be used is only logged."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in {"L", "RGB", "CMYK"}:
        image = image.convert("RGB")
    if not profile or profile == srgb_profile():
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # Grey pictures often carry the RGB profile of the program that wrote them.
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")
        return ImageCms.buildTransform(source, srgb, image.mode, "RGB").apply(image)
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("%s has a colour profile that cannot be used (%s); it is taken as sRGB.", path, error)
        return image.convert("RGB")
