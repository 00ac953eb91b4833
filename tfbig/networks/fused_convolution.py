"""Convolutions over few positions and many channels, as products of matrices that processors compute faster.

What oneDNN gains by walking over a picture it loses where the picture is 16 by 16 or less: there a convolution of 1 by
1, and the gradient of a larger kernel, is a product of plain matrices. One of 1 by 1 with a stride first drops the
pixels that it skips, so that neither pass looks at them. What each gains is in docs/performance.md. A part of
networks/fused.py. Letters in shapes: B images, H and W pixels, C inputs, F filters, K by K the kernel, N positions of
all images, B * H * W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf
from keras import layers

from tfbig.networks.tracing import constant, once, with_gradient

# Pixels of an output up to which products gain, measured on Zen 4 in bfloat16.
_MOST_PIXELS_OF_PRODUCT = 256
_MOST_PIXELS_OF_TAPS = 64
# Below, the copies that taps need cost more than they gain.
_LEAST_CHANNELS_OF_TAPS = 256


class FusedConv2D(layers.Conv2D):
    """Conv2D of channels-last images, as matrix products where the images are small, and else by fewer operations."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, F)."""
        x = tf.convert_to_tensor(inputs)
        is_plain = self.data_format == "channels_last" and self.groups == 1 and x.shape.rank == 4
        if not is_plain or x.dtype != self.compute_dtype:
            return super().call(inputs)
        kernel = tf.cast(tf.convert_to_tensor(self.kernel), x.dtype)
        bias = None if self.bias is None else tf.cast(tf.convert_to_tensor(self.bias), x.dtype)
        result = convolved(self, x, kernel, bias)
        return result if self.activation is None else self.activation(result)


def convolved(layer: layers.Conv2D, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """A layer's convolution, with the kernel and bias that are given.

    Args:
        layer: Gives strides, padding and dilation; of channels-last images.
        x: (B, H, W, C).
        kernel: (K, K, C / groups, F), as `x` in type.
        bias: (F,), likewise; None for none.

    Returns:
        (B, H / stride, W / stride, F), without the layer's activation.
    """
    form = _form_of(layer, x.shape) if isinstance(layer, FusedConv2D) else None
    if form is not None:
        none = tf.zeros([layer.filters], x.dtype) if bias is None else bias
        return form(_thinned(x, layer.strides), kernel, none)
    padding, strides, dilations = layer.padding.upper(), list(layer.strides), list(layer.dilation_rate)
    result = tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations)
    return result if bias is None else tf.nn.bias_add(result, bias)


Form: TypeAlias = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""(B, H, W, C) with nothing to skip, (K, K, C, F) and (F,) -> (B, H, W, F)."""


def _form_of(layer: layers.Conv2D, shape: tf.TensorShape) -> Form | None:
    """How a layer is computed faster; None where Keras's own way is as fast."""
    is_usual = layer.data_format == "channels_last" and layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1)
    if not is_usual or shape.rank != 4 or None in shape[1:]:
        return None
    sizes, strides = tuple(layer.kernel_size), tuple(layer.strides)
    num_pixels = shape[1] * shape[2] // (strides[0] * strides[1])
    if sizes == (1, 1):
        # Both kinds of padding take the pixels 0, stride, 2 * stride, ... where these divide the picture.
        if shape[1] % strides[0] or shape[2] % strides[1]:
            return None
        if num_pixels <= _MOST_PIXELS_OF_PRODUCT:
            return _by_product
        return None if strides == (1, 1) else _pointwise
    is_centred = layer.padding == "same" and strides == (1, 1) and all(size % 2 for size in sizes)
    is_deep = num_pixels <= _MOST_PIXELS_OF_TAPS and min(shape[3], layer.filters) >= _LEAST_CHANNELS_OF_TAPS
    return _by_taps if is_centred and is_deep else None


def _thinned(x: tf.Tensor, strides: tuple[int, int]) -> tf.Tensor:
    """Every stride-th pixel; slices of whole rows, since TensorFlow takes strided ones by single numbers."""
    down, right = strides
    if (down, right) == (1, 1):
        return x
    height, width, channels = x.shape[1] // down, x.shape[2] // right, x.shape[3]
    rows = tf.reshape(x, [-1, down, width, right * channels])  # (B * H / stride, stride, W / stride, stride * C)
    kept = tf.slice(rows, [0, 0, 0, 0], [-1, 1, width, channels])
    return tf.reshape(kept, [-1, height, width, channels])  # (B, H / stride, W / stride, C)


def _pointwise(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "VALID"), bias)


def _by_product(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """A convolution of 1 by 1 as a product of matrices, and so both of its gradients."""
    channels, filters = kernel.shape[2:]
    factors: list[tf.Tensor] = []  # (N, C) and (C, F)

    def compute(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        factors.extend((_reshaped(x, [-1, channels]), _reshaped(kernel, [channels, filters])))
        result = tf.nn.bias_add(tf.matmul(*factors), bias)  # (N, F)
        return _reshaped(result, [-1, *x.shape[1:3], filters])  # (B, H, W, F)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        flat = _reshaped(upstream, [-1, filters])  # (N, F)
        of_x = tf.matmul(flat, factors[1], transpose_b=True)
        of_kernel = tf.matmul(factors[0], flat, transpose_a=True)
        return _reshaped(of_x, [-1, *x.shape[1:]]), _reshaped(of_kernel, kernel.shape), _summed(flat)

    return with_gradient(compute, (x, kernel, bias), gradient)


def _by_taps(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """A convolution whose kernel's gradient is one matrix product for each of the kernel's K * K entries."""
    rows, columns, channels, filters = kernel.shape
    height, width = x.shape[1:3]

    def compute(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        flat = _reshaped(upstream, [-1, filters])  # (N, F)
        padded = tf.pad(x, [[0, 0], [rows // 2, rows // 2], [columns // 2, columns // 2], [0, 0]])
        seen = [
            _reshaped(tf.slice(padded, *_window(row, column, height, width, channels)), [-1, channels])
            for row in range(rows)
            for column in range(columns)
        ]  # (N, C) each
        of_kernel = tf.stack([tf.matmul(one, flat, transpose_a=True) for one in seen])  # (K * K, C, F)
        size = constant(list(x.shape), tf.int32) if x.shape.is_fully_defined() else tf.shape(x)
        of_x = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=size, filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
        )
        return of_x, _reshaped(of_kernel, kernel.shape), _summed(flat)

    return with_gradient(compute, (x, kernel, bias), gradient)


def _window(row: int, column: int, height: int, width: int, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Where a tap's pixels begin, and how many they are, as `tf.slice` takes them."""
    return constant([0, row, column, 0], tf.int32), constant([-1, height, width, channels], tf.int32)


def _reshaped(x: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    return tf.reshape(x, constant(list(shape), tf.int32))


def _summed(upstream: tf.Tensor) -> tf.Tensor:
    """(N, F) to (F,): a product with ones, which adds in float32 whatever it is given."""
    num_rows, dtype = upstream.shape[0], upstream.dtype
    if num_rows is None:
        ones = tf.ones([1, tf.shape(upstream)[0]], dtype)
    else:
        ones = once(("ones", num_rows, dtype), lambda: tf.ones([1, num_rows], dtype))
    return _reshaped(tf.matmul(ones, upstream), [upstream.shape[1]])
