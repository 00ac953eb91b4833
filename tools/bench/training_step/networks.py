"""The rows' networks in Keras, for tfbig and for plain Keras alike, and the multiply-adds that they need.

Letters in shapes: B images, S pixels a side, T tokens, D width.
"""

from __future__ import annotations

import math

import keras
import work
from keras import layers
from work import Row


@keras.saving.register_keras_serializable("tfbig_bench")
class Tokens(layers.Layer):
    """(B, T, D) patches -> (B, T + 1, D): a class token in front, and learned positions added."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.first = self.add_weight(shape=(1, 1, shape[2]), initializer="random_normal", name="class_token")
        self.table = self.add_weight(shape=(1, shape[1] + 1, shape[2]), initializer="random_normal", name="positions")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        first = keras.ops.broadcast_to(self.first, (keras.ops.shape(x)[0], 1, x.shape[2]))
        return keras.ops.concatenate([keras.ops.cast(first, x.dtype), x], axis=1) + keras.ops.cast(self.table, x.dtype)

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0], shape[1] + 1, shape[2]


def vit_features() -> keras.Model:
    """Images (B, S, S, 3) -> (B, D), the class token of the `vit_tiny`."""
    images = layers.Input((work.SIDE, work.SIDE, 3))
    x = layers.Conv2D(work.WIDTH, work.PATCH, work.PATCH)(images)
    x = Tokens()(layers.Reshape(((work.SIDE // work.PATCH) ** 2, work.WIDTH))(x))  # (B, T, D)
    for _ in range(work.DEPTH):
        normed = layers.LayerNormalization(epsilon=work.LAYER_NORM_EPSILON)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(work.HEADS, work.WIDTH // work.HEADS)(normed, normed)])
        normed = layers.LayerNormalization(epsilon=work.LAYER_NORM_EPSILON)(x)
        x = layers.Add()([x, layers.Dense(work.WIDTH)(layers.Dense(4 * work.WIDTH, activation="gelu")(normed))])
    x = layers.LayerNormalization(epsilon=work.LAYER_NORM_EPSILON)(x)
    return keras.Model(images, x[:, 0])


def plain(row: Row) -> keras.Model:
    """Images (B, S, S, 3) -> logits (B, classes), as a user of Keras writes it."""
    if row.name == "resnet50":
        return keras.applications.ResNet50(
            weights=None, input_shape=(work.SIDE, work.SIDE, 3), classes=work.NUM_CLASSES, classifier_activation=None
        )
    features = vit_features()
    return keras.Model(features.inputs, layers.Dense(work.NUM_CLASSES, dtype="float32")(features.outputs[0]))


def num_trained(network: keras.Model) -> int:
    """Parameters that a step changes."""
    return sum(math.prod(variable.shape) for variable in network.trainable_variables)


def multiply_adds(network: keras.Model) -> int:
    """Multiply-adds of the forward pass of one example: of convolutions, matrix products and attention, nothing else.

    Args:
        network: Functional; models in it are looked into. Each layer is called once.
    """
    return sum(_of_layer(layer) for layer in network.layers)


def _of_layer(layer: keras.layers.Layer) -> int:
    if isinstance(layer, keras.Model):
        return multiply_adds(layer)
    if isinstance(layer, layers.MultiHeadAttention):
        num_tokens = layer.output.shape[1]
        projections = sum(math.prod(weight.shape) for weight in layer.weights if len(weight.shape) == 3)
        return num_tokens * projections + 2 * num_tokens**2 * layer.num_heads * layer.key_dim
    if isinstance(layer, layers.Conv2D | layers.Dense):
        return math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return 0
