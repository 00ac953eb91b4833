"""Augmented views: each depends on its example and its number alone, and each epoch sees one."""

import dataclasses

import numpy as np
import tensorflow as tf

from tfbig.data.augment import augmentation
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import PoissonPlan
from tfbig.data.splits import Split, array_split
from tfbig.data.views import ViewPlan, augmented

_X = np.random.default_rng(0).random((7, 8, 8, 3), np.float32)
_AUGMENT = augmentation(["flip", "crop", "brightness"], num_classes=3, multi_label=False)


def _split(x: np.ndarray = _X) -> Split:
    return array_split(x, np.arange(len(x)) % 3, names=[f"{picture.sum():.6f}" for picture in x])


def _values(split: Split, batch_size: int = 4) -> np.ndarray:
    plan = IndexPlan(len(split), batch_size, shuffle=False)
    return np.concatenate([x.numpy() for x, _, _ in batches(split, plan)])[: len(split)]


def test_a_view_depends_on_its_example_and_number_alone() -> None:
    first = _values(augmented(_split(), _AUGMENT, seed=0, view=0))
    np.testing.assert_array_equal(_values(augmented(_split(), _AUGMENT, seed=0, view=0), batch_size=3), first)
    # An example less, and the others in another order: what one example adds to the data touches no other.
    fewer = _values(augmented(_split(_X[:2:-1]), _AUGMENT, seed=0, view=0))
    np.testing.assert_array_equal(fewer, first[:2:-1])
    for seed, view in ((0, 1), (1, 0)):
        other = _values(augmented(_split(), _AUGMENT, seed=seed, view=view))
        assert (other != first).any(axis=(1, 2, 3)).all()


def test_a_view_of_a_part_depends_on_its_example_alone() -> None:
    def split(x: np.ndarray) -> Split:
        def parts_of(indices: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
            return tf.gather(tf.constant(x), indices) * draws[:, :1, None, None]

        return dataclasses.replace(_split(x), gather=None, fetch_parts=parts_of)

    augment = augmentation(["resized_crop"], num_classes=3, multi_label=False)
    first = _values(augmented(split(_X), augment, seed=0, view=0))
    np.testing.assert_array_equal(_values(augmented(split(_X[:2:-1]), augment, seed=0, view=0)), first[:2:-1])
    assert (first != _X).any(axis=(1, 2, 3)).all()
    assert (_values(augmented(split(_X), augment, seed=0, view=1)) != first).any(axis=(1, 2, 3)).all()
    # A part of a view would be one of the example itself.
    assert augmented(split(_X), augment, seed=0, view=0).fetch_parts is None


def test_one_picture_has_another_change_in_each_example() -> None:
    same = array_split(np.repeat(_X[:1], 6, axis=0), np.zeros(6, int))
    views = _values(augmented(same, _AUGMENT, seed=0, view=0))
    assert len(np.unique(views.reshape(6, -1), axis=0)) == 6


def test_an_epoch_sees_the_examples_of_its_plan_in_its_view() -> None:
    for plan in (IndexPlan(7, 3, seed=5), PoissonPlan(7, 3, 2, seed=5)):
        views = ViewPlan(plan, 3)
        assert (views.num_examples, views.steps_per_epoch) == (21, plan.steps_per_epoch)
        for epoch in range(5):
            for step in range(plan.steps_per_epoch):
                (indices, weight), (expected, weight_expected) = views.indices(epoch, step), plan.indices(epoch, step)
                np.testing.assert_array_equal(indices % 7, expected)
                np.testing.assert_array_equal(weight, weight_expected)
                assert (indices // 7 == epoch % 3).all()


def test_an_epoch_taken_up_in_its_middle_goes_on_in_its_view() -> None:
    plan, rows = ViewPlan(IndexPlan(7, 3, seed=5), 2), array_split(np.arange(14.0), np.arange(14))
    whole = [x.numpy() for x, _, _ in batches(rows, plan, position=lambda: (3, 0))]
    rest = [x.numpy() for x, _, _ in batches(rows, plan, position=lambda: (3, 2))]
    np.testing.assert_array_equal(np.stack(rest), np.stack(whole[2:]))
    assert (np.stack(whole) >= 7).all()


def test_views_of_features_with_names() -> None:
    split = Split(lambda i: {"a": tf.gather(_X, i), "b": i}, np.zeros(7, int), [str(i) for i in range(7)])
    view = augmented(split, lambda batch, seed: batch._replace(x={**batch.x, "a": -batch.x["a"]}), seed=0, view=0)
    np.testing.assert_array_equal(view.fetch(tf.constant(2, tf.int64))["a"], -_X[2])
