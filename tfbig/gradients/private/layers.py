"""The contributions of each type of layer: the one place where a layer's type decides.

`contributions` dispatches on the type of a captured layer; a type without a rule of its own, or one that
overrides `call`, is replayed one example at a time, which is exact and slow. A rule for another type:
`@contributions.register(MyLayer)`. Between capture.py and clipping.py. Letters in shapes: B examples,
T positions, D inputs, P outputs, R rank of a low-rank update.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import ops

from tfbig.gradients.private.capture import Call, Untappable
from tfbig.gradients.private.contributions import (
    Contributions,
    EmbeddingRows,
    Materialised,
    OuterProducts,
    by_position,
    joined,
)
from tfbig.gradients.private.convolutions import ConvolutionKernel, Window, depthwise_gradients
from tfbig.gradients.private.replay import replayed
from tfbig.networks.fused import FORMS, normalised

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_FUSED = (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS, *_DEPTHWISE, *_SEPARABLE)


def contributions_of(layer: keras.layers.Layer, calls: Sequence[Call]) -> Contributions:
    """What each trained variable of a layer contributes, over all its calls.

    Args:
        layer: A unit.
        calls: At least one, with their gradients.

    Raises:
        Untappable: The layer cannot be replayed either.
    """
    found = contributions(layer, calls) if has_rule(layer) else replayed(layer, calls)
    trained = {id(variable) for variable in layer.trainable_variables}
    # The norm must cover exactly what is trained: a frozen bias beside a trained kernel takes no part.
    return {key: contribution for key, contribution in found.items() if key in trained}


def has_rule(layer: keras.layers.Layer) -> bool:
    """Whether `contributions` knows how this very layer computes."""
    known: type = next(base for base in type(layer).__mro__ if base in contributions.registry)
    overridden = known is object or type(layer).call is not known.call  # type: ignore[attr-defined]
    if overridden or layer.dtype_policy.quantization_mode is not None:
        return False
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    return not (getattr(layer, "lora_enabled", False) and isinstance(layer, _CONVOLUTIONS))


def is_fused(layer: keras.layers.Layer) -> bool:
    """Whether the layer's rule wants the gradient before its activation."""
    return isinstance(layer, _FUSED) and has_rule(layer)


@functools.singledispatch
def contributions(layer: keras.layers.Layer, calls: Sequence[Call]) -> Contributions:
    """The rule of a layer's type.

    Args:
        layer: A unit.
        calls: Its calls, with gradients (B, ...).

    Returns:
        A contribution for each variable that the rule knows, trained or not.
    """
    raise Untappable(f"{type(layer).__name__} {layer.path} has no rule")


@contributions.register(keras.layers.Dense)
def _dense(layer: keras.layers.Dense, calls: Sequence[Call]) -> Contributions:
    x = joined([by_position(call.input) for call in calls])  # (B, T, D)
    g = joined([by_position(call.gradient) for call in calls])  # (B, T, P)
    found = _bias(layer, _summed_over_positions(calls))
    if layer.lora_enabled:
        return found | _low_rank(layer, x, g)
    return found | {id(layer.kernel): OuterProducts(x, g, num_sharing=_num_sharing(calls))}


def _low_rank(layer: keras.layers.Layer, x: tf.Tensor, g: tf.Tensor) -> Contributions:
    """Of A (D, R) and B (R, P), whose product times alpha / R is added to a frozen kernel (D, P)."""
    scale = layer.lora_alpha / layer.lora_rank
    x, g = tf.cast(x, tf.float32), tf.cast(g, tf.float32)
    g_b = scale * tf.matmul(g, _value(layer.lora_kernel_b), transpose_b=True)  # (B, T, R)
    x_a = scale * tf.matmul(x, _value(layer.lora_kernel_a))  # (B, T, R)
    return {id(layer.lora_kernel_a): OuterProducts(x, g_b), id(layer.lora_kernel_b): OuterProducts(x_a, g)}


