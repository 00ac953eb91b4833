"""Turns of Keras's own `fit`, whoever calls it."""

from __future__ import annotations

import keras
from turns import Turns


class AfterStep(keras.callbacks.Callback):
    """Tells `turns` of each step."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._turns.ends_turn:
            # Figures that are tensors still may be those of a step that a device has not done.
            for value in (logs or {}).values():
                float(value)
        self._turns.step_done()
