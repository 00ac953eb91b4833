"""A norm joined with the sum and the ReLU behind it gives what they give one after another, and so do its gradients."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfbig.networks import compiled_batch_norm
from tfbig.networks.fused import fused, keras_type, plain

pytestmark = pytest.mark.skipif(
    not compiled_batch_norm.is_compiled(), reason="no compiled operations here: no C compiler when tfbig was installed"
)
EPSILON = 1e-3
# Rows of one block and of many, fewer channels than a vector has, and a number that is no multiple of it.
SHAPES = [(2, 3, 4, 8), (1, 1, 2, 1), (3, 20, 30, 19), (2, 5, 7, 300), (4, 40, 40, 64)]
BOUNDS = {"nothing": (-math.inf, math.inf), "ReLU": (0.0, math.inf), "ReLU6": (0.0, 6.0)}


def _inputs(shape: tuple[int, ...], dtype: str, *, seed: int = 0) -> tuple[tf.Tensor, ...]:
    """x, residual, two upstream gradients, and (C,) scale and offset."""
    rng = np.random.default_rng(seed)
    kinds = (5, 3), (1, 2), (0, 1), (0, 1)
    images = (tf.cast(tf.constant(rng.normal(mean, spread, shape), tf.float32), dtype) for mean, spread in kinds)
    return *images, *(tf.constant(rng.uniform(0.5, 2.0, shape[-1]), tf.float32) for _ in range(2))


def _exact(
    x: tf.Tensor, residual: tf.Tensor | None, upstream: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor
) -> list[np.ndarray]:
    """What is not cut, and the gradients of x, scale, offset and residual, by TensorFlow in float64."""
    given = [tf.cast(value, tf.float64) for value in (x, scale, offset, *([] if residual is None else [residual]))]
    with tf.GradientTape() as tape:
        tape.watch(given)
        x, scale, offset, *residuals = given
        axes = list(range(x.shape.rank - 1))
        mean, variance = tf.reduce_mean(x, axes), tf.math.reduce_variance(x, axes)
        result = tf.add_n([(x - mean) / tf.sqrt(variance + EPSILON) * scale + offset, *residuals])
    return [np.asarray(one) for one in (result, *tape.gradient(result, given, tf.cast(upstream, tf.float64)))]


def _ours(
    x: tf.Tensor, residual: tf.Tensor | None, upstream: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, bounds: tuple
) -> list[np.ndarray]:
    given = [x, scale, offset, *([] if residual is None else [residual])]
    with tf.GradientTape() as tape:
        tape.watch(given)
        mean, variance = compiled_batch_norm.moments(x)
        channels = mean, variance, scale, offset
        result = compiled_batch_norm.normalised(x, residual, channels, EPSILON, low=bounds[0], high=bounds[1])
    found = tape.gradient(result, given, tf.cast(upstream, result.dtype))
    return [np.asarray(tf.cast(one, tf.float64)) for one in (result, *found)]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_are_exact(
    shape: tuple[int, ...], dtype: str, with_residual: bool, bounds: str
) -> None:
    x, residual, upstream, _, scale, offset = _inputs(shape, dtype)
    if not with_residual:
        residual = None
    low, high = BOUNDS[bounds]
    result, *gradients = _ours(x, residual, upstream, scale, offset, (low, high))
    # With a residual what rounds to a bound has no gradient; without one the result is worked out anew, unrounded.
    seen = result if with_residual else _ours(tf.cast(x, tf.float32), None, upstream, scale, offset, (low, high))[0]
    is_through = (seen > low) & (seen < high)
    exact, *exact_gradients = _exact(x, residual, tf.where(is_through, upstream, 0), scale, offset)
    tolerance = 2e-6 if dtype == "float32" else 2**-8
    np.testing.assert_allclose(result, np.clip(exact, low, high), rtol=tolerance, atol=3e-5)
    for one, other in zip(exact_gradients, gradients, strict=True):
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=2e-6 * math.prod(shape[:-1]) ** 0.5 * 4)


def test_moments_lose_nothing_far_from_zero() -> None:
    x = tf.constant(np.random.default_rng(0).normal(1e4, 1.0, (4, 30, 30, 5)), tf.float32)
    mean, variance = compiled_batch_norm.moments(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-4)


def test_moments_lose_nothing_to_an_outlier_in_the_first_row() -> None:
    images = np.random.default_rng(0).normal(0.0, 1.0, (4, 100, 100, 5)).astype(np.float32)
    images[0, 0, 0] = 300.0
    mean, variance = compiled_batch_norm.moments(tf.constant(images))
    np.testing.assert_allclose(mean, images.mean((0, 1, 2), np.float64), atol=1e-5)
    np.testing.assert_allclose(variance, images.var((0, 1, 2), np.float64), rtol=5e-5)


def test_bfloat16_is_rounded_to_the_nearest_and_stays_what_is_no_number() -> None:
    numbers = np.array([1.0 + 2**-8, 1.0 + 3 * 2**-8, np.inf, -np.inf, np.nan, 3.4e38, 1.0 + 1.01 * 2**-8], np.float32)
    x = tf.zeros([1, 1, 1, len(numbers)], tf.bfloat16)
    zeros = tf.zeros([len(numbers)])
    found = compiled_batch_norm.normalised(x, None, (zeros, zeros + 1, zeros, tf.constant(numbers)), 0.0)
    expected = tf.cast(tf.cast(numbers, tf.bfloat16), tf.float32)
    np.testing.assert_array_equal(np.ravel(tf.cast(found, tf.float32)), expected)
    cut = compiled_batch_norm.normalised(x, None, (zeros, zeros + 1, zeros, tf.constant(numbers)), 0.0, low=0.0)
    assert math.isnan(float(np.ravel(cut)[4]))


def test_what_comes_out_is_the_same_with_any_number_of_threads() -> None:
    script = """
