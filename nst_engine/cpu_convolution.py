"""The network's 3 x 3 convolution as a CPU computes it fastest. A convolution of stride 1 with zeros around is the
same as the gradient of another one, with the kernel mirrored and its channels exchanged; oneDNN, which lays out a
kernel anew at every call, does so many times faster for a gradient. Importing this module imports Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def mirrored(kernel: np.ndarray) -> np.ndarray:
    """The kernel (3, 3, out, in) whose gradient convolution is the convolution with `kernel` (3, 3, in, out)."""
    return np.ascontiguousarray(kernel[::-1, ::-1].transpose(0, 1, 3, 2))


class CpuConv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Keras' Conv2D of stride 1 and padding "same" with a third weight, the mirrored kernel."""

    def build(self, input_shape: Any) -> None:
        """Add the mirrored kernel to the weights."""
        super().build(input_shape)
        self.mirrored = self.add_weight(shape=(3, 3, self.filters, input_shape[-1]), name="mirrored", trainable=False)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution as a gradient, and its gradient as another."""
        forward, backward = keras.ops.convert_to_tensor(self.mirrored), keras.ops.convert_to_tensor(kernel)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def convolve(pixels: Any) -> Any:
            return _gradient_convolution(pixels, forward), lambda upstream: _gradient_convolution(upstream, backward)

        return convolve(inputs)


def _gradient_convolution(pixels: Any, kernel: Any) -> Any:
    channels = kernel.shape[2]
    result = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.concat([tf.shape(pixels)[:3], [channels]], axis=0),
        filter=kernel,
        out_backprop=pixels,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )
    result.set_shape((None, None, None, channels))
    return result
