"""Addressable splits and the one index plan that every step's examples come from.

A `Split` can fetch example i without reading the others. What a step trains on is a pure function
of (seed, epoch, step), so shuffling, sharding over replicas, exact resume after a kill, feature
caching and the manifest are one mechanism: the plan names indices, and tf.data only fetches, decodes
and batches them. Letters in shapes: N examples, B a batch, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import tensorflow as tf

Features = tf.Tensor | dict[str, tf.Tensor]


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
    """

    fetch: Callable[[tf.Tensor], Features]
    labels: np.ndarray
    names: Sequence[str]
    payload: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Split:
        """The same examples under new indices 0..len(indices)-1."""
        table = tf.constant(indices, tf.int64)
        payload = self.payload
        return Split(
            fetch=lambda i: self.fetch(tf.gather(table, i)),
            labels=self.labels[indices],
            names=[self.names[i] for i in indices],
            payload=None if payload is None else lambda i: payload(int(indices[i])),
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
    # Closed over as a numpy array, not a constant: a constant is copied into every graph that uses it.
    def row(index: np.ndarray) -> np.ndarray:
        return x[index]

    def fetch(index: tf.Tensor) -> tf.Tensor:
        value = tf.numpy_function(row, [index], tf.as_dtype(x.dtype), stateful=False)
        return tf.ensure_shape(value, x.shape[1:])

    return Split(fetch=fetch, labels=labels, names=names or [str(i) for i in range(len(x))])


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
