"""Small pictures of large ones, kept in HOME/cache/thumbnails until the picture changes."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path
from typing import Final
from uuid import uuid4

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from nst_engine.errors import ImageError
from nst_engine.images import UPRIGHT, decode, require_file

SIDES: Final = {"thumbnail": 480, "view": 1600}
MEDIA_TYPE: Final = "image/webp"
_QUALITY: Final = 82

logger = logging.getLogger("nst")


class Thumbnails:
    """The cache of one home. Threads and processes may share its folder."""

    def __init__(self, home: Path, *, max_pixels: int) -> None:
        self._folder = home / "cache" / "thumbnails"
        self._max_pixels = max_pixels

    def kept(self, picture: Path, *, job_id: str, role: str, side: int) -> bytes | None:
        """The WebP of a picture as it is now, where it has been made before; None where it has not."""
        try:
            # A power cut may leave it empty.
            return self._place(picture, job_id, role, side).read_bytes() or None
        except OSError:
            return None

    def make(self, picture: Path, *, job_id: str, role: str, side: int) -> bytes:
        """Make and keep the WebP of a picture, its longer side at most `side` pixels, upright and in sRGB.

        Raises ImageError where the picture is damaged or has more pixels than the service takes.
        """
        try:
            place = self._place(picture, job_id, role, side)
        except OSError as error:
            raise ImageError(f"{picture} cannot be reached ({error.strerror}); look for it in its folder.") from error
        buffer = io.BytesIO()
        small_picture(picture, side=side, max_pixels=self._max_pixels).save(buffer, "WEBP", quality=_QUALITY)
        data = buffer.getvalue()
        try:
            _write(place, data)
            for older in place.parent.glob(f"{place.name.split('@')[0]}@*"):
                if older != place and not older.name.endswith(".part"):
                    older.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be kept (%s); check the disk and its permissions.", place, error.strerror)
        return data

    def _place(self, picture: Path, job_id: str, role: str, side: int) -> Path:
        status = picture.stat()
        # A role is the name of a file without its ending, which may hold anything but a slash.
        name = role.encode().hex()[:120]
        return self._folder / job_id / f"{name}-{side}@{status.st_mtime_ns:x}-{status.st_size:x}.webp"


def small_picture(path: Path, *, side: int, max_pixels: int) -> Image.Image:
    """A picture upright in sRGB, its longer side at most `side` pixels; raises ImageError as `decode` does."""
    image = _small_jpeg(path, side, max_pixels)
    if image is None:
        image = Image.fromarray(decode(path, max_pixels=max_pixels))
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


def _small_jpeg(path: Path, side: int, max_pixels: int) -> Image.Image | None:
    """The same of a JPEG, which can be decoded at a fraction of its size; None for other files and broken ones."""
    require_file(path)
    try:
        with path.open("rb") as file, Image.open(file, formats=["JPEG"]) as image:
            if image.width * image.height > max_pixels:
                return None
            image.draft(None, (side, side))
            upright = UPRIGHT.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
            profile = image.info.get("icc_profile")
            image.load()
            image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
            small = _in_srgb(image, profile)
            return small if upright is None else small.transpose(upright)
    except UnidentifiedImageError:
        return None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        # The whole decoder says what is wrong with it, or takes it nevertheless.
        return None


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, "RGB")
        return transform.apply(image)
    except (ImageCms.PyCMSError, OSError):
        return image.convert("RGB")


def _write(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name.split('@')[0]}@{uuid4().hex}.part")
    try:
        part.write_bytes(data)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
