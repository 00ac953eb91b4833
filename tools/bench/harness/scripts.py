"""What the tools' own scripts share: flags and versions. Standard library only: any environment imports it."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path


def arguments(*flags: str, has_work: bool = False) -> argparse.Namespace:
    """`folder` of pictures, one sub-folder a class, and `seed`.

    Args:
        *flags: Further ones, that take a word each.
        has_work: Whether there is `work`, an empty folder for what the tool writes.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    if has_work:
        parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    for flag in flags:
        parser.add_argument(flag, required=True)
    return parser.parse_args()


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that take part."""
    return {name: importlib.metadata.version(name) for name in packages}
