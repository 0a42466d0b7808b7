"""How much memory a transfer needs and how much there is, and so whether its pictures are worked on as a whole or in
tiles, and stay in memory or on disk. Importing this module does not import TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nst_engine.config import TransferConfig
from nst_engine.errors import MemoryNeededError
from nst_engine.tiling import WHOLE_FROM, Segment, Tiling
from nst_engine.vgg19 import CONVOLUTIONS, WINOGRAD_PAIRS, deepest

SIDES: Final = (1024, 512, 256, 128)
"""Of tiles, in pixels: larger ones save little time, and smaller ones are mostly halo and save little memory."""

PROCESS_BYTES: Final = 1_000_000_000
"""Python, TensorFlow and the network while it is loaded: the resident peak before any picture, as `benchmarks.tiling`
measures it (0.96 GB in float32, 0.90 in bfloat16, on two cores)."""
_LIVE: Final = 1.6
"""The resident peak of an evaluation over the bytes of all feature maps that it makes, with what convolutions work in:
1.54 in float32 and 1.61 in bfloat16, as `benchmarks.tiling` measures it, from 480 x 800 (1.51 and 1.19 GB) to
1080 x 1920 pixels (5.02 and 3.02 GB)."""
_LIVE_WINOGRAD: Final = 2.71
"""The same of a tile behind block 2 with Winograd's convolution, which works in more than twice its input and output:
338 MB for 160 x 160 positions of block 3."""
_LIVE_WINOGRAD_REST: Final = 2.1
"""The same of the rest, whose large maps are convolved strip by strip: 0.66 GB from block 4 on at 1080 x 1920."""
_WINOGRAD_BYTES: Final = 200_000_000
"""By how much its kernels are larger, and what a strip is worked on in."""
_PLAINLY_CONVOLVED: Final = tuple(
    layer.name for layer in CONVOLUTIONS if layer.input_channels * layer.channels < WINOGRAD_PAIRS
)
_PICTURE_BYTES: Final = 12
_PICTURES: Final = 8
"""Pictures of 12 bytes a pixel that every transfer holds: the current, the best and the tried one with their gradients,
and those it was given, which are smaller."""
_AVERAGES: Final = 2
"""Pictures more where a running average is kept: that one, and the next while it is made."""
_GIVEN_BYTES: Final = 3
"""A pixel of the pictures that a transfer was given."""
_COPIES: Final = {"gram": 0.0, "histogram": 4.5}
_OTHER_COPIES: Final = 2.5
_MASK_COPIES: Final = 1.2
_NORMALIZED_COPIES: Final = 0.5
"""Copies of the largest style layer's map, in float32, that come on top: by statistic and under a mask once a view, and
with normalised gradients once. At 480 x 640 pixels and down to block 3 the histogram took 1.1 in float32 and 4.2 in
bfloat16 (5.4 of two styles), wasserstein 0.7 and 2.4, the three others together 2.7 (float32), a mask 1.1, normalised
gradients 0.1."""
_L2_LIVE: Final = 1.15
"""By how much more l2 pooling takes in all: 1.11 times in the same measurement."""
_MASK_BYTES: Final = 1 + 4 * 4 / 3
"""A pixel of a mask, as it was given and its weights at all strides."""
_FREE_SHARE: Final = 0.9
_WORTH_TILES: Final = 0.9
"""Of the memory: tiles that save less than this only cost time."""


@dataclass(frozen=True)
class Memory:
    """What a process may take in all, in bytes: `free` is what it should keep to, `most` the most it can ever have.

    What others leave free changes by the hour: it decides about tiles, not about whether a job can ever run.
    """

    free: int
    most: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a transfer is worked on, in tiles or (None) as a whole, and about how many bytes it needs.

    `on_disk`: all that is as large as the picture, the optimiser's state, gradients and the maps between segments, is
    on disk. On a GPU, `bytes` are the GPU's, and `host_bytes` are those in the machine's memory.
    """

    tiling: Tiling | None
    bytes: int
    on_disk: bool = False
    host_bytes: int = 0

    def __str__(self) -> str:
        how = "As a whole" if self.tiling is None else f"In {self.tiling}"
        return f"{how}, about {self.bytes / 1e9:.1f} GB{', the rest on disk' if self.on_disk else ''}"


