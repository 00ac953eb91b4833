"""What a search tries next: KerasTuner's oracles behind two calls, ask and tell.

What is proposed for a trial depends on the search's seed, the trial's number and the results told so far, and on
nothing else: an oracle that is told the same again, in the same order, proposes the same, so a search that was
interrupted goes on as one that was not. (KerasTuner's own state on the disk leaves out the generator of its Bayesian
search, and is not written whole or not at all.)
In the tree: below trials.py. Imports Keras, and so TensorFlow.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import keras_tuner
import numpy as np
from keras_tuner import oracles

from tfbig.search.space import Parameter, Value

Tuner: TypeAlias = Literal["random", "hyperband", "bayesian"]

_SCORE = "score"
_EPOCHS = "tuner/epochs"
# Each value takes one, in each try for settings that no other trial has.
_DRAWS_A_TRIAL = 100_000


class _Keyed(keras_tuner.Oracle):
    """Draws from (seed, number of the trial) anew for each, and keeps nothing on the disk."""

    recorded: Mapping[str, Value] | None = None
    seed: int

    def populate_space(self, trial_id: str) -> Mapping[str, object]:
        number = int(trial_id)
        self._seed_state = self.seed + _DRAWS_A_TRIAL * number
        self._random_state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, number])))
        return super().populate_space(trial_id)  # type: ignore[misc]

    def save(self) -> None:
        pass

    def _save_trial(self, trial: keras_tuner.engine.trial.Trial) -> None:
        pass


class _Random(_Keyed, oracles.RandomSearchOracle):
    pass


class _Independent(_Random):
    """Never looks at what other trials have, so that each is an independent draw."""

    def _duplicate(self, values: Mapping[str, Value]) -> bool:
        return False


class _Hyperband(_Keyed, oracles.HyperbandOracle):
    pass


class _Bayesian(_Keyed, oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> Mapping[str, object]:
        if self.recorded is not None:
            # A model fitted to each trial before would give it again, slowly.
            return {"status": "RUNNING", "values": dict(self.recorded)}
        return super().populate_space(trial_id)


class Oracle:
    """Proposes settings, and learns how they went.

    Args:
        tuner: How it proposes.
        space: What is drawn.
        max_trials: It is asked for at most so many.
        max_epochs: hyperband: epochs of the trials that are trained longest.
        seed: Of all draws, from 0, however large.
        may_repeat: random: whether two trials may have the same settings, as what a private search promises needs.
    """

    def __init__(
        self,
        tuner: Tuner,
        space: Sequence[Parameter],
        *,
        max_trials: int,
        max_epochs: int,
        seed: int,
        may_repeat: bool = False,
    ) -> None:
        self._space = {parameter.name: parameter for parameter in space}
        shared = {
            "objective": keras_tuner.Objective(_SCORE, "min"),
            "hyperparameters": _hyperparameters(space),
            # KerasTuner takes 0 for no seed.
            "seed": seed + 1,
            "allow_new_entries": False,
            # It would end the search by an exception otherwise; what a failure means is not the oracle's.
            "max_consecutive_failed_trials": max_trials + 1,
        }
        if tuner == "hyperband":
            self._oracle: _Keyed = _Hyperband(max_epochs=max_epochs, hyperband_iterations=0, **shared)
        else:
            random = _Independent if may_repeat else _Random
            self._oracle = (random if tuner == "random" else _Bayesian)(max_trials=max_trials, **shared)
        self._oracle.verbose = 0
        self._asked: list = []

    @property
    def num_asked(self) -> int:
        """How many settings it has proposed."""
        return len(self._asked)

    def ask(self, recorded: Mapping[str, Value] | None = None) -> dict[str, Value] | None:
        """Settings for the next trial, dotted flag -> value.

        Args:
            recorded: What it proposed when it knew what it knows now; the same comes back, sooner.

        Returns:
            None where it has nothing to propose until more trials end, or the space has no more.
        """
        self._oracle.recorded = None if recorded is None else _coded(recorded, self._space)
        with warnings.catch_warnings():
            # Of the model of a Bayesian search, about settings of its own that nobody can change.
            warnings.simplefilter("ignore")
            trial = self._oracle.create_trial(f"trial {len(self._asked)}")
        if trial.status != "RUNNING":
            return None
        self._asked.append(trial)
        return _plain(trial.hyperparameters.values, self._space)

    def is_of_space(self, values: Mapping[str, Value]) -> bool:
        """Whether values could have been proposed: one for each setting, and of a choice one of its values."""
        return all(
            parameter.name in values and (parameter.kind != "choice" or _index(values[parameter.name], parameter) >= 0)
            for parameter in self._space.values()
        )

    def tell(self, number: int, score: float | None) -> None:
        """Says how a trial went: its score, lower is better, or None where it failed."""
        trial = self._asked[number]
        if score is not None:
            self._oracle.update_trial(trial.trial_id, {_SCORE: score})
        trial.status = "FAILED" if score is None else "COMPLETED"
        self._oracle.end_trial(trial)


def _hyperparameters(space: Sequence[Parameter]) -> keras_tuner.HyperParameters:
    found = keras_tuner.HyperParameters()
    for parameter in space:
        name, values = parameter.name, list(parameter.values)
        if parameter.kind == "choice":
            found.Choice(name, [_code(i, parameter) for i in range(len(values))] if _is_coded(parameter) else values)
        else:
            draw = found.Int if parameter.is_whole else found.Float
            draw(name, values[0], values[1], sampling=parameter.kind)
    return found


def _plain(values: Mapping[str, Value], space: Mapping[str, Parameter]) -> dict[str, Value]:
    """KerasTuner's values as those of flags; hyperband's epochs as train.epochs."""
    plain: dict[str, Value] = {}
    for name, parameter in space.items():
        value = values[name]
        if parameter.kind == "choice" and _is_coded(parameter):
            value = parameter.values[int(str(value).partition(":")[0])]
        plain[name] = value.item() if isinstance(value, np.generic) else value
    if _EPOCHS in values:
        plain["train.epochs"] = values[_EPOCHS]
    return plain


def _coded(values: Mapping[str, Value], space: Mapping[str, Parameter]) -> dict[str, Value]:
    """The opposite of `_plain`, without hyperband's epochs."""
    coded = {name: values[name] for name in space}
    for name, parameter in space.items():
        if parameter.kind == "choice" and _is_coded(parameter):
            coded[name] = _code(_index(values[name], parameter), parameter)
    return coded


def _index(value: Value, parameter: Parameter) -> int:
    """Of a value among a parameter's choices, where 1 and True differ; -1 where it is none of them."""
    same = (i for i, known in enumerate(parameter.values) if type(known) is type(value) and known == value)
    return next(same, -1)


def _code(index: int, parameter: Parameter) -> str:
    return f"{index}:{parameter.values[index]}"


def _is_coded(parameter: Parameter) -> bool:
    """Whether KerasTuner gets texts: it chooses among values of one type, which may not be None."""
    return len({type(value) for value in parameter.values}) > 1 or type(parameter.values[0]) not in (int, float)
