"""tfbig on Keras 3: the rule of `--dp.noise_multiplier` against the rule without privacy.

Both steps act on one network and one optimizer, as a step of the learner does.
"""

from __future__ import annotations

import argparse
import math

import keras
import numpy as np
import rows
import tensorflow as tf
from keras import layers
from paired import Contender, Step, answer
from rows import Row

import tfbig
from tfbig.data.splits import Batch
from tfbig.gradients.private.rule import private
from tfbig.gradients.rule import GradientRule, mean_gradient
from tfbig.networks.fused import fused
from tfbig.objectives.supervised import classification

# Letters in shapes: B images, T patches, D width.


class Positions(layers.Layer):
    """Adds learned positions to (B, T, D) tokens."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal", name="table")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.table


def cnn(row: Row) -> keras.Model:
    """The row's network, trained whole."""
    images = x = layers.Input((row.side, row.side, 3))
    for filters in rows.CHANNELS:
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.GroupNormalization(rows.GROUPS, epsilon=rows.GROUP_NORM_EPSILON)(x)
        x = layers.MaxPooling2D()(layers.Activation("relu")(x))
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(rows.NUM_CLASSES)(x))


def vit(row: Row) -> keras.Model:
    """The row's network, trained whole."""
    images = layers.Input((row.side, row.side, 3))
    x = layers.Conv2D(rows.WIDTH, rows.PATCH, rows.PATCH)(images)
    x = Positions()(layers.Reshape((row.num_patches, rows.WIDTH))(x))  # (B, T, D)
    for _ in range(rows.DEPTH):
        normed = layers.LayerNormalization(epsilon=rows.LAYER_NORM_EPSILON)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(rows.HEADS, rows.WIDTH // rows.HEADS)(normed, normed)])
        normed = layers.LayerNormalization(epsilon=rows.LAYER_NORM_EPSILON)(x)
        x = layers.Add()([x, layers.Dense(rows.WIDTH)(layers.Dense(4 * rows.WIDTH, activation="gelu")(normed))])
    x = layers.LayerNormalization(epsilon=rows.LAYER_NORM_EPSILON)(x)
    return keras.Model(images, layers.Dense(rows.NUM_CLASSES)(layers.GlobalAveragePooling1D()(x)))


def network(row: Row) -> keras.Model:
    """The row's network, trainable in what the row trains."""
    built = cnn(row) if row.name == "cnn" else vit(row)
    if row.name == "head":
        _freeze(built)
    if row.name == "lora":
        _adapt(built)
    row.check(sum(math.prod(variable.shape) for variable in built.trainable_variables))
    # As training/assembly.py does with every network.
    return fused(built)


def _freeze(vit: keras.Model) -> None:
    for layer in vit.layers[:-1]:
        layer.trainable = False


def _adapt(vit: keras.Model) -> None:
    # A backbone's layers at any depth; those within attention too, which Keras has no public way to.
    for layer in vit._flatten_layers(include_self=False):
        if layer is vit.layers[-1] or isinstance(layer, layers.MultiHeadAttention):
            continue
        if isinstance(layer, layers.Dense | layers.EinsumDense):
            # Not zeros, so that both factors have a gradient.
            layer.enable_lora(rows.LORA_RANK, b_initializer="random_normal")
            layer.bias.trainable = False
        else:
            layer.trainable = False


def build(row: Row, args: argparse.Namespace) -> Contender:
    """Steps of the row's network on one batch."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    trained, objective = network(row), classification(rows.NUM_CLASSES)
    optimizer = keras.optimizers.SGD(rows.LEARNING_RATE)
    optimizer.build(trained.trainable_variables)
    rng = np.random.default_rng(0)
    batch = Batch(
        tf.constant(rng.normal(size=(row.batch_size, row.side, row.side, 3)), tf.float32),
        tf.constant(rng.integers(rows.NUM_CLASSES, size=row.batch_size)),
        tf.ones(row.batch_size),
    )

    def step(rule: GradientRule) -> Step:
        @tf.function(jit_compile=args.jit or None)
        def train(batch: Batch) -> tf.Tensor:
            gradients, losses, _ = rule(objective.losses, trained, batch)
            optimizer.apply(gradients, trained.trainable_variables)
            return tf.reduce_mean(losses)

        return lambda: train(batch).numpy()

    def private_step() -> Step:
        rule = private(
            trained,
            objective.losses,
            labels=batch.y.numpy(),
            clip_norm=rows.CLIP_NORM,
            noise_multiplier=rows.NOISE_MULTIPLIER,
            expected_batch=row.batch_size,
            physical_batch_size=row.batch_size,
            secret=0,
            step=lambda: optimizer.iterations,
        )
        return step(rule)

    versions = {"tfbig": tfbig.__version__, "tensorflow": tf.__version__, "keras": keras.__version__}
    return Contender(private=private_step, plain=lambda: step(mean_gradient), versions=versions)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--jit", action="store_true", help="compile both steps with XLA")
    answer(build, flags)
