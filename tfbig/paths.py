"""Paths as people write them. Imports no TensorFlow."""

from __future__ import annotations

from pathlib import Path

from tfbig.errors import UsageError


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` in full.

    Raises:
        UsageError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} names a home folder that does not exist here; write the path in full.") from error
