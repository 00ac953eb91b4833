"""What private training refuses, before any data is read, and the choice of the engine.

A promise for each example needs a network and an objective that treat examples one by one. Types of layers
that do not are named; the rest is tried out on a few synthetic examples: other examples must not change one's
loss, and the fast engine must agree with the slow one. Beside clipping.py, used by rule.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.splits import Batch
from tfbig.errors import UsageError
from tfbig.gradients.private.capture import Taps, Untappable, find_units, units_without_examples
from tfbig.gradients.private.clipping import ByExample, Engine, Losses, OutputSpec, Tapped
from tfbig.gradients.private.layers import is_fused
from tfbig.networks.heads import InferenceModel
from tfbig.networks.hub import HubLayer

log = logging.getLogger(__name__)

_NUM_SYNTHETIC = 3
# What mixes examples at a fixed distance may show in one of them alone.
_PROBED_SIZES = (_NUM_SYNTHETIC, 7)
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


def checked_engine(losses: Losses, network: keras.Model, labels: np.ndarray) -> tuple[Engine, OutputSpec]:
    """Refuses what cannot be trained privately, and chooses the engine for the rest.

    Args:
        losses: An Objective's.
        network: As it will be trained.
        labels: The training labels, of which only the shape and type are used.

    Returns:
        As `choose_engine`.

    Raises:
        UsageError: The network or the losses cannot be trained privately; the message says what to change.
    """
    refuse_unsound(network)
    for num_examples in _PROBED_SIZES:
        refuse_mixing(losses, network, synthetic_batch(network, labels, num_examples=num_examples))
    refuse_added_losses(network)
    return choose_engine(losses, network, synthetic_batch(network, labels))


def refuse_unsound(network: keras.Model) -> None:
    """Raises UsageError for a network whose training cannot be private.

    Args:
        network: With its trainable variables as they will be trained.
    """
    if not network.trainable_variables:
        raise UsageError("Private training needs something to train, but all variables are frozen.")
    for layer, in_inference in _layers(network):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not in_inference:
            raise UsageError(
                f"{layer.path} is a BatchNormalization that trains, so each example changes all others' gradients; "
                "give --adapt.statistics frozen, --adapt.mode head, or --model.norm group for a network from scratch."
            )
        if layer.compute_dtype == "float16":
            raise UsageError(
                f"{layer.path} computes in float16, in which clipped gradients overflow; take bfloat16 or float32."
            )
        if getattr(layer, "activity_regularizer", None) is not None:
            raise UsageError(
                f"{layer.path or layer.name} has an activity regularizer, a loss of the whole batch that cannot be "
                "clipped for each example; leave it out."
            )


def refuse_added_losses(network: keras.Model) -> None:
    """Raises UsageError where a call of the network added a loss of its own; hub modules' are of the weights alone."""
    for layer, _ in _layers(network):
        if layer._losses and not isinstance(layer, HubLayer):
            raise UsageError(
                f"{layer.path} adds a loss by add_loss, which may depend on several examples; move it into the "
                "objective, as one loss an example."
            )


def refuse_mixing(losses: Losses, network: keras.Model, batch: Batch) -> None:
    """Raises UsageError where an example's loss depends on other examples.

    Args:
        losses: An Objective's.
        network: As it will be trained; what it draws and counts is put back.
        batch: Synthetic examples, at least 2. The first and then the last keeps its loss while all others change.
    """
    loss, after = _probed(losses, network, batch)
    if not np.isfinite(loss).all():
        raise UsageError(
            f"The network's loss on inputs between 0 and 1 is {loss[~np.isfinite(loss)][0]}, so it cannot be tried out "
            "whether it treats examples one by one; mend the layer that gives no finite value."
        )
    for kept in (0, len(loss) - 1):
        changed = batch._replace(
            x=tf.nest.map_structure(lambda t, kept=kept: _all_but(kept, t), batch.x), y=_all_but(kept, batch.y)
        )
        other_loss, other_after = _probed(losses, network, changed)
        for variable, first, second in zip(network.non_trainable_variables, after, other_after, strict=True):
            if not np.array_equal(first, second):
                raise UsageError(
                    f"{variable.path} follows the examples and is not trained, so it would be saved without noise; "
                    "freeze the layer that keeps it, or leave it out."
                )
        if not np.allclose(loss[kept], other_loss[kept], rtol=1e-4, atol=1e-6):
            raise UsageError(
                "An example's loss depends on the other examples of its batch, so no example's influence can be "
                "bounded; replace the layer or the objective that mixes them, such as batch statistics or a "
                "contrastive loss."
            )


