"""Batch normalisation of images as a single operation of TensorFlow's, and its averages as one each.

A part of networks/fused.py. Letters in shapes: B images, H and W pixels, C channels.
"""

from __future__ import annotations

import tensorflow as tf
from keras import layers

from tfbig.networks.tracing import constant, with_gradient

_TYPES = tf.float32, tf.bfloat16, tf.float16
# cuDNN takes no smaller one, and TensorFlow raises a smaller one in silence.
_LEAST_EPSILON = 1.001e-5


class FusedBatchNormalization(layers.BatchNormalization):
    """BatchNormalization of channels-last images as a single operation of TensorFlow's."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Normalises (B, H, W, C)."""
        x = tf.convert_to_tensor(inputs)
        is_image = x.shape.rank == 4 and self.axis in (-1, 3) and x.dtype in _TYPES
        fits = is_image and mask is None and self.epsilon >= _LEAST_EPSILON
        if not fits or self.renorm or self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        gamma, beta = scale_and_offset(self, x.shape[-1])
        if training and self.trainable:
            normed = self._by_batch(x, gamma, beta)
        else:
            stored = self.moving_mean, self.moving_variance
            mean, variance = (tf.cast(tf.convert_to_tensor(average), tf.float32) for average in stored)
            normed, *_ = tf.raw_ops.FusedBatchNormV3(
                x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=self.epsilon, is_training=False
            )
        return tf.cast(normed, self.compute_dtype)

    def _by_batch(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        normed, mean, variance = _normalised(x, gamma, beta, self.epsilon)
        # The operation gives the unbiased variance, and Keras follows the biased one.
        self._follow(mean, variance, _biased_share(x))
        return normed

    def _follow(self, mean: tf.Tensor, variance: tf.Tensor, share: tf.Tensor | float) -> None:
        followed = (self.moving_mean, mean, 1.0), (self.moving_variance, variance, share)
        for average, value, share in followed:
            if _moves_in_place(average.value, self.momentum):
                _move_in_place(average.value, value, self.momentum, share)
                continue
            # As tensors: an operation of Keras's takes three times as long to trace.
            change = tf.cast(value * share, average.dtype) * (1.0 - self.momentum)
            average.assign(tf.convert_to_tensor(average) * self.momentum + change)


def scale_and_offset(norm: layers.Layer, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and offset of a norm, (C,) float32; ones and zeros where it has none."""
    gamma = tf.ones([width]) if norm.gamma is None else tf.cast(tf.convert_to_tensor(norm.gamma), tf.float32)
    beta = tf.zeros([width]) if norm.beta is None else tf.cast(tf.convert_to_tensor(norm.beta), tf.float32)
    return gamma, beta


def _normalised(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(B, H, W, C) normalised by its own statistics, and these: mean and unbiased variance, (C,) float32.

    With TensorFlow's gradient, which would first make zeros for five results of which none is used.
    """
    found: list[tf.Tensor] = []

    def compute(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        none = constant([])
        found.extend(tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
        ))  # fmt: skip
        return found[0]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=upstream, x=x, scale=gamma, reserve_space_1=found[3], reserve_space_2=found[4],
            reserve_space_3=found[5], epsilon=epsilon, is_training=True,
        )[:3]  # fmt: skip

    return with_gradient(compute, (x, gamma, beta), gradient), found[1], found[2]


def _moves_in_place(average: tf.Variable | tf.Tensor, momentum: float) -> bool:
    """Whether TensorFlow has the operation of `_move_in_place`: on a processor, for the only copy of a variable."""
    is_usual = isinstance(average, tf.Variable) and average.dtype == tf.float32 and 0.0 < momentum < 1.0
    return is_usual and not (tf.distribute.has_strategy() or tf.config.list_logical_devices("GPU"))


def _move_in_place(average: tf.Variable, value: tf.Tensor, momentum: float, share: tf.Tensor | float) -> None:
    """Makes an average momentum * average + (1 - momentum) * share * value, (C,), by one operation in place of six.

    A proximal step from v along d goes to (v - alpha * d) / (1 + alpha * l2): Duchi and Singer 2009, Forward Backward
    Splitting. The denominator is 1 / momentum.
    """
    alpha, l2 = share * ((momentum - 1.0) / momentum), -1.0 / share
    if isinstance(alpha, float):
        alpha, l2 = constant(alpha), constant(l2)
    tf.raw_ops.ResourceApplyProximalGradientDescent(
        var=average.handle, alpha=alpha, l1=constant(0.0), l2=l2, delta=value
    )


def _biased_share(x: tf.Tensor) -> tf.Tensor | float:
    """(N - 1) / N of the N values of a channel of x (..., C); a number where the shape is known."""
    num_elements = x.shape.num_elements()
    if num_elements is not None:
        count = num_elements // x.shape[-1]
        return max(count - 1.0, 1.0) / max(count, 1.0)
    count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    return tf.maximum(count - 1.0, 1.0) / tf.maximum(count, 1.0)
