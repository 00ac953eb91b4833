"""Gradient rules: from per-example losses to the gradients of one step.

A rule is a function (losses, network, batch) -> Step; features that change gradients (accumulation,
private training, adversarial training) are other rules, or functions from rule to rule. Gradients are
each replica's share of the global mean, so that summing them over replicas, as Keras optimizers do
under tf.distribute, gives the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tfbig.data.splits import Batch


class Step(NamedTuple):
    """What a rule gives: gradients of the trainable variables, (B,) losses and the network's outputs."""

    gradients: list[tf.Tensor]
    losses: tf.Tensor
    outputs: tf.Tensor


GradientRule = Callable[[Callable, keras.Model, Batch], Step]


def mean_gradient(losses: Callable, network: keras.Model, batch: Batch) -> Step:
    """The gradient of the weighted mean loss over the global batch, plus the network's own penalties.

    Args:
        losses: An Objective's losses.
        network: Trained in its trainable variables.
        batch: This replica's B examples; those of weight 0 have no influence on the loss.
    """
    total_weight = tf.maximum(sum_over_replicas(tf.reduce_sum(batch.weight)), 1e-9)
    num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
    with tf.GradientTape() as tape:
        per_example, outputs = losses(network, batch, training=True)
        share = tf.reduce_sum(per_example * batch.weight) / total_weight
        if network.losses:
            share += tf.add_n([tf.cast(penalty, tf.float32) for penalty in network.losses]) / num_replicas
    gradients = tape.gradient(share, [variable.value for variable in network.trainable_variables])
    return Step(gradients, per_example, outputs)


def clipped(rule: GradientRule, clip_norm: float) -> GradientRule:
    """The rule with its gradients scaled down to a global norm, that of the whole batch over all replicas.

    Args:
        rule: Gives each replica's share.
        clip_norm: Largest norm, above 0.
    """

    def apply(losses: Callable, network: keras.Model, batch: Batch) -> Step:
        step = rule(losses, network, batch)
        whole = [sum_over_replicas(tf.convert_to_tensor(share)) for share in step.gradients if share is not None]
        scale = tf.minimum(1.0, clip_norm / tf.maximum(tf.linalg.global_norm(whole), 1e-12))
        return step._replace(gradients=[None if share is None else share * scale for share in step.gradients])

    return apply


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The sum of a value over all replicas, the same on each; the value itself outside of a replica."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
