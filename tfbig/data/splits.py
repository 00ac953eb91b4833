"""Addressable splits, and batches of them as an index plan names them.

A `Split` can fetch example i without reading the others. What a step trains on is a pure function
of (seed, epoch, step), so shuffling, sharding over replicas, exact resume after a kill, feature
caching and the manifest are one mechanism: the plan names indices, and tf.data only fetches, decodes
and batches them. `IndexPlan` is here, the one that samples for private training in `sampling.py`.
Letters in shapes: N examples, B a batch, C classes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tfbig.data import parts
from tfbig.data.paths import chosen
from tfbig.data.sampling import Plan, derived_key, padded_length, secret_augmentation_seed
from tfbig.errors import UsageError

Features: TypeAlias = tf.Tensor | dict[str, tf.Tensor]


class Batch(NamedTuple):
    """One step's B examples: those that only fill the batch up have weight 0."""

    x: Features
    y: tf.Tensor
    weight: tf.Tensor


@dataclass(frozen=True)
class DataSpec:
    """What a network has to know about the data.

    Args:
        features: Shape and type of one batch of features, batch dimension None.
        num_train: Examples in the training split.
        class_names: Names of the classes in the order of the labels; empty where there are none.
        multi_label: True where an example may have several classes, or none.
    """

    features: tf.TensorSpec | dict[str, tf.TensorSpec]
    num_train: int
    class_names: tuple[str, ...] = ()
    multi_label: bool = False


@dataclass(frozen=True)
class Split:
    """Examples that can be fetched one by one, in any order.

    Args:
        fetch: Scalar int64 index -> that example's features; runs inside a tf.data graph.
        labels: (N,) integer classes, or (N, C) float32 zeros and ones for multi-label data.
        names: What a person calls each example, for predictions.csv and the report: a path, a row, an id.
        payload: Index -> the example as the user stored it (encoded image bytes); None where there is no file.
        gather: (B,) int64 indices -> a whole batch of features at once, for examples held in memory.
        fetch_part: Scalar int64 index and (5,) float32 of `parts.parts` -> features of that part of the example;
            None where examples have no parts.
    """

    fetch: Callable[[tf.Tensor], Features]
    labels: np.ndarray
    names: Sequence[str]
    payload: Callable[[int], bytes] | None = None
    gather: Callable[[tf.Tensor], Features] | None = None
    fetch_part: Callable[[tf.Tensor, tf.Tensor], Features] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Split:
        """The same examples under new indices 0..len(indices)-1."""
        fetch, payload, gather, fetch_part = self.fetch, self.payload, self.gather, self.fetch_part
        with tf.device("CPU"):
            # Eager: handed to the graph by reference. A million indices as a constant would be copied with it.
            where = tf.constant(np.asarray(indices, np.int64))
        # The memory of the tensor, not more of it.
        table = np.asarray(memoryview(where))
        return Split(
            fetch=lambda i: fetch(tf.gather(where, i)),
            labels=self.labels[table],
            names=chosen(self.names, table),
            payload=None if payload is None else lambda i: payload(int(table[i])),
            gather=None if gather is None else lambda i: gather(tf.gather(where, i)),
            fetch_part=None if fetch_part is None else lambda i, part: fetch_part(tf.gather(where, i), part),
        )


@dataclass(frozen=True)
class Splits:
    """A dataset: three splits that share no example, and their spec. `validation` may be None.

    `manifest` is what data_manifest.json will hold: counts a class and split, duplicates, bad files.
    """

    train: Split
    validation: Split | None
    test: Split
    spec: DataSpec
    manifest: Mapping[str, object] = field(default_factory=dict)


def array_split(x: np.ndarray, labels: np.ndarray, *, names: Sequence[str] | None = None) -> Split:
    """A split over rows held in memory.

    Args:
        x: (N, ...) features.
        labels: (N,) or (N, C), see Split.
        names: N names; row numbers where not given.
    """

    # Through numpy and not a constant: a constant is copied into every graph that uses it.
    def gather(indices: tf.Tensor) -> tf.Tensor:
        rows = tf.numpy_function(lambda i: x[i], [indices], tf.as_dtype(x.dtype), stateful=False)
        return tf.ensure_shape(rows, indices.shape + x.shape[1:])

    return Split(fetch=gather, labels=labels, names=names or [str(i) for i in range(len(x))], gather=gather)


_LEAST_SECRET = 2**31


