"""Checkpoints: one checked .npz file each, written whole or not at all, the last two kept.

A file is written under another name, flushed to the disk and renamed, so a kill at any moment leaves the
checkpoints before it as they were. Zip's own checksums tell a damaged file; then the one before it is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfbig.errors import EnvironmentFault, UsageError

log = logging.getLogger(__name__)

_KEPT = 2
_META = "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on: groups of arrays, and what else is to be remembered as JSON."""

    groups: Mapping[str, Sequence[np.ndarray]]
    meta: dict


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes one checkpoint file atomically.

    Raises:
        EnvironmentFault: The disk is full or the folder cannot be written; nothing is left behind.
    """
    arrays: dict = {
        f"{group}.{index:05d}": array
        for group, members in checkpoint.groups.items()
        for index, array in enumerate(members)
    }
    arrays[_META] = np.frombuffer(json.dumps(checkpoint.meta).encode(), np.uint8)
    # One name for all: what a kill leaves is replaced by the next checkpoint.
    partial = path.with_name(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise EnvironmentFault(
            f"The checkpoint {path} could not be written ({error.strerror or error}); free some space or choose "
            "another --run_dir, and give the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read(path: Path) -> Checkpoint:
    """Reads one checkpoint file.

    Raises:
        ValueError: The file is damaged or is no checkpoint.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        log.debug("%s", path, exc_info=True)
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error
    if not isinstance(meta, dict) or not arrays:
        raise ValueError(f"{path} is damaged: it does not say where the run was")
    groups: dict[str, list[np.ndarray]] = {}
    for name in sorted(arrays):
        groups.setdefault(name.rsplit(".", 1)[0], []).append(arrays[name])
    return Checkpoint(groups, meta)


def save(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Writes the checkpoint of one step, and removes all but the last two."""
    path = folder / f"step-{step:09d}.npz"
    write(path, checkpoint)
    for old in _in_order(folder)[:-_KEPT]:
        old.unlink()
    return path


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none at all.

    Raises:
        EnvironmentFault: There are checkpoints, and all of them are damaged.
    """
    paths = _in_order(folder)
    for path in reversed(paths):
        try:
            return read(path)
        except ValueError as error:
            log.warning("%s; using the checkpoint before it", error)
    if paths:
        raise EnvironmentFault(
            f"All checkpoints in {folder} are damaged, so this run cannot go on; --resume never starts it again."
        )
    return None


def assign(group: str, variables: Sequence, arrays: Sequence[np.ndarray]) -> None:
    """Puts a group's arrays back into its variables.

    Raises:
        UsageError: The checkpoint was written by another network.
    """
    shapes = [tuple(array.shape) for array in arrays]
    expected = [tuple(variable.shape) for variable in variables]
    if shapes != expected:
        raise UsageError(
            f"The checkpoint's {group} has {len(shapes)} arrays that do not fit the {len(expected)} of this run: "
            "it was written by another network; use another --run_dir, or --resume never."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def latest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint, whole or not; None where there is none."""
    paths = _in_order(folder)
    return int(paths[-1].stem.split("-")[1]) if paths else None


def _in_order(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.npz"))
