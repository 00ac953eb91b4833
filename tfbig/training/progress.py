"""Progress on stderr: one live bar on a terminal, one line an interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfbig.training.callbacks import Ledger

_LINE_EVERY_S = 30.0


def progress(
    ledger: Ledger, *, num_epochs: int, live: Callable[[], Mapping[str, float]] = dict
) -> keras.callbacks.Callback:
    """A bar where stderr is a terminal, lines where it is not.

    Args:
        ledger: Says where the run is.
        num_epochs: Of the whole run.
        live: Figures to show beside the metrics within an epoch.
    """
    return (_Bar if sys.stderr.isatty() else _Lines)(ledger, num_epochs, live)


def figures(logs: Mapping[str, float] | None) -> str:
    """Metrics as a person reads them."""
    return "  ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())


class _Bar(keras.callbacks.Callback):
    def __init__(self, ledger: Ledger, num_epochs: int, live: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self._ledger, self._num_epochs, self._live = ledger, num_epochs, live
        self._metrics: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("", total=num_epochs * ledger.steps_per_epoch, figures="")

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self._bar.start()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        self._bar.update(self._task, completed=self._ledger.global_step, description=self._epoch())
        if live := self._live():
            self._bar.update(self._task, figures=figures({**self._metrics, **live}))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._metrics = dict(logs or {})
        self._bar.update(self._task, completed=self._ledger.global_step, figures=figures(logs))

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the terminal as it was, also after an error."""
        self._bar.stop()

    def _epoch(self) -> str:
        return f"epoch {min(self._ledger.epoch + 1, self._num_epochs)}/{self._num_epochs}"


class _Lines(keras.callbacks.Callback):
    def __init__(self, ledger: Ledger, num_epochs: int, live: Callable[[], Mapping[str, float]]) -> None:
        super().__init__()
        self._ledger, self._num_epochs, self._live = ledger, num_epochs, live
        self._printed_at = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if time.monotonic() - self._printed_at >= _LINE_EVERY_S:
            self._line(self._ledger.epoch + 1, {**(logs or {}), **self._live()})

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._line(epoch + 1, logs)

    def close(self) -> None:
        """Nothing to put back."""

    def _line(self, epoch: int, logs: Mapping[str, float] | None) -> None:
        total = self._num_epochs * self._ledger.steps_per_epoch
        print(
            f"epoch {epoch}/{self._num_epochs}  step {self._ledger.global_step}/{total}  {figures(logs)}",
            file=sys.stderr, flush=True,
        )
        self._printed_at = time.monotonic()
