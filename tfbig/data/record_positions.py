"""Where the records of a TFRecord file lie, so that each can be read without the others. Used by tfrecords.py."""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np

_HEADER_BYTES, _FOOTER_BYTES = 12, 4


def record_positions(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the records of a TFRecord file lie.

    Args:
        path: A TFRecord file, uncompressed.

    Returns:
        (N,) offsets of the records' data from the file's start, and (N,) lengths, both in bytes.

    Raises:
        ValueError: The file ends within a record.
    """
    offsets: list[int] = []
    lengths: list[int] = []
    size = os.path.getsize(path)
    if not size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = 0
        while position < size:
            end = position + _HEADER_BYTES
            if end <= size:
                (length,) = struct.unpack_from("<Q", content, position)
                end += length + _FOOTER_BYTES
            if end > size:
                raise ValueError(f"{path} ends within record {len(offsets)}")
            offsets.append(position + _HEADER_BYTES)
            lengths.append(length)
            position = end
    return np.array(offsets, np.int64), np.array(lengths, np.int64)
