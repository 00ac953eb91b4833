"""The sum of clipped per-example gradients, by two engines that agree.

`Tapped` sees one forward and one backward pass over the batch (Bu et al. 2023, arXiv 2210.00038); `ByExample`
computes one gradient after the other, which any network allows, and is what `Tapped` is checked against.
Clipping is by the norm over all trained variables together (Abadi et al. 2016, arXiv 1607.00133). Between
layers.py and rule.py. Letters in shapes: B examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import keras
import tensorflow as tf

from tfbig.data.splits import Batch
from tfbig.gradients.private.capture import Taps
from tfbig.gradients.private.contributions import Contributions, stored
from tfbig.gradients.private.layers import contributions_of

Losses: TypeAlias = Callable[..., tuple[tf.Tensor, tf.Tensor]]
"""(network, batch, *, training) -> ((B,) losses, outputs), as an Objective's."""


OutputSpec: TypeAlias = tf.TensorSpec | dict[str, tf.TensorSpec]
"""What the losses give as outputs for one example, without the example axis."""


class Clipped(NamedTuple):
    """A sum of clipped gradients, one tensor a trained variable, and what it was made of.

    `norms` (B,) are those before clipping, over all trained variables.
    """

    sums: list[tf.Tensor]
    norms: tf.Tensor
    losses: tf.Tensor
    outputs: tf.Tensor


class Engine(Protocol):
    """Computes a clipped sum.

    Guarantees: example i adds a vector of norm at most `clip_norm` times its weight, whatever the others are;
    an example of weight 0 adds nothing. An exception: where an example's gradient is not finite, the sum of
    `Tapped` is not either, and the run stops as diverged.
    """

    name: str

    def __call__(
        self, losses: Losses, network: keras.Model, batch: Batch, clip_norm: tf.Tensor, *, training: bool
    ) -> Clipped:
        """The clipped sum over a batch of a static number of examples, whose weights are 0 or one same number."""


