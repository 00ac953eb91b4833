"""What cannot be private is refused with a reason and a remedy, and trying it out leaves no trace."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfbig.data.splits import Batch
from tfbig.errors import UsageError
from tfbig.gradients.private.checks import synthetic_batch
from tfbig.networks.heads import InferenceModel
from tfbig.objectives.supervised import classification

SUPERVISED = classification(5).losses


class Mixing(keras.layers.Layer):
    """Takes a share of the mean over the batch away."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x - self.share * keras.ops.mean(x, axis=0, keepdims=True)


class MixingInTraining(Mixing):
    """As `Mixing`, but not in inference."""

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return super().call(x) if training else x


class RunningMean(keras.layers.Layer):
    """A statistic of the data, which would be saved without noise."""

    def build(self, shape: tuple) -> None:
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x))
        return x


class AddedLoss(keras.layers.Layer):
    """A loss that depends on the data."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        self.add_loss(keras.ops.mean(x**2))
        return x


def _network(*layers: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([kl.Input((6, 6, 3)), kl.Conv2D(4, 3), *layers, kl.Flatten(), kl.Dense(5)])


def _frozen() -> keras.Model:
    network = _network()
    network.trainable = False
    return network


def _contrastive(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    outputs = network(batch.x, training=training)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.range(tf.shape(outputs)[0]), tf.matmul(outputs, outputs, transpose_b=True)
    ), outputs


def _scalar(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    losses, outputs = SUPERVISED(network, batch, training=training)
    return tf.reduce_mean(losses), outputs


def _by_class(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    outputs = network(batch.x, training=training)
    return outputs**2, outputs


def _balanced(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Weighs each example by how rare its label is in the batch."""
    losses, outputs = SUPERVISED(network, batch, training=training)
    same = tf.cast(batch.y[:, None] == batch.y[None, :], tf.float32)
    return losses / tf.reduce_sum(same, axis=1), outputs


REFUSED = {
    "batch norm": (lambda: _network(kl.BatchNormalization()), SUPERVISED, "--model.norm group"),
    "batch norm without weights": (
        lambda: _network(kl.BatchNormalization(center=False, scale=False)), SUPERVISED, "--adapt.statistics frozen"
    ),
    "mixing": (lambda: _network(Mixing(1.0)), SUPERVISED, "other examples"),
    "weak mixing": (lambda: _network(Mixing(1e-3)), SUPERVISED, "other examples"),
    "mixing in training alone": (lambda: _network(MixingInTraining(0.1)), SUPERVISED, "other examples"),
    "running statistic": (lambda: _network(RunningMean()), SUPERVISED, "running_mean/variable"),
    "contrastive loss": (_network, _contrastive, "other examples"),
    "one loss for all": (_network, _scalar, "one loss an example"),
    "a loss for each class": (_network, _by_class, "one loss an example"),
    "weighed by the batch's labels": (_network, _balanced, "other examples"),
    "added loss": (lambda: _network(AddedLoss()), SUPERVISED, "add_loss"),
    "activity regularizer": (
        lambda: _network(kl.Conv2D(3, 1, activity_regularizer="l2")), SUPERVISED, "activity regularizer"
    ),
    "float16": (lambda: _network(kl.Conv2D(3, 1, dtype="mixed_float16")), SUPERVISED, "bfloat16"),
    "nothing to train": (_frozen, SUPERVISED, "something to train"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_private_is_refused(case: str, reference: SimpleNamespace) -> None:
    make, losses, reason = REFUSED[case]
    with pytest.raises(UsageError, match=reason):
        reference.prepare(make(), losses)


def test_batch_norm_that_always_infers_is_welcome(reference: SimpleNamespace) -> None:
    body = keras.Sequential([kl.Input((6, 6, 3)), kl.Conv2D(4, 3), kl.BatchNormalization(), kl.Flatten()])
    inputs = kl.Input((6, 6, 3))
    network = keras.Model(inputs, kl.Dense(5)(InferenceModel(body.inputs[0], body.outputs[0])(inputs)))
    assert reference.prepare(network).engine.name == "tapped"
    frozen = _network(kl.BatchNormalization(trainable=False))
    assert reference.prepare(frozen).engine.name == "tapped"


def test_what_mixes_only_later_examples_is_never_computed_for_the_batch(reference: SimpleNamespace) -> None:
    class Running(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return keras.ops.cumsum(x, axis=0)

    def by_count(network: keras.Model, batch: Batch, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        losses, outputs = SUPERVISED(network, batch, training=training)
        return losses / tf.reduce_sum(batch.weight), outputs

    for network, losses in ((_network(Running()), SUPERVISED), (_network(), by_count)):
        try:
            engine = reference.prepare(network, losses).engine
        except UsageError:
            continue
        # One example after the other, which cannot mix them.
        assert engine.name == "by_example"


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_what_mixes_examples_at_any_distance_is_refused(distance: int, reference: SimpleNamespace) -> None:
    class Rolled(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return x + 0.1 * keras.ops.roll(x, distance, axis=0)

    with pytest.raises(UsageError, match="depends on the other examples"):
        reference.prepare(_network(Rolled()))


def test_a_loss_that_is_not_finite_is_called_so(reference: SimpleNamespace) -> None:
    class Logarithm(keras.layers.Layer):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return keras.ops.log(x - 2.0)

    with pytest.raises(UsageError, match="loss on inputs between 0 and 1 is nan"):
        reference.prepare(_network(Logarithm()))


@pytest.mark.parametrize("losses", [SUPERVISED, _contrastive])
def test_the_probe_puts_back_what_it_changed(losses: object, reference: SimpleNamespace) -> None:
    class Counting(keras.layers.Layer):
        def build(self, shape: tuple) -> None:
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
            if training:
                self.calls.assign_add(1.0)
            return x

    inputs = kl.Input((6, 6, 3))
    hidden = Counting()(kl.Dropout(0.3)(kl.Conv2D(4, 3)(inputs)))
    network = keras.Model(inputs, kl.Dense(5)(kl.Flatten()(hidden)))
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.variables]
    layers = [dict(vars(layer)) for layer in network.layers]
    batch = synthetic_batch(network, np.zeros(3, "int32"))
    outputs = network(batch.x, training=False)
    for variable, value in zip(network.variables, before, strict=True):
        variable.assign(value)
    if losses is SUPERVISED:
        reference.prepare(network, losses)
    else:
        with pytest.raises(UsageError):
            reference.prepare(network, losses)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value, err_msg=variable.path)
    for layer, attributes in zip(network.layers, layers, strict=True):
        assert vars(layer).keys() == attributes.keys() and "call" not in vars(layer)
    np.testing.assert_array_equal(network(batch.x, training=False), outputs)


def test_the_synthetic_examples_fit_the_network() -> None:
    inputs = {"image": kl.Input((None, None, 3), name="image"), "word": kl.Input((4,), dtype="int32", name="word")}
    network = keras.Model(inputs, kl.Dense(5)(kl.GlobalAveragePooling2D()(inputs["image"])))
    batch = synthetic_batch(network, np.zeros((100, 5), "f4"))
    assert batch.x["image"].shape[1:] == (8, 8, 3) and batch.x["word"].dtype == tf.int32
    assert batch.y.shape[1:] == (5,) and batch.y.shape[0] == batch.weight.shape[0] >= 2
