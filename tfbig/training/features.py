"""Features of a frozen trunk, computed once, so that each epoch trains only what is trained.

Right only where the trunk gives the same features for an example each time: it is frozen, runs in inference mode, and
nothing augments its inputs anew. `assembly.py` decides that. They are kept on the disk by feature_cache.py, under the
key of feature_key.py, and in memory where there is no such key or no such disk.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.batches import batches
from tfbig.data.file_names import chosen
from tfbig.data.index_plan import IndexPlan
from tfbig.data.python_calls import python_call
from tfbig.data.splits import Split
from tfbig.networks.folded import folded
from tfbig.training.distribution import is_over_workers
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
    return _kept_split([_rows(trunk, split, batch_size, cache, origin)], split)


def extract_views(
    trunk: keras.Model,
    views: Sequence[Split],
    *,
    batch_size: int,
    cache: FeatureCache | None = None,
    origins: Sequence[Origin],
) -> Split:
    """As `extract`, of K views of the same N examples: example i of view k has the index k * N + i.

    Args:
        trunk: See `extract`.
        views: K splits of equal length, from `data.views.augmented`.
        batch_size: See `extract`.
        cache: See `extract`.
        origins: K, one a view.
    """
    rows = [
        _rows(trunk, view, batch_size, cache, origin) for view, origin in zip(views, origins, strict=True)
    ]
    return _kept_split(rows, views[0])


def _rows(
    trunk: keras.Model, split: Split, batch_size: int, cache: FeatureCache | None, origin: Origin | None
) -> np.ndarray:
    """(N, D): mapped from the cache, else computed."""
    began = time.monotonic()
    shape = (len(split), int(trunk.output_shape[-1]))
    key = cache and origin and feature_key(trunk, split, origin, batch_size)
    rows = cache.read(key) if cache and key else None
    if rows is not None and rows.shape == shape:
        log.info("read the frozen backbone's features of %d examples from %s", len(split), cache and cache.folder)
        return rows
    if cache and key and origin:
        about = f"{origin.about}, {origin.role}"
        rows = cache.keep(key, lambda: _computed(trunk, split, batch_size), shape=shape, about=about)
    if rows is None:
        rows = np.concatenate(list(_computed(trunk, split, batch_size)))  # (N, D)
    log.info("computed the frozen backbone's features of %d examples in %.1f s", len(split), time.monotonic() - began)
    return rows


def _kept_split(views: Sequence[np.ndarray], split: Split) -> Split:
    """K arrays (N, D) as one split of K * N examples, without a copy of them."""
    num_views, num_examples, width = len(views), len(split), views[0].shape[1]

    def look_up(indices: np.ndarray) -> np.ndarray:
        rows = np.empty((*np.shape(indices), width), np.float32)
        view, row = np.divmod(indices, num_examples)
        # One, in every batch of an epoch.
        for number in np.unique(view):
            rows[view == number] = views[number][row[view == number]]
        return rows

    def gather(indices: tf.Tensor) -> tf.Tensor:
        rows = python_call(look_up, [indices], tf.float32)
        return tf.ensure_shape(rows, [*indices.shape, width])

    labels = np.concatenate([split.labels] * num_views)
    names = chosen(split.names, np.tile(np.arange(num_examples), num_views))
    return Split(fetch=gather, labels=labels, names=names, gather=gather)


def _computed(trunk: keras.Model, split: Split, batch_size: int) -> Iterator[np.ndarray]:
    """(B, D) float32 rows, batch by batch, so that no more than a few are in memory.

    Not trunk.predict, which collects all outputs before it gives the first.
    """
    plan = IndexPlan(len(split), batch_size, shuffle=False)
    dataset = batches(split, plan).map(lambda x, y, weight: x)
    strategy, missing = trunk.distribute_strategy, len(split)
    # Without autograph, which would rewrite the walk through the trunk's layers.
    forward = tf.function(
        lambda x: strategy.run(functools.partial(folded, trunk), args=(x,)), reduce_retracing=True, autograph=False
    )
    if is_over_workers(strategy):
        # Each worker for itself, and by itself: what one of them finds in its cache, another may have to compute.
        computed = (strategy.experimental_local_results(forward(x))[0] for x in dataset)
    else:
        distributed = strategy.experimental_distribute_dataset(dataset)
        computed = (np.concatenate(strategy.experimental_local_results(forward(x))) for x in distributed)
    for outputs in computed:
        rows = np.asarray(outputs, np.float32)[:missing]
        missing -= len(rows)
        yield rows