import hashlib, sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
from tfbig.networks import compiled_batch_norm as norm
from tfbig.threads import num_threads_of_operation
assert num_threads_of_operation() == int(sys.argv[1])
x, other = (tf.random.stateless_normal([8, 33, 35, 48], (0, seed)) for seed in (0, 1))
ones = tf.ones([48])
with tf.GradientTape() as tape:
    tape.watch([x, other, ones])
    result = norm.normalised(x, other, (*norm.moments(x), ones, ones), 1e-3, low=0.0)
found = [result, *tape.gradient(result, [x, other, ones], other)]
print(hashlib.sha256(b"".join(one.numpy().tobytes() for one in found)).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", script, str(n)], capture_output=True, text=True, timeout=120)
        for n in (1, 2, 5)
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    assert len({run.stdout for run in runs}) == 1


def test_two_gradients_are_added_up_by_the_operation() -> None:
    x, residual, first, second, scale, offset = _inputs((3, 20, 30, 19), "float32")

    @tf.function(autograph=False)
    def gradients(x: tf.Tensor, residual: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, residual])
            channels = *compiled_batch_norm.moments(x), scale, offset
            result = compiled_batch_norm.normalised(x, residual, channels, EPSILON, low=0.0)
            loss = tf.reduce_sum(result * first) + tf.reduce_sum(result * second)
        return tape.gradient(loss, [x, residual])

    operation = next(
        one for one in gradients.get_concrete_function(x, residual).graph.get_operations()
        if one.type == "TfbigNormaliseGradient"
    )  # fmt: skip
    assert operation.get_attr("S") == 2
    channels = *compiled_batch_norm.moments(x), scale, offset
    is_through = compiled_batch_norm.normalised(x, residual, channels, EPSILON, low=0.0) > 0
    _, of_x, _, _, of_residual = _exact(x, residual, tf.where(is_through, first + second, 0), scale, offset)
    for one, other in zip((of_x, of_residual), gradients(x, residual), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())


