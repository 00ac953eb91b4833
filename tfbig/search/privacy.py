"""The privacy of a search as a whole: its noise, how many trials it has, what it promises, and its charge.

A private run's own promise (training/privacy.py) is about one run; a search releases the best of several.
In the tree: above gradients/private/selection.py; used by pipelines/_search.py. Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tfbig.config import RunConfig
from tfbig.errors import EnvironmentFault
from tfbig.gradients.private.accounting import pld_grid
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.mechanism import Mechanism
from tfbig.gradients.private.record import UNCOUNTED_RUNS, UNIT, program
from tfbig.gradients.private.selection import Selection, calibrated, draw_num_trials
from tfbig.gradients.private.statement import epsilon_in_words

_SEED_BITS = 128
_TRIALS = (
    "every trial's network and figures: what is promised of a random search holds for whoever sees its best network "
    "and no other trial, not even how many there were"
)
_SEARCH = "how many trials there were, and their losses on the validation examples, without noise"
_OTHERS = {"trials/": _TRIALS, "search.json": _SEARCH, "report.html": _SEARCH, "tensorboard/": _SEARCH}


@dataclass(frozen=True)
class PrivateSearch:
    """What a private search does, decided before its first trial and kept in its journal.

    Args:
        selection: As an accountant sees it.
        delta: Of the promise.
        num_trials: How many trials it has; in a random search drawn at random.
        run_id: Names the search in a ledger.
        seed: Of what a random search tries; from the operating system's randomness, since with a public one the best
            trial's settings would tell which trial it was. The others' later trials are chosen by results anyway, and
            theirs is --runtime.seed.
    """

    selection: Selection
    delta: float
    num_trials: int
    run_id: str
    seed: int = field(repr=False)

    @property
    def epsilon(self) -> float:
        """Of the search as a whole."""
        return self.selection.epsilon(self.delta)

    def to_json(self) -> dict[str, object]:
        """For the journal."""
        return dataclasses.asdict(self)


def plan(config: RunConfig, *, num_examples: int) -> PrivateSearch:
    """Draws and calibrates what a search needs before its first trial.

    Args:
        config: Of a private search.
        num_examples: N of the training split.

    Raises:
        UsageError: The target cannot be reached.
    """
    dp, tune = config.dp, config.tune
    mechanism = Mechanism(
        dp.noise_multiplier or 1.0, num_examples, config.data.batch_size, dp.sampling, dp.mechanism
    )
    num_steps = tune.executions * config.train.epochs * mechanism.steps_per_epoch
    most = tune.max_trials or 1
    is_random = tune.tuner == "random"
    # Hyperband stops most trials early, but which depends on their results; so each counts with all its epochs.
    selection = Selection(mechanism, num_steps, float(most) if is_random else None, 0 if is_random else most)
    if dp.target_epsilon is not None:
        selection = calibrated(selection, target_epsilon=dp.target_epsilon, delta=dp.delta)
    num_trials = draw_num_trials(most) if is_random else most
    seed = secrets.randbits(_SEED_BITS) if is_random else config.runtime.seed
    return PrivateSearch(selection, dp.delta, num_trials, secrets.token_hex(16), seed)


def from_json(content: Mapping[str, object]) -> PrivateSearch:
    """What `to_json` gave.

    Raises:
        EnvironmentFault: It is something else.
    """
    facts = dict(content)
    try:
        selection = dict(facts.pop("selection"))  # type: ignore[call-overload]
        mechanism = Mechanism(**selection.pop("mechanism"))
        return PrivateSearch(Selection(mechanism, **selection), **facts)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFault(
            "The plan in the private search's journal is damaged, without which it cannot go on as it began; put a "
            "copy back, or search anew with --resume never."
        ) from error


def charge(
    search: PrivateSearch,
    ledger: Path,
    *,
    run_dir: Path,
    dataset: str,
    fingerprint: str,
    limit_epsilon: float | None,
) -> None:
    """Charges the search as a whole to its dataset's budget, before the first trial; once charged, nothing more.

    Args:
        search: What it does.
        ledger: File of the budgets.
        run_dir: Of the search.
        dataset: The source of the data, by the one name that all spellings share.
        fingerprint: Of its whole content.
        limit_epsilon: The dataset's limit, where it is charged for the first time.

    Raises:
        GateError: The budget does not allow it.
    """
    selection, budgets = search.selection, BudgetLedger(ledger)
    num_steps = selection.num_steps * (selection.num_trials if selection.mean_trials is None else 1)
    budgets.reserve(
        run_id=search.run_id,
        run_dir=str(run_dir),
        dataset=dataset,
        fingerprint=fingerprint,
        mechanism=selection.mechanism,
        num_steps=num_steps,
        limit_epsilon=limit_epsilon,
        limit_delta=None if limit_epsilon is None else search.delta,
        mean_trials=selection.mean_trials,
    )
    # Nothing is given back at the end: which trials failed, and when, is told by the data.
    budgets.settle(search.run_id, num_steps)


def trial_config(config: RunConfig, search: PrivateSearch) -> RunConfig:
    """What a private search's trials have in common: the noise that was planned, and no budgets of their own."""
    noise = search.selection.mechanism.noise_multiplier
    dp = dataclasses.replace(
        config.dp, target_epsilon=None, noise_multiplier=noise, ledger=None, ledger_epsilon=None
    )
    return dataclasses.replace(config, dp=dp)


