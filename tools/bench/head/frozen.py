"""What the tools' scripts of the head bench share: flags, settings and the answer. Standard library only."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from pathlib import Path

BATCH_SIZE = 16
SIDE = 224
NUM_CLASSES = 10
NUM_EPOCHS = 20
LEARNING_RATE = 1e-3
NUM_MEASURED = 2
"""Epochs that a peer runs: the first, and one of the others, which are alike."""


def arguments() -> argparse.Namespace:
    """`folder` with train and test folders of pictures, an empty folder `work`, and `seed`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


def answer(packages: tuple[str, ...], **figures: object) -> None:
    """Ends a script's output with what it measured."""
    versions = {name: importlib.metadata.version(name) for name in packages}
    print(json.dumps({**figures, "versions": versions}))