def _probed(losses: Losses, network: keras.Model, batch: Batch) -> tuple[np.ndarray, list[np.ndarray]]:
    """(losses (B,), untrained variables afterwards) of a call that leaves those variables as they were."""
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.non_trainable_variables]
    per_example, _ = losses(network, batch, training=True)
    after = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.non_trainable_variables]
    for variable, value in zip(network.non_trainable_variables, before, strict=True):
        variable.assign(value)
    if per_example.shape != batch.weight.shape:
        raise UsageError(
            f"The objective must give one loss an example, {tuple(batch.weight.shape)}, but gives "
            f"{tuple(per_example.shape)}; private training clips each example's gradient."
        )
    return np.asarray(per_example, np.float64), after


def _all_but(kept: int, tensor: tf.Tensor) -> tf.Tensor:
    """Other examples in all places but one."""
    others = tf.roll(_altered(tensor), 1, axis=0)
    return tf.tensor_scatter_nd_update(others, [[kept]], tensor[kept : kept + 1])


def choose_engine(losses: Losses, network: keras.Model, batch: Batch) -> tuple[Engine, OutputSpec]:
    """The fast engine where it agrees with the slow one on synthetic examples, otherwise the slow one.

    Args:
        losses: An Objective's.
        network: As it will be trained.
        batch: Synthetic examples.

    Returns:
        The engine, and the spec of the losses' outputs for one example.
    """
    per_example, outputs = losses(network, batch, training=False)
    output_spec = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), outputs)
    by_example = ByExample(output_spec)
    hub_module = next((layer for layer, _ in _layers(network) if isinstance(layer, HubLayer)), None)
    try:
        if hub_module is not None and hub_module.trainable_variables:
            raise Untappable(f"{hub_module.path or hub_module.name} is a hub module, whose layers cannot be seen")
        tapped = Tapped(_taps(losses, network, batch))
        _compare(tapped, by_example, losses, network, batch)
    except Untappable as reason:
        log.warning("%s: each example's gradient is computed by itself, which is exact and slow", reason)
        return by_example, output_spec
    return tapped, output_spec


def synthetic_batch(network: keras.Model, labels: np.ndarray, *, num_examples: int = _NUM_SYNTHETIC) -> Batch:
    """A few examples made of noise, as the network takes them.

    Args:
        network: With its inputs.
        labels: The training labels, of which only the shape and type are used.
        num_examples: How many.
    """
    rng = np.random.default_rng(0)

    def draw(spec: keras.KerasTensor) -> tf.Tensor:
        shape = [num_examples, *(size or 8 for size in spec.shape[1:])]
        if np.issubdtype(np.dtype(tf.as_dtype(spec.dtype).as_numpy_dtype), np.floating):
            return tf.cast(rng.uniform(0, 1, shape), spec.dtype)
        return tf.cast(rng.integers(0, 2, shape), spec.dtype)

    drawn = {spec.name: draw(spec) for spec in network.inputs}
    x = next(iter(drawn.values())) if len(drawn) == 1 else drawn
    y = tf.zeros([num_examples, *labels.shape[1:]], labels.dtype)
    return Batch(x, y, tf.ones(num_examples))


def _taps(losses: Losses, network: keras.Model, batch: Batch) -> Taps:
    units = find_units(network)
    shared = units_without_examples(units, lambda: losses(network, batch, training=False), _NUM_SYNTHETIC)
    return Taps(units, frozenset(id(unit) for unit in units if is_fused(unit)), shared)


def _compare(fast: Engine, slow: Engine, losses: Losses, network: keras.Model, batch: Batch) -> None:
    """Raises Untappable where two engines differ, in what they sum or in the norms."""
    # So small that all gradients are clipped, and the sums depend on every norm.
    clip_norm = tf.constant(1e-6)
    expected, came = (engine(losses, network, batch, clip_norm, training=False) for engine in (slow, fast))
    tolerance = max(_TOLERANCE.get(layer.compute_dtype, 0.0) for layer, _ in _layers(network))
    off = float(tf.linalg.global_norm([a - b for a, b in zip(expected.sums, came.sums, strict=True)]))
    same_norms = np.allclose(expected.norms, came.norms, rtol=tolerance, atol=1e-6)
    if not same_norms or off > tolerance * float(tf.linalg.global_norm(expected.sums)):
        raise Untappable("the gradients at the network's layers do not add up to those of its weights")


def _layers(layer: keras.layers.Layer, *, in_inference: bool = False) -> Iterator[tuple[keras.layers.Layer, bool]]:
    """Every layer at any depth, and whether it always runs as in inference."""
    in_inference = in_inference or isinstance(layer, InferenceModel)
    yield layer, in_inference
    for inner in layer._layers:
        yield from _layers(inner, in_inference=in_inference)


def _altered(tensor: tf.Tensor) -> tf.Tensor:
    return 1 - tensor if tensor.dtype.is_floating or tensor.dtype.is_integer else tensor
