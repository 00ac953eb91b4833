"""Callbacks: they observe and schedule, and never change what a step computes.

`Ledger` is the run's memory (where it is, and the figures of each epoch); the others read it. All of it
lies in the checkpoints, so a resumed run remembers what an uninterrupted one would.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import keras
import numpy as np
import tensorflow as tf

from tfbig.errors import DivergedError, Interrupted
from tfbig.team import Team
from tfbig.training import checkpoints
from tfbig.training.checkpoints import Checkpoint
from tfbig.training.learner import NEVER
from tfbig.training.run_directory import RunDirectory

log = logging.getLogger(__name__)

_STEPS_BETWEEN_DIVERGENCE_CHECKS = 50


@dataclass
class Ledger:
    """Where a run is, and what it measured.

    Args:
        steps_per_epoch: Steps of a whole epoch.
        epoch: The epoch in training, from 0.
        step: The next step in that epoch, from 0.
        history: One row for each finished epoch, as in metrics.jsonl.
        seconds: Time spent in training, over all sessions.
    """

    steps_per_epoch: int
    epoch: int = 0
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def global_step(self) -> int:
        """Steps done since the run began."""
        return self.epoch * self.steps_per_epoch + self.step

    def position(self) -> tuple[int, int]:
        """The epoch and the step in it that come next, for data.batches.batches."""
        return self.epoch, self.step


@dataclass(frozen=True)
class Monitor:
    """Which epoch is best, and when to stop waiting for a better one.

    Args:
        key: Column of the history, such as val_loss.
        mode: min or max.
        patience: Epochs without a better one before stopping; None never stops.
    """

    key: str
    mode: str
    patience: int | None

    def best_row(self, history: list[dict[str, float]]) -> int:
        """Index of the best epoch of a history that is not empty; the first of equals."""
        sign = 1.0 if self.mode == "min" else -1.0
        return int(np.argmin([sign * row[self.key] for row in history]))

    def is_over(self, history: list[dict[str, float]]) -> bool:
        """Whether patience has run out."""
        if self.patience is None or not history or self.key not in history[-1]:
            return False
        return len(history) - 1 - self.best_row(history) >= self.patience


class Progression(keras.callbacks.Callback):
    """Moves the ledger on, writes metrics.jsonl, and stops when patience has run out.

    Comes before whatever reads the ledger; only what checks or adds to an epoch's figures comes before it.
    """

    def __init__(self, ledger: Ledger, monitor: Monitor, run: RunDirectory) -> None:
        super().__init__()
        self._ledger, self._monitor, self._run = ledger, monitor, run
        self._counted_at = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Notes the time."""
        self._counted_at = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Counts the step."""
        self._ledger.step += 1
        self._count_time()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Adds the epoch's row."""
        ledger, figures = self._ledger, {name: float(value) for name, value in (logs or {}).items()}
        for name, value in figures.items():
            if not np.isfinite(value):
                raise DivergedError(
                    f"{name} is {value} after step {ledger.global_step}; try a lower --train.learning_rate."
                )
        self._count_time()
        ledger.epoch, ledger.step = epoch + 1, 0
        rate = float(self.model.optimizer.learning_rate)
        ledger.history.append(
            {
                "epoch": ledger.epoch,
                "step": ledger.global_step,
                "seconds": round(ledger.seconds, 3),
                "learning_rate": rate,
                **figures,
            }
        )
        self._run.write_history(ledger.history)
        if self._monitor.is_over(ledger.history):
            self.model.stop_training = True

    def _count_time(self) -> None:
        before, self._counted_at = self._counted_at, time.monotonic()
        self._ledger.seconds += self._counted_at - before


class DivergenceGuard(keras.callbacks.Callback):
    """Stops a run whose loss is no longer finite, naming the step.

    Args:
        is_private: Whether training is private, which has a clipping norm of its own.
    """

    def __init__(self, *, is_private: bool = False) -> None:
        super().__init__()
        self._remedies = "--train.warmup_steps 100 or " + (
            "a lower --dp.l2_norm_clip" if is_private else "--train.clip_norm 1"
        )

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Looks now and then, so that no step waits for the host."""
        if batch % _STEPS_BETWEEN_DIVERGENCE_CHECKS == 0:
            self.check()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Looks before anything of this epoch is kept."""
        self.check()

    def check(self) -> None:
        """Raises DivergedError where a loss was not finite."""
        step = int(self.model.diverged_at.numpy())
        if step != NEVER:
            raise DivergedError(
                f"The loss stopped being finite at step {step}; try a lower --train.learning_rate (a tenth of it), "
                f"{self._remedies}."
            )


