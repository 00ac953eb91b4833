"""What a checkpoint of a run holds: network, optimizer, metrics, average, position and history."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tfbig.team import Team
from tfbig.training import checkpoints
from tfbig.training.callbacks import Ledger, MovingAverage
from tfbig.training.checkpoints import Checkpoint
from tfbig.training.distribution import from_chief, is_over_workers
from tfbig.training.learner import Learner


class RunState(keras.callbacks.Callback):
    """Saves and restores all that a run needs to go on as if it had never stopped.

    Args:
        learner: Built, with its optimizer.
        ledger: Where the run is; `restore` moves it.
        average: The moving average, where there is one.
        folder: Of the checkpoints; only the chief reads or writes there.
        team: The workers, whose position in the data is one, for the plan says what each of them feeds.
    """

    def __init__(
        self,
        learner: Learner,
        ledger: Ledger,
        average: MovingAverage | None,
        folder: Path,
        team: Team | None = None,
    ) -> None:
        super().__init__()
        self._learner, self._ledger, self._average, self._folder = learner, ledger, average, folder
        self._team = team or Team()
        # Keras resets the metrics when an epoch begins, also one that is half done.
        self._half_epoch_metrics: list[np.ndarray] = []

    def save(self) -> None:
        """Writes a checkpoint of this moment."""
        ledger = self._ledger
        # First, and by all workers: each has a part of the metrics, and reading them sums it.
        metrics = [np.asarray(variable) for variable in self._learner.metrics_variables]
        if not self._team.is_chief:
            return
        others = {name: members for name, members in self._groups().items() if name != "metrics"}
        groups = {name: [np.asarray(variable) for variable in members] for name, members in others.items()}
        groups["metrics"] = metrics
        meta = {
            "epoch": ledger.epoch,
            "step": ledger.step,
            "history": ledger.history,
            "seconds": ledger.seconds,
        }
        checkpoints.save(self._folder, ledger.global_step, Checkpoint(groups, meta))

    def restore(self) -> None:
        """Goes back to the newest whole checkpoint; does nothing where there is none."""
        checkpoint = checkpoints.load_latest(self._folder) if self._team.is_chief else None
        if checkpoint is not None:
            for name, members in self._groups().items():
                if name != "metrics":
                    checkpoints.assign(name, members, checkpoint.groups.get(name, []))
            if checkpoint.meta["step"]:
                self._half_epoch_metrics = list(checkpoint.groups["metrics"])
        meta = self._team.decide({"meta": None if checkpoint is None else checkpoint.meta})["meta"]
        if not isinstance(meta, dict):
            return
        ledger = self._ledger
        ledger.epoch, ledger.step = meta["epoch"], meta["step"]
        ledger.history, ledger.seconds = meta["history"], meta["seconds"]
        self._share()

    def _share(self) -> None:
        """Gives all workers what the chief has read."""
        strategy = self._learner.distribute_strategy
        if not is_over_workers(strategy):
            return
        groups = {name: members for name, members in self._groups().items() if name != "metrics"}
        for name, members in groups.items():
            checkpoints.assign(name, members, from_chief(strategy, [np.asarray(variable) for variable in members]))
        if self._ledger.step:
            # The others' only give the shapes: to read a metric is to sum it over all workers.
            empty = [np.zeros(v.shape, v.dtype) for v in self._learner.metrics_variables]
            here = self._half_epoch_metrics or empty
            self._half_epoch_metrics = from_chief(strategy, here)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Puts the metrics of a half-done epoch back."""
        if self._half_epoch_metrics:
            checkpoints.assign("metrics", self._groups()["metrics"], self._half_epoch_metrics)
            self._half_epoch_metrics = []

    def _groups(self) -> dict[str, list]:
        return {
            "network": self._learner.network.variables,
            "optimizer": self._learner.optimizer.variables,
            "metrics": self._learner.metrics_variables,
            "rule": self._learner.rule_variables,
            "averages": [] if self._average is None else self._average.averages,
        }
