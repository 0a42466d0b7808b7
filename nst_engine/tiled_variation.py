"""The total variation of a picture of any size, by strips of its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from nst_engine.arrays import release
from nst_engine.config import TotalVariationForm
from nst_engine.losses import total_variation


class StripVariation:
    """The trace of one form for strips of about `pixels` pixels, in `dtype`."""

    def __init__(self, form: TotalVariationForm, *, pixels: int, dtype: Any) -> None:
        self._form = form
        self._pixels = pixels
        self._number = np.dtype(dtype.as_numpy_dtype)
        self._variation = tf.function(
            self._value_and_gradient, input_signature=[tf.TensorSpec((None, None, 3), dtype)], autograph=False
        )

    def add(self, picture: np.ndarray, gradient: np.ndarray, weight: float) -> float:
        """The weighted total variation, whose gradient is added to `gradient`."""
        source = picture.astype(self._number, copy=False)
        rows = max(1, self._pixels // source.shape[1])
        total = 0.0
        for start in range(0, len(source) - 1, rows):
            # A strip ends with the first row of the next, which so comes twice.
            twice = [(slice(start, start + 1), -1.0)] if start else []
            for strip, sign in [(slice(start, start + rows + 1), 1.0), *twice]:
                value, part = self._variation(tf.convert_to_tensor(source[strip]))
                total += sign * float(value)
                gradient[strip] += self._number.type(sign * weight) * part.numpy()
            release(source, gradient)
        return weight * total

    def _value_and_gradient(self, strip: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(strip)
            value = total_variation(strip, form=self._form)
        return value, tape.gradient(value, strip)
