"""The order of many short texts whose bytes lie in one piece: by eight bytes at a time, the last eight first.

A radix sort from the end (Knuth, The Art of Computer Programming 3, 5.2.5) whose digits are numbers of 64 bits, so that
no text is ever an object. Used by file_names.py. Letters: M texts.
"""

from __future__ import annotations

import numpy as np

SPARE = 8
"""Bytes that must follow the last text."""
_AT_ONCE = 2**15
# By the number of bytes that are a text's own: the others do not count.
_OWN = np.array([0, *(2**64 - 2 ** (64 - 8 * count) for count in range(1, 9))], np.uint64)


def ranks(content: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(M,) int32 place of each text among the different ones, in the order of their bytes.

    Args:
        content: uint8, all texts one after the other and `SPARE` more bytes.
        begins: (M + 1,) where each begins, and the last ends.
    """
    found = np.empty(len(begins) - 1, np.int32)
    order, rank = _order(content, begins), -1
    for first in range(0, len(order), _AT_ONCE):
        # The last one of the block before is compared with the first of this one.
        several = order[max(0, first - 1) : first + _AT_ONCE]
        is_new = _differ(content, begins, several)[min(first, 1) :]
        of_block = rank + np.cumsum(is_new)
        found[order[first : first + _AT_ONCE]], rank = of_block, of_block[-1]
    return found


def _order(content: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(M,) int32 indices of the texts in order; equal ones as they come."""
    sizes = np.diff(begins)
    num_shorter = np.cumsum(np.bincount(sizes, minlength=1))  # by size: that size counts too
    order = np.argsort(sizes, kind="stable").astype(np.int32)
    del sizes
    for first in reversed(range(0, len(num_shorter) - 1, 8)):
        # Shorter ones are in their order already, and stand before: what they are the beginning of is greater.
        longer = order[num_shorter[first] :]
        longer[:] = longer[np.argsort(_numbers(content, begins, longer, first), kind="stable")]
    return order


def _numbers(content: np.ndarray, begins: np.ndarray, texts: np.ndarray, first: int) -> np.ndarray:
    """Bytes `first` to `first + 7` of some texts as uint64, as if zeros followed each."""
    # At every byte the eight that begin there, the first of them the most significant.
    eight = np.ndarray(len(content) - SPARE + 1, ">u8", content, strides=(1,))
    found = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), _AT_ONCE):
        several = texts[start : start + _AT_ONCE]
        at = begins[several] + first
        num_own = np.clip(begins[several + 1] - at, 0, 8)
        found[start : start + _AT_ONCE] = eight[np.minimum(at, len(eight) - 1)] & _OWN[num_own]
    return found


def _differ(content: np.ndarray, begins: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(len(texts),) bool: whether each is another than the one before it; the first is."""
    sizes = begins[texts + 1] - begins[texts]
    found = np.append(True, sizes[1:] != sizes[:-1])
    longest = int(sizes[~found].max(initial=0))
    for first in reversed(range(0, longest, 8)):
        alike = np.flatnonzero(~found & (sizes > first))
        later = _numbers(content, begins, texts[alike], first)
        found[alike] = later != _numbers(content, begins, texts[alike - 1], first)
    return found
