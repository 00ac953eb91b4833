"""Per-example gradients of convolution kernels, without unfolding the images into patches.

The gradient of one tap of the kernel, its weights at one offset, is a product of the input shifted by that
offset and the output gradients: one batched matrix product a tap. What of these is small enough is kept for
the clipped sum; otherwise TensorFlow's own filter gradient computes that sum. Beside contributions.py, used
by layers.py. Letters in shapes: B examples, H and W positions, T = H * W, I input channels of a group, O
output channels of a group, G groups, K taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tensorflow as tf

from tfbig.gradients.private.contributions import sum_of_squares, sum_over_examples

# Kept products of one kernel, for all examples together; more are computed anew by the filter gradient.
_KEPT_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Window:
    """How a kernel moves over an image; one-dimensional signals have height 1.

    Args:
        size: Height and width of the kernel.
        strides: Of the output positions in the input.
        dilation: Between the taps.
        padding: valid, same or causal (along the width).
    """

    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "valid"

    def padded(self, images: tf.Tensor, outputs: tuple[int, int]) -> tf.Tensor:
        """(B, H, W, C) images with the zeros that the convolution sees around them."""
        paddings = [(0, 0), *map(self._padding_along, (0, 1), images.shape[1:3], outputs), (0, 0)]
        return tf.pad(images, paddings) if any(map(any, paddings)) else images

    def shifted(self, padded: tf.Tensor, outputs: tuple[int, int]) -> Iterator[tf.Tensor]:
        """For each tap, (B, H, W, C): what it saw at each output position."""
        (sh, sw), (dh, dw), (h, w) = self.strides, self.dilation, outputs
        for row in range(self.size[0]):
            for column in range(self.size[1]):
                top, left = row * dh, column * dw
                yield padded[:, top : top + (h - 1) * sh + 1 : sh, left : left + (w - 1) * sw + 1 : sw, :]

    def _padding_along(self, axis: int, num_inputs: int, num_outputs: int) -> tuple[int, int]:
        if self.padding == "valid":
            return 0, 0
        reach = (self.size[axis] - 1) * self.dilation[axis] + 1
        total = max((num_outputs - 1) * self.strides[axis] + reach - num_inputs, 0)
        if self.padding == "causal":
            # Keras pads by the whole reach; with strides the last inputs may be left over.
            return (reach - 1, 0) if axis == 1 else (0, 0)
        return total // 2, total - total // 2


class ConvolutionKernel:
    """Per-example gradients of a convolution's kernel.

    Args:
        uses: For each call of the layer, inputs (B, H', W', G*I) and output gradients (B, H, W, G*O), any float type.
        kernel_shape: The variable's shape; its last two axes are (I, G*O).
        window: How the kernel moves.
        groups: G.
    """

    def __init__(
        self,
        uses: Sequence[tuple[tf.Tensor, tf.Tensor]],
        kernel_shape: tuple[int, ...],
        window: Window,
        *,
        groups: int = 1,
    ) -> None:
        self._uses = [(tf.cast(images, tf.float32), tf.cast(g, tf.float32)) for images, g in uses]
        self._shape, self._window, self._groups = kernel_shape, window, groups
        self._products: list[tf.Tensor] = []

    def squared_norms(self) -> tf.Tensor:
        """(B,) squared norms."""
        by_use = [[self._product(tap, g) for tap in self._taps(images, g)] for images, g in self._uses]
        products = [tf.add_n(taps) if len(taps) > 1 else taps[0] for taps in zip(*by_use, strict=True)]
        num_examples = self._uses[0][0].shape[0]
        if self._groups > 1 or num_examples is None or num_examples * 4 * math.prod(self._shape) <= _KEPT_BYTES:
            self._products = products
        return tf.add_n([sum_of_squares(product) for product in products])

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """The weighted sum over examples, in the kernel's shape."""
        if not self._products:
            return tf.add_n([self._filter_gradient(images, g, weights) for images, g in self._uses])
        sums = [sum_over_examples(weights, product) for product in self._products]  # each (taps, I, O) or (G, I, O)
        if self._groups == 1:
            return tf.reshape(tf.stack(sums), self._shape)
        stacked = tf.transpose(tf.stack(sums), [0, 2, 1, 3])  # (K, I, G, O)
        return tf.reshape(stacked, self._shape)

    def _taps(self, images: tf.Tensor, g: tf.Tensor) -> Iterator[tf.Tensor]:
        """(B, H, W, C) a tap; all taps at once as (B, H, W, K*C) where they do not overlap."""
        window, (h, w) = self._window, g.shape[1:3]
        if window.size == (1, 1) and window.strides == (1, 1):
            yield images
        elif self._groups == 1 and window == Window(window.size, window.size):
            (kh, kw), channels = window.size, images.shape[3]
            patches = tf.reshape(images[:, : h * kh, : w * kw], [-1, h, kh, w, kw, channels])
            patches = tf.transpose(patches, [0, 1, 3, 2, 4, 5])  # (B, H, W, kh, kw, C)
            yield tf.reshape(patches, [-1, h, w, kh * kw * channels])
        else:
            yield from window.shifted(window.padded(images, (h, w)), (h, w))

    def _product(self, seen: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        """(B, I, O), or (B, G, I, O) with several groups."""
        num_positions = math.prod(g.shape[1:3])
        if self._groups == 1:
            x, g = (tf.reshape(t, [-1, num_positions, t.shape[3]]) for t in (seen, g))  # (B, T, I), (B, T, O)
        else:
            x, g = (
                tf.transpose(tf.reshape(t, [-1, num_positions, self._groups, t.shape[3] // self._groups]), [0, 2, 1, 3])
                for t in (seen, g)
            )  # (B, G, T, I), (B, G, T, O)
        return tf.matmul(x, g, transpose_a=True)

    def _filter_gradient(self, images: tf.Tensor, g: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        window = self._window
        kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=window.padded(images, tuple(g.shape[1:3])),
            filter_sizes=[*window.size, *self._shape[-2:]],
            out_backprop=g * weights[:, None, None, None],
            strides=[1, *window.strides, 1],
            padding="VALID",
            dilations=[1, *window.dilation, 1],
        )
        return tf.reshape(kernel, self._shape)


def depthwise_gradients(
    images: tf.Tensor, output_gradients: tf.Tensor, window: Window, *, multiplier: int
) -> tf.Tensor:
    """Per-example gradients of a depthwise kernel, which are small.

    Args:
        images: (B, H', W', C).
        output_gradients: (B, H, W, C * multiplier).
        window: How the kernel moves.
        multiplier: Outputs a channel.

    Returns:
        (B, kh, kw, C, multiplier) float32.
    """
    images, output_gradients = tf.cast(images, tf.float32), tf.cast(output_gradients, tf.float32)
    h, w = output_gradients.shape[1:3]
    channels = images.shape[3]
    g = tf.reshape(output_gradients, [-1, h, w, channels, multiplier])
    seen = window.shifted(window.padded(images, (h, w)), (h, w))
    taps = [tf.reduce_sum(tap[..., None] * g, [1, 2]) for tap in seen]  # each (B, C, multiplier)
    return tf.reshape(tf.stack(taps, 1), [-1, *window.size, channels, multiplier])
