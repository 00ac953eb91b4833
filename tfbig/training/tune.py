"""A search for settings: which trials there are, who runs them, and how they ended.

KerasTuner's oracles say which settings to try next; the journal remembers it. Each process of a search has an oracle of
its own and brings it to the journal's state before it asks it anything, so there is no server, and nobody waits for a
process that died: a trial belongs to whoever holds its folder's lock, and one without an end and without an owner
is run again. (KerasTuner's own chief waits for the name of a killed worker to come back, for ever.)

What an oracle draws for a trial depends on the search's seed, the trial's number and the results that it knows, and on
nothing else; so a search that was interrupted proposes what an uninterrupted one would have.
In the tree: beside fit.py, which trains each trial; pipelines/_search.py is the loop.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tfbig.errors import UsageError
from tfbig.training.journal import Journal
from tfbig.training.run_directory import RunDirectory, open_run
from tfbig.training.space import Parameter, Value

Tuner: TypeAlias = Literal["random", "hyperband", "bayesian"]
State: TypeAlias = Literal["begun", "done", "failed"]

SCORE = "validation_loss"
# A trial that ends its process so often without getting on would do so for ever.
MAX_DEATHS = 5
_EPOCHS = "tuner/epochs"


@dataclass
class Trial:
    """One of the settings that are tried.

    Args:
        number: From 0.
        values: Dotted flag -> value.
        state: begun until it has ended.
        score: The loss on the validation examples, lower is better; None where it failed or has not ended.
        reason: Why it failed.
        seconds: That its runs trained.
        facts: What else is known of it, such as the epochs it ran.
    """

    number: int
    values: dict[str, Value]
    state: State = "begun"
    score: float | None = None
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    deaths: int = 0
    begun_at_step: int = -1

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:04d}"


class Trials:
    """The trials of one search, over all its processes.

    Args:
        folder: Where they are; each has a folder of its own in it.
        space: What is drawn.
        tuner: How.
        max_trials: At most so many; fewer where the space has no more.
        max_epochs: hyperband: epochs of the trials that are trained longest.
        seed: Of all draws.
    """

    def __init__(
        self,
        folder: Path,
        space: Sequence[Parameter],
        *,
        tuner: Tuner,
        max_trials: int,
        max_epochs: int,
        seed: int,
    ) -> None:
        self.folder, self.max_trials = folder, max_trials
        self._space = {parameter.name: parameter for parameter in space}
        self._journal = Journal(folder)
        self._oracle = _oracle(tuner, space, max_trials=max_trials, max_epochs=max_epochs, seed=seed)
        self._asked: dict[int, object] = {}
        self._is_exhausted = False
        self.all: list[Trial] = []

    def begin(self, held: contextlib.ExitStack, poll_s: float = 0.2) -> tuple[Trial, RunDirectory] | None:
        """The next trial to run, its folder locked; waits while others run what this one may have to run again.

        Args:
            held: Takes the lock of the trial's folder.
            poll_s: Seconds between looks at the others.

        Returns:
            None where all trials have ended.
        """
        while True:
            with self._journal.locked():
                self._catch_up()
                found = self._orphan(held) or self._new(held)
                is_over = found is None and all(trial.state != "begun" for trial in self.all)
            if found is not None or is_over:
                return found
            time.sleep(poll_s)

    def end(self, trial: Trial, *, score: float, seconds: float, facts: Mapping[str, float]) -> None:
        """Says how a trial went; its folder is still locked."""
        self._end(trial, {"state": "done", "score": score, "seconds": seconds, "facts": dict(facts)})

    def fail(self, trial: Trial, reason: str) -> None:
        """Says that a trial cannot be run to its end; its folder is still locked."""
        self._end(trial, {"state": "failed", "reason": reason})

    def refresh(self) -> None:
        """Reads what other processes have written."""
        with self._journal.locked():
            self._catch_up()

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest score, the first of equals; None where none is done."""
        done = [trial for trial in self.all if trial.score is not None]
        return min(done, key=lambda trial: (trial.score, trial.number), default=None)

    def _end(self, trial: Trial, how: dict[str, object]) -> None:
        with self._journal.locked():
            self._catch_up()
            self._write({"event": "end", "trial": trial.number, **how})

    def _write(self, entry: dict) -> None:
        self._journal.add(entry)
        self._note(entry)

    def _catch_up(self) -> None:
        for entry in self._journal.news():
            self._note(entry)

    def _note(self, entry: dict) -> None:
        """Brings memory and oracle to what a line says."""
        if entry["event"] == "new":
            if entry["trial"] not in self._asked:
                self._ask(entry["values"])
            self.all.append(Trial(entry["trial"], entry["values"]))
            return
        trial = self.all[entry["trial"]]
        if entry["event"] == "begin":
            trial.deaths = trial.deaths + 1 if entry["step"] == trial.begun_at_step else 0
            trial.begun_at_step = entry["step"]
            return
        trial.state, trial.score = entry["state"], entry.get("score")
        trial.reason, trial.seconds = entry.get("reason", ""), entry.get("seconds", 0.0)
        trial.facts = entry.get("facts", {})
        self._tell(trial)

    def _orphan(self, held: contextlib.ExitStack) -> tuple[Trial, RunDirectory] | None:
        """A trial that somebody began and nobody runs."""
        for trial in self.all:
            run = None if trial.state != "begun" else self._taken(trial, held)
            if run is None:
                continue
            if trial.deaths >= MAX_DEATHS - 1:
                reason = f"its process was killed {MAX_DEATHS} times, the last times without a step between; too little memory?"
                self._write({"event": "end", "trial": trial.number, "state": "failed", "reason": reason})
                continue
            self._write({"event": "begin", "trial": trial.number, "step": last_step(run), "process": os.getpid()})
            return trial, run
        return None

    def _new(self, held: contextlib.ExitStack) -> tuple[Trial, RunDirectory] | None:
        number = len(self.all)
        if number >= self.max_trials or self._is_exhausted:
            return None
        values = self._ask(None)
        if values is None:
            return None
        self._write({"event": "new", "trial": number, "values": values})
        trial = self.all[number]
        run = self._taken(trial, held)
        if run is None:
            raise UsageError(f"{self.folder / trial.name} is held by a process that is not of this search; end it first.")
        self._write({"event": "begin", "trial": number, "step": -1, "process": os.getpid()})
        return trial, run

    def _taken(self, trial: Trial, held: contextlib.ExitStack) -> RunDirectory | None:
        try:
            return held.enter_context(open_run(self.folder / trial.name))
        except UsageError:
            return None

    def _ask(self, recorded: dict[str, Value] | None) -> dict[str, Value] | None:
        """What the oracle proposes for the next trial, or None where it has nothing now.

        Raises:
            UsageError: The journal holds another proposal, of other settings or another version.
        """
        number = len(self._asked)
        self._oracle.recorded = recorded and _coded(recorded, self._space)
        with warnings.catch_warnings():
            # Of the model of a Bayesian search, about settings of its own that nobody can change.
            warnings.simplefilter("ignore")
            asked = self._oracle.create_trial(f"trial {number}")
        if asked.status != "RUNNING":
            self._is_exhausted = asked.status == "STOPPED"
            if recorded is not None:
                raise UsageError(_OTHER_SEARCH.format(self.folder))
            return None
        self._asked[number] = asked
        values = _plain(asked.hyperparameters.values, self._space)
        if recorded is not None and recorded != values:
            raise UsageError(_OTHER_SEARCH.format(self.folder))
        return values

    def _tell(self, trial: Trial) -> None:
        asked = self._asked[trial.number]
        if trial.score is None:
            asked.status = "FAILED"
        else:
            self._oracle.update_trial(asked.trial_id, {SCORE: trial.score})
            asked.status = "COMPLETED"
        self._oracle.end_trial(asked)


