"""The pictures on the way to a result: the snapshots and the preview of a running job, for whoever looks at it, and
the snapshots and the timelapse beside its result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from PIL import Image

from flows.chunks import Snapshot, take_snapshot
from flows.report import SNAPSHOTS, TIMELAPSE
from nst_engine.transfer import TransferState
from storage.disk import write_bytes

PREVIEW: Final = "preview.jpg"
TIMELAPSE_SIDE: Final = 800
"""Pixels of the timelapse's longer side at the most."""
MAX_FRAMES: Final = 120
"""Twenty a second in the longest timelapse; each costs a twentieth of a second to encode."""
# Milliseconds: of the result, of each frame before it, and of all of these together.
_HELD: Final = 2000
_FRAME: Final = 100
_LEAST_MOTION: Final = 2000
_MOST_MOTION: Final = 6000
_QUALITY: Final = 75


def write_snapshots(job_folder: Path, snapshots: Sequence[Snapshot]) -> None:
    """Put snapshots into the folder of a running job, each whole, in place of an earlier one. Raises OSError."""
    folder = job_folder / SNAPSHOTS
    folder.mkdir(exist_ok=True)
    for snapshot in snapshots:
        write_bytes(folder / f"{snapshot.iteration:06d}.jpg", snapshot.jpeg)


def write_preview(job_folder: Path, state: TransferState) -> None:
    """Let the current picture appear in the folder of a running job, in place of the last one. Raises OSError."""
    write_bytes(job_folder / PREVIEW, take_snapshot(state).jpeg)


def latest_picture(job_folder: Path) -> Path | None:
    """The newest of a running job's snapshots and preview, a JPEG file; None where there is none (any more)."""
    newest = None
    for path in (job_folder / PREVIEW, *(job_folder / SNAPSHOTS).glob("*.jpg")):
        try:
            written = path.stat().st_mtime_ns
        except FileNotFoundError:
            # The job has ended while we looked.
            continue
        newest = max(newest or (written, path), (written, path))
    return newest[1] if newest else None


def keep_snapshots(job_folder: Path, result: Path, *, iteration: int) -> None:
    """Copy a job's snapshots into the folder of its result, a picture file, and make the timelapse of them and of it.

    `iteration` is the result's: a snapshot beyond it is left from an attempt that went on longer.
    """
    folder = result.parent / SNAPSHOTS
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    before_result = []
    for path in sorted((job_folder / SNAPSHOTS).glob("*.jpg")):
        if int(path.stem) <= iteration:
            shutil.copy2(path, folder / path.name)
        if int(path.stem) < iteration:
            before_result.append(path)
    draw_timelapse(before_result, result, result.parent / TIMELAPSE)


def copy_snapshots(result_folder: Path, to: Path) -> None:
    """Copy the snapshots and the timelapse of one result folder to another. Raises OSError."""
    (to / SNAPSHOTS).mkdir(exist_ok=True)
    # One by one: copytree's error does not say what the disk refused.
    for path in sorted((result_folder / SNAPSHOTS).glob("*.jpg")):
        shutil.copy2(path, to / SNAPSHOTS / path.name)
    shutil.copy2(result_folder / TIMELAPSE, to / TIMELAPSE)


def draw_timelapse(snapshots: Sequence[Path], result: Path, path: Path) -> None:
    """Write an animated WebP that goes through the snapshots, held at the result, and begins again.

    Of more than MAX_FRAMES - 1 snapshots as many are taken, evenly; the longer side is at most TIMELAPSE_SIDE.
    """
    with Image.open(result) as image:
        last = image.convert("RGB")
    last.thumbnail((TIMELAPSE_SIDE, TIMELAPSE_SIDE), Image.Resampling.LANCZOS)
    shown = _evenly(snapshots, MAX_FRAMES - 1)
    if not shown:
        last.save(path, "WEBP", quality=_QUALITY)
        return
    film = _Film([*shown[1:], result], last.size)
    durations = [*_durations(len(shown)), _HELD]
    _frame(shown[0], last.size).save(
        path, "WEBP", save_all=True, append_images=[film], duration=durations, loop=0, quality=_QUALITY
    )


class _Film(Image.Image):
    """Frames as Pillow's encoder asks for them, one at a time: all at once would take hundreds of megabytes."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        super().__init__()
        self._paths = paths
        self._size = size
        self._mode = "RGB"
        self.n_frames = len(paths)

    def seek(self, frame: int) -> None:
        """Become the picture of that number."""
        self.im = _frame(self._paths[frame], self._size).im


def _frame(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        # A JPEG can be decoded at a half or a quarter of its size.
        image.draft("RGB", size)
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _evenly(paths: Sequence[Path], number: int) -> list[Path]:
    """At most so many of the paths, the first and the last among them."""
    if len(paths) <= number:
        return list(paths)
    return [paths[round(index * (len(paths) - 1) / (number - 1))] for index in range(number)]


def _durations(frames: int) -> list[int]:
    """The milliseconds of each frame before the result; they add up exactly."""
    motion = min(max(frames * _FRAME, _LEAST_MOTION), _MOST_MOTION)
    starts = [round(index * motion / frames) for index in range(frames + 1)]
    return [end - start for start, end in pairwise(starts)]
