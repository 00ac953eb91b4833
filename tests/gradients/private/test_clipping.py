"""One example's influence never exceeds the bound, in parts of any size and whatever it holds."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfbig.data.splits import Batch
from tfbig.gradients.private.clipping import clipping_factors, in_microbatches
from tfbig.objectives.supervised import classification

CLIP_NORM = 0.7
B = 6


def _dense() -> keras.Model:
    return keras.Sequential([kl.Input((10,)), kl.Dense(8, activation="relu"), kl.Dense(5)])


def _tokens() -> keras.Model:
    """Gram matrices, a low-rank update and a norm."""
    lora = kl.Dense(12, activation="gelu")
    network = keras.Sequential([kl.Input((4, 30)), kl.Dense(30), kl.LayerNormalization(), lora, kl.Flatten(),
                                kl.Dense(5)])  # fmt: skip
    lora.enable_lora(2)
    return network


def _images() -> keras.Model:
    return keras.Sequential([kl.Input((8, 8, 3)), kl.Conv2D(4, 3, activation="relu"), kl.GroupNormalization(2),
                             kl.Conv2D(4, 3, strides=2), kl.Flatten(), kl.Dense(5)])  # fmt: skip


def _recurrent() -> keras.Model:
    return keras.Sequential([kl.Input((5, 4)), kl.GRU(6), kl.Dense(5)])


class MergedAxes(keras.layers.Layer):
    """Puts examples and positions along one axis, so that the layer inside cannot be tapped."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = kl.Dense(4, activation="tanh")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return keras.ops.reshape(self.inner(keras.ops.reshape(x, (-1, 5))), (-1, 2, 4))


def _by_example() -> keras.Model:
    return keras.Sequential([kl.Input((2, 5)), MergedAxes(), kl.Flatten(), kl.Dense(5)])


