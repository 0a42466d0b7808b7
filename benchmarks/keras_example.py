"""The arithmetic of the Keras example "Neural style transfer" (F. Chollet, 2016), written down from its
formulas and with none of the engine: content, style and result go through VGG19 as one batch of three in every
iteration. It is what the preset keras-2016 is measured by, in its numbers and in its time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf

CONTENT_LAYER = "block5_conv2"
STYLE_LAYERS = tuple(f"block{block}_conv1" for block in range(1, 6))
CONTENT_WEIGHT = 2.5e-8
STYLE_WEIGHT = 1e-6
TV_WEIGHT = 1e-6


def _gram(features: Any) -> Any:
    by_channel = tf.transpose(features, (2, 0, 1))
    matrix = tf.reshape(by_channel, (tf.shape(by_channel)[0], -1))
    return tf.matmul(matrix, tf.transpose(matrix))


class KerasExample:
    """The example on two pictures, uint8 RGB (rows, columns, 3), of one size.

    `kernels` gives each convolution's kernel and bias. Each call of `iterate` makes one iteration and returns
    the loss as the example prints it: that of the picture before the iteration's update.
    """

    def __init__(self, content: np.ndarray, style: np.ndarray, kernels: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        network = keras.applications.VGG19(include_top=False, weights=None)
        for name, arrays in kernels.items():
            network.get_layer(name).set_weights(list(arrays))
        self._features = keras.Model(network.inputs[0], {layer.name: layer.output for layer in network.layers})
        self._content = self._batch_of_one(content)
        self._style = self._batch_of_one(style)
        self._size = content.shape[0] * content.shape[1]
        self.picture = tf.Variable(self._batch_of_one(content))
        self._optimizer = keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(initial_learning_rate=100.0, decay_steps=100, decay_rate=0.96)
        )
        self._loss_and_gradient = tf.function(self._differentiate)

    @staticmethod
    def _batch_of_one(picture: np.ndarray) -> Any:
        batch = picture[np.newaxis].astype(np.float32)
        return tf.constant(keras.applications.vgg19.preprocess_input(batch))

    def iterate(self) -> float:
        """One iteration; the loss before its update."""
        loss, gradient = self._loss_and_gradient()
        self._optimizer.apply_gradients([(gradient, self.picture)])
        return float(loss)

    def _differentiate(self) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            loss = self._loss()
        return loss, tape.gradient(loss, self.picture)

    def _loss(self) -> Any:
        features = self._features(tf.concat([self._content, self._style, self.picture], axis=0))
        content, _, result = tf.unstack(features[CONTENT_LAYER])
        loss = CONTENT_WEIGHT * tf.reduce_sum(tf.square(result - content))
        for layer in STYLE_LAYERS:
            _, style, result = tf.unstack(features[layer])
            difference = tf.reduce_sum(tf.square(_gram(style) - _gram(result)))
            loss += STYLE_WEIGHT / len(STYLE_LAYERS) * difference / (4.0 * 3**2 * self._size**2)
        return loss + TV_WEIGHT * self._total_variation()

    def _total_variation(self) -> Any:
        here = self.picture[:, :-1, :-1]
        down = tf.square(here - self.picture[:, 1:, :-1])
        right = tf.square(here - self.picture[:, :-1, 1:])
        return tf.reduce_sum(tf.pow(down + right, 1.25))
