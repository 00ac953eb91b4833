"""`private`: DP-SGD as one gradient rule, for any network and any objective that treats examples one by one.

Each example's gradient is clipped, Gaussian noise is added to the sum, and the result is divided by the
expected batch (Abadi et al. 2016, arXiv 1607.00133). checks.py refuses what would break the promise;
accounting.py says what the promise is. Top of this folder; training/assembly.py gives it to the learner.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfbig.data.splits import Batch
from tfbig.gradients.private.checks import checked_engine
from tfbig.gradients.private.clipping import Engine, Losses, OutputSpec, in_microbatches
from tfbig.gradients.private.noise import GaussianNoise, Noise, TreeNoise
from tfbig.gradients.private.norm_bound import AdaptiveNorm, FixedNorm, NormBound
from tfbig.gradients.rule import Step
from tfbig.networks.hub import HubLayer


class PrivateRule:
    """Gradients of one step, private for each example.

    Guarantees: before the noise, adding or removing one example changes the sum over all replicas by a vector of
    norm at most the bound; the noise added to the sum over all replicas has the standard deviation sigma times the
    bound, exactly once, also where the batch holds no example.

    Args:
        engine: Clips and sums.
        bound: The clipping norm, fixed or following the data privately; holds sigma.
        noise: Draws the noise.
        expected_batch: Examples a step that gradients are divided by, whatever was drawn.
        physical_batch_size: Examples of this replica that are computed at once.
        output_spec: Of the losses' outputs, for one example.
        step: Gives the number of the step, from 0, such as the optimizer's iterations.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        bound: NormBound,
        noise: Noise,
        expected_batch: int,
        physical_batch_size: int,
        output_spec: OutputSpec,
        step: Callable[[], tf.Tensor],
    ) -> None:
        self.engine = engine
        self.bound = bound
        self._noise = noise
        self._expected_batch = expected_batch
        self._physical_batch_size = physical_batch_size
        self._output_spec = output_spec
        self._step = step

    @property
    def variables(self) -> Sequence[tf.Variable]:
        """What a checkpoint has to hold."""
        return self.bound.variables

    @tf.autograph.experimental.do_not_convert
    def __call__(self, losses: Losses, network: keras.Model, batch: Batch) -> Step:
        """A replica's share of the private gradient.

        Args:
            losses: An Objective's, separable.
            network: Trained in its trainable variables.
            batch: A multiple of `physical_batch_size` examples; those of weight 0 only fill it up.
        """
        clip_norm, step = self.bound.norm(), self._step()
        # Divided by the expected batch within the weights: of these there are few, of gradients many.
        shares = batch._replace(weight=batch.weight / self._expected_batch)
        clipped = in_microbatches(
            self.engine, losses, network, shares, clip_norm,
            size=self._physical_batch_size, output_spec=self._output_spec,
        )  # fmt: skip
        # Not before the norms are known, or the noise would lie in memory beside the activations. The last draw is for
        # what the bound counts.
        with tf.control_dependencies([clipped.norms]):
            *noise, of_bound = self._noise([*(total.shape for total in clipped.sums), ()], step)
        spread = self.bound.noise_multiplier * clip_norm / self._expected_batch
        gradients = [total + spread * drawn for total, drawn in zip(clipped.sums, noise, strict=True)]
        self.bound.update(clipped.norms, batch.weight, of_bound, expected_batch=self._expected_batch)
        return Step(with_penalties(gradients, network), clipped.losses, clipped.outputs)


def private(
    network: keras.Model,
    losses: Losses,
    *,
    labels: np.ndarray,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch: int,
    physical_batch_size: int,
    secret: int,
    step: Callable[[], tf.Tensor],
    clip_quantile: float | None = None,
    tree_steps_per_epoch: int | None = None,
) -> PrivateRule:
    """The private rule of a network, checked.

    Guarantees: those of `PrivateRule`. What they amount to depends on how examples are drawn; see accounting.py.

    Args:
        network: Trained in its trainable variables; what it is made of must not change afterwards.
        losses: An Objective's, separable.
        labels: (N, ...) of the training split, of which only shape and type are used.
        clip_norm: Bound of each example's gradient over all trained variables, above 0; 0.1 to 10 is usual.
        noise_multiplier: Sigma, at least 0; 0 is not private.
        expected_batch: Examples a step over all replicas, at least 1.
        physical_batch_size: Examples a replica computes at once, at least 1.
        secret: Random bits of the operating system, at least 63, that nobody knows.
        step: The number of the step, from 0, such as `lambda: optimizer.iterations`.
        clip_quantile: Lets the bound follow this quantile of the norms, for Poisson sampling alone; None keeps it.
        tree_steps_per_epoch: Draws the noise along a tree over this many steps, for DP-FTRL; None draws it anew
            each step.

    Raises:
        UsageError: The network or the losses cannot be trained privately; the message says what to change.
    """
    engine, output_spec = checked_engine(losses, network, labels)
    return PrivateRule(
        engine,
        bound=_bound(clip_norm, clip_quantile, noise_multiplier, expected_batch),
        noise=GaussianNoise(secret) if tree_steps_per_epoch is None else TreeNoise(secret, tree_steps_per_epoch),
        expected_batch=expected_batch,
        physical_batch_size=physical_batch_size,
        output_spec=output_spec,
        step=step,
    )


def _bound(clip_norm: float, quantile: float | None, noise_multiplier: float, expected_batch: int) -> NormBound:
    if quantile is None:
        return FixedNorm(clip_norm, noise_multiplier)
    return AdaptiveNorm(
        clip_norm, quantile=quantile, noise_multiplier=noise_multiplier, expected_batch=expected_batch
    )


def with_penalties(gradients: Sequence[tf.Tensor], network: keras.Model) -> list[tf.Tensor]:
    """Gradients with those of the weights' regularizers, which depend on no example and so need no noise."""
    variables = network.trainable_variables
    terms: list[Callable[[], tf.Tensor]] = [
        functools.partial(variable.regularizer, variable) for variable in variables if variable.regularizer is not None
    ]
    terms += [term for layer in network._flatten_layers() if isinstance(layer, HubLayer) for term in layer.penalties]
    if not terms:
        return list(gradients)
    values = [variable.value for variable in variables]
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        penalty = tf.add_n([tf.cast(term(), tf.float32) for term in terms]) / num_replicas
    found = tape.gradient(penalty, values, unconnected_gradients="zero")
    return [gradient + more for gradient, more in zip(gradients, found, strict=True)]
