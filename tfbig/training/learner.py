"""The learner: our only train_step. It trains a network; the network is saved and exported, never the learner."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tfbig.data.splits import Batch, Features
from tfbig.gradients.rule import GradientRule, sum_over_replicas
from tfbig.objectives.supervised import Objective
from tfbig.training.distribution import step_function

NEVER = -1


class Learner(keras.Model):
    """Ties a network, an objective and a gradient rule together for Keras's fit.

    Args:
        network: What is trained.
        objective: Gives one loss per example, and the metrics.
        rule: Turns the losses into gradients.
    """

    train_function: Callable | None
    test_function: Callable | None

    def __init__(self, network: keras.Model, objective: Objective, rule: GradientRule) -> None:
        super().__init__(name="learner")
        self.network = network
        self._losses = objective.losses
        self.rule = rule
        self._loss = keras.metrics.Mean(name="loss")
        self._judges = objective.metrics()
        # The step at which a loss was first not finite. A variable, so that no step waits for the host.
        self.diverged_at = self.add_weight(
            name="diverged_at",
            shape=(),
            dtype="int32",
            initializer=keras.initializers.Constant(NEVER),
            trainable=False,
            aggregation="only_first_replica",
        )
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss and the objective's metrics, reset at each epoch."""
        return [self._loss, *self._judges]

    @property
    def rule_variables(self) -> list[keras.Variable]:
        """What the gradient rule remembers from step to step; nothing for most."""
        return list(getattr(self.rule, "variables", ()))

    def call(self, x: Features, training: bool | None = None) -> tf.Tensor:
        """The network's outputs."""
        return self.network(x, training=training)

    def train_step(self, data: tuple[Features, tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One update from one batch."""
        batch = Batch(*data)
        step = self.rule(self._losses, self.network, batch)
        self._note_divergence(step.losses * batch.weight)
        self.optimizer.apply(step.gradients, self.network.trainable_variables)
        return self._judge(batch, step.losses, step.outputs)

    def test_step(self, data: tuple[Features, tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Metrics of one batch, without an update."""
        batch = Batch(*data)
        losses, outputs = self._losses(self.network, batch, training=False)
        return self._judge(batch, losses, outputs)

    def make_train_function(self, force: bool = False) -> None:
        """Makes `train_function` of `train_step`: Keras's way, or our own where that is better."""
        if not self._has_own_functions:
            super().make_train_function(force)
        elif force or self.train_function is None:
            self.train_function = self._function_of(self.train_step)

    def make_test_function(self, force: bool = False) -> None:
        """Makes `test_function` of `test_step`, likewise."""
        if not self._has_own_functions:
            super().make_test_function(force)
        elif force or self.test_function is None:
            self.test_function = self._function_of(self.test_step)

    @property
    def _has_own_functions(self) -> bool:
        return self.distribute_strategy.num_replicas_in_sync > 1 or self._is_one_graph

    def _function_of(self, step: Callable) -> Callable:
        """A step over several replicas, or as one graph."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            return step_function(self.distribute_strategy, step, jit_compile=self.jit_compile)
        return _from_iterator(step)

    def _maybe_symbolic_build(self, iterator: object = None, data_batch: object = None) -> None:
        """Builds the optimizer, without a batch: Keras averages one over the replicas, and strings have no mean."""
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.network.trainable_variables)

    @property
    def _is_one_graph(self) -> bool:
        """Whether a step needs no graph around it: neither for XLA nor for several devices."""
        one_device = not tf.distribute.has_strategy() and self.distribute_strategy is tf.distribute.get_strategy()
        return one_device and not (self.jit_compile or self.run_eagerly) and self.steps_per_execution == 1

    def _judge(self, batch: Batch, losses: tf.Tensor, outputs: tf.Tensor) -> dict[str, tf.Tensor]:
        self._loss.update_state(losses, sample_weight=batch.weight)
        for judge in self._judges:
            judge.update_state(batch.y, outputs, sample_weight=batch.weight)
        return {metric.name: metric.result() for metric in self.metrics}

    def _note_divergence(self, losses: tf.Tensor) -> None:
        num_bad = sum_over_replicas(tf.reduce_sum(tf.cast(~tf.math.is_finite(losses), tf.int32)))
        before = tf.convert_to_tensor(self.diverged_at)
        step = tf.cast(self.optimizer.iterations, tf.int32)
        self.diverged_at.assign(tf.where((num_bad == 0) | (before != NEVER), before, step))


def _from_iterator(step: Callable) -> Callable:
    """A step as one graph. Keras calls the graph of a step from another, and each passes every variable."""
    return tf.function(lambda iterator: step(iterator.get_next()), autograph=False, reduce_retracing=True)
