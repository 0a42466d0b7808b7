"""The project's own sample pictures, drawn in code: a landscape to paint and a painting to learn from.

Each is the same on every run, and is drawn at twice its size, then reduced, so that no edge is jagged.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float32]
Point = tuple[float, float]

_SCALE = 2
_HORIZON = 0.57
_SUN_ACROSS = 0.66
_STEPS = 9
_BRISTLES = 6

# Swirls of the painting: down and across as parts of its sides, reach as part of the shorter, turning sense.
_SWIRLS = (
    (0.32, 0.36, 0.25, 1),
    (0.20, 0.82, 0.14, -1),
    (0.62, 0.74, 0.21, -1),
    (0.84, 0.24, 0.16, 1),
)
_BLUES = ((14, 26, 78), (20, 44, 116), (30, 74, 160), (52, 118, 196), (20, 92, 120), (112, 168, 210))
_OCHRES = ((176, 84, 28), (212, 136, 34), (238, 184, 58), (250, 216, 112), (252, 238, 184))


def content_sample(rows: int = 480, columns: int = 640) -> NDArray[np.uint8]:
    """A landscape with sun, mountains, a lake, a house and trees: uint8 RGB (rows, columns, 3)."""
    rng = np.random.default_rng(11)
    height, width = rows * _SCALE, columns * _SCALE
    horizon = round(height * _HORIZON)
    land = _hills(rng, _sky(rng, horizon, width))
    canvas = _image(np.concatenate([land, _lake(rng, land, height - horizon)]))
    _foreground(rng, canvas)
    grain = _noise(rng, height, width, cells=320) - 0.5
    return np.array(_image(np.asarray(canvas, np.float32) + 22 * grain[..., None]).reduce(_SCALE))


def style_sample(rows: int = 480, columns: int = 480) -> NDArray[np.uint8]:
    """A painting of thick swirling strokes in blues and ochres: uint8 RGB (rows, columns, 3)."""
    rng = np.random.default_rng(2)
    height, width = rows * _SCALE, columns * _SCALE
    unit = min(height, width)
    paint = Image.new("RGB", (width, height), _BLUES[1])
    relief = Image.new("L", (width, height), 128)
    on_paint, on_relief = ImageDraw.Draw(paint), ImageDraw.Draw(relief)
    for part in (0.034, 0.024, 0.017):
        thickness = part * unit
        count = round(2 * height * width / (thickness * thickness * 4))
        paths, warmth = _follow_flow(rng, count, step=thickness * 0.5, height=height, width=width)
        for path, warm in zip(paths, warmth, strict=True):
            _stroke(rng, on_paint, on_relief, path, float(warm), thickness)
    return np.array(_image(_lit(paint, relief)).reduce(_SCALE))


def _image(pixels: Floats) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))


def _noise(rng: np.random.Generator, rows: int, columns: int, *, cells: float, flat: float = 1) -> Floats:
    """Smooth noise in 0..1, float32 (rows, columns): `cells` to the width, `flat` times as wide as high."""
    total = np.zeros((rows, columns), np.float32)
    for octave in range(3):
        across = cells * 2**octave
        size = (2 + round(across * flat * rows / columns), 2 + round(across))
        grid = Image.fromarray(rng.random(size, np.float32))
        total += np.asarray(grid.resize((columns, rows), Image.Resampling.BICUBIC)) * np.float32(0.5**octave)
    return (total / np.float32(1.75)).clip(0, 1)


def _ridge(rng: np.random.Generator, columns: int, *, peaks: int) -> Floats:
    """A mountain line, float32 (columns,) in about 0..1."""
    total, across = np.zeros(columns), np.linspace(0, 1, columns)
    for octave in range(6):
        knots = peaks * 2**octave + 1
        total += np.interp(across, np.linspace(0, 1, knots), rng.random(knots)) * 0.5**octave
    return np.asarray(total / total.max(), np.float32)


def _blend(below: Floats, color: Floats | Sequence[int], opacity: Floats) -> Floats:
    blended: Floats = below + (np.asarray(color, np.float32) - below) * opacity[..., None]
    return blended


def _sky(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    down = np.linspace(0, 1, rows, dtype=np.float32)
    stops = np.array([(52, 110, 190), (128, 180, 222), (250, 214, 168)], np.float32)
    gradient = np.stack([np.interp(down, (0, 0.5, 0.9), stops[:, channel]) for channel in range(3)], axis=-1)
    sky = np.repeat(gradient[:, None].astype(np.float32), columns, axis=1)
    y, x = np.ogrid[0:rows, 0:columns]
    distance = (np.hypot(y - 0.40 * rows, x - _SUN_ACROSS * columns) / rows).astype(np.float32)
    sky = _blend(sky, (255, 224, 150), 0.8 * np.exp(-((distance / 0.28) ** 2)))
    clouds = _noise(rng, rows, columns, cells=4, flat=4)
    sky = _blend(sky, (255, 244, 232), np.clip((clouds - 0.5) * 4, 0, 1) * (0.9 - 0.6 * down[:, None]))
    return _blend(sky, (255, 252, 226), np.clip((0.085 - distance) * 150, 0, 1))


def _hills(rng: np.random.Generator, sky: Floats) -> Floats:
    """The sky with mountains, hills and the far shore's wood before it; the lower, the nearer."""
    rows, columns = sky.shape[:2]
    y = np.arange(rows, dtype=np.float32)[:, None]
    layers = (
        (0.46, 0.34, 5, (122, 140, 176), (176, 186, 204)),
        (0.72, 0.26, 4, (74, 106, 122), (122, 150, 142)),
        (0.88, 0.18, 3, (66, 112, 62), (128, 152, 70)),
    )
    for level, (base, rise, peaks, dark, light) in enumerate(layers):
        top = rows * (base + rise * (0.5 - _ridge(rng, columns, peaks=peaks)))
        rough = _noise(rng, rows, columns, cells=13)
        down, over = np.gradient(rough)
        slope = np.clip((down - over) * columns * 0.05 + 0.5, 0, 1)
        surface = _blend(np.full_like(sky, dark), light, slope)
        if level == 0:
            snow = np.clip((top + rows * 0.05 + rows * 0.16 * (rough - 0.5) - y) / 4, 0, 1)
            surface = _blend(surface, (246, 246, 250), snow * (0.55 + 0.45 * slope))
        haze = np.clip((y - top) / (rows * 0.35), 0, 1) * (0.5 - 0.2 * level)
        surface = _blend(surface, (236, 214, 190), haze)
        sky = _blend(sky, surface, np.clip(y - top, 0, 1))
    wood = rows * (0.965 - 0.05 * _ridge(rng, columns, peaks=60))
    trees = _blend(np.full_like(sky, (34, 66, 44)), (84, 116, 56), _noise(rng, rows, columns, cells=90))
    return _blend(sky, trees, np.clip(y - wood, 0, 1))


