"""What flows through each trained layer while a loss is traced: its inputs, and the gradient of its outputs.

While a network is traced, `Taps.on` puts a tap on each unit, the smallest layer that owns trained variables,
and takes it off again. One gradient tape then gives the loss's gradient at every tap, and computes no weight
gradient at all. A layer with a fused activation is tapped before it. Beneath clipping.py; layers.py turns
what was captured into contributions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf


class Untappable(Exception):
    """A network whose per-example gradients cannot be had from its taps; the message says why."""


@dataclass
class Call:
    """One call of a unit.

    Args:
        args: Positional arguments of the call; the first is the input.
        kwargs: Its keyword arguments.
        output: Where the tap is, set by the tap.
        gradient: Of the summed losses there, set once it is known; examples lie along the first axis.
        num_sharing: How many calls, this one among them, have this very input, as queries, keys and values do; set
            with the gradient.
    """

    args: tuple
    kwargs: Mapping[str, object]
    output: tf.Tensor = None
    gradient: tf.Tensor = None
    num_sharing: int = 1

    @property
    def input(self) -> tf.Tensor:
        """The first argument, which some layers are given by its name."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


Calls = dict[int, list[Call]]
"""id of a unit -> its calls, in their order."""


def find_units(network: keras.Model) -> list[keras.layers.Layer]:
    """The smallest layers that together own all trained variables.

    A layer that owns variables beside those of its own layers is one unit, and so is a recurrent layer, whose
    cell is called within a loop.

    Raises:
        Untappable: A trained variable belongs to no layer, or to several.
    """
    units: list[keras.layers.Layer] = []
    _collect(network, network, units)
    owners: dict[int, keras.layers.Layer] = {}
    for unit in units:
        for variable in unit.trainable_variables:
            if id(variable) in owners:
                raise Untappable(f"{variable.path} is shared by {owners[id(variable)].name} and {unit.name}")
            owners[id(variable)] = unit
    for variable in network.trainable_variables:
        if id(variable) not in owners:
            raise Untappable(f"{variable.path} belongs to no layer of the network")
    return units


def _collect(layer: keras.layers.Layer, network: keras.Model, units: list[keras.layers.Layer]) -> None:
    if not layer.trainable_variables or any(layer is unit for unit in units):
        return
    # Keras has no public name for a layer's own variables and layers.
    owns = any(variable.trainable for variable in layer._trainable_variables)
    if layer is not network and (owns or isinstance(layer, keras.layers.RNN) or not layer._layers):
        units.append(layer)
        return
    for inner in layer._layers:
        _collect(inner, network, units)


@dataclass(frozen=True)
class Taps:
    """Where a network is tapped.

    Args:
        units: From `find_units`.
        fused: ids of the units that apply their `activation` last, so that the tap goes before it.
        shared: ids of the units whose outputs have no example axis, such as an embedding of positions that is the
            same for all examples; each example gets a copy, and so a gradient of its own.
    """

    units: Sequence[keras.layers.Layer]
    fused: frozenset[int] = frozenset()
    shared: frozenset[int] = frozenset()

    @contextlib.contextmanager
    def on(self, tape: tf.GradientTape, num_examples: int) -> Iterator[Calls]:
        """Records each call of the units inside the block, and watches their outputs.

        Args:
            tape: Made with watch_accessed_variables=False.
            num_examples: B of what the network is called with.

        Yields:
            The calls, without gradients.

        Raises:
            Untappable: The outputs of a unit cannot be told apart by example.
        """
        calls: Calls = {}
        # Raised behind the block: an exception within a layer's call is wrapped by Keras.
        reasons: list[str] = []
        with contextlib.ExitStack() as stack:
            for unit in self.units:
                watch = self._watch_of(unit, tape, calls, num_examples, reasons)
                stack.enter_context(_tap(unit, calls, watch, before_activation=id(unit) in self.fused))
            yield calls
        if reasons:
            raise Untappable(reasons[0])

    def _watch_of(
        self, unit: keras.layers.Layer, tape: tf.GradientTape, calls: Calls, num_examples: int, reasons: list[str]
    ) -> Watch:
        def watch(output: tf.Tensor) -> tf.Tensor:
            call = calls[id(unit)][-1]
            if not isinstance(output, tf.Tensor):
                reasons.append(f"{unit.path} gives several tensors")
                return output
            if id(unit) in self.shared:
                output = _copied(output, num_examples)
                call.args = (_copied(call.input, num_examples), *call.args[1:])
            elif output.shape.rank == 0 or output.shape[0] not in (num_examples, None):
                reasons.append(f"{unit.path} does not keep the examples along its first axis")
            tape.watch(output)
            call.output = output
            return output

        return watch


Watch = Callable[[tf.Tensor], tf.Tensor]


def units_without_examples(
    units: Sequence[keras.layers.Layer], forward: Callable[[], object], num_examples: int
) -> frozenset[int]:
    """Ids of the units whose outputs have no example axis.

    Args:
        units: From `find_units`.
        forward: Calls the network on `num_examples` examples, a number that no other axis is likely to have.
        num_examples: B.
    """
    found: set[int] = set()
    calls: Calls = {}

    def watch_of(unit: keras.layers.Layer) -> Watch:
        def watch(output: tf.Tensor) -> tf.Tensor:
            leading = output.shape[0] if isinstance(output, tf.Tensor) and output.shape.rank else None
            if isinstance(unit, keras.layers.Embedding) and leading != num_examples:
                found.add(id(unit))
            return output

        return watch

    with contextlib.ExitStack() as stack:
        for unit in units:
            stack.enter_context(_tap(unit, calls, watch_of(unit), before_activation=False))
        forward()
    return frozenset(found)


@contextlib.contextmanager
def _tap(unit: keras.layers.Layer, calls: Calls, watch: Watch, *, before_activation: bool) -> Iterator[None]:
    call, activation = unit.call, unit.activation if before_activation else None
    before_activation = activation is not None

    def recorded_call(*args: object, **kwargs: object) -> tf.Tensor:
        calls.setdefault(id(unit), []).append(Call(args, kwargs))
        return call(*args, **kwargs) if before_activation else watch(call(*args, **kwargs))

    # Past Keras's own bookkeeping of attributes.
    object.__setattr__(unit, "call", recorded_call)
    if before_activation:
        object.__setattr__(unit, "activation", lambda z: activation(watch(z)))  # type: ignore[misc]
    try:
        yield
    finally:
        object.__delattr__(unit, "call")
        if before_activation:
            object.__setattr__(unit, "activation", activation)


def _copied(tensor: tf.Tensor, num_examples: int) -> tf.Tensor:
    """(1, ...) or (...) as (B, ...)."""
    tensor = tf.convert_to_tensor(tensor)
    whole = tensor if tensor.shape.rank and tensor.shape[0] == 1 else tensor[None]
    return tf.repeat(whole, num_examples, axis=0)