def record_of(search: PrivateSearch, trial: Mapping[str, object], *, ledger: str | None) -> dict[str, object]:
    """The content of the search's dp.json.

    Args:
        search: What it did.
        trial: The content of its best trial's dp.json.
        ledger: Where the dataset's budget is kept; None where it is not.
    """
    selection = search.selection
    is_drawn = selection.mean_trials is not None
    gaps = [gap for gap in trial["not_covered"] if gap != UNCOUNTED_RUNS]  # type: ignore[attr-defined]
    gaps.append(
        "The choice among the trials: by the loss on a validation split, without noise, whose examples have no promise."
    )
    gaps.append("The choice of the space, and other runs on this data that are not in a ledger.")
    if is_drawn:
        gaps.append(
            "Whoever sees other trials than the best one, or how many there were: delete trials/, search.json, "
            "report.html and tensorboard/, which tell of all of them."
        )
    files = dict(trial["not_private_files"])  # type: ignore[call-overload]
    for name, what in _OTHERS.items():
        files[name] = f"{files[name]}; {what}" if name in files else what
    spent = search.epsilon
    facts = {name: value for name, value in trial.items() if not name.startswith("epsilon_")}
    return {
        **facts,
        "epsilon": spent,
        "accountant": selection.accountant,
        f"epsilon_{selection.accountant}": spent,
        "adjacency": "replace_special",
        "ledger": ledger,
        "search": {
            "counted_as": "RepeatAndSelectDpEvent" if is_drawn else "all trials composed",
            "mean_trials": selection.mean_trials,
            "shape": 1 if is_drawn else None,
            "num_trials": None if is_drawn else selection.num_trials,
            "steps_of_a_trial": selection.num_steps,
        },
        "not_covered": gaps,
        "not_private_files": files,
        "statement": _statement(search),
        "recompute": _recomputation(search),
    }


def _statement(search: PrivateSearch) -> str:
    selection, words = search.selection, epsilon_in_words(search.epsilon)
    mechanism = selection.mechanism
    trial = (
        f"{selection.num_steps} steps over {mechanism.num_examples} training examples, {mechanism.batch_size} examples "
        f"a step ({mechanism.sampling.capitalize()} sampling), {mechanism.noise} noise of "
        f"{mechanism.noise_multiplier:g} times the clipping norm"
    )
    if selection.mean_trials is not None:
        how = (
            f"The best of a random number of trials (geometric, {selection.mean_trials:g} on average), each drawn "
            f"independently, of {trial}. Counted as RepeatAndSelectDpEvent (Papernot and Steinke 2022)"
        )
    else:
        how = (
            f"{selection.num_trials} trials of at most {trial}. All of them are counted in full, since later trials "
            "were chosen by the results of earlier ones"
        )
    return (
        f"{how}: the search as a whole is ({words}, {search.delta:g})-differentially private for {UNIT}, by "
        f"{selection.accountant.upper()} accounting."
    )


def _recomputation(search: PrivateSearch) -> str:
    selection, grid = search.selection, None
    if selection.accountant == "pld":
        grid = pld_grid(selection.mechanism, selection.num_steps * selection.num_trials, delta=search.delta)
    return program(selection.event, adjacency="replace_special", delta=search.delta, grid=grid)
