"""The privacy ledger's file: locked, and replaced whole or not at all; what is in it is in ledger_format.py.

The lock is the kernel's (flock) on a file beside it, `.NAME.lock`, so a killed process leaves none behind; on a
network file system it is as good as that system's. In the tree: below gradients/private's ledger. Imports no
TensorFlow.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from tfbig.errors import EnvironmentFault, GateError
from tfbig.gradients.private.ledger_format import DatasetBudget, encoded, parsed

_POLL_S = 0.02


class LedgerFile:
    """A ledger on the disk.

    Args:
        path: The file; it need not exist.
        lock_timeout_s: How long to wait for the lock, in seconds.
    """

    def __init__(self, path: Path, lock_timeout_s: float) -> None:
        # Resolved, so that a link to a ledger and the ledger itself share a lock, and a link is never replaced.
        self.path = Path(os.path.realpath(path))
        self._lock_path = self.path.with_name(f".{self.path.name}.lock")
        self._timeout_s = lock_timeout_s

    @contextlib.contextmanager
    def locked(self) -> Iterator[LedgerContent]:
        """Holds the ledger for this process.

        Raises:
            EnvironmentFault: It cannot be locked, or is held by another process for too long.
        """
        deadline = time.monotonic() + self._timeout_s
        while True:
            with self._open_lock() as lock:
                self._acquire(lock, deadline)
                # Whoever removed the lock file meanwhile took it from under this process: begin again.
                if self._is_mine(lock):
                    yield LedgerContent(self.path, functools.partial(self._is_mine, lock))
                    return

    def read(self) -> tuple[DatasetBudget, ...]:
        """What it holds now, without the lock: it is always whole, since it is only ever replaced."""
        return LedgerContent(self.path, lambda: False).read()

    def _open_lock(self) -> IO[bytes]:
        try:
            # Without O_TRUNC, and never through a link that somebody laid there.
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            return os.fdopen(descriptor, "r+b", buffering=0)
        except OSError as error:
            raise EnvironmentFault(
                f"The privacy ledger {self.path} cannot be locked ({error.strerror or error}); its folder must exist "
                "and be writable, and nothing else may stand at its lock file's place."
            ) from error

    def _acquire(self, lock: IO[bytes], deadline: float) -> None:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise EnvironmentFault(
                        f"The privacy ledger {self.path} has been locked by another process for more than "
                        f"{self._timeout_s:g} seconds: a run that is starting or ending, or one that hangs (fuser "
                        f"{self._lock_path} names it). Wait for it, or end it, and start again."
                    ) from None
                time.sleep(_POLL_S)
            except OSError as error:
                raise EnvironmentFault(
                    f"The privacy ledger {self.path} cannot be locked ({error.strerror or error}); keep it on a file "
                    "system with flock."
                ) from error

    def _is_mine(self, lock: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(lock.fileno()), os.lstat(self._lock_path))
        except FileNotFoundError:
            return False


class LedgerContent:
    """What is in a ledger that this process holds; LedgerFile.locked gives it.

    Args:
        path: The file.
        is_held: Whether the lock is still this process's.
    """

    def __init__(self, path: Path, is_held: Callable[[], bool]) -> None:
        self._path = path
        self._is_held = is_held

    def read(self, must_exist: bool = False) -> tuple[DatasetBudget, ...]:
        """Everything in the file, checked; nothing where there is no file yet.

        Raises:
            GateError: A value in it is not what it must be; or `must_exist`, and there is no file.
            EnvironmentFault: It cannot be read, or is not a plain file of one name.
        """
        try:
            found = os.stat(self._path)
            if not stat.S_ISREG(found.st_mode):
                raise EnvironmentFault(f"The privacy ledger must be a file, but {self._path} is none; name another.")
            if found.st_nlink > 1:
                raise EnvironmentFault(
                    f"The privacy ledger {self._path} has {found.st_nlink} names (hard links), of which only one "
                    "would be charged; remove the others, or use symbolic links."
                )
            raw = self._path.read_bytes()
        except FileNotFoundError:
            if must_exist:
                raise GateError(
                    f"The privacy ledger {self._path} is missing, though runs were charged in it; put it back from a "
                    "backup. It is not begun anew, because what was spent stays spent."
                ) from None
            return ()
        except OSError as error:
            raise EnvironmentFault(self._unusable("read", error)) from error
        try:
            return parsed(raw)
        except (ValueError, RecursionError) as error:
            raise GateError(
                f"The privacy ledger {self._path} is damaged ({str(error)[:200]}) and was left as it is. Put it back "
                "from a backup, or let its owner mend that place; it is not begun anew, because what was spent stays "
                "spent."
            ) from error

    def write(self, budgets: Sequence[DatasetBudget]) -> None:
        """Replaces the file; after a crash or a power cut there is the old one or the new one, whole.

        Raises:
            EnvironmentFault: It cannot be written, or the lock was taken away.
        """
        raw = encoded(budgets)
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            partial.unlink(missing_ok=True)
            # Exclusive: under the lock nobody else makes this name, and a link laid there is not followed.
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                if self._path.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(self._path.stat().st_mode))
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            if not self._is_held():
                raise EnvironmentFault(
                    f"The lock file of the privacy ledger {self._path} was removed while it was in use, and nothing "
                    "was charged; leave that file where it is, and start again."
                )
            os.replace(partial, self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            raise EnvironmentFault(self._unusable("written", error)) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _unusable(self, verb: str, error: OSError) -> str:
        reason = error.strerror or error
        return f"The privacy ledger {self._path} cannot be {verb} ({reason}); mend its permissions, or make room."


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
