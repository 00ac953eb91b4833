"""What several workers need beyond one: each host's own part of a batch, Keras's steps, and arrays from the chief.

Keras 3's fit breaks under MultiWorkerMirroredStrategy in two places: it builds the model from a batch that it reduces
over the replicas, and it averages scalar logs along a batch axis. `Learner` is built already and needs no such batch,
and its steps are made here, as Keras's own documentation lets `make_train_function` be replaced. That is less than a
training loop of our own, which would have to do again what Keras's fit does for the callbacks, validation and epochs.
Nothing of Keras is patched, but three private names are relied on: `Learner` overrides `_maybe_symbolic_build`, `fed`
sets a dataset's `_cardinality`, and `FedLater` is a `DataAdapter`; the test that trains on two processes sees whether a
version still has them. Used by learner.py, fit.py and state.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from tfbig.data.batches import Augment, Share, batches
from tfbig.data.sampling import Plan
from tfbig.data.splits import Split
from tfbig.training.device import on_device

_CHUNK = 2**24


def is_over_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy is of several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def fed(
    strategy: tf.distribute.Strategy,
    split: Split,
    plan: Plan,
    *,
    position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    augment: Augment | None = None,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """What Keras's fit is to be given: whole batches, or a slice of each for every replica of this host.

    Args:
        strategy: Where the step runs.
        split: See `batches`.
        plan: See `batches`; the same on all workers, so nobody has to tell another what it feeds.
        position: See `batches`.
        augment: See `batches`.
    """
    if strategy.num_replicas_in_sync == 1:
        fed_here = batches(split, plan, position=position, augment=augment)
        # Where steps differ in length a batch is a step's whole one, of which a few fill a GPU's memory.
        return fed_here if plan.batch_length is None else on_device(fed_here, strategy)

    def of_this_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        num_local = context.num_replicas_in_sync // context.num_input_pipelines
        share = Share(context.input_pipeline_id * num_local, num_local, context.num_replicas_in_sync)
        return batches(split, plan, position=position, augment=augment, share=share)

    # Not left to Keras, whose division of a batch loses its shape, and with it strings and the speed of whole batches.
    distributed = strategy.distribute_datasets_from_function(of_this_host)
    # Keras counts steps by it; TensorFlow counted the elements of a host, one for each of its replicas.
    distributed._cardinality = np.int64(plan.steps_per_epoch - position()[1])
    return distributed


class FedLater(DataAdapter):
    """What `fed` gives, made when Keras's fit first asks for it: validation data no sooner than a validation.

    Args:
        make: Calls `fed`.
        num_batches: How many steps it has.
    """

    def __init__(
        self, make: Callable[[], tf.data.Dataset | tf.distribute.DistributedDataset], num_batches: int
    ) -> None:
        self._make, self._num_batches = make, num_batches

    def get_tf_dataset(self) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """The batches; Keras asks once a fit."""
        return self._make()

    @property
    def num_batches(self) -> int:
        """Steps of a validation."""
        return self._num_batches


def step_function(
    strategy: tf.distribute.Strategy, step: Callable[[tuple], dict[str, tf.Tensor]], *, jit_compile: bool
) -> Callable[[Iterator], dict[str, tf.Tensor]]:
    """A step over several replicas, as Keras's fit and evaluate call it: with the iterator over the batches.

    Args:
        strategy: Over several replicas.
        step: One replica's, such as train_step.
        jit_compile: Compile it with XLA.
    """

    @tf.autograph.experimental.do_not_convert
    def on_batch(batch: tuple) -> dict[str, tf.Tensor]:
        logs = strategy.run(step, args=(batch,))
        # A replica's own; fit takes the epoch's figures from the metrics, which sum over all.
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], logs)

    # The batch outside of what XLA compiles, which knows no iterators.
    compiled = tf.function(on_batch, reduce_retracing=True, jit_compile=jit_compile)

    @tf.function(reduce_retracing=True, autograph=False)
    def on_iterator(iterator: Iterator) -> dict[str, tf.Tensor]:
        return compiled(next(iterator))

    return on_iterator


def of_this_process(strategy: tf.distribute.Strategy, variable: keras.Variable) -> np.ndarray:
    """A variable's value on this process's first replica, of which the others are no part."""
    return np.asarray(strategy.experimental_local_results(variable.value)[0])


def from_chief(strategy: tf.distribute.Strategy, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The chief's arrays, on all workers.

    Guarantees: to the bit, by summing them, as whole numbers, with zeros of the others.

    Args:
        strategy: Over several workers.
        arrays: The chief's; on the others, any of the same shapes and types.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False)
    def total(values: tf.Tensor) -> tf.Tensor:
        def replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), tf.int32)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, values * is_first)

        return strategy.experimental_local_results(strategy.run(replica, args=(values,)))[0]

    received = []
    for array in arrays:
        content = np.ascontiguousarray(array).tobytes()
        words = np.frombuffer(content + b"\0" * (-len(content) % 4), np.int32)
        chunks = [total(words[i : i + _CHUNK]).numpy() for i in range(0, len(words), _CHUNK)]
        whole = np.concatenate(chunks).tobytes()[: len(content)] if chunks else b""
        received.append(np.frombuffer(whole, array.dtype).reshape(np.shape(array)))
    return received
