"""The space of a search, read from `tune.space` and checked before anything heavy is imported.

Every bound and every choice is tried out as the flag that it stands for, so that no trial fails on a value that could
never work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tfbig.config import RunConfig, TuneConfig
from tfbig.errors import UsageError
from tfbig.pipelines._command_line import Flag, checked_value, flags, nearest_flag
from tfbig.search.space import (
    KINDS,
    Kind,
    Parameter,
    Value,
    hyperband_bracket,
    num_settings,
    with_values,
)
from tfbig.suggest import nearest
from tfbig.training.conflicts import check_conflicts
from tfbig.training.task import Task

# What decides which examples there are: trials must be judged on the same.
_OF_THE_DATA = frozenset(
    "data.source data.dir data.train_split data.validation_split data.test_split data.validation_fraction "
    "data.test_fraction data.limit data.on_bad data.path_column data.label_column runtime.seed".split()
)
_OF_THE_RUN = ("tune.", "export.", "runtime.strategy", "runtime.offline", "run_dir", "resume", "dry_run")
# What a private trial costs; a search tells one figure for all of its trials.
_OF_THE_PRIVACY = ("dp.", "data.batch_size", "train.epochs")
_FREE_IN_PRIVATE = ("dp.l2_norm_clip", "dp.physical_batch_size")


def check_search(task: Task, config: RunConfig) -> None:
    """Raises UsageError where a search is asked for that cannot be made, or its flags without a search."""
    if not config.tune.is_search:
        if config.tune != TuneConfig():
            raise UsageError("--tune flags have no effect without --tune.max_trials, such as 20; give it with them.")
        return
    if not config.tune.space:
        raise UsageError(
            "--tune.max_trials needs a space to search; write tune.space in a recipe, or give one such as "
            "--tune.space.train.learning_rate.log '[1e-5, 1e-2]'."
        )
    if config.dp.is_private and config.dp.max_epsilon is not None:
        raise UsageError(
            "--dp.max_epsilon ends a run early, and the trials of a private search must all cost the same; give "
            "--dp.target_epsilon, which is for the search as a whole."
        )
    if config.dp.is_private and config.dp.accountant != config.tightest_accountant:
        raise UsageError(
            f"A private search with --tune.tuner {config.tune.tuner} is counted by {config.tightest_accountant}, the "
            f"tightest accountant that knows it, got --dp.accountant {config.dp.accountant}; leave it out, or give "
            f"--dp.accountant {config.tightest_accountant}."
        )
    space = parameters(task, config)
    if config.tune.tuner == "hyperband":
        _refuse_short_hyperband(config, space)


def _refuse_short_hyperband(config: RunConfig, space: tuple[Parameter, ...]) -> None:
    """What ends before the last round of the first bracket has trained nothing for --train.epochs."""
    rounds = hyperband_bracket(config.train.epochs)
    if (config.tune.max_trials or 0) < sum(rounds):
        raise UsageError(
            f"--tune.tuner hyperband with --train.epochs {config.train.epochs} needs at least --tune.max_trials "
            f"{sum(rounds)}, got {config.tune.max_trials}: with fewer, no trial may be trained to its end. Give more, "
            "or fewer --train.epochs, or --tune.tuner random."
        )
    if num_settings(space) < rounds[0]:
        raise UsageError(
            f"--tune.tuner hyperband with --train.epochs {config.train.epochs} begins with {rounds[0]} different "
            f"settings, and the space has {num_settings(space):g}; give a larger one, or --tune.tuner random."
        )


def parameters(task: Task, config: RunConfig) -> tuple[Parameter, ...]:
    """The space of a configuration's search.

    Args:
        task: Whose flags they are.
        config: With a space.

    Raises:
        UsageError: A field that does not exist or may not be searched, bounds that are reversed, a value that its
            flag would refuse.
    """
    known = {flag.name: flag for flag in flags(task)}
    space = config.tune.space or {}
    return tuple(_parameter(task, config, known, name, how) for name, how in space.items())


def _parameter(
    task: Task, config: RunConfig, known: Mapping[str, Flag], name: str, how: Mapping[str, list]
) -> Parameter:
    if name not in known or "." not in name:
        raise UsageError(f"tune.space names {name}, which is no setting.{nearest_flag(name, known)}")
    _refuse_fixed(config, name)
    [(kind, given)] = how.items()
    if kind not in KINDS:
        raise UsageError(
            f"tune.space.{name} must be {{log: [LOW, HIGH]}}, {{linear: [LOW, HIGH]}} or {{choice: [VALUE, ...]}}, got "
            f"{kind}.{nearest(kind, KINDS)}"
        )
    if not isinstance(given, list) or not given:
        raise UsageError(f"tune.space.{name}.{kind} must be a list such as {_example(kind)}, got {given!r}.")
    values = tuple(_checked(task, config, name, value) for value in given)
    if kind == "choice":
        if len(set(values)) < len(values):
            raise UsageError(f"tune.space.{name}.choice has a value twice: {given}; give each once.")
        return Parameter(name, "choice", values)
    return _range(name, kind, values)  # type: ignore[arg-type]


def _range(name: str, kind: Kind, values: tuple[Value, ...]) -> Parameter:
    shown = list(values)
    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        raise UsageError(
            f"tune.space.{name}.{kind} must be two numbers, [LOW, HIGH], got {shown}; values to choose from are "
            f"{{choice: {shown}}}."
        )
    low, high = values
    if not low < high:  # type: ignore[operator]
        raise UsageError(f"tune.space.{name}.{kind} must be [LOW, HIGH], LOW below HIGH, got {shown}; turn it round.")
    if kind == "log" and not low > 0:  # type: ignore[operator]
        raise UsageError(f"tune.space.{name}.log must have a LOW above 0, got {shown}; give linear, or a higher LOW.")
    return Parameter(name, kind, values, is_whole=type(low) is int)


def _checked(task: Task, config: RunConfig, name: str, value: object) -> Value:
    """The value as its flag takes it."""
    try:
        found = checked_value(task, name, value)
        # Still a search, some of whose settings are refused for being one.
        check_conflicts(dataclasses.replace(with_values(config, {name: found}), tune=config.tune))
    except ValueError as error:
        raise UsageError(f"tune.space.{name}: {error}") from error
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f"tune.space.{name}: expected finite numbers, got {value}.")
    return found


def _refuse_fixed(config: RunConfig, name: str) -> None:
    if name in _OF_THE_DATA:
        raise UsageError(
            f"tune.space cannot hold {name}: it changes which examples there are, and trials must be judged on the "
            "same; leave it out."
        )
    if name.startswith(_OF_THE_RUN):
        raise UsageError(f"tune.space cannot hold {name}, which is of the search as a whole; leave it out.")
    if name == "train.epochs" and config.tune.tuner == "hyperband":
        raise UsageError(
            "tune.space cannot hold train.epochs with --tune.tuner hyperband, which sets each trial's epochs itself, "
            "up to --train.epochs; leave it out."
        )
    if name.startswith("dp.") and not config.dp.is_private:
        raise UsageError(
            f"tune.space cannot hold {name} in a search that is not private: trials would be, and their search would "
            "promise nothing. Give --dp.target_epsilon, which is for the search as a whole, or leave it out."
        )
    is_cost = name.startswith(_OF_THE_PRIVACY) and name not in _FREE_IN_PRIVATE
    if config.dp.is_private and is_cost:
        raise UsageError(
            f"tune.space cannot hold {name} in a private search, whose trials must all cost the same; leave it out."
        )


def _example(kind: str) -> str:
    return "[0, 0.1, 0.2]" if kind == "choice" else "[1e-5, 1e-2]" if kind == "log" else "[0, 0.5]"
