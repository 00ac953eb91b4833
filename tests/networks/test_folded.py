"""A folded network computes what the network computes in inference, in fewer operations, and changes nothing of it."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfbig.networks.folded import folded, folds_of
from tfbig.networks.fused import fused
from tfbig.networks.heads import InferenceModel

SHAPE = (8, 8, 6)


def _chain(*parts: keras.layers.Layer, name: str | None = None) -> keras.Model:
    images = keras.Input(SHAPE)
    x = images
    for part in parts:
        x = part(x)
    return keras.Model(images, x, name=name)


def _branches() -> keras.Model:
    """A convolution that two read, a ReLU that only one of two reads, and a layer that is called twice."""
    images = keras.Input(SHAPE)
    shared = layers.Conv2D(6, 3, padding="same")
    read_twice = layers.Conv2D(6, 3, padding="same")(images)
    normed = layers.BatchNormalization()(layers.Conv2D(6, 1)(images))
    called_twice = [layers.BatchNormalization()(shared(images)), shared(layers.ReLU()(images))]
    sums = [layers.BatchNormalization()(read_twice), read_twice, layers.ReLU()(normed), normed, *called_twice]
    return keras.Model(images, layers.Add()(sums))


def _outputs_between() -> keras.Model:
    images = keras.Input(SHAPE)
    x = layers.Conv2D(6, 3)(images)
    return keras.Model(images, [layers.BatchNormalization()(x), x])


def _nested() -> keras.Model:
    inner = _chain(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU())
    outer = InferenceModel(inner.inputs[0], layers.GlobalAveragePooling2D()(inner.outputs[0]), name="inside")
    return _chain(layers.Conv2D(6, 1), layers.BatchNormalization(), outer, layers.Dense(3))


@keras.saving.register_keras_serializable("tfbig_test")
class Doubled(keras.Model):
    """Functional, but for what its call adds."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: None = None) -> tf.Tensor:
        return 2.0 * super().call(inputs, training=training, mask=mask)


def _with_call() -> keras.Model:
    inner = _chain(layers.Conv2D(4, 3), layers.BatchNormalization())
    return _chain(Doubled(inner.inputs[0], inner.outputs[0]), layers.Activation("tanh"))


Make = Callable[[], keras.Model]
NETWORKS: dict[str, tuple[int, Make]] = {
    "with bias": (1, lambda: _chain(layers.Conv2D(5, 3), layers.BatchNormalization(), layers.ReLU())),
    "without bias": (1, lambda: _chain(layers.Conv2D(5, 3, use_bias=False), layers.BatchNormalization())),
    "without scale and offset": (
        1, lambda: _chain(layers.Conv2D(5, 1), layers.BatchNormalization(scale=False, center=False)),
    ),
    "with a large epsilon": (1, lambda: _chain(layers.Conv2D(5, 1), layers.BatchNormalization(epsilon=0.1))),
    "with strides and a margin": (
        2, lambda: _chain(layers.Conv2D(5, 3, strides=2, padding="same"), layers.BatchNormalization(),
                          layers.Conv2D(4, 1, strides=2), layers.BatchNormalization(), layers.Activation("relu")),
    ),
    "of groups": (1, lambda: _chain(layers.Conv2D(4, 3, groups=2), layers.BatchNormalization())),
    "with holes": (1, lambda: _chain(layers.Conv2D(4, 3, dilation_rate=2), layers.BatchNormalization())),
    "of other ReLUs": (2, lambda: _chain(layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(0.3),
                                         layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Activation("elu"))),
    "of many channels": (
        1, lambda: _chain(layers.Conv2D(256, 1), layers.Conv2D(256, 3, padding="same"), layers.BatchNormalization()),
    ),
    "with an activation between": (0, lambda: _chain(layers.Conv2D(4, 3, activation="relu"),
                                                     layers.BatchNormalization())),
    "of rows": (0, lambda: _chain(layers.Conv2D(4, 3), layers.BatchNormalization(axis=1))),
    "of branches": (1, _branches),
    "read between": (0, _outputs_between),
    "nested": (1, _nested),
    "with a call of its own": (0, _with_call),
}  # fmt: skip


def _randomised(network: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    network.set_weights([w + rng.uniform(0.1, 0.9, np.shape(w)).astype(np.float32) for w in network.get_weights()])
    return network


def _images(num_images: int = 4) -> tf.Tensor:
    return tf.constant(np.random.default_rng(1).normal(0.5, 1.0, (num_images, *SHAPE)), tf.float32)


def _all(outputs: object) -> list[np.ndarray]:
    return [np.asarray(tf.cast(value, tf.float32)) for value in tf.nest.flatten(outputs)]


@pytest.mark.parametrize("with_forms", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_what_the_network_gives_and_leaves_it_as_it_was(name: str, with_forms: bool) -> None:
    num_folds, make = NETWORKS[name]
    network = _randomised(make())
    if with_forms:
        fused(network)
    assert len(folds_of(network)) == num_folds
    before = network.get_weights()
    num_calls = [len(layer._inbound_nodes) for layer in network._flatten_layers()]
    expected = _all(network(_images(), training=False))
    for one, other in zip(expected, _all(folded(network, _images())), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4 * np.abs(one).max())
    # Neither a weight nor the graph: another model on the same layers would stay with them for good.
    for one, other in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [len(layer._inbound_nodes) for layer in network._flatten_layers()] == num_calls


def test_no_norm_is_left_and_the_rest_is_one_operation() -> None:
    network = fused(_randomised(_nested()))
    graph = tf.function(lambda x: folded(network, x), autograph=False).get_concrete_function(_images()).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert "FusedBatchNormV3" not in kinds and kinds.count("BiasAdd") == 3 and kinds.count("Relu") == 1


def test_dropout_drops_nothing() -> None:
    network = _chain(layers.Dropout(0.5), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Dropout(0.5))
    np.testing.assert_allclose(folded(network, _images()), network(_images(), training=False), atol=1e-5)


def test_under_bfloat16_it_errs_no_more_than_the_network() -> None:
    exact = _randomised(NETWORKS["with strides and a margin"][1]())
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        rounded = NETWORKS["with strides and a margin"][1]()
    finally:
        keras.config.set_dtype_policy(before)
    rounded.set_weights(exact.get_weights())
    images = _images(64)
    truth = _all(exact(images, training=False))[0]
    of_network, of_folded = (
        np.linalg.norm(_all(found)[0] - truth) for found in (rounded(images, training=False), folded(rounded, images))
    )
    assert 0 < of_folded <= 1.5 * of_network