def _lake(rng: np.random.Generator, land: Floats, rows: int) -> Floats:
    """The land's reflection in rippled water, `rows` high."""
    columns = land.shape[1]
    depth = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    ripples = _noise(rng, rows, columns, cells=9, flat=14) - 0.5
    down = (np.arange(rows)[:, None] * 0.95 + ripples * depth * rows * 0.30).astype(int)
    across = (np.arange(columns) + ripples * depth * columns * 0.03).astype(int)
    mirror = land[::-1][np.clip(down, 0, len(land) - 1), np.clip(across, 0, columns - 1)]
    water = _blend(mirror, (30, 78, 116), 0.16 + 0.24 * depth + 0.25 * ripples)
    offset = np.abs(np.arange(columns) / columns - _SUN_ACROSS) / (0.03 + 0.07 * depth)
    glitter = np.clip((_noise(rng, rows, columns, cells=14, flat=9) - 0.5) * 7, 0, 1) * np.exp(-(offset**2))
    return _blend(water, (255, 234, 176), glitter.astype(np.float32))


def _foreground(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Draw the near shore with its grass, a house on the left and trees on both sides."""
    width, height = canvas.size
    draw = ImageDraw.Draw(canvas)
    across = np.linspace(0, 1, 200)
    bank = 0.80 + 0.13 * np.sin(across * 3.0 + 0.35) ** 2 + 0.006 * np.sin(across * 40)
    outline = [(x * width, y * height) for x, y in zip(across, bank, strict=True)]
    draw.polygon([*outline, (width, height), (0, height)], fill=(74, 104, 44))
    for _ in range(7000):
        x = rng.random()
        y = float(np.interp(x, across, bank)) + (1.02 - float(np.interp(x, across, bank))) * rng.random() ** 1.3
        near = (y - 0.78) / 0.24
        length = height * (0.008 + 0.028 * near)
        shade = rng.random()
        color = (round(52 + 100 * shade), round(84 + 86 * shade), round(32 + 34 * shade))
        tip = (x * width + (rng.random() - 0.4) * length, y * height - length)
        draw.line([(x * width, y * height), tip], fill=color, width=2)

    def at(x: float, y: float) -> Point:
        return x * width, y * height

    for x, y, size in ((0.045, 0.84, 0.34), (0.345, 0.865, 0.20), (0.93, 0.90, 0.52), (0.84, 0.90, 0.30)):
        _pine(rng, draw, at(x, y), size * height)
    _house(draw, at(0.115, 0.872), 0.19 * width)


def _house(draw: ImageDraw.ImageDraw, corner: Point, size: float) -> None:
    """A house whose lower left corner is `corner`, `size` wide."""

    def shape(color: tuple[int, int, int], *points: Point) -> None:
        draw.polygon([(corner[0] + x * size, corner[1] - y * size) for x, y in points], fill=color)

    def box(color: tuple[int, int, int], left: float, low: float, right: float, high: float) -> None:
        shape(color, (left, low), (right, low), (right, high), (left, high))

    box((120, 70, 56), 0.70, 0.62, 0.79, 0.98)
    box((236, 222, 196), 0, 0, 0.42, 0.46)
    shape((236, 222, 196), (0, 0.46), (0.42, 0.46), (0.21, 0.80))
    box((206, 186, 156), 0.42, 0, 1, 0.46)
    shape((168, 62, 44), (0.21, 0.84), (0.84, 0.84), (1.06, 0.42), (0.45, 0.42))
    shape((132, 44, 34), (0.21, 0.84), (0.16, 0.80), (-0.06, 0.42), (-0.01, 0.42), (0.21, 0.77))
    for course in range(1, 6):
        y = 0.84 - 0.07 * course
        shape(
            (138, 46, 34),
            (0.21 + 0.04 * course, y),
            (0.84 + 0.037 * course, y),
            (0.84 + 0.037 * course, y - 0.012),
            (0.21 + 0.04 * course, y - 0.012),
        )
    box((98, 60, 40), 0.14, 0, 0.28, 0.30)
    for left in (0.52, 0.76):
        box((246, 240, 226), left - 0.02, 0.15, left + 0.16, 0.35)
        box((60, 84, 110), left, 0.17, left + 0.14, 0.33)
        box((246, 240, 226), left + 0.06, 0.17, left + 0.08, 0.33)
    box((250, 214, 120), 0.16, 0.48, 0.26, 0.60)


def _pine(rng: np.random.Generator, draw: ImageDraw.ImageDraw, foot: Point, size: float) -> None:
    """A pine `size` high, its needles drawn from the top down."""
    x, y = foot
    draw.rectangle((x - 0.02 * size, y - 0.2 * size, x + 0.02 * size, y), fill=(84, 58, 40))
    for part in np.sort(rng.random(1400)):
        reach = (0.02 + 0.20 * part) * size * (0.75 + 0.25 * ((part * 8) % 1))
        side = rng.uniform(-1, 1)
        start = (x + side * reach * 0.55, y - (1 - 0.86 * part) * size)
        end = (start[0] + side * reach * 0.5, start[1] + (0.02 + 0.03 * abs(side)) * size)
        shade = 0.25 * rng.random() + 0.35 * (side + 1) / 2 + 0.2 * rng.random()
        color = (round(20 + 84 * shade), round(50 + 96 * shade), round(36 + 34 * shade))
        draw.line([start, end], fill=color, width=max(2, round(size * 0.008)))


def _follow_flow(
    rng: np.random.Generator, count: int, *, step: float, height: int, width: int
) -> tuple[Floats, Floats]:
    """`count` strokes along the painting's flow: paths (count, _STEPS, 2) as (x, y), and their warmth in 0..1."""
    y, x = rng.uniform(-0.1, 1.1, count) * height, rng.uniform(-0.1, 1.1, count) * width
    warmth = np.zeros(count)
    path = []
    for number in range(_STEPS):
        path.append(np.stack([x, y], axis=-1))
        angle = 0.5 * np.sin(2.2 * np.pi * x / width + 0.6) + 0.25 * np.sin(5 * np.pi * y / height)
        dx, dy = np.cos(angle), np.sin(angle)
        for down, across, reach, sense in _SWIRLS:
            from_y, from_x = y - down * height, x - across * width
            distance = np.hypot(from_y, from_x) / (reach * min(height, width))
            pull = 6 * np.exp(-(distance**2) * 1.6)
            turn = sense * pull / np.maximum(np.hypot(from_y, from_x), 1)
            dx, dy = dx - turn * from_y, dy + turn * from_x
            if number == 0:
                rings = 0.62 + 0.38 * np.cos(distance * 9)
                warmth = np.maximum(warmth, np.exp(-((distance / 0.72) ** 4)) * rings)
        length = np.maximum(np.hypot(dx, dy), 1e-6)
        x, y = x + dx / length * step, y + dy / length * step
    band = np.exp(-(((path[0][:, 1] / height - 0.97) / 0.07) ** 2)) * 0.8
    return np.stack(path, axis=1).astype(np.float32), np.maximum(warmth, band).astype(np.float32)


def _stroke(
    rng: np.random.Generator,
    paint: ImageDraw.ImageDraw,
    relief: ImageDraw.ImageDraw,
    path: Floats,
    warm: float,
    thickness: float,
) -> None:
    """One stroke: bristles side by side, each of its own shade and height."""
    palette = _OCHRES if warm + 0.22 * rng.standard_normal() > 0.5 else _BLUES
    color = np.array(palette[rng.integers(len(palette))]) + rng.normal(0, 7, 3)
    ahead = np.gradient(path, axis=0)
    normal = np.stack([-ahead[:, 1], ahead[:, 0]], axis=-1)
    normal /= np.maximum(np.hypot(normal[:, :1], normal[:, 1:]), 1e-6)
    offsets = np.linspace(-0.5, 0.5, _BRISTLES)
    lines = path + normal * (offsets * thickness)[:, None, None]
    fills = np.clip(color * (1 + 0.10 * rng.standard_normal((_BRISTLES, 1))), 0, 255).astype(int).tolist()
    heights = np.clip(128 + 52 * rng.standard_normal(_BRISTLES) - 90 * offsets**2, 0, 255).astype(int).tolist()
    begins, ends = rng.integers(0, 2, _BRISTLES), _STEPS - rng.integers(0, 3, _BRISTLES)
    width = max(2, round(thickness * 0.26))
    for line, fill, height, begin, end in zip(lines, fills, heights, begins, ends, strict=True):
        points = line[begin:end].ravel().tolist()
        paint.line(points, fill=tuple(fill), width=width)
        relief.line(points, fill=height, width=width)


def _lit(paint: Image.Image, relief: Image.Image) -> Floats:
    """The paint lit from the upper left, its relief as thick as the bristles left it."""
    height = np.asarray(relief.filter(ImageFilter.GaussianBlur(1.6)), np.float32)
    down, across = np.gradient(height)
    light: Floats = np.asarray((down + across) * -1.5, np.float32).clip(-38, 46)
    lit: Floats = np.asarray(paint, np.float32) + light[..., None]
    return lit
