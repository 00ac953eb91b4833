"""What the tools' scripts of the start-up bench share: their flags, and the batch. Standard library only."""

from __future__ import annotations

import argparse
from pathlib import Path

BATCH_SIZE = 16
SIDE = 224
NUM_CLASSES = 10
IMAGES_A_CLASS = 32
NUM_EPOCHS = 1000
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.03


def arguments() -> argparse.Namespace:
    """`folder` of pictures, one sub-folder a class; `seed`; an empty folder `work` for what a tool writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()
