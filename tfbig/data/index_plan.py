"""Which examples each step sees, as a pure function of the seed, the epoch and the step.

So shuffling, sharding over replicas, exact resume after a kill, feature caching and the manifest are one mechanism: the
plan names indices into a split (`splits.py`), and `batches.py` fetches them. The plan that samples for private training
is in `sampling.py`. Letters in shapes: B a batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from tfbig.data.sampling import derived_key, padded_length, secret_augmentation_seed

_LEAST_SECRET = 2**31


@dataclass(frozen=True)
class IndexPlan:
    """Which examples each step sees: a pure function of (seed, epoch, step, replica).

    Guarantees: over one epoch every example has weight 1 exactly once; every batch has `batch_length`
    indices, filled up with examples of weight 0 where it has fewer; two plans with equal fields are equal.

    Args:
        num_examples: N, at least 1.
        batch_size: Global batch over all replicas, at least 1.
        seed: Orders the epochs; unused when `shuffle` is False. From 2**31 up (a secret of 128 bits) it does
            not show in the orders or in the seeds of the augmentation.
        shuffle: False keeps the stored order (evaluation).
        multiple: Batches are filled up to a multiple of this, at least 1: a physical batch, of which private
            training takes several a step.
    """

    num_examples: int
    batch_size: int
    seed: int = field(default=0, repr=False)
    shuffle: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, got {self.multiple}; it is 1 or a physical batch size.")
        if self.num_examples < 1 or self.batch_size < 1:
            raise ValueError(
                f"A plan needs at least one example and a batch of at least one, got "
                f"{self.num_examples} examples and batch_size {self.batch_size}."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches that cover every example once."""
        return -(-self.num_examples // self.batch_size)

    @property
    def batch_length(self) -> int:
        """Indices of every batch: `batch_size`, rounded up to a multiple of `multiple`."""
        return padded_length(self.batch_size, self.multiple)

    def indices(
        self, epoch: int, step: int, *, replica: int = 0, num_replicas: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """The indices of one step and their weights.

        Args:
            epoch: From 0.
            step: From 0, within the epoch.
            replica: Which of `num_replicas` equal slices of the batch to return.
            num_replicas: Must divide `batch_length`.

        Returns:
            (B / num_replicas,) int64 indices and float32 weights of 0 or 1, B being `batch_length`.
        """
        length, first = self.batch_length, step * self.batch_size
        if length % num_replicas:
            raise ValueError(f"A batch of {length} examples is not a multiple of {num_replicas} replicas.")
        order = _order(self.num_examples, self.seed, epoch, self.shuffle)
        position = np.arange(first, first + length)
        indices = order[position % self.num_examples].astype(np.int64)
        weight = (position < min(first + self.batch_size, self.num_examples)).astype(np.float32)
        size = length // num_replicas
        share = slice(replica * size, (replica + 1) * size)
        return indices[share], weight[share]

    def augmentation_seed(self, epoch: int, step: int) -> np.ndarray:
        """(2,) int32: the seed and the number of the step in the run, or a hash where the seed has over 31 bits."""
        if self.seed >= _LEAST_SECRET:
            return secret_augmentation_seed(self.seed, epoch, step)
        return np.array([self.seed, epoch * self.steps_per_epoch + step], np.int32)


@functools.lru_cache(maxsize=4)
def _order(num_examples: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    # Half the memory of numpy's own choice, for up to four epochs.
    kind = np.int32 if num_examples < 2**31 else np.int64
    order = np.arange(num_examples, dtype=kind)
    if not shuffle:
        return order
    key: int | list[int] = [seed, epoch]
    if seed >= _LEAST_SECRET:
        # What the generator gives away must not lead back to the secret, from which the noise comes too.
        key = int.from_bytes(derived_key(seed, "order", epoch), "little")
    return np.random.default_rng(key).permutation(order)
