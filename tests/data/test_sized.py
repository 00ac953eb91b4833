"""Splits at one size: whole pictures and parts, encoded or decoded, with the compiled decoder and without."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.data import image_parts, images
from tfbig.data.augment import augmentation
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.parts import draws, parts
from tfbig.data.sized import sized
from tfbig.data.splits import Split, array_split


def _encoded(kind: str, number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 7, 3), np.uint8)
    file = io.BytesIO()
    # Smooth, at a size of its own.
    Image.fromarray(pixels).resize((50 + number, 40)).save(file, kind)
    return file.getvalue()


def _split(*kinds: str) -> Split:
    """A class each."""
    encoded = [_encoded(kind, number) for number, kind in enumerate(kinds)]
    table = tf.constant(encoded)
    names = [str(number) for number in range(len(kinds))]
    return Split(lambda i: tf.gather(table, i), np.arange(len(kinds)), names, encoded.__getitem__)


def test_whole_pictures_have_one_size() -> None:
    split = _split("JPEG", "PNG")
    small = sized(split, 8)
    dataset = tf.data.Dataset.range(2).map(small.fetch)
    assert dataset.element_spec.shape == (8, 8, 3)
    for i, image in enumerate(dataset):
        expected = images.decode_and_resize(split.fetch(tf.constant(i)), 8)
        np.testing.assert_allclose(image, expected, atol=1e-6)
    assert small.payload(1) == split.payload(1)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_parts_are_of_their_examples(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(image_parts, "_jpeg", None)
    split = _split("JPEG", "PNG", "JPEG")
    # Among others, and under other indices.
    small = sized(split, 16).subset(np.array([2, 0, 1]))
    drawn = parts(draws(np.stack([np.arange(3), np.arange(3)], axis=1)))
    found = small.fetch_parts(tf.constant([0, 2, 0], tf.int64), tf.constant(drawn))
    assert found.shape == (3, 16, 16, 3)
    for image, where, part in zip(found, (2, 1, 2), drawn, strict=True):
        expected = image_parts.decode_part(split.fetch(tf.constant(where)), tf.constant(part), 16)
        np.testing.assert_allclose(image, expected, atol=1e-6)


def test_parts_depend_on_the_step_and_the_example_alone() -> None:
    encoded = [_encoded("JPEG", 0)] * 5
    table = tf.constant(encoded)
    split = sized(Split(lambda i: tf.gather(table, i), np.arange(5), list("abcde")), 16)
    augment = augmentation(["resized_crop", "flip"], num_classes=5, multi_label=False)

    def epoch(number: int, step: int = 0, batch_size: int = 3) -> dict[tuple[int, int], bytes]:
        plan = IndexPlan(5, batch_size, seed=7)
        rows = batches(split, plan, position=lambda: (number, step), augment=augment)
        numbered = [(at, *row) for at, (x, y, _) in enumerate(rows, step) for row in zip(x, y, strict=True)]
        return {(at, int(y)): x.numpy().tobytes() for at, x, y in numbered}

    whole = epoch(2)
    assert len(set(whole.values())) >= 5  # one picture, another part for each example
    assert epoch(2) == whole and epoch(2, step=1) == {key: x for key, x in whole.items() if key[0] == 1}
    assert not set(epoch(3).values()) & set(whole.values())


def test_examples_without_parts_refuse_them() -> None:
    augment = augmentation(["resized_crop"], num_classes=2, multi_label=False)
    with pytest.raises(ValueError, match="resized_crop"):
        batches(array_split(np.zeros((3, 4)), np.zeros(3, int)), IndexPlan(3, 2), augment=augment)
