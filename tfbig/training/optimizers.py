"""Optimizers and learning-rate schedules, with a lower rate for chosen variables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises from 0 over `warmup_steps`, then falls to 0 along a half cosine, or stays.

    Args:
        peak: Highest learning rate.
        num_steps: Steps of the whole run.
        warmup_steps: Steps of the rise, fewer than `num_steps`.
        falls: False stays at the peak.
    """

    def __init__(self, peak: float, *, num_steps: int, warmup_steps: int, falls: bool) -> None:
        self.peak = peak
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.falls = falls

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """The learning rate of one step, counted from 0."""
        step = keras.ops.cast(step, "float32")
        rise = keras.ops.minimum((step + 1.0) / (self.warmup_steps + 1.0), 1.0)
        if not self.falls:
            return self.peak * rise
        progress = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        fall = 0.5 * (1.0 + keras.ops.cos(np.pi * keras.ops.clip(progress, 0.0, 1.0)))
        return self.peak * rise * fall

    def get_config(self) -> dict[str, object]:
        """The constructor's arguments."""
        return {"peak": self.peak, "num_steps": self.num_steps, "warmup_steps": self.warmup_steps, "falls": self.falls}


# Settings of Keras's optimizers that the operations below do not know.
_NOT_FUSED = ("amsgrad", "nesterov")


class _Fused(keras.optimizers.Optimizer):
    """Updates a variable by one operation of TensorFlow's, where Keras takes about twenty.

    The formulas are Keras's, and so are the names and shapes of what an optimizer remembers. A network of 200 variables
    is traced and optimised in a fraction of the time, and a step reads each variable once. A mixin in front of a Keras
    optimizer; what is the same for all variables of a step is computed once.

    Args:
        undecayed: Variables without weight decay.
        slow: Variables whose learning rate, and so whose decay, is multiplied by `slow_scale`.
        slow_scale: Above 0.
        **settings: Of the Keras optimizer.

    Raises:
        ValueError: A setting that TensorFlow's operation does not know.
    """

    def __init__(
        self,
        *,
        undecayed: Iterable[keras.Variable],
        slow: Iterable[keras.Variable],
        slow_scale: float,
        **settings: object,
    ) -> None:
        ignored = sorted(name for name in _NOT_FUSED if settings.get(name))
        if ignored:
            raise ValueError(f"{type(self).__name__} has no {', '.join(ignored)}; use Keras's own optimizer for it.")
        super().__init__(**settings)
        self._undecayed_ids = frozenset(id(variable) for variable in undecayed)
        self._slow_ids = frozenset(id(variable) for variable in slow)
        self._slow_scale = slow_scale

    def exclude_from_weight_decay(
        self, var_list: Iterable[keras.Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Refused: `undecayed` says it when the optimizer is made."""
        raise ValueError(f"{type(self).__name__} takes what does not decay as `undecayed` when it is made.")

    def _apply_weight_decay(self, variables: Sequence[keras.Variable]) -> None:
        """Nothing: a variable decays in its own update."""

    def _backend_update_step(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: tf.Tensor
    ) -> None:
        rate = tf.convert_to_tensor(learning_rate)
        rates = [rate, rate * self._slow_scale]
        decays = [tf.zeros([]) if not self.weight_decay else each * self.weight_decay for each in rates]
        settings = (*rates, *decays, *self._shared())
        if tf.distribute.has_strategy():
            super()._backend_update_step(grads, trainable_variables, settings)
            return
        # Keras sums each gradient over the replicas, which for one is an operation that does nothing.
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable.value if isinstance(variable, keras.Variable) else variable, settings)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tuple[tf.Tensor, ...]) -> None:
        """Updates one variable; on several devices the part of it that lies on one.

        Args:
            gradient: Of the whole batch.
            variable: TensorFlow's own.
            learning_rate: Shared by all variables of the step: two rates, two decays, and what `_shared` gives.
        """
        index = self._get_variable_index(variable)
        whole = id(self._trainable_variables[index])
        rate, slow_rate, decay, slow_decay, *shared = learning_rate
        if whole in self._slow_ids:
            rate, decay = slow_rate, slow_decay
        if self.weight_decay and whole not in self._undecayed_ids:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=decay, delta=tf.convert_to_tensor(variable)
            )
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        self._update(variable, index, gradient, rate, *shared)


class FusedAdamW(_Fused, keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) by `ResourceApplyAdam`."""

    def _shared(self) -> tuple[tf.Tensor, ...]:
        beta1, beta2, epsilon = (tf.constant(value) for value in (self.beta_1, self.beta_2, self.epsilon))
        step = tf.cast(self.iterations + 1, tf.float32)
        return beta1, beta2, epsilon, tf.pow(beta1, step), tf.pow(beta2, step)

    def _update(
        self,
        variable: tf.Variable,
        index: int,
        gradient: tf.Tensor,
        rate: tf.Tensor,
        beta1: tf.Tensor,
        beta2: tf.Tensor,
        epsilon: tf.Tensor,
        beta1_power: tf.Tensor,
        beta2_power: tf.Tensor,
    ) -> None:
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=beta1_power,
            beta2_power=beta2_power,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            grad=gradient,
        )


class FusedSGD(_Fused, keras.optimizers.SGD):
    """Gradient descent with momentum by `ResourceApplyKerasMomentum`."""

    def _shared(self) -> tuple[tf.Tensor, ...]:
        return (tf.constant(self.momentum),)

    def _update(
        self, variable: tf.Variable, index: int, gradient: tf.Tensor, rate: tf.Tensor, momentum: tf.Tensor
    ) -> None:
        if not self.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=self.momentums[index].value.handle, lr=rate, grad=gradient, momentum=momentum
        )


def make_optimizer(
    name: str,
    *,
    learning_rate: WarmupCosine,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    undecayed: Iterable[keras.Variable] = (),
    slow: Iterable[keras.Variable] = (),
    slow_scale: float = 1.0,
) -> keras.optimizers.Optimizer:
    """An optimizer by name.

    Args:
        name: adamw or sgd.
        learning_rate: The schedule.
        momentum: For sgd, 0 to below 1.
        weight_decay: Decoupled, at least 0.
        undecayed: Variables without weight decay.
        slow: Variables whose learning rate, and so whose decay, is multiplied by `slow_scale`.
        slow_scale: Above 0.

    Returns:
        A Keras optimizer, not yet built.
    """
    extra = {"momentum": momentum} if name == "sgd" else {}
    return _OPTIMIZERS[name](
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        name=name,
        undecayed=undecayed,
        slow=slow,
        slow_scale=slow_scale,
        **extra,
    )


_OPTIMIZERS = {"adamw": FusedAdamW, "sgd": FusedSGD}


def without_decay(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Biases, norm scales and other vectors: what weight decay leaves alone."""
    return [variable for variable in variables if len(variable.shape) < 2]
