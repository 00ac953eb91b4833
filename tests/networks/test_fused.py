"""The faster forms compute what Keras's layers compute, learn what they learn, and can be taken back."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfbig.networks import fused as forms
from tfbig.networks.fused import fused, keras_type, plain

# B, H, W, C of pictures; B, T, D of tokens.
PICTURES = (4, 6, 6, 8)
TOKENS = (4, 7, 12)


def _attention() -> keras.Model:
    tokens = layers.Input(TOKENS[1:])
    return keras.Model(tokens, layers.MultiHeadAttention(3, 4)(tokens, tokens))


def _stack(*parts: keras.layers.Layer, shape: tuple[int, ...]) -> keras.Model:
    return keras.Sequential([layers.Input(shape[1:]), *parts])


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "batch norm": lambda: _stack(layers.BatchNormalization(momentum=0.7), shape=PICTURES),
    "batch norm without scale": lambda: _stack(layers.BatchNormalization(scale=False), shape=PICTURES),
    "batch norm of vectors": lambda: _stack(layers.BatchNormalization(), shape=TOKENS),
    "layer norm": lambda: _stack(layers.LayerNormalization(epsilon=1e-5), shape=TOKENS),
    "layer norm without offset": lambda: _stack(layers.LayerNormalization(center=False), shape=TOKENS),
    "layer norm of two axes": lambda: _stack(layers.LayerNormalization(axis=(1, 2)), shape=TOKENS),
    "dense": lambda: _stack(layers.Dense(5), shape=TOKENS),
    "dense with gelu": lambda: _stack(layers.Dense(16, activation="gelu"), layers.Dense(3), shape=TOKENS),
    "dense with softmax": lambda: _stack(layers.Dense(5, activation="softmax", use_bias=False), shape=TOKENS),
    "gelu alone": lambda: _stack(layers.Activation("gelu"), layers.Dense(3), shape=TOKENS),
    "einsum": lambda: _stack(layers.EinsumDense("abc,cde->abde", (None, 3, 4), bias_axes="de"), shape=TOKENS),
    "einsum of another kind": lambda: _stack(
        layers.EinsumDense("abc,bd->adc", (5, 12), bias_axes="d"), shape=TOKENS
    ),
    "attention": _attention,
    "convolution of one pixel": lambda: _stack(layers.Conv2D(5, 1), shape=PICTURES),
    "convolution of one pixel with relu": lambda: _stack(
        layers.Conv2D(5, 1, use_bias=False, activation="relu"), layers.Dense(3), shape=PICTURES
    ),
    "convolution that skips pixels": lambda: _stack(layers.Conv2D(5, 1, strides=(3, 2)), shape=PICTURES),
    "convolution that skips many pixels": lambda: _stack(
        layers.Conv2D(5, 1, strides=2, padding="same"), shape=(4, 36, 36, 8)
    ),
    "convolution that skips pixels of an odd picture": lambda: _stack(
        layers.Conv2D(5, 1, strides=2), shape=(4, 7, 7, 8)
    ),
    "convolution of many channels": lambda: _stack(
        layers.Conv2D(256, (3, 1), padding="same"), layers.Conv2D(260, 3, padding="same"), shape=(4, 3, 4, 256)
    ),
    "convolution with a margin": lambda: _stack(layers.Conv2D(256, 3), shape=(4, 4, 4, 256)),
    "convolution of groups": lambda: _stack(layers.Conv2D(6, 1, groups=2), shape=PICTURES),
}

# With the operations that are compiled with tfbig and without.
CASES = [(name, False) for name in NETWORKS] + [(name, True) for name in NETWORKS if name.startswith("batch norm")]


def _randomised(network: keras.Model) -> keras.Model:
    rng = np.random.default_rng(0)
    network.set_weights([w + rng.uniform(0.1, 0.5, np.shape(w)).astype(np.float32) for w in network.get_weights()])
    return network


def _step(network: keras.Model, x: tf.Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(outputs, then gradients; weights afterwards) of one training step that leaves the weights as they were."""
    before = network.get_weights()
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = network(x, training=True)
        # Not a sum of squares, which a norm hardly changes.
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * tf.random.stateless_normal(outputs.shape, (0, 1)))
    gradients = tape.gradient(loss, [x, *(v.value for v in network.trainable_variables)])
    after = network.get_weights()
    network.set_weights(before)
    found = [outputs, network(x, training=False), *gradients]
    return [np.asarray(tf.cast(value, tf.float32)) for value in found], after


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize(("name", "for_xla"), CASES)
def test_a_form_gives_the_layers_results_gradients_and_averages(name: str, for_xla: bool, trainable: bool) -> None:
    network = _randomised(NETWORKS[name]())
    network.trainable = trainable
    x = tf.constant(np.random.default_rng(1).normal(1.0, 2.0, (4, *network.input_shape[1:])), tf.float32)
    expected, learnt = _step(network, x)
    assert any(type(layer) is not keras_type(layer) for layer in fused(network, for_xla=for_xla)._flatten_layers())
    found, learnt_fused = _step(network, x)
    largest = max(np.abs(one).max() for one in expected[2:])
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        # Attention's key bias has a gradient of 0, of which either gives the rounding.
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * (largest if index >= 2 else np.abs(one).max()))
    for one, other in zip(learnt, learnt_fused, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "for_xla"), [
    ("batch norm", False), ("batch norm", True), ("layer norm", False), ("dense with gelu", False),
    ("attention", False), ("convolution that skips pixels", False), ("convolution of many channels", False),
])
def test_under_bfloat16_a_form_errs_no_more_than_the_layer(name: str, for_xla: bool) -> None:
    exact = _randomised(NETWORKS[name]())
    x = tf.constant(np.random.default_rng(1).normal(size=(4, *exact.input_shape[1:])), tf.float32)
    truth, _ = _step(exact, x)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        rounded = NETWORKS[name]()
    finally:
        keras.config.set_dtype_policy(before)
    rounded.set_weights(exact.get_weights())

    def error() -> float:
        found, _ = _step(rounded, x)
        return sum(float(np.linalg.norm(a - b)) for a, b in zip(found, truth, strict=True))

    of_keras = error()
    fused(rounded, for_xla=for_xla)
    assert error() <= 1.5 * of_keras


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("spread", "epsilon"), [(1.0, 1e-6), (1e-3, 1e-6), (1e-3, 1e-2)])
def test_a_layer_norm_in_a_graph_is_the_exact_one(spread: float, epsilon: float, dtype: str) -> None:
    """Of inputs whose variance is about epsilon or below it too, and whose mean is far from 0."""
    layer = layers.LayerNormalization(epsilon=epsilon, dtype=dtype)
    network = _randomised(_stack(layer, shape=TOKENS))
    fused(network)
    rng = np.random.default_rng(1)
    x = tf.cast(tf.constant(spread * (3.0 + rng.normal(size=TOKENS)), tf.float32), dtype)
    upstream = tf.cast(tf.constant(rng.normal(size=TOKENS), tf.float32), dtype)

    def outputs_and_gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = network(x)
        return [y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], output_gradients=upstream)]

    z, g = np.asarray(x, np.float64), np.asarray(upstream, np.float64)
    gamma, beta = (np.asarray(variable, np.float64) for variable in (layer.gamma, layer.beta))
    centred = z - z.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normed, scaled = centred * inverse, g * gamma
    of_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normed * (scaled * normed).mean(-1, keepdims=True))
    expected = [normed * gamma + beta, of_x, (g * normed).sum((0, 1)), g.sum((0, 1))]
    for found in (outputs_and_gradients(x), tf.function(outputs_and_gradients)(x)):
        for one, other in zip(expected, found, strict=True):
            off = np.abs(np.asarray(other, np.float64) - one).max() / np.abs(one).max()
            assert off < (1e-5 if dtype == "float32" else 2e-2)


