"""A hidden folder to build an export in, and the one rename that makes it a version.

TF Serving watches DIRECTORY and loads every sub-folder whose name is a number. A version is therefore
built in DIRECTORY/.export-XXXX/version, on the same file system, and renamed to DIRECTORY/N when it is
complete: rename(2) is atomic, so no reader ever sees a part of it.

Guarantees: two exports at once get different versions; an export that fails leaves nothing behind; one
that is killed leaves only its hidden folder, which the next export removes. Whether its owner still
lives is told by a lock on a file in it: the kernel drops the lock with the process, in any container.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import tensorflow as tf

from tfbig.errors import EnvironmentFault

_logger = logging.getLogger(__name__)
_PREFIX = ".export-"


@dataclass(frozen=True)
class Staging:
    """A place to build one version.

    Args:
        directory: The folder a server watches.
        folder: What will be the version; empty at first.
        scratch: Files that are needed meanwhile and never published.
    """

    directory: Path
    folder: Path
    scratch: Path

    def publish(self) -> Path:
        """Make `folder` the next version, the highest number there plus one.

        Returns:
            The version's folder.

        Raises:
            EnvironmentFault: It cannot be written to disk or renamed.
        """
        with writing(self.directory):
            _flush(self.folder)
            while True:
                target = self.directory / str(max(versions(self.directory), default=0) + 1)
                try:
                    self.folder.rename(target)
                except OSError:
                    # Another export was faster if the name is taken now; anything else is a real failure.
                    if not target.exists():
                        raise
                else:
                    _flush_entry(self.directory)
                    return target


def versions(directory: Path) -> list[int]:
    """The version numbers in a folder, in ascending order; empty where the folder is missing."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isascii() and path.name.isdigit())


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Staging]:
    """A fresh place to build a version of `directory`, removed at the end whether it was published or not.

    Args:
        directory: Made, with its parents, where it is missing; those are removed again where nothing
            was published.

    Raises:
        EnvironmentFault: The folder cannot be made or written.
    """
    with writing(directory):
        made = _make(directory)
    try:
        with writing(directory):
            _remove_abandoned(directory)
            home, lock = _claim(directory)
        try:
            with writing(directory):
                place = Staging(directory, home / "version", home / "scratch")
                place.folder.mkdir()
                place.scratch.mkdir()
            yield place
        finally:
            shutil.rmtree(home, ignore_errors=True)
            lock.close()
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_writable(directory: Path) -> None:
    """Refuse an export folder that cannot be written before the hours of work that would go into it.

    Raises:
        EnvironmentFault: It cannot be made or written.
    """
    with staging(directory) as place, writing(directory):
        (place.scratch / "probe").write_bytes(b"tfbig")


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses, in Python or in TensorFlow, into one EnvironmentFault."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise EnvironmentFault(
            f"The export needs a folder that can be written with room for the model, but in {directory} the system "
            f"answered: {_reason(error)}; nothing was exported. Free the space or change the "
            f"permissions, or choose another folder with --export.dir."
        ) from error


def _reason(error: OSError | tf.errors.OpError) -> str:
    """The system's words; TensorFlow puts its operation and the path of a temporary file around them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first_line = error.message.partition("\n")[0]
    return first_line.split(" [Op:")[0].rpartition("; ")[2]


def _make(directory: Path) -> list[Path]:
    """Make a folder and its parents; those that were missing, outermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _claim(directory: Path) -> tuple[Path, IO[str]]:
    while True:
        home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
        try:
            lock = (home / "lock").open("w")
        except FileNotFoundError:
            continue
        # Between making the folder and locking it another export may have taken it for abandoned.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (home / "lock").exists():
            return home, lock
        lock.close()


def _remove_abandoned(directory: Path) -> None:
    for home in directory.glob(f"{_PREFIX}*"):
        try:
            lock = (home / "lock").open("w")
        except FileNotFoundError:
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _logger.info("Removing %s, left by an export that was killed.", home)
            shutil.rmtree(home, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Put every file of a folder on the disk, where a late "no space left" would show."""
    for path in sorted(folder.rglob("*")):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
