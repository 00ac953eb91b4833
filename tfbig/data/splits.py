"""Addressable splits: examples that can be fetched one by one, in any order.

A `Split` can fetch example i without reading the others, so that an index plan may name the examples of each step
(`index_plan.py`, or `sampling.py` for private training) and `batches.py` only fetches, decodes and batches them.
Letters in shapes: N examples, B a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tfbig.data.file_names import chosen, smallest
from tfbig.data.python_calls import python_call

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
        fetch_parts: (B,) int64 indices and (B, 5) float32 of `parts.parts` -> features of those parts of the examples,
            one after the other; None where examples have no parts.
    """

    fetch: Callable[[tf.Tensor], Features]
    labels: np.ndarray
    names: Sequence[str]
    payload: Callable[[int], bytes] | None = None
    gather: Callable[[tf.Tensor], Features] | None = None
    fetch_parts: Callable[[tf.Tensor, tf.Tensor], Features] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Split:
        """The same examples under new indices 0..len(indices)-1."""
        fetch, payload, gather, fetch_parts = self.fetch, self.payload, self.gather, self.fetch_parts
        with tf.device("CPU"):
            # Eager: handed to the graph by reference. A million indices as a constant would be copied with it.
            where = tf.constant(np.asarray(indices, smallest(len(self))))
        # The memory of the tensor, not more of it.
        table = np.asarray(memoryview(where))

        def at(index: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.gather(where, index), tf.int64)

        return Split(
            fetch=lambda i: fetch(at(i)),
            labels=self.labels[table],
            names=chosen(self.names, table),
            payload=None if payload is None else lambda i: payload(int(table[i])),
            gather=None if gather is None else lambda i: gather(at(i)),
            fetch_parts=None if fetch_parts is None else lambda i, parts: fetch_parts(at(i), parts),
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
        rows = python_call(lambda i: x[i], [indices], tf.as_dtype(x.dtype))
        return tf.ensure_shape(rows, indices.shape + x.shape[1:])

    return Split(fetch=gather, labels=labels, names=names or [str(i) for i in range(len(x))], gather=gather)
