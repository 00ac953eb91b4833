"""Augmented views: each example changed in K ways that stay the same, so that their features can be computed once.

`augmented` gives one view as a split, and `ViewPlan` lets epoch e see view e mod K. Between augment.py, which changes
pictures, and training/features.py, which computes features of each view. Letters: N examples, K views.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfbig.data.batches import Augment, Parts
from tfbig.data.sampling import Plan
from tfbig.data.splits import Batch, Features, Split, array_split


def augmented(split: Split, augment: Augment, *, seed: int, view: int) -> Split:
    """One view of each example.

    Guarantees: an example's view is a function of the example, its name, the seed and the view's number; the other
    examples, their number and the batch have no part in it, as private training needs it.

    Args:
        split: N examples.
        augment: Changes batches of single examples; one that mixes examples has none to mix here.
        seed: From 0.
        view: Its number, from 0.

    Returns:
        The split with changed features.
    """
    table = np.empty((len(split), 2), np.int32)
    for i, name in enumerate(split.names):
        table[i] = _seed(seed, view, name)
    # The key has no part of the index, which depends on the other examples.
    parts = array_split(augment.drawn(table), split.labels) if isinstance(augment, Parts) else None
    seeds = array_split(table, split.labels)
    labels = array_split(split.labels, split.labels)

    def fetch(index: tf.Tensor) -> Features:
        seed = seeds.fetch(index)
        if isinstance(augment, Parts) and parts is not None:
            part = tf.expand_dims(parts.fetch(index), 0)
            alone = augment.fetch(split, index[None], part)
        else:
            alone = tf.nest.map_structure(lambda value: value[None], split.fetch(index))
        changed = augment(Batch(alone, tf.expand_dims(labels.fetch(index), 0), tf.ones([1])), seed)
        return tf.nest.map_structure(lambda value: value[0], changed.x)

    return dataclasses.replace(split, fetch=fetch, gather=None, fetch_parts=None)


def _seed(seed: int, view: int, name: str) -> np.ndarray:
    text = f"{seed} {view} {name}".encode("utf-8", "surrogateescape")
    return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), "<i4").astype(np.int32)


@dataclass(frozen=True)
class ViewPlan:
    """Another plan's steps, over K views of its examples: example i of view k has the index k * N + i.

    Guarantees: which examples a step sees, and how its weights are, is the other plan's choice; all of an epoch's are
    of view epoch mod K.

    Args:
        plan: Over the N examples.
        num_views: K, at least 1.
    """

    plan: Plan
    num_views: int

    @property
    def num_examples(self) -> int:
        """K * N."""
        return self.num_views * self.plan.num_examples

    @property
    def batch_size(self) -> int:
        """The other plan's."""
        return self.plan.batch_size

    @property
    def batch_length(self) -> int | None:
        """The other plan's."""
        return self.plan.batch_length

    @property
    def steps_per_epoch(self) -> int:
        """The other plan's."""
        return self.plan.steps_per_epoch

    def indices(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The other plan's examples, of this epoch's view."""
        indices, weight = self.plan.indices(epoch, step)
        return indices + epoch % self.num_views * self.plan.num_examples, weight

    def augmentation_seed(self, epoch: int, step: int) -> np.ndarray:
        """The other plan's."""
        return self.plan.augmentation_seed(epoch, step)