class Tapped:
    """One forward and one backward pass for the whole batch.

    Args:
        taps: Of the network.
    """

    name = "tapped"

    def __init__(self, taps: Taps) -> None:
        self._taps = taps

    def __call__(
        self, losses: Losses, network: keras.Model, batch: Batch, clip_norm: tf.Tensor, *, training: bool
    ) -> Clipped:
        """The clipped sum over a batch.

        Raises:
            Untappable: The network's per-example gradients cannot be had this way.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            with self._taps.on(tape, batch.weight.shape[0]) as calls:
                per_example, outputs = losses(network, batch, training=training)
            total = tf.reduce_sum(per_example)
        captured = [call for unit in calls.values() for call in unit]
        gradients = tape.gradient(total, [call.output for call in captured], unconnected_gradients="zero")
        with_input = Counter(id(call.input) for call in captured)
        for call, gradient in zip(captured, gradients, strict=True):
            call.gradient, call.num_sharing = gradient, with_input[id(call.input)]
        found: Contributions = {}
        for unit in self._taps.units:
            if id(unit) in calls:
                found |= contributions_of(unit, calls[id(unit)])
        norms = tf.sqrt(tf.add_n([contribution.squared_norms() for contribution in found.values()]))
        weights = batch.weight * clipping_factors(norms, clip_norm)
        sums = [
            found[id(variable)].weighted_sum(weights) if id(variable) in found else tf.zeros(variable.shape)
            for variable in network.trainable_variables
        ]
        return Clipped(sums, norms, per_example, outputs)


class ByExample:
    """One forward and one backward pass for each example; exact for any network, and slow.

    Args:
        output_spec: Of the losses' outputs.
    """

    name = "by_example"

    def __init__(self, output_spec: OutputSpec) -> None:
        self._output_spec = output_spec

    def __call__(
        self, losses: Losses, network: keras.Model, batch: Batch, clip_norm: tf.Tensor, *, training: bool
    ) -> Clipped:
        """The clipped sum over a batch."""
        variables = network.trainable_variables

        def one(index: tf.Tensor) -> Clipped:
            single = tf.nest.map_structure(lambda t: tf.gather(t, index)[None], batch)
            values = stored(variables)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                per_example, outputs = losses(network, single, training=training)
                loss = tf.reduce_sum(per_example)
            gradients = tape.gradient(loss, values, unconnected_gradients="zero")
            gradients = [tf.cast(tf.convert_to_tensor(gradient), tf.float32) for gradient in gradients]
            norm = tf.linalg.global_norm(gradients)
            # An example whose gradient is not finite cannot be scaled down to the bound, and adds nothing.
            factor = tf.where(tf.math.is_finite(norm), clipping_factors(norm, clip_norm) * single.weight[0], 0.0)
            sums = [tf.math.multiply_no_nan(gradient, factor) for gradient in gradients]
            return Clipped(sums, norm[None], per_example, outputs)

        return _accumulated(one, network, tf.shape(batch.weight)[0], self._output_spec, size=1)


def clipping_factors(norms: tf.Tensor, clip_norm: tf.Tensor) -> tf.Tensor:
    """What scales gradients of these norms down to at most `clip_norm`: 1 where they are within it."""
    return clip_norm / tf.maximum(norms, clip_norm)


def in_microbatches(
    engine: Engine,
    losses: Losses,
    network: keras.Model,
    batch: Batch,
    clip_norm: tf.Tensor,
    *,
    size: int,
    output_spec: OutputSpec,
) -> Clipped:
    """A clipped sum in parts of `size` examples, so that memory does not grow with the batch.

    Args:
        engine: Sees one part after the other.
        losses: An Objective's.
        network: Trained in its trainable variables.
        batch: A multiple of `size` examples, their number not necessarily static.
        clip_norm: Scalar above 0.
        size: Examples a part, at least 1.
        output_spec: As for `ByExample`.
    """
    if batch.weight.shape[0] == size:
        return engine(losses, network, batch, clip_norm, training=True)
    num_parts = tf.shape(batch.weight)[0] // size
    parts = tf.nest.map_structure(lambda t: tf.reshape(t, [num_parts, size, *t.shape[1:]]), batch)

    def part(index: tf.Tensor) -> Clipped:
        piece = tf.nest.map_structure(lambda t: tf.gather(t, index), parts)
        return engine(losses, network, piece, clip_norm, training=True)

    clipped = _accumulated(part, network, num_parts, output_spec, size=size)
    known = batch.weight.shape  # where the loop has forgotten it

    def restored(tensor: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tensor, [*known, *tensor.shape[1:]])

    norms, per_example, outputs = tf.nest.map_structure(restored, tuple(clipped)[1:])
    return Clipped(clipped.sums, norms, per_example, outputs)


def _accumulated(
    part: Callable[[tf.Tensor], Clipped],
    network: keras.Model,
    num_parts: tf.Tensor,
    output_spec: OutputSpec,
    *,
    size: int,
) -> Clipped:
    """Adds up the sums of all parts and joins their examples, in a loop whose memory is that of one part."""
    scalar = tf.TensorSpec([], tf.float32)

    def array(spec: tf.TensorSpec) -> tf.TensorArray:
        return tf.TensorArray(spec.dtype, size=num_parts, element_shape=[size, *spec.shape])

    def body(index: tf.Tensor, sums: list[tf.Tensor], arrays: tuple) -> tuple:
        clipped = part(index)
        sums = [total + more for total, more in zip(sums, clipped.sums, strict=True)]
        rest = (clipped.norms, clipped.losses, clipped.outputs)
        return index + 1, sums, tf.nest.map_structure(lambda a, t: a.write(index, t), arrays, rest)

    sums = [tf.zeros(variable.shape) for variable in network.trainable_variables]
    specs = (scalar, scalar, output_spec)
    arrays = tf.nest.map_structure(array, specs)
    _, sums, arrays = tf.while_loop(
        lambda index, *_: index < num_parts, body, (tf.constant(0), sums, arrays), parallel_iterations=1
    )
    rest = tf.nest.map_structure(lambda a, spec: tf.reshape(a.stack(), [-1, *spec.shape]), arrays, specs)
    return Clipped(sums, *rest)
