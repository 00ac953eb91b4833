"""Objectives against Keras's own losses, and the laws of weighing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.splits import Batch
from tfbig.objectives.supervised import balanced_weights, classification

RNG = np.random.default_rng(0)
LOGITS = tf.constant(RNG.normal(size=(7, 4)).astype("f4"))
LABELS = tf.constant(RNG.integers(0, 4, 7))
MULTI_HOT = tf.constant(RNG.integers(0, 2, (7, 4)).astype("f4"))


def _losses(y: tf.Tensor, **settings: object) -> np.ndarray:
    batch = Batch(LOGITS, y, tf.ones(7))
    losses, outputs = classification(4, **settings).losses(lambda x, training: x, batch, training=True)
    np.testing.assert_array_equal(outputs, LOGITS)
    assert losses.shape == (7,)
    return losses.numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_crossentropy_equals_keras(smoothing: float) -> None:
    expected = keras.losses.categorical_crossentropy(
        tf.one_hot(LABELS, 4), LOGITS, from_logits=True, label_smoothing=smoothing
    )
    np.testing.assert_allclose(_losses(LABELS, label_smoothing=smoothing), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multi_label_equals_keras(smoothing: float) -> None:
    expected = keras.losses.binary_crossentropy(MULTI_HOT, LOGITS, from_logits=True, label_smoothing=smoothing)
    np.testing.assert_allclose(_losses(MULTI_HOT, multi_label=True, label_smoothing=smoothing), expected, rtol=1e-5)


def test_focal_equals_its_formula() -> None:
    p = np.take_along_axis(tf.nn.softmax(LOGITS).numpy(), LABELS.numpy()[:, None], 1)[:, 0]
    np.testing.assert_allclose(_losses(LABELS, focal_gamma=2.0), -((1 - p) ** 2) * np.log(p), rtol=1e-5)
    expected = keras.losses.binary_focal_crossentropy(MULTI_HOT, LOGITS, gamma=2.0, from_logits=True)
    np.testing.assert_allclose(_losses(MULTI_HOT, multi_label=True, focal_gamma=2.0), expected, rtol=1e-5)


def test_class_weights_scale_each_example_by_its_class() -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    expected = _losses(LABELS) * weights[LABELS.numpy()]
    np.testing.assert_allclose(_losses(LABELS, class_weights=weights), expected, rtol=1e-5)


def test_multi_hot_labels_are_weighed_label_by_label() -> None:
    # Keras's class_weight would take the first positive class for the whole example.
    weights = np.array([3.0, 1.0, 0.5, 2.0], np.float32)
    expected = tf.nn.weighted_cross_entropy_with_logits(MULTI_HOT, LOGITS, pos_weight=weights).numpy().mean(axis=1)
    np.testing.assert_allclose(_losses(MULTI_HOT, multi_label=True, class_weights=weights), expected, rtol=1e-5)


def test_balanced_weights_give_each_class_the_same_total() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    weights = balanced_weights(labels, 3)
    totals = np.bincount(labels) * weights
    np.testing.assert_allclose(totals, totals[0])
    np.testing.assert_allclose(weights[labels].mean(), 1.0, rtol=1e-6)
    assert balanced_weights(np.array([0, 0, 2]), 3)[1] == 0
    multi_hot = np.array([[1, 0], [0, 0], [0, 0], [0, 1], [0, 1]], np.float32)
    np.testing.assert_allclose(balanced_weights(multi_hot, 2), [4 / 1, 3 / 2])


def test_losses_are_per_example() -> None:
    # Separable: changing one example changes one loss.
    changed = tf.tensor_scatter_nd_update(LOGITS, [[3, 0]], [9.0])
    batch = Batch(changed, LABELS, tf.ones(7))
    losses, _ = classification(4).losses(lambda x, training: x, batch, training=True)
    differs = np.flatnonzero(losses.numpy() != _losses(LABELS))
    assert differs.tolist() == [3]
