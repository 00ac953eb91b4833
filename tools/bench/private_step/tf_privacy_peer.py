"""TensorFlow Privacy's DPModel on TensorFlow 2.15 and Keras 2.

The layer registry is passed, so that DPModel takes its fast path where it knows every trained layer
(`head`) and its vectorised one elsewhere.
"""

from __future__ import annotations

import argparse

import numpy as np
import rows
import tensorflow as tf
import tensorflow_privacy
from paired import Contender, Step, answer
from rows import Row
from tensorflow_privacy.privacy.fast_gradient_clipping.layer_registry import make_default_layer_registry
from tensorflow_privacy.privacy.keras_models.dp_keras_model import DPModel

layers = tf.keras.layers
# Letters in shapes: B images, T patches, D width.

# Inputs and outputs of a functional network.
Ends = tuple[tf.Tensor, tf.Tensor]


class Positions(layers.Layer):
    """Adds learned positions to (B, T, D) tokens."""

    def build(self, shape: tf.TensorShape) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal", name="table")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.table


def cnn(row: Row) -> Ends:
    """The row's network."""
    images = x = layers.Input((row.side, row.side, 3))
    for filters in rows.CHANNELS:
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.GroupNormalization(rows.GROUPS, epsilon=rows.GROUP_NORM_EPSILON)(x)
        x = layers.MaxPooling2D()(layers.Activation("relu")(x))
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return images, layers.Dense(rows.NUM_CLASSES)(x)


def vit(row: Row) -> Ends:
    """The row's network."""
    images = layers.Input((row.side, row.side, 3))
    x = layers.Conv2D(rows.WIDTH, rows.PATCH, rows.PATCH)(images)
    x = Positions()(layers.Reshape((row.num_patches, rows.WIDTH))(x))  # (B, T, D)
    for _ in range(rows.DEPTH):
        normed = layers.LayerNormalization(epsilon=rows.LAYER_NORM_EPSILON)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(rows.HEADS, rows.WIDTH // rows.HEADS)(normed, normed)])
        normed = layers.LayerNormalization(epsilon=rows.LAYER_NORM_EPSILON)(x)
        x = layers.Add()([x, layers.Dense(rows.WIDTH)(layers.Dense(4 * rows.WIDTH, activation="gelu")(normed))])
    x = layers.LayerNormalization(epsilon=rows.LAYER_NORM_EPSILON)(x)
    return images, layers.Dense(rows.NUM_CLASSES)(layers.GlobalAveragePooling1D()(x))


def build(row: Row, args: argparse.Namespace) -> Contender:
    """Steps of the row's network on one batch."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(0)

    def ends() -> Ends:
        images, logits = cnn(row) if row.name == "cnn" else vit(row)
        if row.name == "head":
            for layer in tf.keras.Model(images, logits).layers[:-1]:
                layer.trainable = False
        return images, logits

    def private() -> Step:
        images, logits = ends()
        model = DPModel(
            l2_norm_clip=rows.CLIP_NORM,
            noise_multiplier=rows.NOISE_MULTIPLIER,
            # The step below is compiled or not, the private one and the plain one alike.
            use_xla=False,
            layer_registry=make_default_layer_registry(),
            inputs=images,
            outputs=logits,
        )
        return _step(model, row, args)

    versions = {"tensorflow-privacy": tensorflow_privacy.__version__, "tensorflow": tf.__version__}
    return Contender(private=private, plain=lambda: _step(tf.keras.Model(*ends()), row, args), versions=versions)


def _step(model: tf.keras.Model, row: Row, args: argparse.Namespace) -> Step:
    row.check(sum(int(np.prod(weight.shape)) for weight in model.trainable_variables))
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(rows.LEARNING_RATE), loss)
    x = tf.random.normal((row.batch_size, row.side, row.side, 3))
    y = tf.random.uniform((row.batch_size, 1), 0, rows.NUM_CLASSES, tf.int32)
    train = tf.function(model.train_step, jit_compile=args.jit or None)
    return lambda: [value.numpy() for value in train((x, y)).values()]


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--jit", action="store_true", help="compile both steps with XLA")
    answer(build, flags)