@contributions.register(keras.layers.EinsumDense)
def _einsum_dense(layer: keras.layers.EinsumDense, calls: Sequence[Call]) -> Contributions:
    inputs, kernel, outputs = _letters(layer, calls[0])
    summed = [letter for letter in kernel if letter in inputs and letter not in outputs]
    fresh = [letter for letter in kernel if letter in outputs and letter not in inputs]
    positions = [letter for letter in inputs[1:] if letter not in kernel]
    regular = len(summed) + len(fresh) == len(kernel) and set(positions) <= set(outputs) and inputs[0] == outputs[0]
    if not regular or (layer.lora_enabled and kernel != [*summed, *fresh]):
        return replayed(layer, calls, before_activation=True)
    x = joined([_as_matrix(call.input, inputs, inputs[:1], positions, summed) for call in calls])  # (B, T, D)
    g = joined([_as_matrix(call.gradient, outputs, inputs[:1], positions, fresh) for call in calls])  # (B, T, P)
    found = {} if layer.bias is None else _bias(layer, _einsum_bias(layer, calls))
    if layer.lora_enabled:
        return found | _einsum_low_rank(layer, x, g, num_summed=len(summed))
    sizes = dict(zip(kernel, layer.kernel.shape, strict=True))

    def finish(matrix: tf.Tensor) -> tf.Tensor:
        order = [*summed, *fresh]
        return tf.transpose(tf.reshape(matrix, [sizes[i] for i in order]), [order.index(i) for i in kernel])

    return found | {id(layer.kernel): OuterProducts(x, g, finish, num_sharing=_num_sharing(calls))}


def _letters(layer: keras.layers.EinsumDense, call: Call) -> tuple[list[str], list[str], list[str]]:
    """The axes of input, kernel and output, an ellipsis written out."""
    left, outputs = layer.equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    if "..." in inputs:
        num_hidden = call.input.shape.rank - len(inputs.replace("...", ""))
        unused = [letter for letter in string.ascii_letters if letter not in layer.equation][:num_hidden]
        inputs, outputs = (term.replace("...", "".join(unused)) for term in (inputs, outputs))
    return list(inputs), list(kernel), list(outputs)


def _as_matrix(
    tensor: tf.Tensor, letters: Sequence[str], batch: Sequence[str], positions: Sequence[str], rest: Sequence[str]
) -> tf.Tensor:
    """A tensor of named axes as (B, T, rest)."""
    order = [letters.index(letter) for letter in (*batch, *positions, *rest)]
    if order != sorted(order):
        tensor = tf.transpose(tensor, order)
    num_positions = math.prod(tensor.shape[1 : 1 + len(positions)])
    return tf.reshape(tensor, [-1, num_positions, math.prod(tensor.shape[1 + len(positions) :])])


def _einsum_bias(layer: keras.layers.EinsumDense, calls: Sequence[Call]) -> tf.Tensor:
    """(B, *bias.shape): summed over the axes along which the bias is the same."""
    shape = layer.bias.shape
    total = tf.constant(0.0)
    for call in calls:
        g = tf.cast(call.gradient, tf.float32)
        first = g.shape.rank - len(shape)
        same = [axis for axis in range(1, g.shape.rank) if axis < first or shape[axis - first] == 1]
        total += tf.reshape(tf.reduce_sum(g, same), [-1, *shape])
    return total


def _einsum_low_rank(layer: keras.layers.EinsumDense, x: tf.Tensor, g: tf.Tensor, *, num_summed: int) -> Contributions:
    """Of A (summed..., fresh but the last..., R) and B (R, last), whose product is added to the kernel."""
    scale, rank, last = layer.lora_alpha / layer.lora_rank, layer.lora_rank, layer.kernel.shape[-1]
    shape = layer.lora_kernel_a.shape
    num_inputs, num_others = math.prod(shape[:num_summed]), math.prod(shape[num_summed:-1])
    t = x.shape[1]
    x, g = tf.cast(x, tf.float32), tf.cast(g, tf.float32)
    split_g = tf.reshape(g, [-1, t * num_others, last])  # (B, T*H, K)
    g_b = scale * tf.matmul(split_g, _value(layer.lora_kernel_b), transpose_b=True)  # (B, T*H, R)
    x_a = scale * tf.matmul(x, tf.reshape(_value(layer.lora_kernel_a), [num_inputs, num_others * rank]))  # (B, T, H*R)
    of_a = OuterProducts(x, tf.reshape(g_b, [-1, t, num_others * rank]), lambda matrix: tf.reshape(matrix, shape))
    of_b = OuterProducts(tf.reshape(x_a, [-1, t * num_others, rank]), split_g)
    return {id(layer.lora_kernel_a): of_a, id(layer.lora_kernel_b): of_b}


def _convolution(layer: keras.layers.Layer, calls: Sequence[Call]) -> Contributions:
    uses = [(_as_images(call.input), _as_images(call.gradient)) for call in calls]
    kernel = ConvolutionKernel(uses, tuple(layer.kernel.shape), _window(layer), groups=layer.groups)
    return {id(layer.kernel): kernel} | _bias(layer, _summed_over_positions(calls))


