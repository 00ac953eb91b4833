"""Flags that the benches share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A type of argument: some of the known names, joined by commas."""

    def parsed(text: str) -> list[str]:
        given = text.split(",")
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}; join several by commas")
        return given

    return parsed


def add_environments(parser: argparse.ArgumentParser) -> None:
    """Adds `--environments`, where the peers' environments are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tfbig" / "bench"
    parser.add_argument("--environments", type=Path, default=cache, help="folder of the peers' venvs (%(default)s)")