def plan_memory(
    config: TransferConfig,
    sizes: Sequence[tuple[int, ...]],
    *,
    precision: str,
    memory: Memory | None,
    host: Memory | None = None,
    masks: int = 0,
) -> MemoryPlan:
    """The plan for pictures of these sizes (rows, columns), the content's first, and so many masks of the content's.

    It is the quickest that keeps to what is free, on disk only where none does in memory, else the one that needs
    least. Where nothing is known of the memory, pictures are worked on as a whole. With `host`, the machine's memory,
    `memory` is a GPU's, and what `host` has no room for is on disk. Raises MemoryNeededError when there can never be
    enough.
    """
    plans = _plans(config, sizes, masks=masks, precision=precision, on_gpu=host is not None)
    if host is not None:
        plans = [plan for plan in plans if plan.on_disk or plan.host_bytes <= host.free]
    if memory is None:
        return plans[0]
    for plan in plans:
        if plan.bytes <= memory.free:
            return plan
    least = min(plans, key=lambda plan: plan.bytes)
    if least.bytes > memory.most:
        raise MemoryNeededError(
            f"A picture of {sizes[0][0]} x {sizes[0][1]} pixels needs about {least.bytes / 1e9:.2f} GB of memory under "
            f"these settings even in tiles and on disk, and {memory.most / 1e9:.2f} GB may be used; ask for fewer "
            "rows, or give it more memory."
        )
    quickest = next(plan for plan in plans if plan.bytes <= memory.most)
    return least if least.bytes < _WORTH_TILES * quickest.bytes else quickest


def machine_memory(root: Path = Path("/")) -> Memory | None:
    """What this process may take by Linux's own account and its control groups' limits; None where nobody tells.

    `free` is nine tenths of what is free now, and what the process already has. `root` is where /proc and /sys are.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():
        return None
    known = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE))
    groups = list(_groups(root))
    free = min([int(known["MemAvailable"]) * 1024, *(max(0, limit - used) for limit, used in groups)])
    most = min([int(known["MemTotal"]) * 1024, *(limit for limit, _ in groups)])
    return Memory(free=min(most, round(_FREE_SHARE * free) + _resident(root)), most=most)


def _resident(root: Path) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", (root / "proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Each limit of the process's control groups, of either version, and what is used under it."""
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.exists() else []:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            mount = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = mount / name.lstrip("/")
        # In a container the name is the host's, and only the mount itself is there.
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (folder / names[0]).exists():
                yield from _group(folder, *names)