class Difference(keras.layers.Layer):
    """Of two positions: the gradients of a layer below cancel where the positions are nearly the same."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x[:, 0] - x[:, 1]


NETWORKS = [_dense, _tokens, _images, _recurrent, _by_example]


def _private(make: object, reference: SimpleNamespace) -> SimpleNamespace:
    private = reference.prepare(reference.perturb(make()))
    assert private.engine.name == ("by_example" if make is _by_example else "tapped")
    return private


def _batch(network: keras.Model, reference: SimpleNamespace, *, seed: int = 0) -> Batch:
    x = np.random.default_rng(seed).normal(size=(B, *network.inputs[0].shape[1:])).astype("f4")
    return reference.make_batch(x, padded=0, seed=seed)


def _only(batch: Batch, *examples: int) -> Batch:
    weight = np.zeros(batch.weight.shape[0], "f4")
    weight[list(examples)] = 1
    return batch._replace(weight=tf.constant(weight))


@pytest.mark.parametrize("scale", [1.0, 1e12], ids=str)
@pytest.mark.parametrize("make", NETWORKS)
def test_one_example_moves_the_sum_by_no_more_than_the_bound(
    make: object, scale: float, reference: SimpleNamespace
) -> None:
    private = _private(make, reference)
    batch = _batch(private.network, reference)
    batch = batch._replace(x=tf.concat([batch.x[:1] * scale, batch.x[1:]], 0))
    everyone = reference.as_vector(private.clipped(batch, CLIP_NORM).sums)
    without = reference.as_vector(private.clipped(_only(batch, *range(1, B)), CLIP_NORM).sums)
    alone = private.clipped(_only(batch, 0), CLIP_NORM)
    assert np.isfinite(everyone).all()
    assert np.linalg.norm(everyone - without) <= CLIP_NORM * (1 + 1e-5)
    # No more, and no less: clipped to the bound, or whole.
    expected = min(CLIP_NORM, float(alone.norms[0]))
    assert np.linalg.norm(reference.as_vector(alone.sums)) == pytest.approx(expected, rel=1e-5)
    # The others are what they are without it.
    others = batch._replace(x=tf.concat([batch.x[:1] * 0, batch.x[1:]], 0))
    kept = reference.as_vector(private.clipped(_only(others, *range(1, B)), CLIP_NORM).sums)
    assert np.linalg.norm(without - kept) <= 1e-5 * np.linalg.norm(kept)


@pytest.mark.parametrize("closeness", [1e-3, 1e-4, 3e-5, 1e-5])
def test_gradients_that_cancel_cannot_hide_from_the_norm(closeness: float, reference: SimpleNamespace) -> None:
    frozen = kl.Dense(5)
    frozen.trainable = False
    network = keras.Sequential([kl.Input((2, 64)), kl.Dense(64, use_bias=False), Difference(), frozen])
    private = reference.prepare(network)
    assert private.engine.name == "tapped"
    for seed in range(5):
        near = np.random.default_rng(seed).normal(size=(B, 1, 64))
        for scale in (1e0, 1e3, 3e4, 1e5, 1e6):
            x = (scale * np.concatenate([near, near * (1 + closeness)], 1)).astype("f4")
            for example in range(B):
                alone = _only(reference.make_batch(x, padded=0, seed=seed), example)
                # NaN is not at most 1 either.
                assert np.linalg.norm(reference.as_vector(private.clipped(alone, 1.0).sums)) <= 1 + 1e-3


# Only the slow engine promises it: the fast one's sum is not finite then, and the run stops as diverged.
@pytest.mark.parametrize("make", [_by_example])
def test_an_example_without_a_finite_gradient_adds_nothing(make: object, reference: SimpleNamespace) -> None:
    private = _private(make, reference)
    batch = _batch(private.network, reference)
    broken = batch._replace(x=tf.concat([batch.x[:1] * np.nan, batch.x[1:]], 0))
    came = reference.as_vector(private.clipped(broken, CLIP_NORM).sums)
    np.testing.assert_allclose(came, reference.as_vector(private.clipped(_only(batch, *range(1, B)), CLIP_NORM).sums))


@pytest.mark.parametrize("make", NETWORKS)
def test_padding_adds_nothing(make: object, reference: SimpleNamespace) -> None:
    private = _private(make, reference)
    batch = _only(_batch(private.network, reference), 0, 2, 3)
    expected = reference.as_vector(private.clipped(batch, CLIP_NORM).sums)
    others = _batch(private.network, reference, seed=1)
    drawn = np.array([1, 0, 1, 1, 0, 0], bool).reshape([B] + [1] * (batch.x.shape.rank - 1))
    changed = batch._replace(x=tf.where(drawn, batch.x, others.x))
    came = reference.as_vector(private.clipped(changed, CLIP_NORM).sums)
    assert np.linalg.norm(came - expected) <= 1e-6 * np.linalg.norm(expected)
    assert not reference.as_vector(private.clipped(_only(batch), CLIP_NORM).sums).any()


def test_small_gradients_stay_whole() -> None:
    factors = clipping_factors(tf.constant([0.0, 0.5, 1.0, 4.0]), tf.constant(1.0))
    np.testing.assert_allclose(factors, [1, 1, 1, 0.25])


@pytest.mark.parametrize("make", [_images, _by_example])
def test_parts_of_any_size_give_the_same_and_one_trace_serves_any_number(
    make: object, reference: SimpleNamespace
) -> None:
    private = _private(make, reference)
    network, traces = private.network, []

    def losses(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        traces.append(1)
        return private.losses(network, batch, training=training)

    batch = _only(_batch(network, reference), 0, 1, 2, 4)
    whole = private.clipped(batch, CLIP_NORM)
    spec = tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), batch)
    for size in (1, 2, 3, 6):

        @tf.function(input_signature=[spec])
        def run(batch: Batch, size: int = size) -> tuple:
            clip_norm = tf.constant(CLIP_NORM)
            return in_microbatches(
                private.engine, losses, network, batch, clip_norm, size=size, output_spec=private.output_spec
            )

        parts = run(batch)
        for came, expected in zip(parts.sums, whole.sums, strict=True):
            np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-6)
        for came, expected in zip(parts[1:], whole[1:], strict=True):
            np.testing.assert_allclose(came, expected, rtol=1e-5, atol=1e-6)
        traces.clear()
        longer = run(tf.nest.map_structure(lambda t: tf.concat([t, t, t], 0), batch))
        assert not traces
        np.testing.assert_allclose(
            reference.as_vector(longer.sums), 3 * reference.as_vector(whole.sums), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("make", [_tokens, _images])
def test_under_bfloat16_the_norm_is_that_of_what_is_summed(make: object, reference: SimpleNamespace) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        private = _private(make, reference)
    finally:
        keras.config.set_dtype_policy("float32")
    assert private.engine.name == "tapped"
    batch = _batch(private.network, reference)
    came = private.clipped(batch, CLIP_NORM)
    assert all(total.dtype == tf.float32 for total in came.sums) and came.norms.dtype == tf.float32
    gradients = reference.example_gradients(private.losses, private.network, batch)
    expected = reference.clipped_sum(gradients, np.ones(B), CLIP_NORM)
    assert np.linalg.norm(reference.as_vector(came.sums) - expected) < 0.05 * np.linalg.norm(expected)
    for example in range(B):
        alone = reference.as_vector(private.clipped(_only(batch, example), CLIP_NORM).sums)
        assert np.linalg.norm(alone) == pytest.approx(min(CLIP_NORM, float(came.norms[example])), rel=1e-5)


def test_the_network_is_as_before_a_clipped_sum_also_after_an_exception(reference: SimpleNamespace) -> None:
    private = _private(_tokens, reference)
    network, batch = private.network, _batch(private.network, reference)
    layers = list(network._flatten_layers(include_self=False))
    before = [(dict(vars(layer)), getattr(layer, "activation", None)) for layer in layers]
    expected = network(batch.x)

    def broken(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        network(batch.x, training=training)
        raise RuntimeError("in the objective")

    class Broken(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            raise RuntimeError("in a layer")

    after_half = keras.Sequential([*network.layers[:3], Broken()])

    def broken_inside(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        return after_half(batch.x, training=training), batch.y

    private.engine(private.losses, network, batch, CLIP_NORM, training=True)
    for losses, message in ((broken, "in the objective"), (broken_inside, "in a layer")):
        with pytest.raises(RuntimeError, match=message):
            private.engine(losses, network, batch, CLIP_NORM, training=True)
    for layer, (attributes, activation) in zip(layers, before, strict=True):
        assert "call" not in vars(layer) and vars(layer).keys() == attributes.keys()
        assert getattr(layer, "activation", None) is activation
    np.testing.assert_array_equal(network(batch.x), expected)


def test_the_objective_sees_the_labels_of_its_own_example(reference: SimpleNamespace) -> None:
    private = _private(_dense, reference)
    batch = _batch(private.network, reference)
    losses, _ = classification(5).losses(private.network, batch, training=False)
    np.testing.assert_allclose(private.clipped(batch, CLIP_NORM).losses, losses, rtol=1e-5)
