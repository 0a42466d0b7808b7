"""A 3 x 3 convolution in a quarter of the multiplications: 4 x 4 outputs at once from the 6 x 6 inputs that they see,
in 36 products a pair of channels instead of 144 (S. Winograd, Arithmetic complexity of computations, 1980; A. Lavin and
S. Gray, arXiv:1509.09308). It pays where there are many channels, since what goes before and after the products grows
with the channels and not with their pairs. Importing this module imports Keras."""

from __future__ import annotations

import functools
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

_TILE: Final = 4
_WINDOW: Final = 6
_POINTS: Final = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
"""Where the polynomials behind the convolution are evaluated, beside infinity. With these it rounds twice as coarsely
as a plain float32 convolution, with the usual 0, 1, -1, 2 and -2 four times; and each has its inverse among them."""
_INVERSES: Final = (5, 3, 4, 1, 2, 0)
"""The place of each point's inverse. A mirrored kernel is the kernel at the inverse points, so one transformed kernel
serves forward and backward."""


_STRIP_NUMBERS: Final = 1 << 23
"""Of the windows that are worked on at once, 34 MB; four times as much lives then. Larger maps go strip by strip, since
of a whole one that would be nine times the map."""


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What transforms a kernel's 3 numbers, a window's 6 and the products' 6 along one axis, float64.

    As the transpose of Toom and Cook's product of polynomials of degree 2 and 3. The kernel's rows are scaled so that
    those of a point and its inverse are each other's mirror images.
    """

    def powers(number: int) -> np.ndarray:
        rows = [[point**power for power in range(number)] for point in _POINTS]
        return np.array([*rows, [0.0] * (number - 1) + [1.0]])

    scale = np.array([[1.0], [1.0], [1.0], [0.5], [0.5], [1.0]])
    return scale * powers(3), np.linalg.inv(powers(_WINDOW)).T / scale, powers(_TILE).T


_KERNEL, _INPUT, _OUTPUT = _matrices()


def _for_both_axes(matrix: np.ndarray) -> np.ndarray:
    both: np.ndarray = np.kron(matrix, matrix).astype(np.float32)
    return both


_KERNELS: Final = _for_both_axes(_KERNEL)
_INPUTS: Final = {False: _for_both_axes(_INPUT), True: _for_both_axes(_INPUT[list(_INVERSES)])}
_OUTPUTS: Final = {False: _for_both_axes(_OUTPUT), True: _for_both_axes(_OUTPUT[:, list(_INVERSES)])}


def transform_kernel(kernel: np.ndarray) -> np.ndarray:
    """A kernel (3, 3, in, out), float32, as `convolve` needs it, (36, in, out)."""
    transformed: np.ndarray = _KERNELS @ kernel.reshape(9, -1)
    return transformed.reshape(_WINDOW**2, *kernel.shape[2:])


def convolve(pixels: Any, kernel: Any, *, backward: bool) -> Any:
    """The convolution of stride 1 and padding "same" of float32 (1, rows, columns, in), or (1, rows, columns, out).

    `kernel` is a transformed one, (36, in, out). `backward` gives the gradient for the input from that for the output
    instead: the convolution with the mirrored kernel, from `out` channels to `in`.
    """
    _, channels, filters = kernel.shape
    return _traced(channels, filters, backward)(pixels, kernel)


@functools.cache
def _traced(channels: int, filters: int, backward: bool) -> Any:
    """The convolution between so many channels, for maps of every size and for all layers and traces with as many.

    Written out anew into each trace it would take most of the time that one needs to begin.
    """
    inputs, outputs = (filters, channels) if backward else (channels, filters)

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((1, None, None, inputs)), tf.TensorSpec((_WINDOW**2, channels, filters))],
        autograph=False,
        # Called as it is; else TensorFlow copies it into each trace when that is optimised.
        experimental_attributes={"_noinline": True},
    )
    def convolution(pixels: Any, kernel: Any) -> Any:
        rows, columns = tf.shape(pixels)[1], tf.shape(pixels)[2]
        down, across = -(-rows // _TILE), -(-columns // _TILE)
        strip = tf.maximum(1, _STRIP_NUMBERS // (_WINDOW**2 * across * max(inputs, outputs)))

        def tiles(first: Any, down: Any) -> Any:
            return _rows_of_tiles(pixels[0], kernel, first, down, backward=backward)

        def in_strips() -> Any:
            count = -(-down // strip)
            found = tf.TensorArray(tf.float32, count, infer_shape=False, element_shape=(None, None, outputs))

            def add(number: Any, found: Any) -> tuple[Any, Any]:
                first = number * strip
                return number + 1, found.write(number, tiles(first, tf.minimum(strip, down - first)))

            _, found = tf.while_loop(lambda number, _: number < count, add, (0, found), parallel_iterations=1)
            return found.concat()

        whole = tf.cond(down <= strip, lambda: tiles(0, down), in_strips)
        return tf.reshape(whole, [1, rows, columns, outputs])

    return convolution


def _rows_of_tiles(pixels: Any, kernel: Any, first: Any, down: Any, *, backward: bool) -> Any:
    """The outputs of `down` rows of tiles from the row `first` on, of pixels (rows, columns, in)."""
    rows, columns, channels = tf.shape(pixels)[0], tf.shape(pixels)[1], pixels.shape[2]
    across = -(-columns // _TILE)
    # A window begins a pixel before its tile and ends one after it.
    top, bottom = _TILE * first - 1, _TILE * (first + down) + 1
    seen = pixels[tf.maximum(top, 0) : bottom]
    above, left = tf.maximum(-top, 0), 1
    below = _TILE * (down + 1) - above - tf.shape(seen)[0]
    right = _TILE * (across + 1) - left - columns
    padded = tf.pad(seen, [[above, below], [left, right], [0, 0]])
    blocks = tf.reshape(padded, [down + 1, _TILE, across + 1, _TILE, channels])
    # By phase, so that the same place of all windows lies together: the transforms are then plain matrix products.
    phases = tf.transpose(blocks, [1, 3, 0, 2, 4])
    # Row i and column j of every window. Python's slices would each put a dozen operations into the graph.
    size = tf.stack([1, 1, down, across, channels])
    places = [[i % _TILE, j % _TILE, i // _TILE, j // _TILE, 0] for i in range(_WINDOW) for j in range(_WINDOW)]
    windows = tf.concat([tf.slice(phases, place, size) for place in places], 0)
    inputs = tf.matmul(_INPUTS[backward], tf.reshape(windows, [_WINDOW**2, -1]))
    products = tf.matmul(tf.reshape(inputs, [_WINDOW**2, -1, channels]), kernel, transpose_b=backward)
    outputs = tf.matmul(_OUTPUTS[backward], tf.reshape(products, [_WINDOW**2, -1]))
    tiles = tf.reshape(outputs, [_TILE, _TILE, down, across, kernel.shape[1 if backward else 2]])
    whole = tf.reshape(tf.transpose(tiles, [2, 0, 3, 1, 4]), [_TILE * down, _TILE * across, tiles.shape[4]])
    return whole[: rows - _TILE * first, :columns]


class WinogradConv2D(keras.layers.Layer):  # type: ignore[misc]
    """A convolution of stride 1 and padding "same" with its ReLU, on one picture, float32.

    Its weights are the transformed kernel (36, in, out) and the bias (out,).
    """

    def __init__(self, filters: int, *, name: str) -> None:
        super().__init__(name=name, dtype="float32", trainable=False)
        self.filters = filters

    def build(self, input_shape: Any) -> None:
        """Make room for the transformed kernel, which serves forward and backward, and the bias."""
        shape = (_WINDOW**2, input_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer="zeros", name="kernel", trainable=False)
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias", trainable=False)

    def call(self, pixels: Any) -> Any:
        """The feature map, (1, rows, columns, filters)."""
        kernel = tf.convert_to_tensor(self.kernel)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def convolution(pixels: Any) -> Any:
            return convolve(pixels, kernel, backward=False), lambda upstream: convolve(upstream, kernel, backward=True)

        return tf.nn.relu(tf.nn.bias_add(convolution(pixels), tf.convert_to_tensor(self.bias)))
