"""What a run shows in TensorBoard: scalars, the first batch as trained on, hyperparameters, graph and profile.

The scalars are rewritten from the ledger when a run goes on, so a resumed run has one unbroken curve.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import tensorflow as tf

from tfbig.training.callbacks import Ledger

_NUM_PICTURES = 16


class TensorBoardLog(keras.callbacks.Callback):
    """Writes a run's figures.

    Args:
        folder: The log directory.
        ledger: Gives the figures of the epochs so far.
        hyperparameters: Dotted flag -> number, string or bool; written after a step, for which nobody should wait
            longer.
        first_batch: Gives the (B, ...) features of the run's first step, shown where they are pictures (B, H, W, 1 or
            3) in [0, 1]. Asked after a step, too.
        notice: Said beside the figures; None for nothing.
        graph: Network whose graph is written.
        profile_steps: First and last global step to profile.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        *,
        hyperparameters: Mapping[str, str | float | bool],
        first_batch: Callable[[], tf.Tensor] | None = None,
        notice: str | None = None,
        graph: keras.Model | None = None,
        profile_steps: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self._folder, self._ledger = folder, ledger
        self._hyperparameters: Mapping[str, str | float | bool] | None = hyperparameters
        self._first_batch, self._graph = first_batch, graph
        self._notice = notice
        self._profile_steps, self._profiling = profile_steps, False
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def open(self) -> None:
        """Starts the log anew from the ledger."""
        for name in ("train", "validation"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
            self._writers[name] = tf.summary.create_file_writer(str(self._folder / name))
        with self._writers["train"].as_default(step=0):
            if self._notice is not None:
                tf.summary.text("notice", self._notice)
            if self._graph is not None:
                function = tf.function(lambda x: self._graph(x, training=True))
                spec = tf.TensorSpec(self._graph.input_shape, self._graph.inputs[0].dtype)
                tf.summary.graph(function.get_concrete_function(spec).graph)
        for row in self._ledger.history:
            self._write(row)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Starts the profile."""
        if self._profile_steps and self._ledger.global_step == self._profile_steps[0]:
            tf.profiler.experimental.start(str(self._folder))
            self._profiling = True

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Shows settings and the first batch once there is a step, and stops the profile."""
        if self._hyperparameters is not None:
            self._write_hyperparameters(self._hyperparameters)
            self._hyperparameters = None
        if self._first_batch is not None:
            pictures, self._first_batch = self._first_batch(), None
            if _are_pictures(pictures):
                with self._writers["train"].as_default(step=0):
                    tf.summary.image("first_batch", pictures, max_outputs=_NUM_PICTURES)
        if self._profiling and self._profile_steps and self._ledger.global_step > self._profile_steps[1]:
            self._stop_profile()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Writes the epoch's figures."""
        self._write(self._ledger.history[-1])

    def close(self) -> None:
        """Flushes, also after an error."""
        if self._profiling:
            self._stop_profile()
        for writer in self._writers.values():
            writer.close()

    def _write_hyperparameters(self, values: Mapping[str, str | float | bool]) -> None:
        # The plugin takes as long to import as the step of a small network.
        from tensorboard.plugins.hparams import api as hparams

        with self._writers["train"].as_default(step=0):
            hparams.hparams(dict(values))

    def _stop_profile(self) -> None:
        tf.profiler.experimental.stop()
        self._profiling = False

    def _write(self, row: Mapping[str, float]) -> None:
        step = int(row["step"])
        for name, value in row.items():
            if name in ("epoch", "step", "seconds"):
                continue
            writer = self._writers["validation" if name.startswith("val_") else "train"]
            with writer.as_default():
                tf.summary.scalar(name.removeprefix("val_"), value, step=step)
        for writer in self._writers.values():
            writer.flush()


def write_picture(folder: Path, name: str, png: bytes, *, step: int) -> None:
    """Adds one PNG picture, such as the confusion matrix, to the log."""
    writer = tf.summary.create_file_writer(str(folder / "test"))
    with writer.as_default():
        tf.summary.image(name, tf.io.decode_png(png, channels=3)[None], step=step)
    writer.close()


def write_trial(folder: Path, name: str, values: Mapping[str, object], figures: Mapping[str, float]) -> None:
    """Shows one trial of a search to TensorBoard's HParams plugin.

    Args:
        folder: The search's log directory.
        name: Of the trial.
        values: Dotted flag -> value, as far as they are searched.
        figures: Name -> what the trial reached.
    """
    from tensorboard.plugins.hparams import api as hparams

    own = folder / "trials" / name
    # A worker that was killed may have written it before.
    shutil.rmtree(own, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(own))
    with writer.as_default(step=0):
        hparams.hparams({flag: "none" if value is None else value for flag, value in values.items()}, trial_id=name)
        for figure, value in figures.items():
            tf.summary.scalar(figure, value)
    writer.close()


def _are_pictures(x: tf.Tensor) -> bool:
    return isinstance(x, tf.Tensor) and x.shape.rank == 4 and x.shape[-1] in (1, 3)
