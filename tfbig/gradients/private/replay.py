"""The per-example gradients of any layer, by calling it again on one example after the other.

For layers without a rule of their own (layers.py). Not by tf.vectorized_map, which draws one random number for
all examples and crashes on some networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from tfbig.gradients.private.capture import Call, Untappable
from tfbig.gradients.private.contributions import Contributions, Materialised, stored


def replayed(
    layer: keras.layers.Layer, calls: Sequence[Call], *, before_activation: bool = False
) -> Contributions:
    """What each trained variable of a layer contributes. Exact; slow where examples are many.

    Args:
        layer: A unit.
        calls: Its calls, with gradients.
        before_activation: The gradients are those before the layer's activation.

    Raises:
        Untappable: The layer draws random numbers, which a replay would draw anew.
    """
    for inner in (layer, *layer._flatten_layers(include_self=False)):
        if _draws(inner):
            raise Untappable(f"{layer.path} draws random numbers and has no rule of its own")
    variables = layer.trainable_variables
    total: list[tf.Tensor] | None = None
    for call in calls:
        with _without_activation(layer) if before_activation else contextlib.nullcontext():
            gradients = _replayed_call(layer, call, variables)
        total = gradients if total is None else [one + more for one, more in zip(total, gradients, strict=True)]
    return {id(v): Materialised(g) for v, g in zip(variables, total or [], strict=True)}


def _replayed_call(layer: keras.layers.Layer, call: Call, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    num_examples = call.gradient.shape[0]
    whole = (call.args, dict(call.kwargs))
    leaves = tf.nest.flatten(whole)
    is_sliced = [isinstance(leaf, tf.Tensor) and leaf.shape.rank and leaf.shape[0] == num_examples for leaf in leaves]

    def one(index: tf.Tensor) -> list[tf.Tensor]:
        parts = [
            tf.gather(leaf, index)[None] if sliced else leaf for leaf, sliced in zip(leaves, is_sliced, strict=True)
        ]
        args, kwargs = tf.nest.pack_sequence_as(whole, parts)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            values = stored(variables)
            tape.watch(values)
            output = layer(*args, **kwargs)
        gradient = tf.gather(call.gradient, index)[None]
        found = tape.gradient(output, values, output_gradients=gradient, unconnected_gradients="zero")
        return [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in found]

    signature = [tf.TensorSpec(variable.shape, tf.float32) for variable in variables]
    indices = tf.range(tf.shape(call.gradient)[0])
    return tf.map_fn(one, indices, fn_output_signature=signature)


def _draws(layer: keras.layers.Layer) -> bool:
    """Whether a layer draws random numbers; recurrent ones can do so, and say by their rates whether they do."""
    if getattr(layer, "seed_generator", None) is None:
        return False
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    return None in rates or any(rates)


@contextlib.contextmanager
def _without_activation(layer: keras.layers.Layer) -> Iterator[None]:
    activation = layer.activation
    object.__setattr__(layer, "activation", None)
    try:
        yield
    finally:
        object.__setattr__(layer, "activation", activation)