def test_nothing_comes_through_a_ceiling_that_is_rounded() -> None:
    """0.7 is 0.699 in bfloat16, which a result lies at that was cut there, and not below it."""
    x, residual, upstream, _, scale, offset = _inputs((2, 3, 4, 8), "bfloat16")
    result, *_, of_residual = _ours(x, residual, upstream, scale, offset, (0.0, 0.7))
    is_cut = result == result.max()
    assert is_cut.sum() > 10
    np.testing.assert_array_equal(of_residual[is_cut], 0)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"residual": [tf.zeros([2, 3, 4, 9])]}, "of one shape"),
    ({"residual": [tf.zeros([3, 2, 4, 8])]}, "of one shape"),
    ({"scale": tf.ones([7])}, "of one shape"),
    ({"x": tf.zeros([2, 3, 4, 0]), "residual": []}, "must have a channel"),
    ({"x": tf.zeros([8]), "residual": []}, "2 to 8 axes"),
    ({"residual": [tf.zeros([2, 3, 4, 8])] * 2}, "R must be 0 or 1"),
])
def test_what_does_not_fit_is_refused(wrong: dict[str, object], message: str) -> None:
    ones = tf.ones([8])
    fits = {"x": tf.zeros([2, 3, 4, 8]), "residual": [], "mean": ones, "variance": ones, "scale": ones, "offset": ones}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        compiled_batch_norm._compiled().tfbig_normalise(
            **(fits | wrong), epsilon=EPSILON, low=0.0, high=6.0, num_threads=1
        )


def test_no_images_give_no_numbers_and_no_fault() -> None:
    mean, variance = compiled_batch_norm.moments(tf.zeros([0, 3, 4, 8]))
    assert np.isnan(mean).all() and np.isnan(variance).all()
    none = tf.zeros([0, 3, 4, 8])
    _, _, *of_channels = _ours(none, None, none, tf.ones([8]), tf.ones([8]), BOUNDS["ReLU"])
    np.testing.assert_array_equal(of_channels, np.zeros([2, 8]))


def _residual_block() -> keras.Model:
    """Two blocks of a ResNet's kind, the first with a norm in either branch."""
    x = inputs = layers.Input((12, 12, 8))
    branch = layers.BatchNormalization()(layers.Conv2D(8, 1)(x))
    for shortcut in (branch, None):
        start = x
        x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.8)(layers.Conv2D(8, 3, padding="same")(x)))
        x = layers.BatchNormalization(scale=False)(layers.Conv2D(8, 1)(x))
        x = layers.Activation("relu")(layers.Add()([start if shortcut is None else shortcut, x]))
    return keras.Model(inputs, x)


def _read_twice() -> keras.Model:
    """A norm, and a sum, that something besides the ReLU reads too."""
    inputs = layers.Input((12, 12, 8))
    norm = layers.BatchNormalization()(layers.Conv2D(8, 1)(inputs))
    total = layers.Add()([norm, inputs])
    return keras.Model(inputs, layers.Concatenate()([layers.ReLU()(total), layers.ReLU(6.0)(norm), total, norm]))


def _unlike() -> keras.Model:
    """What looks like what can be joined, and is not."""
    inputs = layers.Input((12, 12, 8))
    norm = layers.BatchNormalization()(inputs)
    narrow = layers.Add()([norm, layers.GlobalAveragePooling2D(keepdims=True)(inputs)])
    many = layers.Add()([norm, inputs, inputs])
    ends = [layers.ReLU(negative_slope=0.1)(norm), layers.ReLU(threshold=0.5)(norm), layers.Activation("gelu")(norm)]
    ends += [layers.ReLU()(many), layers.Activation("relu")(narrow)]
    ends.append(layers.Activation("relu6")(layers.Rescaling(2.0)(norm)))
    return keras.Model(inputs, layers.Concatenate()(ends))


def _of_any_size() -> keras.Model:
    """A sum that repeats a number for all pixels, of which nothing tells while a graph is made."""
    inputs = layers.Input((None, None, 8))
    narrow = layers.Conv2D(8, 1)(layers.AveragePooling2D(12)(inputs))
    return keras.Model(inputs, layers.ReLU()(layers.Add()([layers.BatchNormalization()(inputs), narrow])))


