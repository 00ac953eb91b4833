"""What examples contain: each different digest once, and a number for each example that equal contents share.

Digests are BLAKE2b (RFC 7693) of 128 bits. Draws and duplicates ask only which contents are equal, so that they work on
numbers; the digests themselves are for the manifest. Used by sources.py, and by tfrecords.py, known_files.py and
manifest.py. Letters: N examples of a role, M of all roles, U different contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

DIGEST = np.dtype("S16")
"""Of a column of digests. numpy's texts have a fixed width and are filled up with zeros: equal and in order as the
bytes are, but one by one they lose zeros at their end. All zeros, which reads as empty, stands for no digest."""
_AT_ONCE = 2**14


@dataclass(frozen=True)
class Contents:
    """The contents of the examples of each role.

    Args:
        digests: (U,) `DIGEST`, all different, in ascending order.
        numbers: Role -> (N,) int32 indices into them.
    """

    digests: np.ndarray
    numbers: Mapping[str, np.ndarray]

    def fingerprint(self) -> str:
        """A hash of the different contents, whichever role they are of and whatever the examples are called."""
        hashed = hashlib.blake2b(digest_size=16)
        # As if all, in hexadecimal, were joined by line ends.
        for first in range(0, len(self.digests), _AT_ONCE):
            lines = "".join(f"\n{one}" for one in hexadecimal(self.digests[first : first + _AT_ONCE]))
            hashed.update(lines[not first :].encode())
        return hashed.hexdigest()


def digest(content: bytes) -> bytes:
    """16 bytes that equal contents share."""
    return hashlib.blake2b(content, digest_size=16).digest()


def hexadecimal(digests: np.ndarray) -> list[str]:
    """Each of a few digests as 32 characters."""
    whole = digests.tobytes().hex()
    return [whole[at : at + 32] for at in range(0, len(whole), 32)]


def numbered(digests: Mapping[str, np.ndarray]) -> Contents:
    """The contents of all roles by what they are.

    Args:
        digests: Role -> (N,) `DIGEST`.
    """
    columns = [*digests.values()]
    whole = columns[0] if len(columns) == 1 else np.concatenate(columns)
    order, is_first = ordered(np.ascontiguousarray(whole))
    numbers = np.empty(len(whole), np.int32)
    numbers[order] = np.cumsum(is_first, dtype=np.int32) - 1
    ends = np.cumsum([len(column) for column in columns])
    return Contents(whole[order[is_first]], dict(zip(digests, np.split(numbers, ends[:-1]), strict=True)))


def ordered(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) int32 indices in the order of their digests, and (M,) whether each there is another than the one before."""
    halves = digests.view(">u8").reshape(-1, 2)  # (M, 2): in the order of numbers as of bytes
    front = halves[:, 0].astype(np.uint64)
    order = np.argsort(front).astype(np.int32)
    front = front[order]
    is_first = np.append(True, front[1:] != front[:-1])[: len(front)]
    if not is_first.all():
        # Where front halves meet, which but for equal contents they hardly do, the others decide.
        meet = ~(is_first & np.append(is_first[1:], True))
        several = order[meet]
        order[meet] = several[np.lexsort((halves[several, 1], front[meet]))]
        again = np.flatnonzero(~is_first)
        is_first[again] = halves[order[again], 1] != halves[order[again - 1], 1]
    return order, is_first
