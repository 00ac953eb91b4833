"""Pictures kept decoded: the same as decoded anew, and only where they fit."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.config import DataConfig, RunConfig
from tfbig.data import images
from tfbig.data.decoded import kept
from tfbig.data.image_parts import cut_part
from tfbig.data.parts import draws, parts
from tfbig.data.sized import sized
from tfbig.data.splits import Split
from tfbig.errors import UsageError
from tfbig.pipelines.image_finetune import TASK

_SIZES = ((60, 80), (33, 17), (1, 5), (100, 41))  # height and width


def _encoded(kind: str, **options: object) -> list[bytes]:
    rng, files = np.random.default_rng(0), []
    for height, width in _SIZES:
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(256, size=(4, 5, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, kind, **options)
        files.append(file.getvalue())
    return files


def _split(files: list[bytes]) -> Split:
    table = tf.constant(files)
    names = [f"{i}" for i in range(len(files))]
    return Split(lambda i: tf.gather(table, i), np.arange(len(files)), names, files.__getitem__)


# What is no JPEG is divided by 255 before it is resized, which rounds otherwise.
@pytest.mark.parametrize(("kind", "atol"), [("JPEG", 0), ("PNG", 1e-6)])
def test_whole_pictures_are_those_decoded_anew(kind: str, atol: float) -> None:
    split = _split(_encoded(kind))
    memory = kept(split, 1)
    assert memory.names == split.names and memory.payload is split.payload
    small, anew = sized(memory, 24), sized(split, 24)
    # One twice, and out of order.
    for i in (3, 0, 2, 1, 3):
        np.testing.assert_array_equal(memory.fetch(tf.constant(i)), images.decode_pixels(split.fetch(tf.constant(i))))
        np.testing.assert_allclose(small.fetch(tf.constant(i)), anew.fetch(tf.constant(i)), rtol=0, atol=atol)
    few = small.subset(np.array([2, 3]))
    np.testing.assert_allclose(few.fetch(tf.constant(1)), anew.fetch(tf.constant(3)), rtol=0, atol=atol)


def test_parts_are_those_decoded_anew_where_colours_are_not_enlarged() -> None:
    split = _split(_encoded("JPEG", subsampling=0))
    memory, anew = sized(kept(split, 1), 64), sized(split, 64)
    drawn = parts(draws(np.stack([np.arange(40), np.arange(40)], axis=1)))
    assert 0 < drawn[:, 4].sum() < len(drawn)
    for number, part in enumerate(drawn):
        one = tf.constant([number % len(_SIZES)]), part[None]
        np.testing.assert_allclose(memory.fetch_parts(*one), anew.fetch_parts(*one), rtol=0, atol=1e-6)


def test_no_pixel_of_a_part_of_twice_the_size_is_passed_over() -> None:
    # One white pixel in 25 is 1/25 of the light.
    dots = np.zeros((100, 100, 3), np.uint8)
    dots[::5, ::5] = 255
    part = tf.constant([1.0, 1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(tf.reduce_mean(cut_part(tf.constant(dots), part, 40)), 1 / 25, atol=4e-3)


def test_half_transparent_pixels_are_rounded_and_not_cut_off() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2, 4), (10, 20, 30, 100), np.uint8)).save(file, "PNG")
    exact = images.decode(tf.constant(file.getvalue())) * 255
    pixels = kept(_split([file.getvalue()]), 1).fetch(tf.constant(0))
    assert pixels.dtype == tf.uint8
    np.testing.assert_allclose(tf.cast(pixels, tf.float32), exact, atol=0.501)


def test_what_does_not_fit_is_refused() -> None:
    split = _split(_encoded("JPEG"))
    # Each takes a multiple of 64 bytes.
    taken = sum(-(-3 * height * width // 64) * 64 for height, width in _SIZES)
    kept(split, taken / 1e9)
    with pytest.raises(UsageError, match="4 decoded training pictures.*--data.decoded_gb.*--data.limit"):
        kept(split, (taken - 1) / 1e9)


def test_the_flag_keeps_the_training_pictures_alone() -> None:
    splits = TASK.load(RunConfig(data=DataConfig(decoded_gb=0.01, limit=20), options=TASK.options()))
    index = tf.constant(0, tf.int64)
    assert splits.train.fetch(index).dtype == tf.uint8
    assert splits.validation.fetch(index).dtype == splits.test.fetch(index).dtype == tf.string
    with pytest.raises(ValueError, match="data.decoded_gb"):
        DataConfig(decoded_gb=-1)