def test_what_attention_cannot_do_in_whole_heads_is_left_to_keras() -> None:
    tokens = layers.Input(TOKENS[1:])
    attention = layers.MultiHeadAttention(3, 4)
    masked = keras.Model(tokens, attention(tokens, tokens, use_causal_mask=True))
    x = tf.random.normal(TOKENS, seed=1)
    expected = masked(x)
    np.testing.assert_allclose(fused(masked)(x), expected, atol=1e-5)
    changed = tf.concat([x[:, :-1], x[:, -1:] + 1.0], axis=1)
    np.testing.assert_allclose(masked(changed)[:, :-1], masked(x)[:, :-1], atol=1e-5)


def test_the_forms_can_be_taken_back() -> None:
    network = keras.Sequential(
        [layers.Input(PICTURES[1:]), layers.BatchNormalization(), layers.Dense(4, activation="gelu")]
    )
    config, kinds = network.get_config(), [type(layer) for layer in network._flatten_layers()]
    fused(network)
    assert [type(layer) for layer in network._flatten_layers()] != kinds
    plain(network)
    assert [type(layer) for layer in network._flatten_layers()] == kinds
    assert network.get_config() == config


def test_a_layer_of_someone_elses_is_left_alone() -> None:
    class Doubled(layers.Dense):
        def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
            return 2.0 * super().call(inputs)

    network = fused(_stack(Doubled(3), shape=TOKENS))
    assert type(network.layers[0]) is Doubled


