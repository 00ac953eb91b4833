"""What earlier starts found in a person's files, so that those that have not changed are not read again.

A file of the cache folder for each source: of every readable example a hash of its path with what the file system says
of it (size, inode, the times of its last changes), and the digest of its content. As in git's index, a file that
changed only moments before it was read is not kept, since a second change within one tick of the file system's clock
would not show. Used by manifest.py, a few thousand files at a time. Imports no TensorFlow. Letters: N files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import time
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from tfbig import cache_folder
from tfbig.data.contents import DIGEST, ordered

_logger = logging.getLogger(__name__)

SUFFIX = ".files"
_FORMAT = "tfbig files 2"
# Of the user's limit, for all sources together; features have the rest of their own accord.
_SHARE = 0.05
_KEY_LENGTH = 32
# FAT's clock ticks every 2 s, the slowest of all.
_TICK_NS = 2 * 10**9
# On the disk: a checksum, the keys of all files in ascending order, and their digests.
_CHECKSUM_BYTES = 4
_BYTES = 2 * DIGEST.itemsize
_WRITTEN_AT_ONCE = 2**16

_NOTHING = np.empty(0, DIGEST)


class KnownFiles:
    """Digests of the files of one source, from the disk and for the disk.

    Guarantees: a digest is given only where path, size, inode and both times of change are those of before; what is on
    the disk is whole or not there, whoever else writes it.

    Args:
        source: As the user names it, made absolute: it names the entry.
        directory: Where the names of the examples start.
        folder: The cache; made when it is first written to.
        limit_bytes: Of the cache; 0 turns it off.
    """

    def __init__(self, source: str, *, directory: str, folder: Path, limit_bytes: int) -> None:
        self._directory = os.path.abspath(directory)
        self._limit = int(limit_bytes * _SHARE)
        # Another version of TensorFlow may not decode what this one does.
        key = hashlib.blake2b(f"{_FORMAT}\0{version('tensorflow')}\0{source}".encode(errors="surrogateescape"))
        self._path = folder / (key.hexdigest()[:_KEY_LENGTH] + SUFFIX)
        self._keys: np.ndarray
        self._digests: np.ndarray
        self._keys, self._digests = self._read() if self._limit else (_NOTHING, _NOTHING)
        self._is_used = np.zeros(len(self._keys), bool)
        self._new_keys: list[np.ndarray] = []
        self._new_digests: list[np.ndarray] = []

    def states(self, names: Sequence[str]) -> np.ndarray:
        """(N, 4) int64: size, inode, and when content and inode last changed, in ns; -1 where there is no file."""
        return np.array([_state(os.path.join(self._directory, name)) for name in names], np.int64).reshape(-1, 4)

    def digests(self, names: Sequence[str], states: np.ndarray) -> np.ndarray:
        """(N,) digests of the files in that state; empty where they are not known."""
        found = np.zeros(len(names), DIGEST)
        if not len(self._keys) or not len(names):
            return found
        keys = self._hashed(names, states)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        same = self._keys[at] == keys
        found[same] = self._digests[at[same]]
        self._is_used[at[same]] = True
        return found

    def add(
        self, names: Sequence[str], states: np.ndarray, digests: np.ndarray, *, known: np.ndarray, read_ns: int
    ) -> None:
        """Examples that were read, for `keep`, which keeps those that were known as well.

        Args:
            names: N of them.
            states: (N, 4), from before they were read.
            digests: (N,); empty for a file that could not be read, which is looked at again by the next start.
            known: (N,) bool, whose digest was known and which were not read.
            read_ns: When the first was read, ns since the epoch.
        """
        # A change after the state was taken shows now; one of the same tick as the last would not.
        settled = (states[:, 2:].max(axis=1, initial=0) < read_ns - _TICK_NS) & ~known
        again = self.states([names[i] for i in np.flatnonzero(settled).tolist()])
        settled[settled] = (again == states[settled]).all(axis=1)
        kept = np.flatnonzero((digests != b"") & (states[:, 0] >= 0) & settled)
        self._new_keys.append(self._hashed([names[i] for i in kept.tolist()], states[kept]))
        self._new_digests.append(digests[kept])

    def keep(self) -> None:
        """Writes what was known and what was added, in place of what was there; a warning where the disk refuses."""
        if not self._limit or (self._is_used.all() and not any(map(len, self._new_keys))):
            return
        keys, digests = (
            _together(column[self._is_used], new)
            for column, new in ((self._keys, self._new_keys), (self._digests, self._new_digests))
        )
        self._keys = self._digests = _NOTHING
        order, is_first = ordered(keys)
        order = order[is_first]
        if len(order) * _BYTES > self._limit:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(keys, digests, order)
            _evict(self._path.parent, self._limit)
        except OSError as error:
            _logger.warning(
                "the cache %s cannot be used (%s), so the next start reads every file again; mend it, or name another "
                "folder in %s", self._path.parent, error.strerror or error, cache_folder.FOLDER_VARIABLE,
            )

    def _hashed(self, names: Sequence[str], states: np.ndarray) -> np.ndarray:
        # States are all of one length, so that none and its path are another and its path.
        keys = [
            hashlib.blake2b(state.tobytes() + os.fsencode(os.path.join(self._directory, name)), digest_size=16).digest()
            for name, state in zip(names, states.astype("<i8"), strict=True)
        ]
        return np.array(keys, DIGEST)

    def _write(self, keys: np.ndarray, digests: np.ndarray, order: np.ndarray) -> None:
        # The name is that of the feature cache's unfinished files, which it removes where their writer was killed.
        partial = self._path.parent / f".{self._path.stem}.{os.getpid():x}{time.monotonic_ns():x}.partial"
        try:
            with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                checksum = 0
                file.write(bytes(_CHECKSUM_BYTES))
                for column in (keys, digests):
                    for first in range(0, len(order), _WRITTEN_AT_ONCE):
                        raw = column[order[first : first + _WRITTEN_AT_ONCE]].tobytes()
                        checksum = zlib.crc32(raw, checksum)
                        file.write(raw)
                file.seek(0)
                file.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys, ascending, and digests; none where they are damaged."""
        try:
            content = self._path.read_bytes()
            os.utime(self._path)
        except OSError:
            return _NOTHING, _NOTHING
        count, rest = divmod(len(content) - _CHECKSUM_BYTES, _BYTES)
        checksum = zlib.crc32(memoryview(content)[_CHECKSUM_BYTES:]).to_bytes(_CHECKSUM_BYTES, "little")
        if rest or checksum != content[:_CHECKSUM_BYTES]:
            _logger.warning("%s is damaged; every file is read again", self._path)
            return _NOTHING, _NOTHING
        whole = np.frombuffer(content, DIGEST, offset=_CHECKSUM_BYTES)
        return whole[:count], whole[count:]


def _together(column: np.ndarray, several: list[np.ndarray]) -> np.ndarray:
    """All in one piece; the list is emptied."""
    whole = np.concatenate([column, *several])
    several.clear()
    return whole


def _state(path: str) -> tuple[int, int, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        # ValueError: a path with a NUL byte.
        return -1, -1, -1, -1
    return status.st_size, status.st_ino & (2**63 - 1), status.st_mtime_ns, status.st_ctime_ns


def entries(folder: Path) -> list[Path]:
    """What is kept of each source, the most recently used first."""
    try:
        found = [path for path in folder.iterdir() if path.suffix == SUFFIX and len(path.stem) == _KEY_LENGTH]
    except (FileNotFoundError, NotADirectoryError):
        return []
    times = {}
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime
    return sorted(times, key=lambda path: times[path], reverse=True)


def num_files(path: Path) -> int:
    """How many files an entry knows."""
    return path.stat().st_size // _BYTES


def _evict(folder: Path, limit_bytes: int) -> None:
    kept = [(path, path.stat().st_size) for path in entries(folder)]
    while kept and sum(size for _, size in kept) > limit_bytes:
        kept.pop()[0].unlink(missing_ok=True)
