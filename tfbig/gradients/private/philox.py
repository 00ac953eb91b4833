"""Standard normal numbers from a counter: Philox 4x32-10 (Salmon et al. 2011) and Box and Muller 1958.

Always compiled by XLA, on a processor too: as single operations of TensorFlow's, of which its own Philox takes most,
as many numbers take twice as long. One result holds both numbers of a pair, so that no copy has to join them. Beneath
noise.py, which says which counter is whose.
"""

from __future__ import annotations

import math

import tensorflow as tf

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_WORD = 32

Words = tuple[tf.Tensor, ...]
"""uint32 tensors of one shape."""


@tf.function(jit_compile=True, autograph=False)
def normals(key: tf.Tensor, upper: tf.Tensor, start: tf.Tensor, num_pairs: int) -> tf.Tensor:
    """Two numbers from each of a run of counters.

    Guarantees: a number is made of 64 random bits for its distance from 0, which ends at 9.4 standard deviations, and
    32 for its sign and its partner's share; no counter of one key serves two pairs.

    Args:
        key: uint64 scalar.
        upper: uint64 scalar, upper half of every counter.
        start: uint64 scalar, lower half of the first counter; each pair adds 1.
        num_pairs: Below 2**31; another number is another compilation.

    Returns:
        (2 * num_pairs,) float32.
    """
    lower = start + tf.cast(tf.range(num_pairs), tf.uint64)
    zeros = tf.zeros([num_pairs], tf.uint32)
    high, low, turn, _ = _philox((*_halves(lower), *(zeros + half for half in _halves(upper))), _halves(key))
    # In (0, 1]: never 0, whose logarithm is infinite.
    uniform = tf.cast(high, tf.float32) * 2.0**-32 + (tf.cast(low, tf.float32) + 0.5) * 2.0**-64
    radius = tf.sqrt(-2.0 * tf.math.log(uniform))
    cosine, sine = cosine_and_sine(turn)
    first, second = (tf.cast(tf.bitcast(radius * part, tf.uint32), tf.uint64) for part in (cosine, sine))
    packed = tf.bitwise.bitwise_or(first, tf.bitwise.left_shift(second, tf.constant(_WORD, tf.uint64)))
    return tf.reshape(tf.bitcast(packed, tf.float32), [2 * num_pairs])


def _philox(counter: Words, key: Words) -> Words:
    """The four random words of each counter (four words, the lowest first) under a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high2, low2 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = _xor(_xor(high2, c1), k0), low2, _xor(_xor(high0, c3), k1), low0
        k0, k1 = k0 + tf.constant(_KEY_STEPS[0], tf.uint32), k1 + tf.constant(_KEY_STEPS[1], tf.uint32)
    return c0, c1, c2, c3


def cosine_and_sine(turn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of an angle in units of 2**-32 turns, to 2e-7; with XLA's own a draw takes four times as long.

    Args:
        turn: uint32 of any shape.

    Returns:
        float32 tensors of that shape.
    """
    one = tf.constant(1, tf.uint32)
    quarter = tf.bitwise.right_shift(turn + tf.constant(2**29, tf.uint32), tf.constant(30, tf.uint32))
    rest = tf.bitcast(turn - tf.bitwise.left_shift(quarter, tf.constant(30, tf.uint32)), tf.int32)
    x = tf.cast(rest, tf.float32) * (2.0 * math.pi * 2.0**-32)  # within an eighth of a turn
    z = x * x
    # The polynomials of Cephes (Moshier 1989), sinf.c.
    sine = x + x * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    cosine = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    is_odd = tf.equal(tf.bitwise.bitwise_and(quarter, one), one)
    of_cosine, of_sine = tf.bitwise.right_shift(quarter + one, one), tf.bitwise.right_shift(quarter, one)
    return _negated(tf.where(is_odd, sine, cosine), of_cosine), _negated(tf.where(is_odd, cosine, sine), of_sine)


def _negated(x: tf.Tensor, odd: tf.Tensor) -> tf.Tensor:
    """`x`, with the other sign where the last bit of `odd` is 1."""
    sign = tf.bitwise.left_shift(odd, tf.constant(_WORD - 1, tf.uint32))
    return tf.bitcast(_xor(tf.bitcast(x, tf.uint32), sign), tf.float32)


def _product(a: tf.Tensor, factor: int) -> Words:
    """Upper and lower word of a product of words."""
    lower, upper = _halves(tf.cast(a, tf.uint64) * tf.constant(factor, tf.uint64))
    return upper, lower


def _halves(number: tf.Tensor) -> Words:
    """Lower and upper word of uint64 numbers."""
    upper = tf.bitwise.right_shift(number, tf.constant(_WORD, tf.uint64))
    return tf.cast(number, tf.uint32), tf.cast(upper, tf.uint32)


_xor = tf.bitwise.bitwise_xor
