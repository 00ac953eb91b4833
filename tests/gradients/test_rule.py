"""The mean gradient: padding has no influence, and two replicas equal one."""

import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.splits import Batch
from tfbig.gradients.rule import clipped, mean_gradient
from tfbig.objectives.supervised import classification


def _network(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01))(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden))


def _batch(size: int, weight: list[float] | None = None) -> Batch:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(size, 4)).astype("f4"), rng.integers(0, 3, size)
    return Batch(tf.constant(x), tf.constant(y), tf.constant(weight or [1.0] * size, tf.float32))


def test_equals_the_plain_mean_loss() -> None:
    network, batch = _network(), _batch(6)
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(batch.y, network(batch.x))
        loss += tf.add_n(network.losses)
    expected = tape.gradient(loss, [v.value for v in network.trainable_variables])
    step = mean_gradient(classification(3).losses, network, batch)
    for ours, theirs in zip(step.gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_padding_has_no_influence() -> None:
    network = _network()
    whole = _batch(6, [1, 1, 1, 1, 0, 0])
    part = Batch(whole.x[:4], whole.y[:4], whole.weight[:4])
    losses = classification(3).losses
    for ours, theirs in zip(
        mean_gradient(losses, network, whole).gradients, mean_gradient(losses, network, part).gradients, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_batch_of_padding_alone_gives_a_finite_gradient() -> None:
    step = mean_gradient(classification(3).losses, _network(), _batch(2, [0, 0]))
    assert all(np.isfinite(gradient).all() for gradient in step.gradients)


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    network, batch, losses = _network(), _batch(6), classification(3).losses
    plain = mean_gradient(losses, network, batch).gradients
    norm = float(tf.linalg.global_norm(plain))
    small = clipped(mean_gradient, norm / 4)(losses, network, batch).gradients
    for ours, theirs in zip(small, plain, strict=True):
        np.testing.assert_allclose(ours, theirs / 4, rtol=1e-4, atol=1e-7)
    for ours, theirs in zip(clipped(mean_gradient, norm * 2)(losses, network, batch).gradients, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


_TWO_REPLICAS = """
import numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import DataSpec, array_split
from tfbig.gradients.rule import clipped, mean_gradient
from tfbig.objectives.supervised import classification
from tfbig.runtime import runtime
from tfbig.training.learner import Learner
from tfbig.training.optimizers import WarmupCosine, make_optimizer

rng = np.random.default_rng(0)
split = array_split(rng.normal(size=(50, 4)).astype("f4"), rng.integers(0, 3, 50))  # the last batch is padded

def final(strategy_name):
    with runtime(strategy=strategy_name, precision="float32", seed=0) as strategy, strategy.scope():
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(5, activation="tanh", kernel_regularizer="l2")(inputs)
        network = keras.Model(inputs, keras.layers.Dense(3)(hidden))
        learner = Learner(network, classification(3), clipped(mean_gradient, 0.1))
        schedule = WarmupCosine(0.1, num_steps=28, warmup_steps=2, falls=True)
        body = network.layers[1].trainable_variables
        optimizer = make_optimizer(
            "sgd", learning_rate=schedule, weight_decay=0.1, slow=body, slow_scale=0.5
        )
        learner.compile(optimizer=optimizer, jit_compile=False)
        plan = IndexPlan(50, 8, seed=1)
        history = learner.fit(batches(split, plan), epochs=4, verbose=0).history
        assert strategy.num_replicas_in_sync == (2 if strategy_name == "mirrored" else 1)
        return [v.numpy() for v in network.trainable_variables], history

(one, history_one), (two, history_two) = final("none"), final("mirrored")
print(max(np.abs(a - b).max() for a, b in zip(one, two)))
print(max(abs(a - b) for key in history_one for a, b in zip(history_one[key], history_two[key])))
"""


def test_two_replicas_equal_one() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO_REPLICAS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    weights, metrics = map(float, done.stdout.split()[-2:])
    assert weights < 1e-5
    assert metrics < 1e-4
