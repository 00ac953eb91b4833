"""Batches that are on the GPU before their step begins. Used by distribution.py."""

from __future__ import annotations

import logging

import tensorflow as tf

_BATCHES_AHEAD = 2

log = logging.getLogger(__name__)


def on_device(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """Batches that are copied to the GPU while the steps before theirs are computed.

    Args:
        dataset: Of batches.
        strategy: Where they are used; one over several devices copies by itself.

    Returns:
        The dataset itself where there is no GPU, or where it cannot hold such batches.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus or strategy.num_replicas_in_sync > 1 or not _can_hold(gpus[0].name, dataset.element_spec):
        return dataset
    return copied(dataset, gpus[0].name)


def copied(dataset: tf.data.Dataset, device: str) -> tf.data.Dataset:
    """The batches of a dataset on a device, two of them ahead.

    Args:
        dataset: Of batches of numbers.
        device: As TensorFlow names it, such as /GPU:0.
    """
    with tf.device(device):
        there = dataset.apply(tf.data.experimental.copy_to_device(device)).prefetch(_BATCHES_AHEAD)
    # What is copied has forgotten its length, which fit would then find out by running out of data.
    object.__setattr__(there, "cardinality", dataset.cardinality)
    return there


def _can_hold(device: str, spec: tuple[tf.TensorSpec, ...]) -> bool:
    """Tries it on a batch of zeros of one example; strings, for one, stay on the host."""
    parts = tf.nest.flatten(spec)
    if any(part.dtype == tf.string for part in parts):
        return False
    zeros = tuple(tf.zeros([size or 1 for size in part.shape], part.dtype) for part in parts)
    try:
        next(iter(copied(tf.data.Dataset.from_tensors(zeros), device)))
    except (tf.errors.OpError, RuntimeError) as error:
        log.warning("batches are copied to %s within each step, since it cannot fetch them: %s", device, error)
        return False
    return True