def _group(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[tuple[int, int]]:
    limit = (folder / limit_name).read_text().strip()
    if limit == "max":
        return
    cache = re.search(rf"^{cache_name} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    # The kernel gives file pages that nobody uses back before it refuses any.
    used = int((folder / usage_name).read_text()) - (int(cache[1]) if cache else 0)
    yield int(limit), used


def _plans(
    config: TransferConfig, sizes: Sequence[tuple[int, ...]], *, masks: int, precision: str, on_gpu: bool
) -> list[MemoryPlan]:
    """All plans, the quickest first, and those on disk behind the others."""
    last = deepest((*config.content_layers, *config.style_layers))
    rows, columns = sizes[0][:2]
    areas = [size[0] * size[1] for size in sizes]
    pixels = max(areas)
    number = 2 if precision == "bfloat16" else 4
    winograd = precision == "float32" and not on_gpu
    averages = _AVERAGES if config.keep == "average" else 0
    held = rows * columns * _PICTURE_BYTES * (_PICTURES + _optimizer_pictures(config) + averages)
    given = sum(areas) * _GIVEN_BYTES
    masked = rows * columns * _MASK_BYTES * masks
    copies = _copies(config, styles=len(sizes) - 1, masks=masks)
    more = _L2_LIVE if config.pooling == "l2" else 1.0
    candidates = [Tiling(side, first) for side in SIDES for first in (*WHOLE_FROM, None)]
    tilings = [tiling for tiling in candidates if (tiling.whole_from is None) != tiling.segments(last)[-1].whole]
    tilings.sort(key=lambda tiling: tiling.work(last, rows, columns))

    def plan(tiling: Tiling | None, working: float, arrays: float, *, on_disk: bool = False) -> MemoryPlan:
        working += _WINOGRAD_BYTES if winograd and tiling is not None and last not in _PLAINLY_CONVOLVED else 0
        if on_gpu:
            return MemoryPlan(tiling, PROCESS_BYTES + round(working), on_disk, PROCESS_BYTES + round(arrays))
        return MemoryPlan(tiling, PROCESS_BYTES + round(working + arrays), on_disk)

    def tiled(tiling: Tiling, *, on_disk: bool) -> MemoryPlan:
        parts = tiling.segments(last)
        working = _working_bytes(tiling, parts, pixels, number, winograd=winograd)
        working = more * working + _working_bytes_of_copies(config, tiling, parts, pixels, copies)
        between = pixels * _bytes_between(parts, number, on_disk=on_disk)
        return plan(tiling, working, between + masked + (given if on_disk else held), on_disk=on_disk)

    whole = sum(part.numbers_a_pixel for part in tilings[0].segments(last))
    largest = max(_largest_style_map(config, part) for part in tilings[0].segments(last))
    return [
        plan(None, pixels * (more * number * _LIVE * whole + 4 * copies * largest), held + masked),
        *(tiled(tiling, on_disk=False) for tiling in tilings),
        *(tiled(tiling, on_disk=True) for tiling in tilings),
    ]


def _bytes_between(parts: Sequence[Segment], number: int, *, on_disk: bool) -> float:
    """The maps between the segments and the gradient for one of them, a pixel of the picture."""
    inputs = {part: part.channels / part.stride**2 for part in parts[1:]}
    if on_disk:
        # What the rest gives as a whole is in memory.
        return 4 * sum(size for part, size in inputs.items() if part.whole)
    return number * sum(inputs.values()) + 4 * max(inputs.values(), default=0.0)


def _working_bytes(tiling: Tiling, parts: Sequence[Segment], pixels: int, number: int, *, winograd: bool) -> float:
    """The largest tile with its halo, and the rest."""
    behind_block_2, behind_tiles = (_LIVE_WINOGRAD, _LIVE_WINOGRAD_REST) if winograd else (_LIVE, _LIVE)
    tile = max(
        _tile_pixels(tiling, part, pixels) * part.numbers_a_pixel * (behind_block_2 if part.stride > 1 else _LIVE)
        for part in parts
        if not part.whole
    )
    # The allocator gives back little of what the one worked in before the other begins.
    rest = sum(pixels * part.numbers_a_pixel for part in parts if part.whole)
    return number * (tile + rest * behind_tiles)


def _copies(config: TransferConfig, *, styles: int, masks: int) -> float:
    """Copies of the largest style layer's map, see `_COPIES`."""
    views = styles if masks or "histogram" in config.style_loss else 1
    summed = sum(_COPIES.get(name, _OTHER_COPIES) for name in config.style_loss) + (_MASK_COPIES if masks else 0.0)
    return views * summed + (_NORMALIZED_COPIES if config.normalize_gradients else 0.0)


def _working_bytes_of_copies(
    config: TransferConfig, tiling: Tiling, parts: Sequence[Segment], pixels: int, copies: float
) -> float:
    """Those copies, of a tile and of the rest."""
    tile, rest = (
        max(
            (
                (pixels if whole else _tile_pixels(tiling, part, pixels)) * _largest_style_map(config, part)
                for part in parts
                if part.whole == whole
            ),
            default=0.0,
        )
        for whole in (False, True)
    )
    return 4 * copies * (tile + rest)


def _largest_style_map(config: TransferConfig, part: Segment) -> float:
    """The numbers in the largest map of a style layer in that segment, for each pixel of the picture."""
    return max(
        (layer.channels / layer.stride**2 for layer, _ in part.layers if layer.name in config.style_layers), default=0.0
    )


def _tile_pixels(tiling: Tiling, part: Segment, pixels: int) -> float:
    side = tiling.tile_side(part) + 2 * (part.halo + part.alignment) * part.stride
    return min(side**2, pixels)


def _optimizer_pictures(config: TransferConfig) -> int:
    """Pictures that the optimiser holds at the most, with those that are made during a step."""
    if config.optimizer == "lbfgs":
        return 2 * config.history + 7
    return 7 if config.optimizer == "adam" else 2
