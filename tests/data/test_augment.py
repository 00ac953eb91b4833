"""Augmentation: a pure function of the seed, whatever traces it, and labels that follow the pictures."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.augment import NAMES, augmentation
from tfbig.data.batches import Parts
from tfbig.data.splits import Batch
from tfbig.errors import UsageError

_RNG = np.random.default_rng(0)
_X = _RNG.random((8, 16, 16, 3), np.float32)
_Y = np.arange(8, dtype=np.int32) % 3
_WEIGHT = np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)


def _in_tf_data(names: tuple[str, ...], seeds: list[int], *, known_size: bool) -> list[Batch]:
    """A fresh function, traced anew inside tf.data, on one batch for each seed."""
    apply = augmentation(names, num_classes=3, multi_label=False)
    dataset = tf.data.Dataset.from_tensor_slices((_X, _Y, _WEIGHT)).batch(8, drop_remainder=known_size)
    pairs = tf.data.Dataset.zip(
        dataset.repeat(len(seeds)), tf.data.Dataset.from_tensor_slices([[7, s] for s in seeds])
    )
    changed = pairs.map(lambda batch, seed: tuple(apply(Batch(*batch), tf.cast(seed, tf.int32))), num_parallel_calls=2)
    return [Batch(*(part.numpy() for part in batch)) for batch in changed]


# Of batches: what is fetched as a part is changed before there is one.
_OF_BATCHES = NAMES[1:]


@pytest.mark.parametrize("names", [*((name,) for name in _OF_BATCHES), _OF_BATCHES], ids=lambda names: "+".join(names))
def test_the_seed_alone_decides(names: tuple[str, ...]) -> None:
    keras.utils.set_random_seed(1)
    first, second, third = _in_tf_data(names, [1, 2, 3], known_size=True)
    keras.utils.set_random_seed(2)
    again = _in_tf_data(names, [3, 1], known_size=False)  # traced anew, in another order, size unknown
    for before, after in ((third, again[0]), (first, again[1])):
        np.testing.assert_array_equal(before.x, after.x)
        np.testing.assert_array_equal(before.y, after.y)
    assert (first.x != second.x).any() and (second.x != third.x).any()
    for batch in (first, second, third):
        assert batch.x.dtype == np.float32 and batch.x.shape == _X.shape
        assert 0 <= batch.x.min() and batch.x.max() <= 1
        np.testing.assert_array_equal(batch.weight, _WEIGHT)


@pytest.mark.parametrize("name", ["crop", "rotate", "brightness", "contrast", "randaugment"])
def test_pictures_of_a_batch_draw_each_for_itself(name: str) -> None:
    apply = augmentation([name], num_classes=2, multi_label=False)
    alike = tf.constant(np.repeat(_X[:1], 32, axis=0))
    changed = apply(Batch(alike, tf.zeros(32, tf.int32), tf.ones(32)), tf.constant([0, 0])).x.numpy()
    assert len({picture.tobytes() for picture in changed}) > 5


def test_draws_do_not_repeat_within_a_batch() -> None:
    apply = augmentation(["flip", "vertical_flip"], num_classes=2, multi_label=False)
    alike = tf.constant(np.repeat(_X[:1], 40, axis=0))
    changed = apply(Batch(alike, tf.zeros(40, tf.int32), tf.ones(40)), tf.constant([0, 0])).x.numpy()
    # Left-right, upside down, both and neither: one draw for both would leave out two of them.
    assert len({picture.tobytes() for picture in changed}) == 4


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pictures_are(name: str) -> None:
    # Each picture is one flat colour, its class's, so a picture's mean tells what it is made of.
    apply = augmentation([name], num_classes=3, multi_label=False)
    x = np.broadcast_to(np.eye(3, dtype=np.float32)[_Y][:, None, None], (8, 32, 32, 3))
    for seed in range(5):
        mixed = apply(Batch(tf.constant(x), tf.constant(_Y), tf.constant(_WEIGHT)), tf.constant([seed, 0]))
        assert mixed.y.shape == (8, 3)
        np.testing.assert_allclose(tf.reduce_sum(mixed.y, axis=-1), 1, atol=1e-5)
        # A cut's edges lie between pixels: up to half a row and a column on each side.
        means = tf.reduce_mean(mixed.x, axis=(1, 2))
        np.testing.assert_allclose(means, mixed.y, atol=0.08 if name == "cutmix" else 1e-4)


def test_both_mixtures_take_turns() -> None:
    apply = augmentation(["mixup", "cutmix"], num_classes=3, multi_label=False)
    x = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None, None] / 8, (8, 16, 16, 3))
    batch = Batch(tf.constant(x), tf.constant(_Y), tf.constant(_WEIGHT))
    # CutMix leaves a picture's pixels at one of two values, MixUp makes all of them one new value.
    flat = [bool((np.ptp(apply(batch, tf.constant([s, 0])).x.numpy(), axis=(1, 2)) < 1e-6).all()) for s in range(20)]
    assert 3 <= sum(flat) <= 17


def test_several_labels_are_mixed_too() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 0]] * 4, np.float32)
    apply = augmentation(["mixup"], num_classes=3, multi_label=True)
    y = apply(Batch(tf.constant(_X), tf.constant(labels), tf.constant(_WEIGHT)), tf.constant([1, 2])).y.numpy()
    np.testing.assert_allclose(y[:, 0], y[:, 1], atol=1e-6)
    assert (y[:, 2] == 0).all() and ((y >= 0) & (y <= 1)).all()


def test_without_mixing_labels_stay_whole_numbers() -> None:
    apply = augmentation(["flip"], num_classes=3, multi_label=False)
    batch = apply(Batch(tf.constant(_X), tf.constant(_Y), tf.constant(_WEIGHT)), tf.constant([1, 2]))
    np.testing.assert_array_equal(batch.y, _Y)
    for before, after in zip(_X, batch.x.numpy(), strict=True):
        assert np.array_equal(after, before) or np.array_equal(after, before[:, ::-1])


def test_a_low_precision_policy_does_not_reach_the_pictures() -> None:
    before = _in_tf_data(("crop", "contrast", "mixup"), [4], known_size=True)[0]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        after = _in_tf_data(("crop", "contrast", "mixup"), [4], known_size=True)[0]
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(before.x, after.x)


def test_parts_are_mirrored_where_they_are_fetched_and_nowhere_else() -> None:
    parts, plain = (augmentation(n, num_classes=3, multi_label=False) for n in (["resized_crop", "flip"], ["flip"]))
    assert isinstance(parts, Parts) and parts.flips and not isinstance(plain, Parts)
    batch = Batch(tf.constant(_X), tf.constant(_Y), tf.constant(_WEIGHT))
    np.testing.assert_array_equal(parts(batch, tf.constant([0, 1])).x, _X)
    assert not augmentation(["resized_crop"], num_classes=3, multi_label=False).flips


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="got 'flipp'. Did you mean 'flip'"):
        augmentation(["flipp"], num_classes=2, multi_label=False)