def test_layers_inside_of_layers_are_found() -> None:
    network = fused(_attention())
    kinds = {type(layer) for layer in network._flatten_layers()}
    assert {forms.FusedAttention, forms.FusedEinsumDense} <= kinds


def test_low_rank_updates_go_through_a_form() -> None:
    network = _stack(layers.Dense(5), shape=TOKENS)
    network.layers[0].enable_lora(2)
    network = _randomised(network)
    x = tf.random.normal(TOKENS, seed=1)
    expected, _ = _step(network, x)
    found, _ = _step(fused(network), x)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "for_xla"), [
    ("batch norm", False), ("batch norm", True), ("convolution of one pixel", False),
    ("convolution of many channels", False), ("convolution with a margin", False),
])
@pytest.mark.parametrize("tape", ["in the graph", "around the graph"])
def test_a_form_learns_in_a_graph_what_it_learns_without(name: str, for_xla: bool, tape: str) -> None:
    network = fused(_randomised(NETWORKS[name]()), for_xla=for_xla)
    x = tf.constant(np.random.default_rng(1).normal(1.0, 2.0, (4, *network.input_shape[1:])), tf.float32)
    weights = tf.random.stateless_normal((4, *network.output_shape[1:]), (0, 1))
    before = network.get_weights()

    def gradients(call: Callable) -> list[tf.Tensor]:
        with tf.GradientTape() as recorded:
            recorded.watch(x)
            loss = tf.reduce_sum(call(x, training=True) * weights)
        return recorded.gradient(loss, [x, *(v.value for v in network.trainable_variables)])

    expected, learnt = gradients(network), network.get_weights()
    network.set_weights(before)
    if tape == "in the graph":
        found = tf.function(lambda: gradients(network), autograph=False)()
    else:
        found = gradients(tf.function(network, autograph=False))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    for one, other in zip(learnt, network.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6)


@pytest.mark.parametrize("for_xla", [False, True])
def test_a_block_of_a_network_is_few_operations_of_a_step(for_xla: bool) -> None:
    """Each costs half a millisecond before the first step; Keras's own take 101."""

    def convolution() -> keras.layers.Layer:
        return layers.Conv2D(8, 1)

    def num_operations(num_blocks: int) -> int:
        parts = [form() for _ in range(num_blocks) for form in (convolution, layers.BatchNormalization, layers.ReLU)]
        network = fused(_stack(*parts, shape=PICTURES), for_xla=for_xla)

        @tf.function(autograph=False)
        def step(x: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(network(x, training=True))
            return tape.gradient(loss, [v.value for v in network.trainable_variables])

        return len(step.get_concrete_function(tf.TensorSpec(PICTURES)).graph.get_operations())

    assert num_operations(5) - num_operations(4) <= 36
