"""Gradients that are not left to automatic differentiation: one that waits for another so that it need not be kept,
and one that is made as large as all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import tensorflow as tf

from nst_engine.losses import exact

Tensor = Any

_NO_ZERO: Final = 1e-30


def beside(maps: Tensor, compute: Callable[[Tensor], Any]) -> tuple[Tensor, Any]:
    """The maps again, for all that comes after them, and what `compute` makes of them, in whatever structure.

    The gradient that the latter gives them is as large as they are and could be computed long before that of what
    comes after them; here it waits for that one, so that it need not be kept. What it needs of `compute` is computed
    once more.
    """
    structure: list[Any] = []

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def both(maps: Tensor) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
        found = compute(maps)
        structure.append(found)

        def gradient(after: Tensor, *upstream: Tensor) -> Tensor:
            with tf.control_dependencies([after]):
                with tf.GradientTape() as tape:
                    tape.watch(maps)
                    again = tf.nest.flatten(compute(maps))
                own = tape.gradient(again, maps, output_gradients=list(upstream))
            return after + own

        return (tf.identity(maps), *tf.nest.flatten(found)), gradient

    after, *flat = both(maps)
    return after, tf.nest.pack_sequence_as(structure[0], flat)


def normalized(maps: Tensor, weight: Tensor) -> Tensor:
    """The maps, with a gradient of another size: divided by the sum of its absolute values, and times `weight`.

    `weight` is that of the loss whose gradient it is, which so is already in what arrives here (J. Johnson's
    neural-style, -normalize_gradients, whose 1e-8 is added to the sum without the weight).
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def identity(maps: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(upstream: Tensor) -> Tensor:
            scaled = exact(upstream) * normalizing_factor(magnitude(upstream), weight)
            return tf.cast(scaled, upstream.dtype)

        return tf.identity(maps), gradient

    return identity(maps)


def magnitude(gradient: Tensor) -> Tensor:
    """The sum of its absolute values, a scalar, float32 of bfloat16."""
    return tf.reduce_sum(tf.abs(exact(gradient)))


def normalizing_factor(size: Any, weight: Any) -> Any:
    """What a gradient of magnitude `size`, which has that weight in it, is multiplied by; 0 with a weight of 0."""
    return weight / (size + 1e-8 * weight + _NO_ZERO)
