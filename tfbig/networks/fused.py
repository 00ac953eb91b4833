"""Layers that compute the same in fewer passes over memory.

Keras 3 writes a norm, a GELU or an attention as a dozen elementwise operations; on a processor, and even more so in
bfloat16, these cost more than the matrix products between them. `fused` gives each layer that has a faster form the
class that computes it so: same weights, same names, same results to rounding. `plain` takes it back before an export,
whose graph must not need our gradients. A network transform, used by training/assembly.py; what each form gains is in
docs/performance.md. Letters in shapes: B images, T positions, N heads, K width of a head, D inputs, P outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers
from tensorflow.python.util._pywrap_util_port import IsMklEnabled

from tfbig.networks import compiled_batch_norm, joined
from tfbig.networks.fused_batch_norm import FusedBatchNormalization, scale_and_offset
from tfbig.networks.fused_convolution import FusedConv2D

_HALF = tf.bfloat16, tf.float16


def fused(network: keras.Model, *, for_xla: bool = False) -> keras.Model:
    """Puts the faster form in place of each layer that has one, at any depth.

    Args:
        network: Built. Subclasses of Keras's layers are left alone, since they may compute something else.
        for_xla: Without operations of our own, which XLA does not know.

    Returns:
        The same network.
    """
    forms = dict(FORMS)
    if tf.config.list_physical_devices("GPU"):
        forms = {layer: form for layer, form in FORMS.items() if form not in _ONLY_ON_PROCESSORS}
    elif not (for_xla or tf.config.list_logical_devices("TPU")) and compiled_batch_norm.is_compiled():
        forms |= joined.FORMS
    return _changed(network, forms, {keras.activations.gelu: gelu})


def plain(network: keras.Model) -> keras.Model:
    """Undoes `fused`.

    Args:
        network: With faster forms or without.

    Returns:
        The same network, of Keras's own layers.
    """
    return _changed(network, _ORIGINALS, {gelu: keras.activations.gelu})


def keras_type(layer: keras.Operation) -> type:
    """A layer's class as Keras has it, whatever form it has been given."""
    return _ORIGINALS.get(type(layer), type(layer))


def _changed(
    network: keras.Model, forms: dict[type, type], activations: dict[Callable, Callable]
) -> keras.Model:
    # Keras has no public way into a layer's own layers.
    for layer in network._flatten_layers(include_self=False, recursive=True):
        activation = getattr(layer, "activation", None)
        if callable(activation) and activation in activations:
            layer.activation = activations[activation]
        form = forms.get(type(layer))
        if form is not None:
            # The object stays, so whatever holds it, and every variable, does too.
            object.__setattr__(layer, "__class__", form)
    return network


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016, arXiv 1606.08415), in terms of erf.

    Keras's goes by erfc, for which processors have no fast code. The gradient is computed from x in float32, by one
    formula in place of one an operation.

    Args:
        x: Of any shape.

    Returns:
        The same shape and dtype.
    """
    # In this very form TensorFlow joins it with the matrix product before it, where no gradient is wanted.
    result = 0.5 * x * (1.0 + tf.math.erf(x * tf.cast(math.sqrt(0.5), x.dtype)))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        z = tf.cast(x, tf.float32)
        cumulative = 0.5 + 0.5 * tf.math.erf(z * math.sqrt(0.5))
        density = tf.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))
        return tf.cast(tf.cast(upstream, tf.float32) * (cumulative + z * density), x.dtype)

    return result, gradient


def normalised(x: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """What a layer normalisation multiplies by its scale, in float32.

    Whoever calls it on the same tensor within one graph shares its work with the layer's own gradient.

    Args:
        x: (..., D) any float type.
        epsilon: Added to the variance.

    Returns:
        x less its mean, over its standard deviation (..., D), and one over the latter (..., 1).
    """
    z = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(z, -1, keepdims=True)
    # Not as a square of the difference below, which TensorFlow would keep for it.
    variance = tf.reduce_mean(tf.math.squared_difference(z, mean), -1, keepdims=True)
    inverse = tf.math.rsqrt(variance + epsilon)  # (..., 1)
    return (z - mean) * inverse, inverse


def _layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Layer normalisation over the last axis.

    Args:
        x: (..., D).
        gamma: (D,) float32.
        beta: (D,) float32.
        epsilon: Added to the variance.
    """

    @tf.custom_gradient
    def norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            normed, inverse = normalised(x, epsilon)
            g = tf.cast(upstream, tf.float32)
            along_normed = g * normed
            outer = list(range(g.shape.rank - 1))
            # Means of the scaled gradient, as products that need no copy of it.
            mean, along = (_mean_of_scaled(t, gamma) for t in (g, along_normed))
            g_x = inverse * (g * gamma - mean - normed * along)
            return tf.cast(g_x, x.dtype), tf.reduce_sum(along_normed, outer), tf.reduce_sum(g, outer)

        if _joins_layer_norm(x):
            return _in_one_operation(x, gamma, beta, epsilon), gradient
        normed, _ = normalised(x, epsilon)
        return tf.cast(normed * gamma + beta, x.dtype), gradient

    return norm(x, gamma, beta)


