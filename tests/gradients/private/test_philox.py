"""The normal numbers of a counter: TensorFlow's own Philox, and Box and Muller's transform of its words."""

import numpy as np
import pytest
import tensorflow as tf

from tfbig.gradients.private.philox import cosine_and_sine, normals

KEY, UPPER = 0xFEDC_BA98_7654_3210, 0x8123_4567_89AB_CDEF


def _words(start: int, num_counters: int) -> np.ndarray:
    """(num_counters, 4) words of another implementation."""
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[num_counters, 4], key=np.array([KEY], np.uint64), counter=np.array([start, UPPER], np.uint64),
        alg=1, dtype=tf.uint32,
    )  # fmt: skip
    return words.numpy()


def _normals(start: int, num_pairs: int) -> np.ndarray:
    return normals(*(tf.constant(number, tf.uint64) for number in (KEY, UPPER, start)), num_pairs).numpy()


@pytest.mark.parametrize("start", [0, 1, 2**32 - 5, 2**63 + 2**33 + 7])
def test_the_numbers_are_those_of_the_words_of_philox(start: int) -> None:
    high, low, turn, _ = _words(start, 1000).astype(np.longdouble).T
    radius = np.sqrt(-2 * np.log(high / 2**32 + (low + 0.5) / np.longdouble(2) ** 64))
    angle = 2 * np.pi * (turn / 2**32).astype(np.float64)
    found = _normals(start, 1000).reshape(1000, 2)
    # Near a uniform number of 1 its float32 has few digits of the logarithm left.
    for numbers, part in zip(found.T, (np.cos(angle), np.sin(angle)), strict=True):
        np.testing.assert_allclose(numbers, radius * part, atol=1e-3)
        np.testing.assert_allclose(numbers[radius > 0.1], (radius * part)[radius > 0.1], atol=4e-6)


def test_a_later_start_goes_on_where_the_counters_are() -> None:
    whole = _normals(5, 64)
    np.testing.assert_array_equal(_normals(5 + 24, 64)[:80], whole[48:])


def test_cosine_and_sine_are_right_in_each_part_of_a_turn() -> None:
    eighths = [eighth * 2**29 + near for eighth in range(8) for near in (-1, 0, 1)]
    turns = np.array(eighths, np.int64).astype(np.uint32)
    turns = np.concatenate([turns, np.random.default_rng(0).integers(2**32, size=10_000, dtype=np.uint32)])
    angle = 2 * np.pi * turns.astype(np.float64) / 2**32
    for found, exact in zip(cosine_and_sine(tf.constant(turns)), (np.cos(angle), np.sin(angle)), strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-7)