def _depthwise(layer: keras.layers.Layer, calls: Sequence[Call]) -> Contributions:
    per_example = tf.add_n([
        depthwise_gradients(
            _as_images(call.input), _as_images(call.gradient), _window(layer), multiplier=layer.depth_multiplier
        )
        for call in calls
    ])  # fmt: skip
    kernel = Materialised(tf.reshape(per_example, [-1, *layer.kernel.shape]))
    return {id(layer.kernel): kernel} | _bias(layer, _summed_over_positions(calls))


def _separable(layer: keras.layers.Layer, calls: Sequence[Call]) -> Contributions:
    """A depthwise convolution, computed again, and a matrix on its outputs."""
    pointwise, shape = layer.pointwise_kernel, layer.pointwise_kernel.shape
    matrix = tf.reshape(_value(pointwise), shape[-2:])
    between = [
        ops.depthwise_conv(
            call.input, ops.cast(layer.depthwise_kernel, call.input.dtype), strides=layer.strides,
            padding=layer.padding, dilation_rate=layer.dilation_rate, data_format=layer.data_format,
        )
        for call in calls
    ]  # fmt: skip
    depthwise = [
        depthwise_gradients(
            _as_images(call.input),
            _as_images(tf.matmul(tf.cast(call.gradient, tf.float32), matrix, transpose_b=True)),
            _window(layer),
            multiplier=layer.depth_multiplier,
        )
        for call in calls
    ]
    x, g = joined([by_position(t) for t in between]), joined([by_position(call.gradient) for call in calls])
    kernels: Contributions = {
        id(pointwise): OuterProducts(x, g, lambda product: tf.reshape(product, shape)),
        id(layer.depthwise_kernel): Materialised(
            tf.reshape(tf.add_n(depthwise), [-1, *layer.depthwise_kernel.shape])
        ),
    }
    return kernels | _bias(layer, _summed_over_positions(calls))


for _type in _CONVOLUTIONS:
    contributions.register(_type, _convolution)
for _type in _DEPTHWISE:
    contributions.register(_type, _depthwise)
for _type in _SEPARABLE:
    contributions.register(_type, _separable)


@contributions.register(keras.layers.Embedding)
def _embedding(layer: keras.layers.Embedding, calls: Sequence[Call]) -> Contributions:
    ids = joined([tf.reshape(call.input, [-1, math.prod(call.input.shape[1:])]) for call in calls])  # (B, T)
    g = joined([by_position(call.gradient) for call in calls])  # (B, T, P)
    if not layer.lora_enabled:
        return {id(layer.embeddings): EmbeddingRows(ids, g, layer.input_dim)}
    scale = layer.lora_alpha / layer.lora_rank
    rows = tf.gather(_value(layer.lora_embeddings_a), tf.cast(ids, tf.int32))  # (B, T, R)
    g_b = scale * tf.matmul(tf.cast(g, tf.float32), _value(layer.lora_embeddings_b), transpose_b=True)  # (B, T, R)
    return {
        id(layer.lora_embeddings_a): EmbeddingRows(ids, g_b, layer.input_dim),
        id(layer.lora_embeddings_b): OuterProducts(scale * rows, g),
    }


