"""Splits of pictures at the size of a network: whole ones, and random parts of them.

Above `images.py` and `image_parts.py`, which decode; below the jobs that take pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import tensorflow as tf

from tfbig.data.image_parts import cut_part, decode_part, decode_parts, decodes_together
from tfbig.data.images import decode_and_resize, in_unit_range, resize
from tfbig.data.splits import Split
from tfbig.threads import num_threads


def sized(split: Split, size: int) -> Split:
    """The split with its pictures at one size.

    Args:
        split: Its `fetch` gives a scalar string, an encoded picture, or (H, W, 3) uint8 of one that is decoded.
        size: Height and width in pixels.

    Returns:
        A split whose `fetch` and `fetch_parts` give (size, size, 3) float32 each; labels, names and payload are the
        same.
    """
    fetch = cast(Callable[[tf.Tensor], tf.Tensor], split.fetch)

    def whole(index: tf.Tensor) -> tf.Tensor:
        picture = fetch(index)
        return decode_and_resize(picture, size) if picture.dtype == tf.string else in_unit_range(resize(picture, size))

    def parts_of(indices: tf.Tensor, parts: tf.Tensor) -> tf.Tensor:
        is_encoded = _dtype(fetch) == tf.string
        part_of = decode_part if is_encoded else cut_part
        if indices.shape == [1]:
            return part_of(fetch(indices[0]), parts[0], size)[None]
        if is_encoded and decodes_together():
            return decode_parts(fetch, indices, parts, size)
        return tf.map_fn(
            lambda row: part_of(fetch(row[0]), row[1], size), (indices, parts),
            fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32), parallel_iterations=num_threads(),
        )  # fmt: skip

    return dataclasses.replace(split, fetch=whole, fetch_parts=parts_of, gather=None)


def _dtype(fetch: Callable[[tf.Tensor], tf.Tensor]) -> tf.DType:
    index = tf.TensorSpec([], tf.int64)
    return tf.function(fetch, autograph=False).get_concrete_function(index).output_dtypes
