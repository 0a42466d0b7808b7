"""Colours as numbers in which lightness and colour are apart: sRGB to and from YUV, YCrCb, CIE Lab and CIE Luv. Colours
are floating arrays (..., 3), and what is made of them has their type. RGB is sRGB with values 0..255; what comes back
from a space may lie outside, where no screen shows that colour."""

from __future__ import annotations

from typing import Final

import numpy as np

from nst_engine.config import ColorSpace

_LUMA: Final = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601, full range."""


def _with_differences(blue: float, red: float, *, red_first: bool) -> np.ndarray:
    """The matrix of luma and of the differences B - Y and R - Y, scaled so that they reach +-blue and +-red."""
    of_blue = (np.array([0, 0, 1]) - _LUMA) * blue / (1 - _LUMA[2])
    of_red = (np.array([1, 0, 0]) - _LUMA) * red / (1 - _LUMA[0])
    return np.stack([_LUMA, of_red, of_blue] if red_first else [_LUMA, of_blue, of_red])


_LINEAR: Final = {
    # Poynton, Digital Video and HD, chapter 28: U = 0.492 (B - Y), V = 0.877 (R - Y).
    "yuv": _with_differences(0.436, 0.615, red_first=False),
    # JFIF's and OpenCV's, less the 128 that they add: Cr = 0.713 (R - Y), Cb = 0.564 (B - Y).
    "ycrcb": _with_differences(0.5, 0.5, red_first=True),
}
_XYZ: Final = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""From linear sRGB, 0..1 (IEC 61966-2-1)."""
_WHITE: Final = _XYZ.sum(axis=1)
"""D65, as the matrix has it, so that grey has no colour."""
_WHITE_U: Final = float(4 * _WHITE[0] / (_WHITE @ [1, 15, 3]))
_WHITE_V: Final = float(9 * _WHITE[1] / (_WHITE @ [1, 15, 3]))
"""CIE 1976 u' and v' of the white."""
_EPSILON: Final = 216 / 24389
_KAPPA: Final = 24389 / 27
# No colour of a screen has less v' than blue, 0.158, or more u' than red, 0.451.
_LEAST_V: Final = 0.1
_MOST_U: Final = 0.7


def from_rgb(rgb: np.ndarray, space: ColorSpace) -> np.ndarray:
    """Colours in `space`, whose first number is the luminance (of all but rgb), from RGB 0..255."""
    if space == "rgb":
        return rgb
    if space in _LINEAR:
        return _times(_LINEAR[space], rgb)
    xyz = _times(_XYZ, _linear(rgb / 255))
    return _lab(xyz) if space == "lab" else _luv(xyz)


def to_rgb(colors: np.ndarray, space: ColorSpace) -> np.ndarray:
    """RGB from colours in `space`, not clipped to 0..255."""
    if space == "rgb":
        return colors
    if space in _LINEAR:
        return _times(np.linalg.inv(_LINEAR[space]), colors)
    xyz = _xyz_of_lab(colors) if space == "lab" else _xyz_of_luv(colors)
    return _encoded(_times(np.linalg.inv(_XYZ), xyz)) * 255


def _times(matrix: np.ndarray, colors: np.ndarray) -> np.ndarray:
    product: np.ndarray = colors.reshape(-1, 3) @ matrix.T.astype(colors.dtype)
    return product.reshape(colors.shape)


def _linear(encoded: np.ndarray) -> np.ndarray:
    steep = ((np.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(encoded <= 0.04045, encoded / 12.92, steep)


def _encoded(linear: np.ndarray) -> np.ndarray:
    steep = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, steep)


def _lightness_curve(share: np.ndarray) -> np.ndarray:
    """CIE's f, of shares of the white."""
    return np.where(share > _EPSILON, np.cbrt(share), (_KAPPA * share + 16) / 116)


def _share_of_white(curve: np.ndarray) -> np.ndarray:
    return np.where(curve > 6 / 29, curve**3, (116 * curve - 16) / _KAPPA)


def _lab(xyz: np.ndarray) -> np.ndarray:
    curve = _lightness_curve(xyz / _WHITE.astype(xyz.dtype))
    x, y, z = curve[..., 0], curve[..., 1], curve[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _xyz_of_lab(lab: np.ndarray) -> np.ndarray:
    y = (lab[..., 0] + 16) / 116
    curve = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz: np.ndarray = _share_of_white(curve) * _WHITE.astype(lab.dtype)
    return xyz


def _luv(xyz: np.ndarray) -> np.ndarray:
    lightness = 116 * _lightness_curve(xyz[..., 1] / float(_WHITE[1])) - 16
    whole = xyz[..., 0] + 15 * xyz[..., 1] + 3 * xyz[..., 2]
    # Black has no u' and v', and with a lightness of 0 needs none.
    whole = np.where(whole > 0, whole, np.inf)
    u, v = 4 * xyz[..., 0] / whole, 9 * xyz[..., 1] / whole
    return np.stack([lightness, 13 * lightness * (u - _WHITE_U), 13 * lightness * (v - _WHITE_V)], axis=-1)


def _xyz_of_luv(luv: np.ndarray) -> np.ndarray:
    lightness = luv[..., 0]
    black = lightness <= 0
    scale = 1 / (13 * np.where(black, 1, lightness))
    u = np.clip(luv[..., 1] * scale + _WHITE_U, 0, _MOST_U)
    v = np.maximum(luv[..., 2] * scale + _WHITE_V, _LEAST_V)
    y = np.where(black, 0, _share_of_white((lightness + 16) / 116) * float(_WHITE[1]))
    return np.stack([y * 9 * u / (4 * v), y, y * (12 - 3 * u - 20 * v) / (4 * v)], axis=-1)
