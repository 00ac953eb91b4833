"""The journal of a search: one line for whatever happens to its trials, in one file that several processes share.

It alone says what has happened: who reads it from its beginning knows all that the search knows, so a search that was
killed at any moment goes on, and workers need no server between them. A line is written at once and flushed to the
disk under a lock of the kernel's (flock), which ends with the process that holds it; what a kill leaves of a line is
cut off by the next writer.
In the tree: below trials.py. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from tfbig.errors import EnvironmentFault

NAME = "journal.jsonl"


def has_begun(folder: Path) -> bool:
    """Whether the journal in a folder of trials says anything."""
    journal = folder / NAME
    return journal.exists() and journal.stat().st_size > 0


class Journal:
    """The lines of a search's file, each read once.

    Args:
        folder: Of the trials; it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._read_to = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process reads or writes inside the block.

        Raises:
            EnvironmentFault: The file cannot be opened.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a")
        except OSError as error:
            raise EnvironmentFault(f"{self.path} cannot be written ({error.strerror or error}).") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def news(self) -> list[dict]:
        """The lines since the last call. Only inside `locked`.

        Raises:
            EnvironmentFault: A line is damaged.
        """
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            whole, _, _ = file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        try:
            entries = [json.loads(line) for line in lines]
            if not all(isinstance(entry, dict) for entry in entries):
                raise ValueError("not an object")
        except ValueError as error:
            raise EnvironmentFault(
                f"The search's journal {self.path} is damaged ({error}); search anew with --resume never."
            ) from error
        self._read_to += len(whole) + bool(whole)
        return entries

    def forget(self) -> None:
        """Takes back all lines. Only inside `locked`."""
        os.truncate(self.path, 0)
        self._read_to = 0

    def add(self, entry: dict) -> None:
        """Writes one line behind those that `news` has given. Only inside `locked`.

        Raises:
            EnvironmentFault: The disk is full.
        """
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._read_to)
                file.seek(self._read_to)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentFault(
                f"{self.path} cannot be written ({error.strerror or error}); make room, and give the same command "
                "again."
            ) from error
        self._read_to += len(line)
