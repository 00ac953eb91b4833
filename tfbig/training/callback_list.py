"""Callbacks of `fit` that read a step's figures only when they use them.

Keras turns the figures of every step into numbers of the host as soon as one callback looks at steps, so that the host
waits for each step, and an accelerator then waits for the host. Used by fit.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf


class StepCallbacks(keras.callbacks.CallbackList):
    """Keras's list of callbacks, which gives them a step's figures as they are: tensors that may not be there yet.

    What needs a number makes it by `float`, and waits then. At the end of an epoch they are numbers, as ever.

    Args:
        callbacks: In the order in which they are called.
        learner: What they observe.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], learner: keras.Model) -> None:
        super().__init__(list(callbacks), add_history=True, model=learner)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        """Tells all callbacks, in this thread."""
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        """Tells all callbacks, in this thread."""
        for callback in self.callbacks:
            callback.on_test_batch_end(batch, logs)
