"""What both sides of the bench of `fit` share: the network, the images in memory, and the settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

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


def labels() -> np.ndarray:
    """(NUM_EXAMPLES,) int32 classes, in turn."""
    return np.resize(np.arange(NUM_CLASSES, dtype=np.int32), NUM_EXAMPLES)


def gather(network: keras.Model, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """What gives the made-up images of the size that a network takes: (B,) int64 indices -> (B, S, S, 3) float32."""
    x = np.random.default_rng(seed).random((NUM_IMAGES, *network.input_shape[1:]), np.float32)

    def gathered(indices: tf.Tensor) -> tf.Tensor:
        rows = tf.numpy_function(lambda i: x[i % len(x)], [indices], tf.float32, stateful=False)
        return tf.ensure_shape(rows, indices.shape + x.shape[1:])

    return gathered
