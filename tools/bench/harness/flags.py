"""Flags that the benches share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterable
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


def whole(least: int, most: int, *, usual: str = "") -> Callable[[str], int]:
    """A type of argument: a whole number of a range."""

    def parsed(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            hint = f"; {usual} is usual" if usual else ""
            raise argparse.ArgumentTypeError(f"expected a whole number from {least:,} to {most:,}, got {text!r}{hint}")
        return int(text)

    return parsed


def parser_of(
    description: str | None, *, tools: Collection[str] = (), rows: Collection[str] = ()
) -> argparse.ArgumentParser:
    """A bench's command line, with what all have: `--json`, and `--only` and `--rows` where there are some."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="end with one line of JSON; the table goes to stderr")
    if tools:
        made.add_argument("--only", type=names(tools), default=[*tools], help=f"tools, of {','.join(tools)}")
    if rows:
        made.add_argument("--rows", type=names(rows), default=[*rows], help=f"rows, of {','.join(rows)}")
    return made


def add_environments(parser: argparse.ArgumentParser) -> None:
    """Adds `--environments`, where the peers' environments are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tfbig" / "bench"
    parser.add_argument("--environments", type=Path, default=cache, help="folder of the peers' venvs (%(default)s)")
