"""What one variable contributes to each example's gradient, in the form that makes its norm cheap.

DP-SGD needs two things of the per-example gradients: their norms, and their sum after clipping. Neither
needs the gradients themselves. A dense kernel's per-example gradient is X_i^T G_i, of inputs X and output
gradients G, whose norm follows from two small Gram matrices (Goodfellow 2015, arXiv 1510.01799; Li et al.
2022, arXiv 2110.05679) and whose clipped sum is one matrix product ("book-keeping", Bu et al. 2023, arXiv
2210.00038). Used by layers.py and convolutions.py; clipping.py puts the variables together. All arithmetic
here is float32, also where the network computes in bfloat16, so that the norm is that of what is summed.

Letters in shapes: B examples, T positions of an example, D inputs and P outputs of a kernel, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import keras
import tensorflow as tf

# Of a sum of products of Gram matrices, over the sum of its diagonal: 16 units in float32's last place.
_ROUNDING = 16 * 2.0**-23


class Contribution(Protocol):
    """One variable's share of B per-example gradients."""

    def squared_norms(self) -> tf.Tensor:
        """(B,) float32 squared norms; called once, before `weighted_sum`."""

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """The sum over examples, each times its weight (B,), in the variable's shape."""


Contributions: TypeAlias = dict[int, Contribution]
"""id of a variable -> its contribution."""


class Materialised:
    """Per-example gradients that are small enough to be held: biases, scales, positions.

    Args:
        gradients: (B, ...) any float type, behind B the variable's shape.
    """

    def __init__(self, gradients: tf.Tensor) -> None:
        self._gradients = tf.cast(gradients, tf.float32)

    def squared_norms(self) -> tf.Tensor:
        """(B,) squared norms."""
        return sum_of_squares(self._gradients)

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """The weighted sum over examples."""
        return tf.tensordot(weights, self._gradients, 1)


class OuterProducts:
    """Per-example gradients X_i^T G_i of a matrix.

    Args:
        inputs: (B, T, D), shapes static but for B.
        output_gradients: (B, T, P).
        finish: Brings the (D, P) sum into the variable's shape.
        num_sharing: How many kernels have these inputs, whose Gram matrix TensorFlow computes once for all.
    """

    def __init__(
        self,
        inputs: tf.Tensor,
        output_gradients: tf.Tensor,
        finish: Callable[[tf.Tensor], tf.Tensor] = lambda matrix: matrix,
        *,
        num_sharing: int = 1,
    ) -> None:
        self._inputs = tf.cast(inputs, tf.float32)
        self._output_gradients = tf.cast(output_gradients, tf.float32)
        self._finish, self._num_sharing = finish, num_sharing
        self._products: tf.Tensor | None = None

    def squared_norms(self) -> tf.Tensor:
        """(B,) squared norms, by the cheapest of three ways."""
        x, g = self._inputs, self._output_gradients
        (t, d), p = x.shape[1:], g.shape[2]
        if t == 1:
            return sum_of_squares(x) * sum_of_squares(g)
        if prefer_gram_matrices(t, d, p, num_sharing=self._num_sharing):
            gram_x = tf.matmul(x, x, transpose_b=True)  # (B, T, T)
            gram_g = tf.matmul(g, g, transpose_b=True)  # (B, T, T)
            return _sum_with_margin(gram_x * gram_g)
        self._products = tf.matmul(x, g, transpose_a=True)  # (B, D, P)
        return sum_of_squares(self._products)

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """The weighted sum over examples, from the products where they are there already."""
        if self._products is not None:
            return self._finish(sum_over_examples(weights, self._products))
        x, g = self._inputs, self._output_gradients
        # The smaller one; of equals the inputs, which the projections of an attention layer share.
        if x.shape[2] <= g.shape[2]:
            x *= weights[:, None, None]
        else:
            g *= weights[:, None, None]
        flat_x, flat_g = tf.reshape(x, [-1, x.shape[2]]), tf.reshape(g, [-1, g.shape[2]])  # (B*T, D), (B*T, P)
        return self._finish(tf.matmul(flat_x, flat_g, transpose_a=True))


class EmbeddingRows:
    """Per-example gradients of a lookup table: each position adds its gradient to the row of its id.

    Args:
        ids: (B, T) integers.
        output_gradients: (B, T, P).
        num_rows: V.
    """

    def __init__(self, ids: tf.Tensor, output_gradients: tf.Tensor, num_rows: int) -> None:
        self._ids = tf.cast(ids, tf.int32)
        self._output_gradients = tf.cast(output_gradients, tf.float32)
        self._num_rows = num_rows

    def squared_norms(self) -> tf.Tensor:
        """(B,) squared norms; positions with the same id share a row."""
        same_row = tf.cast(self._ids[:, :, None] == self._ids[:, None, :], tf.float32)  # (B, T, T)
        gram = tf.matmul(self._output_gradients, self._output_gradients, transpose_b=True)  # (B, T, T)
        return _sum_with_margin(same_row * gram)

    def weighted_sum(self, weights: tf.Tensor) -> tf.Tensor:
        """(V, P) weighted sum over examples."""
        g = self._output_gradients * weights[:, None, None]
        rows = tf.reshape(g, [-1, g.shape[2]])  # (B*T, P)
        return tf.math.unsorted_segment_sum(rows, tf.reshape(self._ids, [-1]), self._num_rows)


def prefer_gram_matrices(t: int, d: int, p: int, *, num_sharing: int = 1) -> bool:
    """Whether two (T, T) Gram matrices cost less than one (D, P) product, in arithmetic and in memory.

    The product spares `weighted_sum` its own, but has to be read twice more, which takes about half as long as
    computing it; and where the matrices need no more than 0.6 of its arithmetic, X and G are much smaller too.
    `num_sharing` kernels share the matrix of the inputs.
    """
    return 2 * t * t < d * p and t * (d / num_sharing + p) < 0.6 * d * p


def sum_of_squares(tensor: tf.Tensor) -> tf.Tensor:
    """(B,) sums of squares over all axes but the first."""
    return tf.reduce_sum(tf.square(tensor), axis=list(range(1, tensor.shape.rank)))


def sum_over_examples(weights: tf.Tensor, products: tf.Tensor) -> tf.Tensor:
    """The weighted sum of (B, ...) over B as one matrix product, which is faster than a reduction."""
    shape = products.shape[1:]
    flat = tf.reshape(products, [-1, math.prod(shape)])
    return tf.reshape(tf.matmul(weights[None, :], flat), shape)


def _sum_with_margin(terms: tf.Tensor) -> tf.Tensor:
    """(B,) sums of (B, T, T), and their rounding errors.

    Positions whose gradients cancel leave little but rounding, also below 0; without the margin an example with
    large activations could pass for one with a small norm, and its influence exceed the bound.
    """
    return tf.reduce_sum(terms, axis=[1, 2]) + _ROUNDING * tf.reduce_sum(tf.linalg.diag_part(terms), axis=1)


def by_position(tensor: tf.Tensor) -> tf.Tensor:
    """(B, ..., C) as (B, T, C)."""
    return tf.reshape(tensor, [-1, math.prod(tensor.shape[1:-1]), tensor.shape[-1]])


def joined(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """The positions of several calls of one layer, one after the other: its gradients add up before the norm."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def stored(variables: Sequence[keras.Variable]) -> list[tf.Variable]:
    """What a tape can watch: each variable's storage on this device, or on the first one outside of a replica."""
    if not tf.distribute.in_cross_replica_context():
        return [variable.value for variable in variables]
    strategy = tf.distribute.get_strategy()
    return [strategy.experimental_local_results(variable.value)[0] for variable in variables]
