"""What the tools' scripts of the head bench share: settings and the answer. Standard library only."""

from __future__ import annotations

import json

from scripts import versions

BATCH_SIZE = 16
SIDE = 224
NUM_CLASSES = 10
NUM_EPOCHS = 20
LEARNING_RATE = 1e-3
NUM_MEASURED = 2
"""Epochs that a peer runs: the first, and one of the others, which are alike."""


def answer(packages: tuple[str, ...], **figures: object) -> None:
    """Ends a script's output with what it measured."""
    print(json.dumps({**figures, "versions": versions(*packages)}))