_OTHER_SEARCH = (
    "The journal in {} is of another search, or was written with another version of KerasTuner or tfbig; search anew "
    "with --resume never."
)


def last_step(run: RunDirectory) -> int:
    """The step of a run's newest checkpoint; -1 where it has none."""
    steps = [int(path.stem.split("-")[1]) for path in run.checkpoints.glob("step-*.npz")]
    return max(steps, default=-1)


def _plain(values: Mapping[str, object], space: Mapping[str, Parameter]) -> dict[str, Value]:
    """KerasTuner's values as those of flags; hyperband's epochs as train.epochs."""
    plain: dict[str, Value] = {}
    for name, parameter in space.items():
        value = values[name]
        if parameter.kind == "choice" and _is_coded(parameter):
            value = parameter.values[int(str(value).partition(":")[0])]
        plain[name] = value.item() if isinstance(value, np.generic) else value  # type: ignore[assignment]
    if _EPOCHS in values:
        plain["train.epochs"] = int(values[_EPOCHS])  # type: ignore[call-overload]
    return plain


def _coded(values: Mapping[str, Value], space: Mapping[str, Parameter]) -> dict[str, Value]:
    """The opposite of `_plain`, without hyperband's epochs."""
    coded = dict(values)
    for name, parameter in space.items():
        if parameter.kind == "choice" and _is_coded(parameter):
            index = [(type(value), value) for value in parameter.values].index((type(values[name]), values[name]))
            coded[name] = _code(index, parameter)
    return coded


