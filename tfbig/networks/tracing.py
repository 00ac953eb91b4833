"""Graphs of fewer operations: constants that are made once, and gradients without what nobody uses.

Each operation of a training step costs about half a millisecond before the first step, to trace and to prepare it.
Used by the layers of networks/fused.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import ops

_KEPT = "tfbig_kept"
_NOTES = "tfbig_notes"


def constant(value: float | Sequence[float], dtype: tf.DType = tf.float32) -> tf.Tensor:
    """A constant, the same tensor wherever a graph asks for the same one.

    Args:
        value: A number, or numbers.
        dtype: Its type.
    """
    key = tuple(value) if isinstance(value, Sequence) else value
    return once(("constant", key, dtype), lambda: tf.constant(value, dtype))


def once(key: tuple, make: Callable[[], tf.Tensor]) -> tf.Tensor:
    """What `make` gives, made once a graph; without a graph anew each time.

    Args:
        key: Tells it apart from all else that is kept so.
        make: Depends on nothing but the key.
    """
    if tf.executing_eagerly():
        return make()
    kept = _of_graph(ops.get_default_graph(), _KEPT)
    if key not in kept:
        # To be had before whatever the caller waits for.
        with tf.control_dependencies(None):
            kept[key] = make()
    return kept[key]


def note(tensor: tf.Tensor, fact: object) -> None:
    """Notes something of a tensor for who sees it later in the same graph; without a graph nothing."""
    if not tf.executing_eagerly():
        _of_graph(tensor.graph, _NOTES)[tensor.ref()] = fact


def noted(tensor: tf.Tensor) -> object | None:
    """What was noted of a tensor; None for nothing, or in another graph."""
    if tf.executing_eagerly() or not isinstance(tensor, tf.Tensor) or tensor.graph is not ops.get_default_graph():
        return None
    return _of_graph(tensor.graph, _NOTES).get(tensor.ref())


def _of_graph(graph: tf.Graph, name: str) -> dict:
    """A dictionary of this very graph, which lives as long as it."""
    # Not a collection, which a graph within this one would take over: its tensors are not to be had outside.
    if not hasattr(graph, name):
        setattr(graph, name, {})
    return getattr(graph, name)


def with_gradient(
    compute: Callable[..., tf.Tensor],
    inputs: Sequence[tf.Tensor],
    gradient: Callable[[tf.Tensor], Sequence[tf.Tensor]],
) -> tf.Tensor:
    """`compute` of the inputs, with a gradient of its own for every `tf.GradientTape`.

    `tf.custom_gradient` does the same, and in a graph adds an identity for each input and one for all results. Where
    no tape records, as in the gradient of a finished graph, the gradients are those of the operations of `compute`.

    Args:
        compute: Gives one tensor.
        inputs: Its arguments, all with a gradient.
        gradient: From that of the result to those of the inputs.
    """
    with record.stop_recording():
        result = compute(*inputs)
    record.record_operation("TfbigWithGradient", [result], list(inputs), gradient)
    return result
