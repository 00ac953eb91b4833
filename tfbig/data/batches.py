"""Batches of a split as an index plan names them, with augmentation, for one host or several.

What a step trains on is the plan's choice (`index_plan.py`, `sampling.py`); tf.data only fetches, decodes and batches.
Between the splits and plans below and the training loop above. Letters in shapes: N examples, B a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tfbig.data import parts
from tfbig.data.python_calls import python_call
from tfbig.data.sampling import Plan
from tfbig.data.splits import Batch, Features, Split
from tfbig.errors import UsageError
from tfbig.threads import num_threads

Augment: TypeAlias = Callable[[Batch, tf.Tensor], Batch]


@dataclass(frozen=True)
class Parts:
    """An augmentation that begins before there is a batch: each example is fetched as a random part of it.

    Guarantees: the part is a function of the key alone: `batches` makes it of the step's seed and the example's index.

    Args:
        change: What happens to the batch after that.
        flips: Whether half of the parts are mirrored.
    """

    change: Augment
    flips: bool = False

    def __call__(self, batch: Batch, seed: tf.Tensor) -> Batch:
        """The batch of parts, changed further."""
        return self.change(batch, seed)

    def drawn(self, keys: np.ndarray) -> np.ndarray:
        """(n, 5) float32: a part for each of (n, 2) integer keys, see `parts.parts`."""
        return parts.parts(parts.draws(keys), flips=self.flips)

    def fetch(self, split: Split, indices: tf.Tensor, parts: tf.Tensor) -> Features:
        """A part of each of B examples.

        Args:
            split: Has them.
            indices: (B,) int64.
            parts: (B, 5) float32 of `drawn`.

        Raises:
            UsageError: It has none.
        """
        return _fetch_parts(split)(indices, parts)


def _fetch_parts(split: Split) -> Callable[[tf.Tensor, tf.Tensor], Features]:
    """How the split fetches parts of examples; a UsageError where they have none."""
    if split.fetch_parts is None:
        raise UsageError("Expected examples that have parts, such as images; leave resized_crop out for others.")
    return split.fetch_parts


class Share(NamedTuple):
    """What one host feeds of each batch: the equal, contiguous slices of its own replicas, among those of all.

    Args:
        first: The host's first replica.
        num_local: Its replicas, at least 1.
        num_replicas: All replicas; divides every batch.
    """

    first: int
    num_local: int
    num_replicas: int

    def bounds(self, length: int) -> tuple[int, int]:
        """Begin and end of the host's part of a batch of `length`."""
        size = length // self.num_replicas
        return self.first * size, (self.first + self.num_local) * size


