"""The file of one cached split: a page of JSON, then its rows as they lie in memory.

A file is written under another name, flushed to the disk and renamed, so it appears whole or not at all, whoever else
writes it; its size and checksum are compared before it is used. It is readable by its owner alone, for features tell
of the examples that they were computed from. In the tree: below feature_cache.py. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

HEADER_BYTES = 4096
_FORMAT = "tfbig features 1"
_FIELDS = {"key", "shape", "crc32", "about"}
_DTYPES = ("float16", "float32")
# So that it fits into the header, whatever its letters.
_ABOUT_LENGTH = 250
_BLOCK_BYTES = 2**20
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Entry:
    """One cached split.

    Args:
        path: Its file.
        num_bytes: Size of the file.
        used: When it was last written or read, seconds since the epoch.
        shape: (N, D); empty where the file is damaged.
        dtype: float16 or float32.
        about: What it was computed from, in a few words.
    """

    path: Path
    num_bytes: int
    used: float
    shape: tuple[int, ...]
    dtype: str
    about: str


@contextlib.contextmanager
def partial(folder: Path, key: str) -> Iterator[IO[bytes]]:
    """A file of this writer's own, held by a lock, that is gone in the end unless it was committed."""
    path = folder / f".{key}.{os.getpid():x}{time.monotonic_ns():x}.partial"
    try:
        with open(path, "x+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            # It only tells others that its writer lives; without locks what a kill leaves stays until it is cleared.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
    finally:
        path.unlink(missing_ok=True)


def write(file: IO[bytes], chunks: Iterable[np.ndarray]) -> tuple[bool, int]:
    """Rows behind an empty header -> whether float16 holds them exactly, and their checksum."""
    file.write(bytes(HEADER_BYTES))
    checksum, is_half = 0, True
    for rows in chunks:
        is_half = is_half and _is_exact_in_half(rows)
        raw = np.ascontiguousarray(rows).data.cast("B")
        checksum = zlib.crc32(raw, checksum)
        file.write(raw)
    file.flush()
    return is_half, checksum


def _is_exact_in_half(rows: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((rows.astype(np.float16).astype(rows.dtype) == rows).all())


def halves(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in float16, some at a time."""
    for start in range(0, len(rows), _CHUNK_ROWS):
        yield rows[start : start + _CHUNK_ROWS].astype(np.float16)


def commit(file: IO[bytes], path: Path, facts: Mapping[str, object]) -> None:
    """Completes a partial file and gives it its name, over another writer's of the same content.

    Args:
        file: From `partial`, written by `write`.
        path: Its name.
        facts: Its key, shape, dtype, crc32, and what it is about.
    """
    facts = {**facts, "about": str(facts["about"])[:_ABOUT_LENGTH]}
    file.seek(0)
    file.write(json.dumps({"format": _FORMAT, **facts}).encode())
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)


def _header(file: IO[bytes]) -> dict:
    """What the first page says.

    Raises:
        ValueError: It is no header of ours.
    """
    try:
        facts = json.loads(file.read(HEADER_BYTES).rstrip(b"\0"))
        is_ours = facts["format"] == _FORMAT and facts["dtype"] in _DTYPES and _FIELDS <= facts.keys()
        is_ours = is_ours and all(isinstance(size, int) and size > 0 for size in facts["shape"])
    except (ValueError, KeyError, TypeError, AttributeError):
        is_ours = False
    if not is_ours:
        raise ValueError(f"{file.name} is damaged: it has no header")
    return facts


def checked(path: Path, key: str) -> np.ndarray:
    """The rows of a file, mapped and not loaded, (N, D).

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    with path.open("rb") as file:
        facts = _header(file)
        shape, dtype = tuple(facts["shape"]), np.dtype(facts["dtype"])
        size = HEADER_BYTES + math.prod(shape) * dtype.itemsize
        if facts["key"] != key or os.fstat(file.fileno()).st_size != size:
            raise ValueError(f"{path} is damaged: it is cut short, or another's")
        checksum = 0
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
        if checksum != facts["crc32"]:
            raise ValueError(f"{path} is damaged: its checksum is wrong")
        return np.asarray(np.memmap(file, dtype, "r", HEADER_BYTES, shape))


def described(path: Path) -> Entry:
    """What a file says of itself, without a look at its rows."""
    status = path.stat()
    try:
        with path.open("rb") as file:
            facts = _header(file)
    except (OSError, ValueError):
        return Entry(path, status.st_size, status.st_mtime, (), "", "damaged")
    return Entry(path, status.st_size, status.st_mtime, tuple(facts["shape"]), facts["dtype"], facts["about"])
