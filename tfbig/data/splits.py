"""Addressable splits and the one index plan that every step's examples come from.

A `Split` can fetch example i without reading the others. What a step trains on is a pure function
of (seed, epoch, step), so shuffling, sharding over replicas, exact resume after a kill, feature
caching and the manifest are one mechanism: the plan names indices, and tf.data only fetches, decodes
and batches them. Letters in shapes: N examples, B a batch, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

Features: TypeAlias = tf.Tensor | dict[str, tf.Tensor]


class Batch(NamedTuple):
    """One step's examples, always B of them: those that only fill the batch up have weight 0."""

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
    """

    fetch: Callable[[tf.Tensor], Features]
    labels: np.ndarray
    names: Sequence[str]
    payload: Callable[[int], bytes] | None = None
    gather: Callable[[tf.Tensor], Features] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Split:
        """The same examples under new indices 0..len(indices)-1."""
        table = np.asarray(indices, np.int64)
        payload, gather = self.payload, self.gather
        return Split(
            fetch=lambda i: self.fetch(tf.gather(table, i)),
            labels=self.labels[table],
            names=[self.names[i] for i in table],
            payload=None if payload is None else lambda i: payload(int(table[i])),
            gather=None if gather is None else lambda i: gather(tf.gather(table, i)),
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


@dataclass(frozen=True)
class IndexPlan:
    """Which examples each step sees: a pure function of (seed, epoch, step, replica).

    Guarantees: over one epoch every example has weight 1 exactly once; every batch has `batch_size`
    indices, the last one filled up with examples of weight 0; two plans with equal fields are equal.

    Args:
        num_examples: N, at least 1.
        batch_size: Global batch over all replicas, at least 1.
        seed: Orders the epochs; unused when `shuffle` is False.
        shuffle: False keeps the stored order (evaluation).
    """

    num_examples: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.num_examples < 1 or self.batch_size < 1:
            raise ValueError(
                f"A plan needs at least one example and a batch of at least one, got "
                f"{self.num_examples} examples and batch_size {self.batch_size}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that cover every example once."""
        return -(-self.num_examples // self.batch_size)

    def indices(
        self, epoch: int, step: int, *, replica: int = 0, num_replicas: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The indices of one step and their weights.

        Args:
            epoch: From 0.
            step: From 0, within the epoch.
            replica: Which of `num_replicas` equal slices of the batch to return.
            num_replicas: Must divide `batch_size`.

        Returns:
            (B / num_replicas,) int64 indices and float32 weights of 0 or 1.
        """
        if self.batch_size % num_replicas:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of {num_replicas} replicas.")
        order = _order(self.num_examples, self.seed, epoch, self.shuffle)
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        indices = order[position % self.num_examples]
        weight = (position < self.num_examples).astype(np.float32)
        size = self.batch_size // num_replicas
        share = slice(replica * size, (replica + 1) * size)
        return indices[share], weight[share]


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    if not shuffle:
        return np.arange(num_examples)
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


Augment: TypeAlias = Callable[[Batch, tf.Tensor], Batch]


def batches(
    split: Split,
    plan: IndexPlan,
    *,
    position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    augment: Augment | None = None,
) -> tf.data.Dataset:
    """One epoch of batches (x, y, weight), exactly as the plan names them.

    Args:
        split: Where the examples come from.
        plan: Which examples each step holds.
        position: Asked each time the dataset is iterated: the epoch, and the step in it to begin with.
        augment: Changes a batch, drawing only from the (2,) int32 seed of its step.

    Returns:
        A dataset of `plan.steps_per_epoch` batches of exactly `plan.batch_size` examples, less the steps
        that `position` leaves out now; each later iteration has to leave out as many.
    """

    def planned() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        epoch, first_step = position()
        for step in range(first_step, plan.steps_per_epoch):
            indices, weight = plan.indices(epoch, step)
            yield indices, weight, np.array([plan.seed, epoch * plan.steps_per_epoch + step], np.int32)

    size = plan.batch_size
    steps = tf.data.Dataset.from_generator(
        planned,
        output_signature=(
            tf.TensorSpec([size], tf.int64),
            tf.TensorSpec([size], tf.float32),
            tf.TensorSpec([2], tf.int32),
        ),
    )

    gather_labels = array_split(split.labels, split.labels).fetch

    def finish(x: Features, indices: tf.Tensor, weight: tf.Tensor, seed: tf.Tensor) -> tuple:
        batch = Batch(x, gather_labels(indices), weight)
        return tuple(augment(batch, seed) if augment else batch)

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if split.gather is not None:
        whole = steps.map(lambda i, w, s: finish(split.gather(i), i, w, s), **parallel)
    else:
        examples = steps.map(lambda i, w, s: (i, w, tf.repeat(s[None], size, axis=0))).unbatch()
        fetched = examples.map(lambda i, w, s: (split.fetch(i), i, w, s), **parallel)
        whole = fetched.batch(size, drop_remainder=True).map(lambda x, i, w, s: finish(x, i, w, s[0]), **parallel)
    num_steps = plan.steps_per_epoch - position()[1]
    return whole.apply(tf.data.experimental.assert_cardinality(num_steps)).prefetch(tf.data.AUTOTUNE)