# Conversion of Python's `if` and `for` on tensors takes half a second, and nothing here needs it.
@tf.autograph.experimental.do_not_convert
def batches(
    split: Split,
    plan: Plan,
    *,
    position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    augment: Augment | None = None,
    share: Share | None = None,
) -> tf.data.Dataset:
    """One epoch of batches (x, y, weight), exactly as the plan names them.

    Args:
        split: Where the examples come from.
        plan: Which examples each step holds.
        position: Asked each time the dataset is iterated: the epoch, and the step in it to begin with.
        augment: Changes a batch, drawing only from the (2,) int32 seed of its step.
        share: What this host is to feed; each element is then one replica's slice of a batch, a host's one after the
            other. Only those examples are fetched; with `augment` the whole batch is, since what is drawn for an
            example depends on its place in the batch, and mixtures on its neighbours.

    Returns:
        A dataset of `plan.steps_per_epoch` batches of exactly `plan.batch_length` examples, less the steps
        that `position` leaves out now; each later iteration has to leave out as many. Where `batch_length`
        is None, each batch is a step's whole one, with as many examples as the plan names for it.

    Raises:
        UsageError: `augment` takes parts of examples that have none.
    """
    if isinstance(augment, Parts):
        # Said before any is read.
        _fetch_parts(split)

    def planned(epoch: np.int64, first: np.int64) -> tuple[np.ndarray, ...]:
        several = range(int(first), min(int(first) + block, plan.steps_per_epoch))
        steps = [plan.indices(int(epoch), step) for step in several]
        part = slice(*fetched_share.bounds(len(steps[0][0]))) if fetched_share else slice(None)
        seeds = [plan.augmentation_seed(int(epoch), step) for step in several]
        drawn = [_drawn(augment, seed, i[part]) for seed, (i, _) in zip(seeds, steps, strict=True)]
        columns = [i[part] for i, _ in steps], [w[part] for _, w in steps], seeds, drawn
        return tuple(map(np.stack, columns))

    def fetch(index: tf.Tensor, drawn: tf.Tensor) -> Features:
        if not isinstance(augment, Parts):
            return split.fetch(index)
        return tf.nest.map_structure(lambda value: value[0], augment.fetch(split, index[None], drawn[None]))

    fetched_share = None if augment else share
    length = plan.batch_length
    # Python is asked once for many steps; those of different lengths cannot be stacked.
    block = _STEPS_AT_ONCE if length else 1
    if length is not None and fetched_share is not None:
        length = length // fetched_share.num_replicas * fetched_share.num_local
    signature = (
        tf.TensorSpec([None, length], tf.int64),
        tf.TensorSpec([None, length], tf.float32),
        tf.TensorSpec([None, 2], tf.int32),
        tf.TensorSpec([None, length, 5 if isinstance(augment, Parts) else 1], tf.float32),
    )
    steps = _asked(planned, position, signature, num_steps=plan.steps_per_epoch, at_once=block).unbatch()
    with tf.device("CPU"):
        # Eager: handed to the graph by reference, not copied into it.
        labels = tf.constant(split.labels)

    def finish(x: Features, indices: tf.Tensor, weight: tf.Tensor, seed: tf.Tensor) -> tuple:
        batch = Batch(x, tf.gather(labels, indices), weight)
        return tuple(augment(batch, seed) if augment else batch)

    # A step's whole batch may be thousands of images, of which a few fill the memory: two at a time suffice to
    # finish one while the next is fetched.
    at_once, ahead = (tf.data.AUTOTUNE, 2) if length else (2, 1)
    parallel = {"num_parallel_calls": at_once, "deterministic": True}
    if split.gather is not None and not isinstance(augment, Parts):
        whole = steps.map(lambda i, w, s, _: finish(split.gather(i), i, w, s), **parallel)
    elif length and isinstance(augment, Parts):
        # The threads fetch a batch together, while one is read and one finished; small ones in numbers that keep all at
        # work. With one less PNG files take a fifth longer on two cores.
        parallel["num_parallel_calls"] = 2 + math.ceil(num_threads() / length)
        whole = steps.map(lambda i, w, s, p: finish(augment.fetch(split, i, p), i, w, s), **parallel)
    else:
        fetched = _fetched_and_grouped(fetch, steps) if length is None else _fetched(fetch, steps, length)
        whole = fetched.map(lambda x, i, w, s: finish(x, i, w, s[0]), **parallel)
    num_steps = plan.steps_per_epoch - position()[1]
    if share is not None:
        whole = _by_replica(whole, share, is_whole=fetched_share is None)
        num_steps *= share.num_local
    return whole.apply(tf.data.experimental.assert_cardinality(num_steps)).prefetch(ahead).with_options(_threads())