def _code(index: int, parameter: Parameter) -> str:
    return f"{index}:{parameter.values[index]}"


def _is_coded(parameter: Parameter) -> bool:
    """Whether KerasTuner, which chooses among values of one type that is not None, gets texts in their place."""
    return len({type(value) for value in parameter.values}) > 1 or type(parameter.values[0]) not in (int, float)


def _oracle(tuner: Tuner, space: Sequence[Parameter], *, max_trials: int, max_epochs: int, seed: int):  # noqa: ANN202
    import keras_tuner

    hyperparameters = keras_tuner.HyperParameters()
    for parameter in space:
        _add(hyperparameters, parameter)
    shared = {
        "objective": keras_tuner.Objective(SCORE, "min"),
        "hyperparameters": hyperparameters,
        # KerasTuner takes 0 for no seed.
        "seed": seed + 1,
        "allow_new_entries": False,
        # How a search that fails is told of is not the oracle's.
        "max_consecutive_failed_trials": max_trials + 1,
    }
    kinds = _kinds()
    if tuner == "hyperband":
        oracle = kinds[tuner](max_epochs=max_epochs, hyperband_iterations=0, **shared)
    else:
        oracle = kinds[tuner](max_trials=max_trials, **shared)
    oracle.verbose = 0
    return oracle


def _add(hyperparameters, parameter: Parameter) -> None:  # noqa: ANN001
    name, values = parameter.name, list(parameter.values)
    if parameter.kind == "choice":
        coded = [_code(index, parameter) for index in range(len(values))] if _is_coded(parameter) else values
        hyperparameters.Choice(name, coded)
    else:
        draw = hyperparameters.Int if parameter.is_whole else hyperparameters.Float
        draw(name, values[0], values[1], sampling=parameter.kind)


def _kinds() -> Mapping[str, type]:
    """The oracles, drawing anew for each trial and keeping nothing on the disk."""
    from keras_tuner import oracles

    class Keyed:
        """Draws from (seed, number of the trial), and takes what is recorded where it would draw the same."""

        recorded: dict[str, Value] | None = None

        def populate_space(self, trial_id):  # noqa: ANN001, ANN202
            number = int(trial_id)
            self._seed_state = self.seed + _DRAWS_A_TRIAL * number
            self._random_state = np.random.RandomState([self.seed, number])
            return super().populate_space(trial_id)  # type: ignore[misc]

        def save(self):  # noqa: ANN202
            """The journal keeps it all."""

        def _save_trial(self, trial):  # noqa: ANN001, ANN202
            """The journal keeps it all."""

    class Random(Keyed, oracles.RandomSearchOracle):
        pass

    class Hyperband(Keyed, oracles.HyperbandOracle):
        pass

    class Bayesian(Keyed, oracles.BayesianOptimizationOracle):
        def populate_space(self, trial_id):  # noqa: ANN001, ANN202
            if self.recorded is not None:
                # A model fitted to each trial before would give it again, slowly.
                return {"status": "RUNNING", "values": self.recorded}
            return super().populate_space(trial_id)

    return {"random": Random, "hyperband": Hyperband, "bayesian": Bayesian}


# Each value of each try at a trial that no other has takes one.
_DRAWS_A_TRIAL = 100_000
