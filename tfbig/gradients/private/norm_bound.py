"""The clipping norm: one number for the whole run, or one that follows a quantile of the gradients' norms.

The second is Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping, arXiv 1905.03871,
and computes what TF Privacy's QuantileAdaptiveClipSumQuery does. Used by rule.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import keras
import tensorflow as tf

from tfbig.errors import UsageError
from tfbig.gradients.rule import sum_over_replicas

# Of the count's noise over the expected batch, as the paper recommends.
_COUNT_NOISE_SHARE = 1 / 20
_COUNT_SENSITIVITY = 0.5
_LEARNING_RATE = 0.2


class NormBound(Protocol):
    """What gradients are clipped to, and the noise that goes with it."""

    noise_multiplier: float
    """Standard deviation of the gradients' noise over the bound."""

    @property
    def variables(self) -> Sequence[keras.Variable]:
        """What a checkpoint has to hold."""

    @property
    def parameters(self) -> dict[str, float] | None:
        """How the bound moves; None where it does not."""

    def norm(self) -> tf.Tensor:
        """The bound of this step, a scalar above 0."""

    def update(self, norms: tf.Tensor, weights: tf.Tensor, noise: tf.Tensor, *, expected_batch: int) -> None:
        """Moves the bound after a step.

        Args:
            norms: (B,) before clipping, of this replica.
            weights: (B,) zeros and ones.
            noise: This replica's share of a standard normal number.
            expected_batch: Examples a step.
        """


class FixedNorm:
    """The same bound at every step.

    Args:
        norm: Above 0.
        noise_multiplier: Sigma, at least 0.
    """

    def __init__(self, norm: float, noise_multiplier: float) -> None:
        self._norm, self.noise_multiplier = norm, noise_multiplier

    @property
    def variables(self) -> Sequence[keras.Variable]:
        """None."""
        return ()

    @property
    def parameters(self) -> dict[str, float] | None:
        """None."""
        return None

    def norm(self) -> tf.Tensor:
        """The bound."""
        return tf.constant(self._norm, tf.float32)

    def update(self, norms: tf.Tensor, weights: tf.Tensor, noise: tf.Tensor, *, expected_batch: int) -> None:
        """Changes nothing."""


class AdaptiveNorm:
    """A bound that moves towards a quantile of the gradients' norms, which is counted privately.

    Guarantees: the noisy sum of gradients and the noisy count together cost what a sum with `noise_multiplier`
    alone would. The count's noise takes a small part of the budget, so the gradients' noise is a little larger.

    Args:
        initial: The bound of the first step, above 0.
        quantile: Share of the gradients that the bound should leave whole, 0 to 1.
        noise_multiplier: Sigma of both together, above 0.
        expected_batch: Examples a step.

    Raises:
        UsageError: The batch is too small for the count to cost less than the whole budget.
    """

    def __init__(self, initial: float, *, quantile: float, noise_multiplier: float, expected_batch: int) -> None:
        self._quantile = quantile
        self.count_stddev = expected_batch * _COUNT_NOISE_SHARE
        of_count = self.count_stddev / _COUNT_SENSITIVITY
        if of_count <= noise_multiplier:
            least = math.ceil(noise_multiplier * _COUNT_SENSITIVITY / _COUNT_NOISE_SHARE) + 1
            raise UsageError(
                f"dp.clip_quantile needs data.batch_size of at least {least} with a noise multiplier of "
                f"{noise_multiplier:.3g}, got {expected_batch}; take larger batches or a fixed dp.l2_norm_clip."
            )
        self.noise_multiplier = (noise_multiplier**-2 - of_count**-2) ** -0.5
        self._norm = keras.Variable(
            initial, shape=(), dtype="float32", trainable=False, name="clip_norm", aggregation="only_first_replica"
        )

    @property
    def variables(self) -> Sequence[keras.Variable]:
        """The bound."""
        return (self._norm,)

    @property
    def parameters(self) -> dict[str, float] | None:
        """How the bound moves, and what is added to what."""
        return {
            "quantile": self._quantile,
            "learning_rate": _LEARNING_RATE,
            "count_stddev": self.count_stddev,
            "gradient_noise_multiplier": self.noise_multiplier,
        }

    def norm(self) -> tf.Tensor:
        """The bound of this step."""
        return tf.convert_to_tensor(self._norm)

    def update(self, norms: tf.Tensor, weights: tf.Tensor, noise: tf.Tensor, *, expected_batch: int) -> None:
        """One geometric step towards the quantile."""
        bound = self.norm()
        # Less a half, so that one example changes the sum by a half at most.
        whole = (tf.cast(norms <= bound, tf.float32) - _COUNT_SENSITIVITY) * weights
        noisy = sum_over_replicas(tf.reduce_sum(whole) + self.count_stddev * noise)
        share = tf.clip_by_value(noisy / expected_batch + _COUNT_SENSITIVITY, 0.0, 1.0)
        self._norm.assign(bound * tf.exp(-_LEARNING_RATE * (share - self._quantile)))
