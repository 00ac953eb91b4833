"""What the tools' scripts of the input bench share: their flags and the batch. Standard library only."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

from turns import Turns

BATCH_SIZE = 16
SIDE = 224
WARM_UP_STEPS = 10


def arguments(*flags: str) -> argparse.Namespace:
    """`folder` of pictures, one sub-folder a class, `seed`, and further flags that take a word."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    for flag in flags:
        parser.add_argument(flag, required=True)
    return parser.parse_args()


def turns(*packages: str, **versions: str) -> Turns:
    """The turns of a tool that uses these packages."""
    found = {name: importlib.metadata.version(name) for name in packages} | versions
    return Turns(warm_up_steps=WARM_UP_STEPS, facts={"versions": found})
