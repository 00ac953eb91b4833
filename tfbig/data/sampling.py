"""Poisson sampling as an index plan, and what any plan of a training run has to offer.

Private training (Abadi et al. 2016, arXiv 1607.00133) draws each example independently at each step, because
that is what privacy amplification by sampling is proved for (Zhu and Wang 2019, PMLR 97). The number drawn
varies, so a step's batch is cut into physical ones of a fixed size, whose last is filled up with examples of
weight 0. `batches.batches` fetches what a plan names. Letters in shapes: N examples, P a physical batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

_SEED_BITS = 128
Purpose: TypeAlias = Literal["draw", "order", "augment", "noise"]


class Plan(Protocol):
    """Which examples each step sees: indices below N and their weights, a pure function of epoch and step."""

    @property
    def num_examples(self) -> int:
        """N."""

    @property
    def batch_size(self) -> int:
        """Examples a step, those of weight 0 left out; on average where the number varies."""

    @property
    def batch_length(self) -> int | None:
        """Indices of every step, those of weight 0 included; None where that varies from step to step."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see as many examples as there are, on average where the number varies."""

    def indices(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """One step's int64 indices and float32 weights of 0 or 1.

        Where `batch_length` is None, the examples of weight 0 come last and all have the same index.
        """

    def augmentation_seed(self, epoch: int, step: int) -> np.ndarray:
        """(2,) int32, from which the augmentation of a step draws."""


@dataclass(frozen=True)
class PoissonPlan:
    """Each example is in each step with probability q, independently of all others and of all other steps.

    Guarantees: `indices` is a pure function of the fields, the epoch and the step; a step names each drawn
    example exactly once with weight 1, however many were drawn (no batch is truncated: a cap would cost privacy),
    and every other entry has weight 0; two plans with equal fields are equal; neither the representation of a
    plan nor the seeds of its augmentation show `seed`.

    Assumes: the seed is secret and never used for other data. Amplification is proved against an adversary
    who does not know who was drawn; whoever has the seed can list it. The draws are pseudorandom: neither
    NumPy's PCG64 nor its Philox is a cryptographic generator. Philox is taken because its key makes each step a
    stream of its own, and that key is a keyed BLAKE2b hash of epoch and step (RFC 7693): were one step's key
    found out from its draws, it would not lead back to the seed or to other steps. PCG64
    seeded through NumPy's SeedSequence has no such wall between steps: neither was made to be one-way.

    Args:
        num_examples: N, at least 1.
        batch_size: Expected examples a step, at least 1. Above N, every step has all examples.
        physical_batch_size: P, at least 1, a multiple of the number of replicas; batches are padded to a
            multiple of it.
        seed: Secret, from 0 to below 2**128; take it from the operating system, `secrets.randbits(128)`.

    Raises:
        ValueError: A field out of its range.
    """

    num_examples: int
    batch_size: int
    physical_batch_size: int
    # Not in the representation, which ends up in logs and tracebacks.
    seed: int = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("num_examples", "batch_size", "physical_batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; typical batches are 32 to 4096.")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**_SEED_BITS:
            raise ValueError(
                f"seed must be an int from 0 to below 2**{_SEED_BITS}, got one of type {type(self.seed).__name__} that "
                f"is not (it is secret, so not shown); take secrets.randbits({_SEED_BITS})."
            )

    @property
    def sampling_probability(self) -> float:
        """q, the probability with which one step has an example: what the accountant has to be told."""
        return min(1.0, self.batch_size / self.num_examples)

    @property
    def batch_length(self) -> None:
        """None: the number of examples varies from step to step."""
        return None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which an example is expected to be drawn once, rounded up."""
        return -(-self.num_examples // self.batch_size)

    def indices(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of one step, filled up to a multiple of `physical_batch_size`.

        Args:
            epoch: From 0.
            step: From 0, within the epoch.

        Returns:
            (K * P,) int64 indices and float32 weights, K at least 1: first those drawn, with weight 1, in no
            particular order, then index 0 with weight 0. K varies; a step that drew nobody has P of weight 0.
        """
        key = int.from_bytes(derived_key(self.seed, "draw", epoch, step), "little")
        rng = np.random.Generator(np.random.Philox(key=key))
        # Exactly N independent draws, in time of those drawn and not of N: such draws give a set S the probability
        # q^|S| (1-q)^(N-|S|), the same for all sets of one size, and |S| is Binomial(N, q). So the size may be
        # drawn first and then, uniformly, a set of that size. Unshuffled, for a step sums over its set.
        num_drawn = int(rng.binomial(self.num_examples, self.sampling_probability))
        drawn = rng.choice(self.num_examples, num_drawn, replace=False, shuffle=False)
        length = padded_length(max(num_drawn, 1), self.physical_batch_size)
        indices, weight = np.zeros(length, np.int64), np.zeros(length, np.float32)
        indices[:num_drawn], weight[:num_drawn] = drawn, 1.0
        return indices, weight

    def augmentation_seed(self, epoch: int, step: int) -> np.ndarray:
        """(2,) int32 that tells nothing of `seed`; see `secret_augmentation_seed`."""
        return secret_augmentation_seed(self.seed, epoch, step)


def padded_length(num_examples: int, multiple: int) -> int:
    """The least multiple of `multiple` that is at least `num_examples`."""
    return -(-num_examples // multiple) * multiple


def secret_augmentation_seed(seed: int, epoch: int, step: int) -> np.ndarray:
    """The seed of one step's augmentation, for plans whose own seed is secret.

    Guarantees: a keyed BLAKE2b hash, so that these seeds, which reach graphs and may be logged, show neither the
    plan's seed nor who is drawn.

    Args:
        seed: Non-negative, below 2**512.
        epoch: From 0.
        step: From 0, within the epoch.

    Returns:
        (2,) int32.
    """
    return np.frombuffer(derived_key(seed, "augment", epoch, step, num_bytes=8), "<i4").astype(np.int32)


def derived_key(secret: int, purpose: Purpose, *place: int, num_bytes: int = 16) -> bytes:
    """A key of its own for one use of a run's secret: a keyed BLAKE2b hash (RFC 7693).

    Guarantees: whoever found out the key of one purpose or place, such as from what was drawn with it, learns
    nothing of the secret or of the other keys.

    Args:
        secret: Non-negative, below 2**512.
        purpose: What is drawn with it.
        place: Numbers that tell the keys of one purpose apart, such as epoch and step.
        num_bytes: 1 to 64.

    Raises:
        OverflowError: The secret is out of range.
    """
    key = secret.to_bytes(hashlib.blake2b.MAX_KEY_SIZE, "little")
    message = " ".join([purpose, *map(str, place)])
    return hashlib.blake2b(message.encode(), key=key, digest_size=num_bytes).digest()