class MovingAverage(keras.callbacks.Callback):
    """An exponential moving average of the weights, which validation and the finished network use.

    Args:
        network: Whose trainable variables are averaged.
        decay: Share of the average kept a step, 0 to below 1. Early on less is kept, (1 + t) / (10 + t).
    """

    def __init__(self, network: keras.Model, decay: float) -> None:
        super().__init__()
        self._live = [variable.value for variable in network.trainable_variables]
        self.averages = [tf.Variable(value, trainable=False) for value in self._live]
        self._decay = decay
        self._update = tf.function(self._move, autograph=False)

    def _move(self, step: tf.Tensor) -> None:
        kept = tf.minimum(self._decay, (1.0 + step) / (10.0 + step))
        for average, live in zip(self.averages, self._live, strict=True):
            average.assign(average * kept + live * (1.0 - kept))

    def swap(self) -> None:
        """Exchanges the network's weights and their average."""
        for average, live in zip(self.averages, self._live, strict=True):
            held = tf.identity(live)
            live.assign(average)
            average.assign(held)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Moves the average."""
        self._update(tf.cast(self.model.optimizer.iterations.value, tf.float32))

    def on_test_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Validation sees the average."""
        self.swap()

    def on_test_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Training goes on from the live weights."""
        self.swap()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network holds the average inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()


class KeepBest(keras.callbacks.Callback):
    """Keeps the network of the best epoch in checkpoints/best.npz.

    Args:
        network: What is kept.
        ledger: Its last row is the epoch just finished.
        monitor: Says which epoch is best.
        path: The file.
        average: Kept in place of the live weights where it is given.
    """

    def __init__(
        self, network: keras.Model, ledger: Ledger, monitor: Monitor, path: Path, average: MovingAverage | None
    ) -> None:
        super().__init__()
        self._network, self._ledger, self._monitor = network, ledger, monitor
        self._path, self._average = path, average

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Writes the file where this epoch is the best so far."""
        if self._monitor.best_row(self._ledger.history) != len(self._ledger.history) - 1:
            return
        if self._average is None:
            self._write()
        else:
            with self._average.in_place():
                self._write()

    def _write(self) -> None:
        arrays = [np.asarray(variable) for variable in self._network.variables]
        checkpoints.write(self._path, Checkpoint({"network": arrays}, {"epoch": self._ledger.epoch}))


class Signals:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches signals inside the block. One that the block has come too far to obey acts after it."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if self.received is not None:
            signal.raise_signal(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            log.warning("%s: stopping after this step", self.received.name)
            return
        handler = self._before.get(number)
        if callable(handler):
            # The command's own, whose exception comes again where it is dropped.
            handler(number, frame)
        raise KeyboardInterrupt


class Saver(keras.callbacks.Callback):
    """Writes checkpoints: at each epoch's end, every so often within one, and when a signal asks to stop.

    Comes after whatever changes what is saved; only the guard of a privacy budget, which saves through it, is behind.
    The last step of an epoch is left to the epoch's end: a checkpoint between the two would have nothing to go on
    with in that epoch.

    Args:
        write: Writes one.
        ledger: Says where the run is.
        guard: Looked at first, so that no diverged weights are kept.
        signals: Asks to stop.
        every_s: Seconds between checkpoints within an epoch.
        team: All workers save and stop at the same step, which the chief names: each has a part of what is saved.
    """

    def __init__(
        self,
        write: Callable[[], None],
        ledger: Ledger,
        guard: DivergenceGuard,
        signals: Signals,
        *,
        every_s: float,
        team: Team | None = None,
    ) -> None:
        super().__init__()
        self._team = team or Team()
        self._write, self._ledger, self._guard, self._signals = write, ledger, guard, signals
        self._every_s, self._saved_at = every_s, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Saves where it is time, or where the run is to stop."""
        if self._ledger.step == self._ledger.steps_per_epoch:
            return
        is_due = time.monotonic() - self._saved_at >= self._every_s
        decided = self._decide(is_due)
        if decided["save"]:
            self.save()
        self._stop_if_asked(decided)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Saves, and stops where a signal came meanwhile."""
        self.save()
        self._stop_if_asked(self._decide(is_due=False))

    def save(self) -> None:
        """Writes a checkpoint, unless the run has diverged."""
        self._guard.check()
        self._write()
        self._saved_at = time.monotonic()

    def _decide(self, is_due: bool) -> Mapping[str, object]:
        is_asked = self._signals.received is not None
        if is_asked:
            self._team.ask_to_stop()
        stop = is_asked or self._team.is_asked_to_stop
        return self._team.decide({"save": is_due or stop, "stop": stop})

    def _stop_if_asked(self, decided: Mapping[str, object]) -> None:
        if decided["stop"]:
            # TensorFlow's coordinator, in the chief, takes the end of the others for a fault and ends the chief too, be
            # it in the middle of its writing.
            self._team.wait_for_all()
            self._team.release()
            raise Interrupted("Stopped on request with everything saved; the same command goes on from here.")
