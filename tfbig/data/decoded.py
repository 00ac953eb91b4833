"""Pictures decoded once and kept in memory, so that each epoch only cuts, resizes and mirrors them.

Most of what a training picture costs is its decoding, the same in every epoch. It sits above `images.py`, which
decodes, and below the pipelines, where `--data.decoded_gb` says how much memory it may take. Letters: N examples,
H height, W width, in pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfbig.data.images import decode_pixels, height_and_width
from tfbig.data.memory import ALIGNMENT, aligned
from tfbig.data.splits import Split
from tfbig.errors import UsageError


def kept(split: Split, limit_gb: float) -> Split:
    """The split with its pictures decoded, all of them in memory.

    Guarantees: `fetch` of an example is a function of its own file, whatever the others are, as private training needs
    it, and the same in every epoch. Whether all fit depends on the size of all, as their number does.

    Args:
        split: Its `fetch` gives a scalar string, an encoded picture; N of them.
        limit_gb: Gigabytes that the decoded pictures may take, 3 bytes a pixel.

    Returns:
        A split whose `fetch` gives (H, W, 3) uint8; labels, names and payload are the same.

    Raises:
        UsageError: They take more.
    """
    fetch = split.fetch
    shapes = np.stack(list(_each(len(split), lambda index: height_and_width(fetch(index)))))  # (N, 2) int32
    sizes = shapes.astype(np.int64).prod(axis=1) * 3
    # Where TensorFlow's Slice gives a part of the memory and no copy of it.
    ends = np.cumsum(-(-sizes // ALIGNMENT) * ALIGNMENT)
    if ends[-1] > limit_gb * 1e9:
        raise UsageError(
            f"Expected {len(split)} decoded training pictures to fit into --data.decoded_gb {limit_gb:g}, but they "
            f"take {ends[-1] / 1e9:.3g} GB; give more where there is the memory, or leave it out, or set --data.limit."
        )
    memory, starts = aligned(int(ends[-1])), np.concatenate([[0], ends[:-1]])
    for start, pixels in zip(starts, _each(len(split), lambda index: decode_pixels(fetch(index))), strict=True):
        memory[start : start + pixels.size] = pixels.ravel()
    with tf.device("CPU"):
        # A constant of the array would be a second copy of everything.
        pixels_of_all = tf.experimental.dlpack.from_dlpack(memory.__dlpack__())
        where = tf.constant(np.stack([starts, sizes], axis=1))  # (N, 2) int64
        shape = tf.constant(np.insert(shapes, 2, 3, axis=1))  # (N, 3) int32

    def decoded(index: tf.Tensor) -> tf.Tensor:
        start, size = tf.split(tf.gather(where, index), 2)
        pixels = tf.reshape(tf.slice(pixels_of_all, start, size), tf.gather(shape, index))
        return tf.ensure_shape(pixels, [None, None, 3])

    return dataclasses.replace(split, fetch=decoded, gather=None)


def _each(count: int, function: Callable[[tf.Tensor], tf.Tensor]) -> Iterator[np.ndarray]:
    """What a function gives for 0 to count - 1, in order, computed on all cores."""
    return tf.data.Dataset.range(count).map(function, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator()