@contributions.register(keras.layers.LayerNormalization)
def _layer_normalization(layer: keras.layers.LayerNormalization, calls: Sequence[Call]) -> Contributions:
    if layer.rms_scaling:
        return replayed(layer, calls)
    rank = calls[0].input.shape.rank
    axes = sorted(axis % rank for axis in layer.axis)

    def scale_gradients(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        if axes == [rank - 1]:
            # The very operations of the layer's gradient, so that TensorFlow computes them once.
            normed, _ = normalised(x, layer.epsilon)
            return tf.reduce_sum(g * normed, range(1, rank - 1))
        mean, variance = ops.moments(x, axes=axes, keepdims=True)
        normed = (x - mean) * ops.rsqrt(variance + layer.epsilon)
        return tf.reduce_sum(g * normed, [axis for axis in range(1, rank) if axis not in axes])

    return _scale_and_offset(layer, calls, scale_gradients, axes)


@contributions.register(keras.layers.GroupNormalization)
def _group_normalization(layer: keras.layers.GroupNormalization, calls: Sequence[Call]) -> Contributions:
    rank = calls[0].input.shape.rank
    if layer.axis not in (-1, rank - 1):
        return replayed(layer, calls)
    positions = list(range(1, rank - 1))

    def scale_gradients(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        grouped = ops.reshape(x, [-1, *x.shape[1:-1], layer.groups, x.shape[-1] // layer.groups])
        mean, variance = ops.moments(grouped, axes=[*positions, rank], keepdims=True)
        mean, deviation = (tf.reshape(t, [-1, layer.groups, 1]) for t in (mean, ops.rsqrt(variance + layer.epsilon)))
        of_x, of_mean = (
            tf.reshape(tf.reduce_sum(t, positions), [-1, layer.groups, x.shape[-1] // layer.groups]) for t in (g * x, g)
        )
        return tf.reshape((of_x - mean * of_mean) * deviation, [-1, x.shape[-1]])

    return _scale_and_offset(layer, calls, scale_gradients, [rank - 1])


@contributions.register(keras.layers.BatchNormalization)
def _batch_normalization(layer: keras.layers.BatchNormalization, calls: Sequence[Call]) -> Contributions:
    """With its stored averages it treats each example by itself; checks.py refuses the other way."""
    rank = calls[0].input.shape.rank
    axis = layer.axis % rank
    shape = [1] * rank
    shape[axis] = layer.moving_mean.shape[0]

    def scale_gradients(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        mean, variance = (tf.reshape(_value(v), shape) for v in (layer.moving_mean, layer.moving_variance))
        normalised = (x - mean) * tf.math.rsqrt(variance + layer.epsilon)
        return tf.reduce_sum(g * normalised, [other for other in range(1, rank) if other != axis])

    return _scale_and_offset(layer, calls, scale_gradients, [axis])


@contributions.register(keras.layers.PReLU)
def _prelu(layer: keras.layers.PReLU, calls: Sequence[Call]) -> Contributions:
    same = [axis + 1 for axis, size in enumerate(layer.alpha.shape) if size == 1]
    terms = [tf.cast(call.gradient, tf.float32) * tf.minimum(tf.cast(call.input, tf.float32), 0.0) for call in calls]
    per_example = tf.reduce_sum(tf.add_n(terms), same, keepdims=True) if same else tf.add_n(terms)
    return {id(layer.alpha): Materialised(per_example)}


for _type, _form in FORMS.items():
    # A faster form computes the same, so its rule is the same.
    if _type in contributions.registry:
        contributions.register(_form, contributions.registry[_type])


def _scale_and_offset(
    layer: keras.layers.Layer, calls: Sequence[Call], scale_gradients: Callable, axes: Sequence[int]
) -> Contributions:
    """Of gamma and beta along `axes`; `scale_gradients` takes (B, ...) inputs and gradients to gamma's (B, ...)."""
    others = [axis for axis in range(1, calls[0].input.shape.rank) if axis not in axes]
    uses = [(tf.cast(call.input, tf.float32), tf.cast(call.gradient, tf.float32)) for call in calls]
    found: Contributions = {}
    if layer.gamma is not None:
        found[id(layer.gamma)] = Materialised(tf.add_n([scale_gradients(x, g) for x, g in uses]))
    if layer.beta is not None:
        found[id(layer.beta)] = Materialised(tf.add_n([tf.reduce_sum(g, others) for _, g in uses]))
    return found


def _bias(layer: keras.layers.Layer, per_example: tf.Tensor) -> Contributions:
    return {} if layer.bias is None else {id(layer.bias): Materialised(per_example)}


def _num_sharing(calls: Sequence[Call]) -> int:
    """How many kernels have the inputs of these calls; joined inputs are nobody else's."""
    return calls[0].num_sharing if len(calls) == 1 else 1


def _summed_over_positions(calls: Sequence[Call]) -> tf.Tensor:
    """(B, P): what each example's bias gets."""
    return tf.add_n([tf.reduce_sum(tf.cast(by_position(call.gradient), tf.float32), 1) for call in calls])


def _as_images(tensor: tf.Tensor) -> tf.Tensor:
    """(B, W, C) signals as images of height 1."""
    return tensor[:, None] if tensor.shape.rank == 3 else tensor


def _window(layer: keras.layers.Layer) -> Window:
    def pair(values: Sequence[int]) -> tuple[int, int]:
        values = [values] if isinstance(values, int) else list(values)
        return (1, values[0]) if len(values) == 1 else (values[0], values[1])

    return Window(pair(layer.kernel_size), pair(layer.strides), pair(layer.dilation_rate), layer.padding)


def _value(variable: keras.Variable) -> tf.Tensor:
    return tf.cast(variable.value, tf.float32)