def _asked(
    planned: Callable[[np.int64, np.int64], tuple[np.ndarray, ...]],
    position: Callable[[], tuple[int, int]],
    signature: tuple[tf.TensorSpec, ...],
    *,
    num_steps: int,
    at_once: int,
) -> tf.data.Dataset:
    """What Python says of an epoch's steps from `position` on: (epoch, first step) -> `at_once` steps, or fewer.

    Not `Dataset.from_generator`: it has glibc give freed memory back to the kernel from then on, against `heap.py`.
    """

    def block(epoch: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, ...]:
        columns = python_call(planned, [epoch, first], [spec.dtype for spec in signature], stateful=True)
        return tuple(tf.ensure_shape(column, spec.shape) for column, spec in zip(columns, signature, strict=True))

    def epoch_from(epoch: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(first, num_steps, at_once).map(lambda step: block(epoch, step))

    def begin(_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        asked = python_call(lambda: tuple(map(np.int64, position())), [], [tf.int64, tf.int64], stateful=True)
        return tuple(asked)

    return tf.data.Dataset.from_tensors(0).map(begin).flat_map(epoch_from)


def _threads() -> tf.data.Options:
    """Threads of the input's own, as many as TensorFlow has for operations.

    In the pool of the step, and with a tuner that measures while it runs, an example costs a tenth more (measured in
    docs/performance.md).
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = num_threads()
    options.autotune.enabled = False
    return options


def _by_replica(batches: tf.data.Dataset, share: Share, *, is_whole: bool) -> tf.data.Dataset:
    """Batches, or a host's part of them, as one element for each replica of the host."""

    def part(value: tf.Tensor) -> tf.Tensor:
        size = (value.shape[0] or tf.shape(value)[0]) // (share.num_replicas if is_whole else share.num_local)
        begin = share.first * size if is_whole else 0
        return value[begin : begin + share.num_local * size]

    if is_whole:
        batches = batches.map(lambda *row: tf.nest.map_structure(part, row), num_parallel_calls=tf.data.AUTOTUNE)
    if share.num_local == 1:
        return batches

    def slices(*row: tf.Tensor) -> tf.data.Dataset:
        split = tf.nest.map_structure(lambda value: tf.reshape(
            value, [share.num_local, (value.shape[0] or tf.shape(value)[0]) // share.num_local, *value.shape[1:]]
        ), row)
        return tf.data.Dataset.from_tensor_slices(split)

    return batches.flat_map(slices)


def _drawn(augment: Augment | None, seed: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(n, 5) float32 parts of a step's examples; (n, 1) zeros where they are fetched whole."""
    if isinstance(augment, Parts):
        return augment.drawn(parts.keys(seed, indices))
    # Not (n, 0): `unbatch` ends the process on that.
    return np.zeros((len(indices), 1), np.float32)


# Index and part -> features.
_Fetch: TypeAlias = Callable[[tf.Tensor, tf.Tensor], Features]
_LONGEST = 2**31
_STEPS_AT_ONCE = 32
_FETCHING = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}


def _fetched(fetch: _Fetch, steps: tf.data.Dataset, length: int) -> tf.data.Dataset:
    """(indices, weight, seed, parts) of steps of one length -> (x, indices, weight, the seed once an example)."""
    examples = steps.map(lambda i, w, s, p: (i, w, tf.repeat(s[None], length, axis=0), p)).unbatch()
    return examples.map(lambda i, w, s, p: (fetch(i, p), i, w, s), **_FETCHING).batch(length, drop_remainder=True)


def _fetched_and_grouped(fetch: _Fetch, steps: tf.data.Dataset) -> tf.data.Dataset:
    """(indices, weight, seed, parts) of steps of any length -> (x, indices, weight, a seed an example), a step each.

    One stream of examples runs through all steps, so that fetching never pauses between two of them. Of the
    examples of weight 0, which have one index, only the first is fetched.
    """

    def examples(indices: tf.Tensor, weight: tf.Tensor, seed: tf.Tensor, drawn: tf.Tensor) -> tuple[tf.Tensor, ...]:
        length = tf.size(indices, tf.int64)
        num_fetched = tf.minimum(tf.math.count_nonzero(weight) + 1, length)
        window = num_fetched * _LONGEST + length - num_fetched
        constant = (tf.repeat(value[None], num_fetched, axis=0) for value in (seed, window))
        return indices[:num_fetched], weight[:num_fetched], drawn[:num_fetched], *constant

    def whole(key: tf.Tensor, window: tf.data.Dataset) -> tf.data.Dataset:
        num_fetched, num_missing = key // _LONGEST, key % _LONGEST
        # Repeated before it is batched, for a batch is copied once so, and twice when it is filled up later.
        filled_up = window.concatenate(window.skip(num_fetched - 1).repeat(num_missing))
        return filled_up.batch(num_fetched + num_missing)

    fetched = steps.map(examples).unbatch().map(lambda i, w, p, s, key: (fetch(i, p), i, w, s, key), **_FETCHING)
    # A window knows nothing but its key, so the key is its size and how much it lacks. Two steps with one key never
    # meet in a window: the examples come in order, and a window that is full is closed.
    grouped = fetched.group_by_window(
        key_func=lambda *row: row[-1], reduce_func=whole, window_size_func=lambda key: key // _LONGEST
    )
    return grouped.map(lambda x, i, w, s, key: (x, i, w, s))