def _mean_of_scaled(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Means over the last axis of (..., D) times (D,), as (..., 1)."""
    width = tensor.shape[-1]
    means = tf.matmul(tf.reshape(tensor, [-1, width]), scale[:, None] / width)
    return tf.reshape(means, tf.concat([tf.shape(tensor)[:-1], [1]], 0))


def _joins_layer_norm(x: tf.Tensor) -> bool:
    """Whether TensorFlow will compute `_in_one_operation` so: in a graph, on a processor, by oneDNN."""
    is_known = x.shape.rank == 3 and x.shape.is_fully_defined()
    return is_known and not tf.executing_eagerly() and IsMklEnabled() and not tf.config.list_logical_devices("GPU")


def _in_one_operation(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """In the one form that TensorFlow's optimizer makes a single operation of oneDNN's: that of Keras 2."""
    num_rows = x.shape[0] * x.shape[1]

    def filled(value: float) -> tf.Tensor:
        # Not a constant, with which this would no longer be the form that is looked for.
        return tf.fill(tf.raw_ops.PlaceholderWithDefault(input=[num_rows], shape=[1]), value)

    none = tf.constant([], tf.float32)
    normed, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, [1, num_rows, x.shape[2], 1]), scale=filled(1.0), offset=filled(0.0), mean=none, variance=none,
        epsilon=epsilon, is_training=True, data_format="NCHW",
    )  # fmt: skip
    return tf.reshape(normed, x.shape) * tf.cast(gamma, x.dtype) + tf.cast(beta, x.dtype)


class FusedLayerNormalization(layers.LayerNormalization):
    """LayerNormalization over the last axis, with one formula for its gradient."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalises (..., D)."""
        x = tf.convert_to_tensor(inputs)
        axes = [self.axis] if isinstance(self.axis, int) else list(self.axis)
        if self.rms_scaling or axes not in ([-1], [x.shape.rank - 1]) or x.dtype not in (tf.float32, *_HALF):
            return super().call(inputs)
        width = x.shape[-1]
        gamma, beta = scale_and_offset(self, width)
        return tf.cast(_layer_norm(x, gamma, beta, self.epsilon), self.compute_dtype)


class FusedDense(layers.Dense):
    """Dense as one matrix product of all positions, which TensorFlow joins with the bias."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """(..., D) to (..., P)."""
        if isinstance(inputs, tf.SparseTensor):
            return super().call(inputs, training=training)
        x = tf.convert_to_tensor(inputs)
        return _projected(self, x, self.kernel, x.shape[-1:], [self.units], self.bias)


class FusedEinsumDense(layers.EinsumDense):
    """EinsumDense that contracts the last axes of its inputs, as one matrix product."""

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """(B, T, ...) to (B, T, ...)."""
        x = tf.convert_to_tensor(inputs)
        split = _contraction(self.equation)
        if split is None or (self.bias is not None and list(self.bias.shape) != list(self.kernel.shape[split:])):
            return super().call(inputs, training=training)
        shape = list(self.kernel.shape)
        return _projected(self, x, self.kernel, shape[:split], shape[split:], self.bias)


class FusedAttention(layers.MultiHeadAttention):
    """MultiHeadAttention by matrix products of whole heads, where nothing is masked or dropped."""

    def _compute_attention(
        self,
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        attention_mask: tf.Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        drops = self._dropout > 0.0 and training is not False
        if attention_mask is not None or use_causal_mask or return_attention_scores or drops or query.shape.rank != 4:
            return super()._compute_attention(
                query,
                key,
                value,
                attention_mask=attention_mask,
                training=training,
                return_attention_scores=return_attention_scores,
                use_causal_mask=use_causal_mask,
            )
        scaled = query * tf.cast(self._inverse_sqrt_key_dim, query.dtype)
        by_head = [tf.transpose(part, (0, 2, 1, 3)) for part in (scaled, key, value)]  # (B, N, T, K)
        weights = tf.nn.softmax(tf.matmul(by_head[0], by_head[1], transpose_b=True))  # (B, N, T, T)
        return tf.transpose(tf.matmul(weights, by_head[2]), (0, 2, 1, 3)), None  # (B, T, N, K)


FORMS: dict[type, type] = {
    layers.BatchNormalization: FusedBatchNormalization,
    layers.Conv2D: FusedConv2D,
    layers.Dense: FusedDense,
    layers.EinsumDense: FusedEinsumDense,
    layers.LayerNormalization: FusedLayerNormalization,
    layers.MultiHeadAttention: FusedAttention,
}
"""A Keras layer's class -> the class of its faster form."""

_ORIGINALS = {form: layer for forms in (FORMS, joined.FORMS) for layer, form in forms.items()}

# cuDNN chooses among forms of a convolution by itself.
_ONLY_ON_PROCESSORS = (FusedConv2D,)


def _projected(
    layer: keras.layers.Layer,
    x: tf.Tensor,
    kernel: tf.Tensor,
    summed: list[int],
    fresh: list[int],
    bias: tf.Tensor | None,
) -> tf.Tensor:
    """Contracts the last axes of `x`, of shape `summed`, with a kernel of shape (*summed, *fresh)."""
    num_positions = x.shape.rank - len(summed)
    outer = tf.concat([tf.shape(x)[:num_positions], fresh], axis=0)
    static = [*x.shape[:num_positions], *fresh]
    width = math.prod(fresh)
    flat = tf.matmul(
        tf.reshape(x, [-1, math.prod(summed)]),
        tf.reshape(tf.cast(tf.convert_to_tensor(kernel), x.dtype), [-1, width]),
    )  # (B * T, P)
    if bias is not None:
        flat = tf.nn.bias_add(flat, tf.reshape(tf.cast(tf.convert_to_tensor(bias), x.dtype), [width]))
    # Where it trains, its outputs before the activation must have an axis of examples (gradients/private).
    early = len(fresh) == 1 and not layer.trainable_variables and layer.activation in _ELEMENTWISE
    if early:
        flat = layer.activation(flat)
    result = tf.ensure_shape(tf.reshape(flat, outer), static)
    return result if early or layer.activation is None else layer.activation(result)


_ELEMENTWISE = (gelu, keras.activations.relu)


def _contraction(equation: str) -> int | None:
    """How many axes an einsum like "abc,cde->abde" sums over; None where it is of another kind."""
    inputs, rest = equation.replace(" ", "").split(",")
    kernel, outputs = rest.split("->")
    for count in range(1, len(kernel)):
        outer, summed = inputs[: len(inputs) - count], kernel[:count]
        if inputs.endswith(summed) and outputs == outer + kernel[count:] and not set(outer) & set(kernel):
            return count if "." not in equation else None
    return None
