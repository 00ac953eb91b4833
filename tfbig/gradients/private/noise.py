"""The noise of private training: a pure function of (secret, step, variable, replica).

Independent Gaussian noise a step for DP-SGD (Abadi et al. 2016, arXiv 1607.00133), or noise whose running sum
follows a binary tree, for DP-FTRL (Kairouz et al. 2021, arXiv 2103.00039). Used by rule.py.

Guarantees: no two draws of one secret share a random number. Philox is a bijection of a 128-bit counter under a key
made of the secret; (step, replica) is written without overlap into the upper half of the counter, and the position
within the step's draw, in which each variable has a place of its own, into the lower. A resumed run draws for each
step what the interrupted one drew, or would have drawn, with XLA and without; a change of what is drawn needs another
mechanism.NOISE_LAYOUT, so that a run of before does not go on with it. What the generator and floating-point numbers
do not protect from is in docs/privacy.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import tensorflow as tf

from tfbig.data.sampling import derived_key
from tfbig.gradients.private.philox import normals

_REPLICA_BITS = 10
MAX_STEPS = 2 ** (63 - _REPLICA_BITS)
_KEY_MASK = 2**63 - 1
# Numbers: the most that are computed at once, and where TensorFlow can take a slice without a copy (64 bytes).
_PART, _ALIGNED = 2**20, 16


class Noise(Protocol):
    """Noise for the sum of one step's clipped gradients."""

    def __call__(self, shapes: Sequence[Sequence[int]], step: tf.Tensor) -> list[tf.Tensor]:
        """A replica's share of standard normal noise, one float32 tensor a shape.

        R replicas draw independently with a standard deviation of 1 / sqrt(R), so that their sum has 1.

        Args:
            shapes: Of the trained variables, in their order.
            step: From 0 to below 2**53, the same on all replicas, of which there are at most 2**10.

        Raises:
            ValueError: More replicas, or a step that is known and out of range.
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
    _refuse_overlap(num_replicas, tf.get_static_value(step))
    code = tf.cast(step * 2**_REPLICA_BITS + tf.cast(replica, tf.int64), tf.uint64)
    layout = _Layout.of([math.prod(shape) for shape in shapes])
    num_pairs = layout.part_size // 2
    parts = [
        normals(tf.constant(key, tf.uint64), code, tf.constant(part * num_pairs, tf.uint64), num_pairs)
        for part in range(layout.num_parts)
    ]
    if num_replicas > 1:
        parts = [part / num_replicas**0.5 for part in parts]
    return [tf.reshape(layout.taken(parts, index), shape) for index, shape in enumerate(shapes)]


@dataclass(frozen=True)
class _Layout:
    """Which numbers of a step's draw are which variable's.

    The draw is one sequence of numbers, computed in parts of one size, so that XLA compiles one of them and none is
    large; a variable has the next of the sequence, from a multiple of `_ALIGNED`, where TensorFlow needs no copy.

    Args:
        sizes: Elements of each variable.
        starts: Of each variable in the sequence.
        num_parts: Of the sequence.
        part_size: Numbers of each part, even.
    """

    sizes: Sequence[int]
    starts: Sequence[int]
    num_parts: int
    part_size: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> _Layout:
        *starts, total = itertools.accumulate((_aligned(size) for size in sizes), initial=0)
        num_parts = -(-total // _PART)
        return cls(sizes, starts, num_parts, _aligned(-(-total // max(num_parts, 1))))

    def taken(self, parts: Sequence[tf.Tensor], index: int) -> tf.Tensor:
        """A variable's numbers, flat."""
        pieces, start, stop = [], self.starts[index], self.starts[index] + self.sizes[index]
        for part in range(start // self.part_size, -(-stop // self.part_size)):
            first = part * self.part_size
            pieces.append(parts[part][max(start - first, 0) : min(stop - first, self.part_size)])
        return pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _refuse_overlap(num_replicas: int, step: int | None) -> None:
    """Beyond these limits two draws would share their random numbers; `step` is None where a graph computes it."""
    for name, value, limit in (
        ("replicas", num_replicas, 2**_REPLICA_BITS),
        ("steps", 0 if step is None else int(step) + 1, MAX_STEPS),
    ):
        if value > limit:
            raise ValueError(
                f"Noise is drawn for at most {limit} {name}, got {value}; more would use random numbers twice. Train "
                "on fewer devices, for fewer steps."
            )


def _lowest_bit(number: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(number, -number)
