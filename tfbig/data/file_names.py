"""Names of files without an object each: their bytes in few large pieces, and where each begins.

A list of a million paths is a hundred bytes of Python objects a path beside the path itself. `Paths` reads as such a
list. Used by files.py, which lists files, and by whatever asks a split for its names in order. Letters: N paths of a
sequence, M of the whole that it is a part of.
"""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

NAMES_IN_BLOCK = 32
# Names that are objects at a time while a whole is put in order.
_AT_ONCE = 2**14
_INT32_MAX = 2**31 - 1


class _Whole:
    """M names as the bytes of every 32 of them, and their order, which is found only where it is asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        content = io.BytesIO()
        sizes = np.fromiter((content.write(os.fsencode(name)) for name in names), np.int32)
        self.begins = np.zeros(len(sizes) + 1, _smallest(content.tell()))  # (M + 1,): where each begins, the last ends
        np.cumsum(sizes, out=self.begins[1:])
        bounds, joined = [*self.begins[:-1:NAMES_IN_BLOCK].tolist(), content.tell()], content.getvalue()
        self.blocks = [joined[a:b] for a, b in pairwise(bounds)]
        self._ranks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.begins) - 1

    def name(self, index: int) -> str:
        block = index // NAMES_IN_BLOCK
        first, begin, end = self.begins[[block * NAMES_IN_BLOCK, index, index + 1]].tolist()
        return os.fsdecode(self.blocks[block][begin - first : end - first])

    def ranks(self) -> np.ndarray:
        """(M,) int32 place of each name among the different ones, in order of code points."""
        if self._ranks is None:
            self._ranks = np.zeros(len(self), np.int32)
            rank, before = -1, None
            for name, index in heapq.merge(*map(self._sorted, range(0, len(self), _AT_ONCE))):
                rank += name != before
                self._ranks[index], before = rank, name
        return self._ranks

    def _sorted(self, first: int) -> Iterator[tuple[str, int]]:
        several = range(first, min(first + _AT_ONCE, len(self)))
        # Names are made anew as they are asked for, not kept beside their order.
        order = np.array(sorted(several, key=self.name), np.int32)
        return ((self.name(index), index) for index in order.tolist())


class Paths(Sequence[str]):
    """N names of files, or a choice of those of another `Paths`, which shares their bytes.

    Args:
        names: In order; of any text that `os.fsencode` takes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._whole = _Whole(names)
        self._chosen: np.ndarray | None = None

    def blocks(self) -> tuple[list[bytes], np.ndarray]:
        """The bytes of every `NAMES_IN_BLOCK` names, and (N + 1,) where each begins among all bytes and the last ends.

        Those of a choice are copied.
        """
        whole = self._whole if self._chosen is None else _Whole(self)
        return whole.blocks, whole.begins

    def take(self, indices: np.ndarray) -> Paths:
        """The names at those indices, from 0 to below N."""
        part = object.__new__(Paths)
        chosen = indices if self._chosen is None else self._chosen[indices]
        part._whole, part._chosen = self._whole, chosen.astype(_smallest(len(self._whole)))
        return part

    def order(self) -> np.ndarray:
        """(N,) indices in the order of their names; equal names as they come."""
        ranks = self._whole.ranks()
        return np.argsort(ranks if self._chosen is None else ranks[self._chosen], kind="stable")

    def __len__(self) -> int:
        return len(self._whole if self._chosen is None else self._chosen)

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
    return np.array(sorted(range(len(names)), key=names.__getitem__), int)


def chosen(names: Sequence[str], indices: np.ndarray) -> Sequence[str]:
    """The names at those indices."""
    return names.take(indices) if isinstance(names, Paths) else [names[i] for i in indices]


def _smallest(largest: int) -> type[np.signedinteger]:
    return np.int32 if largest <= _INT32_MAX else np.int64
