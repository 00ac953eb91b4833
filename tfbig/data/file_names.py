"""Names of files without an object each: their bytes in one piece, and where each begins.

A list of a million paths is a hundred bytes of Python objects a path beside the path itself. `Paths` reads as such a
list, in Python and in a graph of TensorFlow's, which share the same memory. Used by files.py, which lists files, and by
whatever asks a split for its names in order. Letters: N paths of a sequence, M of the whole that it is
a part of.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import tensorflow as tf

from tfbig.data.byte_order import SPARE, ranks

_AT_ONCE = 2**14
_INT32_MAX = 2**31 - 1


class _Whole:
    """M names as their bytes, and their order, which is found only where it is asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        content, begins = _joined(map(os.fsencode, names))
        with tf.device("CPU"):
            # Eager: handed to graphs by reference, and read from Python where they are.
            self.tensors = tf.constant(content), tf.constant(begins)
        self.content, self.begins = (np.asarray(memoryview(tensor)) for tensor in self.tensors)
        self._ranks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.begins) - 1

    def name(self, index: int) -> str:
        return os.fsdecode(self.content[self.begins[index] : self.begins[index + 1]].tobytes())

    def several(self, indices: np.ndarray) -> list[str]:
        bounds = zip(self.begins[indices].tolist(), self.begins[indices + 1].tolist(), strict=True)
        content = self.content.data
        return [os.fsdecode(bytes(content[begin:end])) for begin, end in bounds]

    def ranks(self) -> np.ndarray:
        """(M,) int32 place of each name among the different ones, in order of code points."""
        if self._ranks is None:
            content, begins = self.content, self.begins
            if content.max() > 127:
                # So coded, bytes are in the order of code points, whatever stands for bytes that are no text.
                names = (name for first in range(0, len(self), _AT_ONCE) for name in self.several(self._block(first)))
                content, begins = _joined(name.encode("utf-8", "surrogatepass") for name in names)
            self._ranks = ranks(content, begins)
        return self._ranks

    def _block(self, first: int) -> np.ndarray:
        return np.arange(first, min(first + _AT_ONCE, len(self)))


class Paths(Sequence[str]):
    """N names of files, or a choice of those of another `Paths`, which shares their bytes.

    Args:
        names: In order; of any text that `os.fsencode` takes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._whole = _Whole(names)
        self._chosen: np.ndarray | None = None

    def in_graph(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """What gives a name in a graph: scalar index -> scalar string. The names of a choice are copied."""
        content, begins = (self._whole if self._chosen is None else _Whole(self)).tensors
        with tf.device("CPU"):
            # More than 128 elements, which are not copied into a graph.
            characters = tf.constant([bytes([code]) for code in range(256)])

        def name(index: tf.Tensor) -> tf.Tensor:
            begin = tf.gather(begins, tf.expand_dims(index, 0))  # (1,)
            size = tf.gather(begins, tf.expand_dims(index + 1, 0)) - begin
            codes = tf.cast(tf.slice(content, begin, size), tf.int32)
            return tf.strings.reduce_join(tf.gather(characters, codes))

        return name

    def take(self, indices: np.ndarray) -> Paths:
        """The names at those indices, from 0 to below N."""
        part = object.__new__(Paths)
        chosen = indices if self._chosen is None else self._chosen[indices]
        part._whole, part._chosen = self._whole, chosen.astype(smallest(len(self._whole)), copy=False)
        return part

    def several(self, indices: np.ndarray) -> list[str]:
        """The names at a few of the indices, as objects."""
        return self._whole.several(indices if self._chosen is None else self._chosen[indices])

    def order(self) -> np.ndarray:
        """(N,) int32 indices in the order of their names; equal names as they come."""
        ranks = self._whole.ranks()
        order = np.argsort(ranks if self._chosen is None else ranks[self._chosen], kind="stable")
        return order.astype(smallest(len(order)))

    def __len__(self) -> int:
        return len(self._whole if self._chosen is None else self._chosen)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self.several(np.arange(first, min(first + _AT_ONCE, len(self))))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        return self._whole.name(place if self._chosen is None else int(self._chosen[place]))


def name_order(names: Sequence[str]) -> np.ndarray:
    """(N,) indices in the order of their names; not by an array of names, which is as wide as the longest of them."""
    if isinstance(names, Paths):
        return names.order()
    return np.array(sorted(range(len(names)), key=names.__getitem__), smallest(len(names)))


def chosen(names: Sequence[str], indices: np.ndarray) -> Sequence[str]:
    """The names at those indices."""
    return names.take(indices) if isinstance(names, Paths) else [names[i] for i in indices]


def blocks(names: Sequence[str], order: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, list[str]]]:
    """A few indices at a time, and their names: of all, as they come or in an order."""
    for first in range(0, len(names), _AT_ONCE):
        at = slice(first, min(first + _AT_ONCE, len(names)))
        indices = np.arange(at.start, at.stop) if order is None else order[at]
        yield indices, names.several(indices) if isinstance(names, Paths) else [names[int(i)] for i in indices]


def _joined(names: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """All bytes and some to spare, and (M + 1,) where each name begins and the last ends."""
    rest, pieces, sizes = iter(names), [], [np.empty(0, np.int32)]
    while several := list(itertools.islice(rest, _AT_ONCE)):
        raw = b"".join(several)
        pieces.append(_outside_heap(len(raw)))
        pieces[-1][:] = np.frombuffer(raw, np.uint8)
        sizes.append(np.fromiter(map(len, several), np.int32))
    num_bytes = sum(map(len, pieces))
    content, begins = _outside_heap(num_bytes + SPARE), np.zeros(sum(map(len, sizes)) + 1, smallest(num_bytes))
    np.concatenate([*pieces, np.zeros(SPARE, np.uint8)], out=content)
    np.cumsum(np.concatenate(sizes), out=begins[1:])
    return content, begins


def _outside_heap(num_bytes: int) -> np.ndarray:
    """Bytes that the kernel has back once they are free, for the heap of a run keeps its own (heap.py)."""
    return np.frombuffer(mmap.mmap(-1, max(num_bytes, 1)), np.uint8)[:num_bytes]


def smallest(largest: int) -> type[np.signedinteger]:
    """The smaller of two types of whole numbers that holds them up to the largest."""
    return np.int32 if largest <= _INT32_MAX else np.int64
