"""The noise of private training: a pure function of (secret, step, variable, replica).

Independent Gaussian noise a step for DP-SGD (Abadi et al. 2016, arXiv 1607.00133), or noise whose running sum
follows a binary tree, for DP-FTRL (Kairouz et al. 2021, arXiv 2103.00039). Used by rule.py.

Guarantees: no two draws of one secret share a random number. Philox is a bijection of a 128-bit counter under a key
made of the secret; (step, variable, replica) is written without overlap into the upper half of the counter, and the
position within a draw into the lower. Small variables are drawn together, under the first one's number. A resumed run
draws for each step what the interrupted one drew, or would have drawn, with XLA and without; a change of what is drawn
needs another mechanism.NOISE_LAYOUT, so that a run of before does not go on with it. What the generator and floating-
point numbers do not protect from is in docs/privacy.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

from tfbig.data.sampling import derived_key

_REPLICA_BITS, _VARIABLE_BITS = 10, 18
MAX_STEPS = 2 ** (63 - _REPLICA_BITS - _VARIABLE_BITS)
_KEY_MASK = 2**63 - 1
_PHILOX = 1
# Elements: variables below the first are drawn together, up to the second, which spares most of the graph's operations.
_SMALL, _TOGETHER = 2**14, 2**17


class Noise(Protocol):
    """Noise for the sum of one step's clipped gradients."""

    def __call__(self, shapes: Sequence[Sequence[int]], step: tf.Tensor) -> list[tf.Tensor]:
        """A replica's share of standard normal noise, one float32 tensor a shape.

        R replicas draw independently with a standard deviation of 1 / sqrt(R), so that their sum has 1.

        Args:
            shapes: Of the trained variables, in their order, at most 2**18.
            step: From 0 to below 2**35, the same on all replicas, of which there are at most 2**10.

        Raises:
            ValueError: More shapes or replicas, or a step that is known and out of range.
        """


class GaussianNoise:
    """Independent noise each step.

    Args:
        secret: Random bits, 63 or more; whoever knows them can take the noise away again.
    """

    def __init__(self, secret: int) -> None:
        self._key = _philox_key(secret)

    def __call__(self, shapes: Sequence[Sequence[int]], step: tf.Tensor) -> list[tf.Tensor]:
        """A replica's share."""
        return _draws(self._key, shapes, tf.cast(tf.convert_to_tensor(step), tf.int64))


class TreeNoise:
    """Noise whose sum over steps 1 to t is that of the nodes that cover them in a binary tree.

    The sum grows with log(t) instead of sqrt(t), so that no random sampling of examples is needed. Each step
    gives the difference to the step before: one new node, and those that it replaces taken away. A node is drawn
    anew from its last step's number when it is taken away, so the tree needs no memory, and a resumed run
    none of the past. The tree begins anew each epoch, in which an example may take part once.

    Args:
        secret: Random bits, 63 or more.
        steps_per_epoch: At least 1.
    """

    def __init__(self, secret: int, steps_per_epoch: int) -> None:
        self._key = _philox_key(secret)
        self._steps_per_epoch = steps_per_epoch

    def __call__(self, shapes: Sequence[Sequence[int]], step: tf.Tensor) -> list[tf.Tensor]:
        """A replica's share of the difference between this step's running sum and the last one's."""
        step = tf.cast(tf.convert_to_tensor(step), tf.int64)
        in_epoch = step % self._steps_per_epoch + 1
        begin = step - in_epoch
        # Nodes end at in_epoch, in_epoch less its lowest bit, and so on down to 0.
        kept_until = in_epoch - _lowest_bit(in_epoch)

        def replace(end: tf.Tensor, noise: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            replaced = _draws(self._key, shapes, begin + end)
            return end - _lowest_bit(end), [total - node for total, node in zip(noise, replaced, strict=True)]

        new = _draws(self._key, shapes, begin + in_epoch)
        _, noise = tf.while_loop(
            lambda end, noise: end > kept_until, replace, (in_epoch - 1, new), parallel_iterations=1
        )
        return noise


def _philox_key(secret: int) -> int:
    """63 bits, one-way: neither the secret nor what else is drawn with it can be had from them."""
    return int.from_bytes(derived_key(secret, "noise", num_bytes=8), "little") & _KEY_MASK


def _draws(key: int, shapes: Sequence[Sequence[int]], step: tf.Tensor) -> list[tf.Tensor]:
    context = tf.distribute.get_replica_context()
    num_replicas = 1 if context is None else context.num_replicas_in_sync
    replica = 0 if context is None else context.replica_id_in_sync_group
    _refuse_overlap(len(shapes), num_replicas, tf.get_static_value(step))
    code = step * 2 ** (_VARIABLE_BITS + _REPLICA_BITS) + tf.cast(replica, tf.int64)
    draws: dict[int, tf.Tensor] = {}
    for group in _drawn_together([math.prod(shape) for shape in shapes]):
        sizes = [math.prod(shapes[index]) for index in group]
        drawn = _normal([sum(sizes)], key, code + group[0] * 2**_REPLICA_BITS)
        if num_replicas > 1:
            drawn /= num_replicas**0.5
        parts = [drawn] if len(group) == 1 else tf.split(drawn, sizes)
        draws |= {index: tf.reshape(part, shapes[index]) for index, part in zip(group, parts, strict=True)}
    return [draws[index] for index in range(len(shapes))]


def _drawn_together(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of what one draw is for; each index is in one group, whose first one no other group has."""
    groups: list[list[int]] = []
    small: list[int] = []
    room = 0
    for index, size in enumerate(sizes):
        if size >= _SMALL:
            groups.append([index])
            continue
        if size > room or not small:
            small, room = [], _TOGETHER
            groups.append(small)
        small.append(index)
        room -= size
    return groups


def _refuse_overlap(num_shapes: int, num_replicas: int, step: int | None) -> None:
    """Beyond these limits two draws would share their random numbers; `step` is None where a graph computes it."""
    for name, value, limit in (
        ("shapes", num_shapes, 2**_VARIABLE_BITS),
        ("replicas", num_replicas, 2**_REPLICA_BITS),
        ("steps", 0 if step is None else int(step) + 1, MAX_STEPS),
    ):
        if value > limit:
            raise ValueError(
                f"Noise is drawn for at most {limit} {name}, got {value}; more would use random numbers twice. Train "
                "fewer variables on fewer devices, for fewer steps."
            )


def _normal(shape: Sequence[int], key: int, code: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers by Box and Muller 1958, from 32 random bits each.

    In place of tf.random.stateless_normal, which takes 1.7 times as long on a CPU and, from 23 bits, ends at 5.7
    standard deviations instead of 6.7.
    """
    size = math.prod(shape)
    # Not by StatelessRandomGetKeyCounter: under XLA it drops the upper 32 bits of each half of a seed.
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[2, (size + 1) // 2],
        key=tf.constant([key], tf.uint64),
        counter=tf.stack([tf.constant(0, tf.uint64), tf.cast(code, tf.uint64)]),
        alg=_PHILOX,
        dtype=tf.uint32,
    )
    # In (0, 1]: never 0, whose logarithm is infinite.
    uniform = (tf.cast(bits, tf.float32) + 0.5) * 2.0**-32
    radius, angle = tf.sqrt(-2.0 * tf.math.log(uniform[0])), 2.0 * math.pi * uniform[1]
    normal = tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], 0)
    return tf.reshape(normal[:size], shape)


def _lowest_bit(number: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(number, -number)
