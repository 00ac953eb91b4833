"""Optimizers and learning-rate schedules, with a lower rate for chosen variables."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np

_OPTIMIZERS = {"adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}


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
    base = _OPTIMIZERS[name]
    extra = {"momentum": momentum} if name == "sgd" else {}
    undecayed, slow = list(undecayed), list(slow)
    slow_ids = frozenset(id(variable) for variable in slow) if slow_scale != 1.0 else frozenset()

    undecayed_ids = frozenset(id(variable) for variable in undecayed)

    class Scaled(base):  # type: ignore[misc, valid-type]
        """The optimizer, with a learning rate and a decay of their own for slow variables."""

        def update_step(
            self, gradient: keras.KerasTensor, variable: keras.Variable, learning_rate: keras.KerasTensor
        ) -> None:
            # TensorFlow hands over its own variable, on several devices a part of it; the index tells which it is.
            whole = self._trainable_variables[self._get_variable_index(variable)]
            if id(whole) not in slow_ids:
                super().update_step(gradient, variable, learning_rate)
                return
            rate = learning_rate * slow_scale
            if id(whole) not in undecayed_ids:
                self.assign_sub(variable, variable * keras.ops.cast(rate * weight_decay, variable.dtype))
            super().update_step(gradient, variable, rate)

    optimizer = (Scaled if slow_ids else base)(
        learning_rate=learning_rate, weight_decay=weight_decay, name=name, **extra
    )
    if weight_decay:
        # Slow variables decay in their own update.
        optimizer.exclude_from_weight_decay(var_list=[*undecayed, *(slow if slow_ids else ())])
    return optimizer


def without_decay(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Biases, norm scales and other vectors: what weight decay leaves alone."""
    return [variable for variable in variables if len(variable.shape) < 2]
