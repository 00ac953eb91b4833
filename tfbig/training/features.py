"""Features of a frozen trunk, computed once, so that each epoch trains only what is trained.

Right only where the trunk gives the same features for an example each time: it is frozen, runs in inference mode, and
nothing augments its inputs anew. `assembly.py` decides that. They are kept on the disk by feature_cache.py, under the
key of feature_key.py, and in memory where there is no such key or no such disk.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.splits import IndexPlan, Split, array_split, batches
from tfbig.training.feature_cache import FeatureCache
from tfbig.training.feature_key import Origin, feature_key

log = logging.getLogger(__name__)


def extract(
    trunk: keras.Model,
    split: Split,
    *,
    batch_size: int,
    cache: FeatureCache | None = None,
    origin: Origin | None = None,
) -> Split:
    """The same examples with the trunk's outputs as their features.

    Guarantees: the same values whether they were computed now or read from the cache.

    Args:
        trunk: Frozen network, features in, (B, D) out.
        split: N examples.
        batch_size: Examples a forward pass, over all devices.
        cache: Where they are kept and looked for; by default nowhere.
        origin: What they are of; without it nothing is kept.

    Returns:
        A split that reads them from the disk, or holds them in memory: N * D * 4 bytes.
    """
    began = time.monotonic()
    shape = (len(split), int(trunk.output_shape[-1]))
    key = cache and origin and feature_key(trunk, split, origin, batch_size)
    rows = cache.read(key) if cache and key else None
    if rows is not None and rows.shape == shape:
        log.info("read the frozen backbone's features of %d examples from %s", len(split), cache and cache.folder)
        return _kept_split(rows, split)
    if cache and key and origin:
        about = f"{origin.about}, {origin.role}"
        rows = cache.keep(key, lambda: _computed(trunk, split, batch_size), shape=shape, about=about)
    if rows is None:
        rows = np.concatenate(list(_computed(trunk, split, batch_size)))  # (N, D)
    log.info("computed the frozen backbone's features of %d examples in %.1f s", len(split), time.monotonic() - began)
    return _kept_split(rows, split)


def _kept_split(rows: np.ndarray, split: Split) -> Split:
    stored = array_split(rows, split.labels, names=split.names)

    def gather(indices: tf.Tensor) -> tf.Tensor:
        return tf.cast(stored.fetch(indices), tf.float32)

    return dataclasses.replace(stored, fetch=gather, gather=gather)


def _computed(trunk: keras.Model, split: Split, batch_size: int) -> Iterator[np.ndarray]:
    """(B, D) float32 rows, batch by batch, so that no more than a few are in memory.

    Not trunk.predict, which collects all outputs before it gives the first.
    """
    plan = IndexPlan(len(split), batch_size, shuffle=False)
    dataset = batches(split, plan).map(lambda x, y, weight: x)
    trunk.make_predict_function()
    missing = len(split)
    for x in trunk.distribute_strategy.experimental_distribute_dataset(dataset):
        rows = np.asarray(trunk.predict_function([x]), np.float32)[:missing]
        missing -= len(rows)
        yield rows
