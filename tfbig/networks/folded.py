"""A network in inference with each batch normalisation folded into the convolution before it.

Where its averages are fixed, a BatchNorm is one factor and one offset a channel: the kernel takes the factor, the bias
the offset, and a ReLU behind them joins the same operation, so that a picture's activations are written once in place
of three times. The kernels are multiplied in the graph, at each call, which costs nothing beside a batch: there is no
copy to keep or to free, and no weight changes. training/features.py computes the features of a frozen trunk so.
Letters in shapes: B images, H and W pixels, C inputs, F filters, K by K the kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras
import tensorflow as tf
from keras import layers
from keras.src.models.functional import Functional

from tfbig.networks.fused import keras_type
from tfbig.networks.fused_convolution import convolved
from tfbig.networks.heads import InferenceModel


@dataclass(frozen=True)
class Fold:
    """A convolution, the BatchNorm behind it, and the ReLU behind that, if there is one."""

    convolution: layers.Conv2D
    norm: layers.BatchNormalization
    relu: keras.layers.Layer | None

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """(B, H, W, C) to (B, H / stride, W / stride, F)."""
        x = tf.cast(inputs, self.convolution.compute_dtype)
        factor, offset = self._affine()
        kernel = _single(self.convolution.kernel) * factor  # (K, K, C, F)
        result = convolved(self.convolution, x, tf.cast(kernel, x.dtype), tf.cast(offset, x.dtype))
        return result if self.relu is None else tf.nn.relu(result)

    def _affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Factor and offset of each filter, (F,) float32."""
        norm = self.norm
        factor = tf.math.rsqrt(_single(norm.moving_variance) + norm.epsilon)
        if norm.gamma is not None:
            factor *= _single(norm.gamma)
        offset = -_single(norm.moving_mean) * factor
        if self.convolution.bias is not None:
            offset += _single(self.convolution.bias) * factor
        return factor, offset if norm.beta is None else offset + _single(norm.beta)


def _single(variable: keras.Variable) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), tf.float32)


def folded(network: keras.Model, inputs: tf.Tensor) -> tf.Tensor:
    """What the network gives in inference.

    Guarantees: in float32 the outputs of `network(inputs, training=False)` to 1e-4 of the largest; no weight changes.

    Args:
        network: Functional, and the models in it; any other is called as it is.
        inputs: (B, ...), as the network takes them.

    Returns:
        Its outputs.
    """
    if not _is_functional(network):
        return network(inputs, training=False)
    folds = folds_of(network)
    # Keras has no public way to go through a model's graph but to build another model, whose nodes the layers keep.
    inputs = network._standardize_inputs(inputs)
    return network._run_through_graph(inputs, operation_fn=lambda layer: _operation(layer, folds))


def folds_of(network: keras.Model) -> list[Fold]:
    """What can be folded in a functional model's own graph, not in the models inside it."""
    readers = _readers(network)
    found = []
    for layer in network.operations:
        norm = _only_reader(layer, readers)
        if norm is None or not _can_fold(layer, norm):
            continue
        relu = _only_reader(norm, readers)
        is_relu = relu is not None and _is_relu(relu) and relu.compute_dtype == norm.compute_dtype
        found.append(Fold(layer, norm, relu if is_relu else None))
    return found


def _operation(layer: keras.Operation, folds: list[Fold]) -> Callable[..., tf.Tensor]:
    for fold in folds:
        if layer is fold.convolution:
            return lambda x, **options: fold(x)
        if layer is fold.norm or layer is fold.relu:
            return lambda x, **options: x
    if isinstance(layer, keras.Model):
        return lambda *args, **options: folded(layer, args[0] if len(args) == 1 else args)
    if getattr(layer, "_call_has_training_arg", False):
        return lambda *args, **options: layer(*args, **{**options, "training": False})
    return layer


def _is_functional(network: keras.Model) -> bool:
    """Whether a model is its graph, and not what a call of its own makes of it."""
    return type(network).call in (Functional.call, InferenceModel.call)


def _readers(network: keras.Model) -> Mapping[int, list[keras.Operation]]:
    """By id of a tensor of the graph: who reads it; None stands for the caller, who gets the outputs."""
    readers: dict[int, list] = {}
    for node in itertools.chain.from_iterable(network._nodes_by_depth.values()):
        for tensor in node.input_tensors:
            readers.setdefault(id(tensor), []).append(node.operation)
    for tensor in network.outputs:
        readers.setdefault(id(tensor), []).append(None)
    return readers


def _only_reader(layer: keras.Operation, readers: Mapping[int, list]) -> keras.Operation | None:
    """The only one that reads a layer's output; None where there are more, or the layer is called twice."""
    if len(layer._inbound_nodes) != 1:
        return None
    outputs = layer._inbound_nodes[0].output_tensors
    found = readers.get(id(outputs[0]), []) if len(outputs) == 1 else []
    is_once = len(found) == 1 and found[0] is not None and len(found[0]._inbound_nodes) == 1
    return found[0] if is_once else None


def _can_fold(layer: keras.Operation, norm: keras.Operation) -> bool:
    # Subclasses may compute something else.
    if keras_type(layer) is not layers.Conv2D or keras_type(norm) is not layers.BatchNormalization:
        return False
    is_usual = layer.data_format == "channels_last" and layer.activation in (None, keras.activations.linear)
    return is_usual and norm.axis in (-1, 3) and layer.compute_dtype == norm.compute_dtype


def _is_relu(layer: keras.Operation) -> bool:
    if keras_type(layer) is layers.Activation:
        return layer.activation is keras.activations.relu
    is_plain = keras_type(layer) is layers.ReLU and layer.max_value is None
    return is_plain and not layer.negative_slope and not layer.threshold
