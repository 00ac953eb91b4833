"""What both sides of the bench of `fit` share: the network, the images in memory, and the settings."""

from __future__ import annotations

import argparse

import keras
import numpy as np

from tfbig.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig
from tfbig.data.splits import DataSpec
from tfbig.pipelines.image_finetune import TASK, ImageOptions

NUM_CLASSES = 10
NUM_IMAGES = 1024
NUM_EXAMPLES = 1_000_000
"""More than are ever seen: neither side comes to the end of an epoch, where ours evaluates and writes."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.03
WARM_UP_STEPS = 5


def arguments() -> argparse.Namespace:
    """`backbone`, `batch_size` and `seed`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


def configuration(args: argparse.Namespace) -> RunConfig:
    """What the command line would give; without validation, which plain Keras does not have either."""
    return RunConfig(
        data=DataConfig(batch_size=args.batch_size, validation_fraction=0.0),
        model=ModelConfig(backbone=args.backbone, weights="none" if args.backbone.startswith("apps:") else "imagenet"),
        adapt=AdaptConfig(mode="full"),
        train=TrainConfig(
            epochs=1, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, schedule="constant", keep="last"
        ),
        runtime=RuntimeConfig(precision="float32", seed=args.seed),
        options=ImageOptions(),
    )


def network(config: RunConfig, spec: DataSpec) -> keras.Model:
    """Images to logits, as the job builds it."""
    return TASK.build(config, spec)


def images(network: keras.Model, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, 3) made-up images of the size that the network takes, and (N,) labels."""
    rng = np.random.default_rng(seed)
    x = rng.random((NUM_IMAGES, *network.input_shape[1:]), np.float32)
    return x, rng.integers(NUM_CLASSES, size=NUM_IMAGES).astype(np.int32)
