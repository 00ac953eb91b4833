"""Layers that are one operation where they stand behind each other: BatchNorm, the sum with a branch, and a ReLU.

Each alone reads and writes all activations of a batch, which on a processor takes longer than to compute them. While a
graph is traced, a norm leaves a note on what it gives: of what it was made. The sum notes its branch beside it, and the
ReLU at the end computes all in one; what came before it and is not used, TensorFlow leaves out of the graph. So what
is computed after the ReLU has no gradient with respect to the tensor before it, nor have the operations a second
derivative. A part of networks/fused.py. Letters in shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf
from keras import layers

from tfbig.networks import compiled_batch_norm
from tfbig.networks.fused_batch_norm import FusedBatchNormalization
from tfbig.networks.tracing import note, noted


@dataclass(frozen=True)
class Norm:
    """A batch normalisation, and what is added to it.

    Args:
        x: What is normalised, (B, H, W, C).
        channels: Mean, variance, scale and offset, (C,) float32 each.
        epsilon: Added to the variance.
        residual: (B, H, W, C), None for none.
    """

    x: tf.Tensor
    channels: tuple[tf.Tensor, ...]
    epsilon: float
    residual: tf.Tensor | None = None

    def cut(self, low: float = -math.inf, high: float = math.inf) -> tf.Tensor:
        """What it gives, (B, H, W, C), no less than `low` and no more than `high`."""
        return compiled_batch_norm.normalised(
            self.x, self.residual, self.channels, self.epsilon, low=low, high=high
        )


class JoinedBatchNormalization(FusedBatchNormalization):
    """BatchNormalization of channels-last images, which a ReLU behind it can join."""

    def _by_batch(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        if x.dtype not in compiled_batch_norm.TYPES or x.dtype != self.compute_dtype:
            return super()._by_batch(x, gamma, beta)
        mean, variance = compiled_batch_norm.moments(x)
        self._follow(mean, variance, 1.0)
        norm = Norm(x, (mean, variance, gamma, beta), self.epsilon)
        result = norm.cut()
        note(result, norm)
        return result


class JoinedAdd(layers.Add):
    """Add of two, of which one may be a norm."""

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """(..., C) each to (..., C)."""
        result = super().call(inputs)
        if len(inputs) == 2 and _are_alike(*inputs):
            for norm, other in ((noted(inputs[0]), inputs[1]), (noted(inputs[1]), inputs[0])):
                if isinstance(norm, Norm) and norm.residual is None:
                    note(result, dataclasses.replace(norm, residual=other))
                    break
        return result


def _are_alike(one: tf.Tensor, other: tf.Tensor) -> bool:
    """Whether nothing is repeated where they are added up: images of a size that is not known may differ."""
    is_known = one.shape.rank is not None and one.shape[1:].is_fully_defined()
    return is_known and one.shape == other.shape and one.dtype == other.dtype


class JoinedActivation(layers.Activation):
    """Activation, which computes the norm before it if it is a ReLU."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The same shape."""
        norm, highest = noted(inputs), _CEILINGS.get(self.activation)
        return norm.cut(0.0, highest) if isinstance(norm, Norm) and highest else super().call(inputs)


class JoinedReLU(layers.ReLU):
    """ReLU, which computes the norm before it."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The same shape."""
        norm, is_plain = noted(inputs), not (self.negative_slope or self.threshold)
        if not isinstance(norm, Norm) or not is_plain:
            return super().call(inputs)
        return norm.cut(0.0, math.inf if self.max_value is None else self.max_value)


_CEILINGS = {keras.activations.relu: math.inf, keras.activations.relu6: 6.0}

FORMS: dict[type, type] = {
    layers.Activation: JoinedActivation,
    layers.Add: JoinedAdd,
    layers.BatchNormalization: JoinedBatchNormalization,
    layers.ReLU: JoinedReLU,
}
"""A Keras layer's class -> the class of its form that can be joined."""
