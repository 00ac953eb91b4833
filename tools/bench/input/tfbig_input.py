"""tfbig: what `image_finetune --options.augment resized_crop,flip` trains on, by the job's own functions and
under its runtime.
"""

from __future__ import annotations

import argparse
import sys

import keras
import numpy as np
import read
from scripts import arguments

import tfbig
from tfbig.config import DataConfig, RunConfig, RuntimeConfig
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.pipelines.image_finetune import TASK, ImageOptions
from tfbig.runtime import runtime

_NUM_STEPS = 100_000
"""More than are ever run, as in a long epoch."""


def main() -> None:
    args = arguments("--decoded_gb", "--compiled")
    if args.compiled == "no":
        # As it is where it was not compiled: an import fails.
        sys.modules["tfbig.data._jpeg"] = None
    with runtime(strategy="none", precision="float32", seed=args.seed):
        read_batches(args)


def read_batches(args: argparse.Namespace) -> None:
    """Goes on until the process is killed."""
    config = RunConfig(
        data=DataConfig(source=f"folder:{args.folder}", batch_size=read.BATCH_SIZE, decoded_gb=float(args.decoded_gb)),
        runtime=RuntimeConfig(seed=args.seed),
        options=ImageOptions(augment="resized_crop,flip"),
    )
    network = keras.Sequential([keras.Input((read.SIDE, read.SIDE, 3)), keras.layers.Flatten()])
    splits = TASK.prepare(TASK.load(config), network)
    train = splits.train.subset(np.resize(np.arange(len(splits.train)), _NUM_STEPS * read.BATCH_SIZE))
    plan = IndexPlan(len(train), read.BATCH_SIZE, seed=args.seed)
    turns = read.turns("tensorflow", "keras", tfbig=tfbig.__version__)
    for x, _, _ in batches(train, plan, augment=TASK.augment(config, splits.spec)):
        if x.shape != (read.BATCH_SIZE, read.SIDE, read.SIDE, 3):
            raise ValueError(f"got a batch of {x.shape}")
        turns.step_done()


if __name__ == "__main__":
    main()
