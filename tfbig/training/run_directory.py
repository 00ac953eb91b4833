"""The run directory: one folder a run, held by one process at a time, its files written whole or not at all.

config.yaml, environment.json, status.json, metrics.jsonl, data_manifest.json, tensorboard/, checkpoints/;
evaluation and serving add theirs. The lock is the kernel's (flock), so a killed run leaves none behind.
Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tfbig.errors import EnvironmentFault, UsageError

_LOCK = ".lock"
_FILES = (
    "config.yaml", "environment.json", "status.json", "metrics.jsonl", "data_manifest.json", "evaluation.json",
    "predictions.csv", "report.html", "MODEL_CARD.md", "dp.json", "audit.json", "audit.html",
    "search.json",
)  # fmt: skip
_FOLDERS = ("checkpoints", "tensorboard", "trials")

log = logging.getLogger(__name__)


class RunInUse(UsageError):
    """Another process holds the folder."""


class RunDirectory:
    """The files of one run. Use `open_run` to get one that is locked.

    Args:
        path: The folder; it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The log directory for TensorBoard."""
        return self.path / "tensorboard"

    def write_text(self, name: str, text: str) -> None:
        """Writes a file atomically.

        Raises:
            EnvironmentFault: The disk is full or the folder cannot be written.
        """
        partial = self.path / f".{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / name)
        except OSError as error:
            raise EnvironmentFault(_unwritable(self.path, error)) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def write_json(self, name: str, content: object) -> None:
        """Writes a JSON file atomically."""
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, object]:
        """A JSON file of this run; empty where there is none, or where it is damaged."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s is damaged and will be written anew: %s", self.path / name, error)
            return {}
        return content if isinstance(content, dict) else {}

    def update_status(self, state: str, **facts: object) -> None:
        """Writes status.json: `state` is running, interrupted, failed or done; when the run began is kept."""
        started = self.read_json("status.json").get("started", now())
        self.write_json("status.json", {"state": state, "started": started, **facts})

    def state(self) -> object:
        """The state in status.json, None without one; a run that was killed, and could not say so, is interrupted.

        Whoever runs holds the folder. Looking may be taken for that by a run that starts in the same moment.
        """
        state = self.read_json("status.json").get("state")
        if state != "running":
            return state
        try:
            with (self.path / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            log.debug("%s is a copy without its lock", self.path)
        except OSError:
            # Held, or another user's.
            return state
        return "interrupted"

    def write_history(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Writes metrics.jsonl, one line an epoch."""
        self.write_text("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def clear(self) -> None:
        """Removes a run's files, and nothing that is not one."""
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            folder = self.path / name
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder, ignore_errors=True)


class UnwrittenRun(RunDirectory):
    """The run directory of a worker that is not the chief: reads as an empty one, and is never written."""

    def write_text(self, name: str, text: str) -> None:
        """Does nothing."""

    def read_json(self, name: str) -> dict[str, object]:
        """Nothing."""
        return {}

    def clear(self) -> None:
        """Does nothing."""


@contextlib.contextmanager
def open_run(path: Path) -> Iterator[RunDirectory]:
    """Makes the folder where it is missing, and holds it for this process.

    Raises:
        RunInUse: Another run holds it.
        UsageError: It is a folder of something else.
        EnvironmentFault: It cannot be made or written.
    """
    try:
        _refuse_foreign(path)
        existed = path.exists()
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK).open("a")
    except OSError as error:
        raise EnvironmentFault(_unwritable(path, error)) from error
    with lock:
        _lock(lock, path)
        try:
            yield RunDirectory(path)
        finally:
            # A run that failed before it wrote anything leaves nothing.
            if not existed and [entry.name for entry in path.iterdir()] == [_LOCK]:
                shutil.rmtree(path)


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run before may have removed the folder between the opening and the locking.
        mine = os.path.samestat(os.fstat(file.fileno()), (path / _LOCK).stat())
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError as error:
        raise EnvironmentFault(_unwritable(path, error)) from error
    if not mine:
        raise RunInUse(f"Another run is using {path}; wait until it ends, or choose another --run_dir.")


def now() -> str:
    """The time in ISO form, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"--run_dir must be a folder, but {path} is a file; choose another one.")
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()} - {_LOCK}
        if names and not _is_run(path):
            raise UsageError(
                f"--run_dir {path} holds files that are not a run's ({', '.join(sorted(names)[:3])}); choose an empty "
                "or a new folder."
            )


def _is_run(path: Path) -> bool:
    """A run's config.yaml begins with its job."""
    config = path / "config.yaml"
    return config.is_file() and config.read_bytes().startswith(b"job: ")


def _unwritable(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"The run directory {path} cannot be written ({reason}); choose another --run_dir or make room."