# Each with the operations of a step that stay: of norms, and of sums and activations beside them.
NETWORKS: dict[str, tuple[Callable[[], keras.Model], dict[str, int]]] = {
    "residual blocks": (_residual_block, {"TfbigNormalise": 5, "TfbigMoments": 5, "TfbigNormaliseGradient": 5}),
    "read twice": (_read_twice, {"TfbigNormalise": 3, "TfbigMoments": 1, "AddV2": 1, "TfbigNormaliseGradient": 3}),
    "of any size": (_of_any_size, {"TfbigNormalise": 1, "TfbigMoments": 1, "Relu": 1, "TfbigNormaliseGradient": 1}),
    "unlike": (_unlike, {"TfbigNormalise": 1, "TfbigMoments": 1, "Relu": 2, "Relu6": 1, "TfbigNormaliseGradient": 1}),
}


def _step(network: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    images = tf.TensorSpec((4, *network.input_shape[1:]))
    weights = tf.random.stateless_normal((4, *(size or 12 for size in network.output_shape[1:])), (0, 1))

    @tf.function(autograph=False, input_signature=[images])
    def step(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = network(x, training=True)
            loss = tf.reduce_sum(outputs * weights)
        return [outputs, *tape.gradient(loss, [x, *(v.value for v in network.trainable_variables)])]

    return step


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_the_same(name: str) -> None:
    build, _ = NETWORKS[name]
    keras.utils.set_random_seed(0)
    network = build()
    before = network.get_weights()
    x = tf.constant(np.random.default_rng(1).normal(1.0, 2.0, (4, 12, 12, 8)), tf.float32)
    expected, learnt = _step(network)(x), network.get_weights()
    network.set_weights(before)
    found = _step(fused(network))(x)
    # A bias before a norm has a gradient of 0, of which either gives the rounding.
    largest = max(np.abs(one).max() for one in expected[1:])
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * largest)
    for one, other in zip(learnt, network.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_what_is_read_is_computed(name: str) -> None:
    build, stay = NETWORKS[name]
    step = _step(fused(build())).get_concrete_function()
    read, todo = set(), [tensor.op for tensor in step.graph.outputs]
    while todo:
        operation = todo.pop()
        if operation not in read:
            read.add(operation)
            todo += [tensor.op for tensor in operation.inputs]
    # Moving averages are written by operations that nothing reads.
    counts = Counter(one.type for one in read if one.type.startswith("Tfbig") or one.type in ("Relu", "AddV2", "Relu6"))
    assert {kind: counts[kind] for kind in stay} == stay
    if name == "residual blocks":
        assert set(counts) == set(stay)


def test_it_is_taken_back_and_left_out_where_xla_compiles() -> None:
    network = _residual_block()
    types = [type(layer) for layer in network.layers]
    for_xla = [type(layer).__module__ for layer in fused(network, for_xla=True).layers]
    assert "tfbig.networks.joined" not in for_xla
    step = tf.function(lambda x: _gradient(network, x), jit_compile=True, autograph=False)
    assert step(tf.ones([4, 12, 12, 8])).shape == (4, 12, 12, 8)
    assert "tfbig.networks.joined" in [type(layer).__module__ for layer in fused(plain(network)).layers]
    assert [keras_type(layer) for layer in network.layers] == types
    assert [type(layer) for layer in plain(network).layers] == types


def _gradient(network: keras.Model, x: tf.Tensor) -> tf.Tensor:
    """The gradient of the inputs in training."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(network(x, training=True) ** 2)
    return tape.gradient(loss, x)


def test_a_norm_of_another_graph_is_not_joined() -> None:
    norm, relu = layers.BatchNormalization(), layers.ReLU()
    network = fused(keras.Sequential([layers.Input((4, 4, 8)), norm, relu]))

    @tf.function(autograph=False)
    def both(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        normed = norm(x, training=True)
        return tf.cond(tf.reduce_sum(x) > -math.inf, lambda: relu(normed), lambda: x), tf.nn.relu(normed)

    found, expected = both(tf.random.stateless_normal([2, 4, 4, 8], (0, 1)))
    np.testing.assert_array_equal(found, expected)
    assert len(network.layers) == 2