@dataclass(frozen=True)
class IndexPlan:
    """Which examples each step sees: a pure function of (seed, epoch, step, replica).

    Guarantees: over one epoch every example has weight 1 exactly once; every batch has `batch_length`
    indices, filled up with examples of weight 0 where it has fewer; two plans with equal fields are equal.

    Args:
        num_examples: N, at least 1.
        batch_size: Global batch over all replicas, at least 1.
        seed: Orders the epochs; unused when `shuffle` is False. From 2**31 up (a secret of 128 bits) it does
            not show in the orders or in the seeds of the augmentation.
        shuffle: False keeps the stored order (evaluation).
        multiple: Batches are filled up to a multiple of this, at least 1: a physical batch, of which private
            training takes several a step.
    """

    num_examples: int
    batch_size: int
    seed: int = field(default=0, repr=False)
    shuffle: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}; it is 1 or a physical batch size.")
        if self.num_examples < 1 or self.batch_size < 1:
            raise ValueError(
                f"A plan needs at least one example and a batch of at least one, got "
                f"{self.num_examples} examples and batch_size {self.batch_size}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that cover every example once."""
        return -(-self.num_examples // self.batch_size)

    @property
    def batch_length(self) -> int:
        """Indices of every batch: `batch_size`, rounded up to a multiple of `multiple`."""
        return padded_length(self.batch_size, self.multiple)

    def indices(
        self, epoch: int, step: int, *, replica: int = 0, num_replicas: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The indices of one step and their weights.

        Args:
            epoch: From 0.
            step: From 0, within the epoch.
            replica: Which of `num_replicas` equal slices of the batch to return.
            num_replicas: Must divide `batch_length`.

        Returns:
            (B / num_replicas,) int64 indices and float32 weights of 0 or 1, B being `batch_length`.
        """
        length, first = self.batch_length, step * self.batch_size
        if length % num_replicas:
            raise ValueError(f"A batch of {length} examples is not a multiple of {num_replicas} replicas.")
        order = _order(self.num_examples, self.seed, epoch, self.shuffle)
        position = np.arange(first, first + length)
        indices = order[position % self.num_examples]
        weight = (position < min(first + self.batch_size, self.num_examples)).astype(np.float32)
        size = length // num_replicas
        share = slice(replica * size, (replica + 1) * size)
        return indices[share], weight[share]

    def augmentation_seed(self, epoch: int, step: int) -> np.ndarray:
        """(2,) int32: the seed and the number of the step in the run, or a hash where the seed has over 31 bits."""
        if self.seed >= _LEAST_SECRET:
            return secret_augmentation_seed(self.seed, epoch, step)
        return np.array([self.seed, epoch * self.steps_per_epoch + step], np.int32)


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    if not shuffle:
        return np.arange(num_examples)
    if seed >= _LEAST_SECRET:
        # What the generator gives away must not lead back to the secret, from which the noise comes too.
        key = int.from_bytes(derived_key(seed, "order", epoch), "little")
        return np.random.default_rng(key).permutation(num_examples)
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


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

    def fetch(self, split: Split, index: tf.Tensor, part: tf.Tensor) -> Features:
        """A part of an example.

        Args:
            split: Has it.
            index: Scalar int64.
            part: (5,) float32 of `drawn`.
        """
        if split.fetch_part is None:
            raise ValueError("Expected examples that have parts, such as images; leave resized_crop out for others.")
        return split.fetch_part(index, part)


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
    if isinstance(augment, Parts) and split.fetch_part is None:
        raise UsageError("Expected examples that have parts, such as images; leave resized_crop out for others.")

    def planned(epoch: np.int64, first: np.int64) -> tuple[np.ndarray, ...]:
        several = range(int(first), min(int(first) + block, plan.steps_per_epoch))
        steps = [plan.indices(int(epoch), step) for step in several]
        part = slice(*fetched_share.bounds(len(steps[0][0]))) if fetched_share else slice(None)
        seeds = [plan.augmentation_seed(int(epoch), step) for step in several]
        drawn = [_drawn(augment, seed, i[part]) for seed, (i, _) in zip(seeds, steps, strict=True)]
        columns = [i[part] for i, _ in steps], [w[part] for _, w in steps], seeds, drawn
        return tuple(map(np.stack, columns))

    def fetch(index: tf.Tensor, drawn: tf.Tensor) -> Features:
        return augment.fetch(split, index, drawn) if isinstance(augment, Parts) else split.fetch(index)

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
        columns = tf.numpy_function(planned, [epoch, first], [spec.dtype for spec in signature])
        return tuple(tf.ensure_shape(column, spec.shape) for column, spec in zip(columns, signature, strict=True))

    def epoch_from(epoch: tf.Tensor, first: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(first, num_steps, at_once).map(lambda step: block(epoch, step))

    def begin(_: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.numpy_function(lambda: tuple(map(np.int64, position())), [], [tf.int64, tf.int64]))

    return tf.data.Dataset.from_tensors(0).map(begin).flat_map(epoch_from)


def _threads() -> tf.data.Options:
    """Threads of the input's own, as many as TensorFlow has for operations, each with an example.

    In the pool of the step, and with a tuner that measures while it runs, an example costs a tenth more (measured in
    docs/performance.md).
    """
    chosen = tf.config.threading.get_inter_op_parallelism_threads() or os.environ.get("TF_NUM_INTEROP_THREADS", "")
    options = tf.data.Options()
    # 0 is one a core.
    options.threading.private_threadpool_size = int(chosen) if str(chosen).isdecimal() else 0
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
