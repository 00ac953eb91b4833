"""Features of frozen backbones on the disk, by content, so that runs share them.

A folder of files (feature_file.py) of limited size, the least recently used of which go first. Whatever the disk
refuses costs a warning and the saving of time, never the run. In the tree: below features.py, which computes what is
kept here. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from tfbig import cache_folder
from tfbig.cache_folder import FOLDER_VARIABLE, LIMIT_VARIABLE
from tfbig.errors import EnvironmentFault
from tfbig.training.feature_file import HEADER_BYTES, Entry, checked, commit, described, halves, partial, write

log = logging.getLogger(__name__)

# Left free on the disk, for checkpoints and exports.
_SPARE_BYTES = 2**28
_SUFFIX = ".features"
_ENTRY = re.compile(r"[0-9a-f]{32}\.features")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]+\.partial")
# A partial file that no process holds is a killed one's; before this age it may have been made a moment ago.
_STALE_S = 60.0


class FeatureCache:
    """A folder of features, of limited size: the least recently used go first.

    Args:
        folder: Where the files are; made when it is first written to.
        limit_bytes: Size of all files together, in bytes; 0 turns the cache off.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._has_failed = False

    def has_room(self, num_bytes: int) -> bool:
        """Whether that many bytes of features may be kept: the limit, the folder and the disk allow it."""
        if self._has_failed or not self.limit_bytes:
            return False
        if num_bytes > self.limit_bytes:
            log.info("features of %.2f GB are above the cache's limit; %s raises it", num_bytes / 1e9, LIMIT_VARIABLE)
            return False
        try:
            self._make_folder()
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "it is not writable")
            free = shutil.disk_usage(self.folder).free + sum(entry.num_bytes for entry in self.entries())
            if free < num_bytes + _SPARE_BYTES:
                raise OSError(0, f"the disk has no room for {num_bytes / 1e9:.2f} GB")
        except OSError as error:
            self._give_up(error)
            return False
        return True

    def read(self, key: str) -> np.ndarray | None:
        """The rows of an entry, mapped and not loaded; None where there is none that is whole.

        Args:
            key: 32 hexadecimal digits.

        Returns:
            (N, D) float16 or float32, read only.
        """
        path = self.folder / (key + _SUFFIX)
        if self._has_failed or not self.limit_bytes:
            return None
        try:
            rows = checked(path, key)
            os.utime(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            log.warning("%s; its features are computed again", error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            self._give_up(error)
            return None
        return rows

    def keep(
        self, key: str, chunks: Callable[[], Iterable[np.ndarray]], *, shape: tuple[int, int], about: str
    ) -> np.ndarray | None:
        """Writes an entry as its rows are computed, in float16 where that loses nothing.

        Args:
            key: 32 hexadecimal digits of everything that the rows depend on.
            chunks: Computes the rows, (B, D) float32 at a time, N together.
            shape: (N, D).
            about: What they were computed from, for the list of entries.

        Returns:
            As `read`; None where the disk refuses.
        """
        num_bytes = math.prod(shape) * 4 + HEADER_BYTES
        if not self.has_room(num_bytes):
            return None
        path = self.folder / (key + _SUFFIX)
        facts = {"key": key, "shape": list(shape), "about": about}
        try:
            self._remove_stale(age_s=_STALE_S)
            self._evict(num_bytes)
            with partial(self.folder, key) as file:
                is_half, checksum = write(file, chunks())
                if is_half:
                    # A second pass, for only the last row tells.
                    rows = np.memmap(file, np.float32, "r", HEADER_BYTES, shape)
                    with partial(self.folder, key) as half:
                        _, checksum = write(half, halves(rows))
                        commit(half, path, facts | {"dtype": "float16", "crc32": checksum})
                else:
                    commit(file, path, facts | {"dtype": "float32", "crc32": checksum})
            return checked(path, key)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return None

    def entries(self) -> list[Entry]:
        """All entries, the most recently used first; partial files are none."""
        found = []
        for path in self._files(_ENTRY):
            with contextlib.suppress(FileNotFoundError):
                found.append(described(path))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> int:
        """Removes all entries, and what killed processes left; gives the bytes freed.

        Raises:
            EnvironmentFault: A file cannot be removed.
        """
        freed = 0
        try:
            for entry in self.entries():
                entry.path.unlink(missing_ok=True)
                freed += entry.num_bytes
            self._remove_stale(age_s=0.0)
        except OSError as error:
            raise EnvironmentFault(
                f"The feature cache {self.folder} cannot be cleared ({error.strerror or error}); mend its permissions."
            ) from error
        return freed

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        """Files of ours, and nothing else that a user may have in that folder."""
        try:
            return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _evict(self, num_bytes: int) -> None:
        """Makes room for that many bytes, in the limit and on the disk."""
        kept = self.entries()
        total = sum(entry.num_bytes for entry in kept)
        free = shutil.disk_usage(self.folder).free
        while kept and (total + num_bytes > self.limit_bytes or free < num_bytes + _SPARE_BYTES):
            oldest = kept.pop()
            oldest.path.unlink(missing_ok=True)
            total, free = total - oldest.num_bytes, free + oldest.num_bytes
            log.info("removed the features of %s, the longest unused, from the cache", oldest.about or oldest.path.name)

    def _remove_stale(self, *, age_s: float) -> None:
        for path in self._files(_PARTIAL):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                # One of the future is old too: the clock was set back since.
                if abs(time.time() - path.stat().st_mtime) >= age_s:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    def _give_up(self, error: Exception) -> None:
        self._has_failed = True
        log.warning(
            "the feature cache %s cannot be used (%s), so features are kept in memory and computed again by the next "
            "run; mend it, or name another folder in %s", self.folder, getattr(error, "strerror", None) or error,
            FOLDER_VARIABLE,
        )


def from_environment() -> FeatureCache:
    """The user's cache: the folder in TFBIG_CACHE, at most TFBIG_CACHE_GB gigabytes.

    Raises:
        UsageError: TFBIG_CACHE_GB is no size.
    """
    return FeatureCache(cache_folder.folder(), cache_folder.limit_bytes())
