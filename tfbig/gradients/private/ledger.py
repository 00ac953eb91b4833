"""A privacy budget for a dataset over all the runs that train on it, in one JSON file that several processes share.

Each run is charged in full before it starts, and what it did not use is given back when it ends; so a run that was
killed stays charged, and two runs at once cannot both take the last of a budget. Composition over runs: PLD where
every run allows it, else RDP for all of them together, always in the zero-out relation that all mechanisms share
(accounting.composed_epsilon says why that is sound), at the ledger's delta. In the tree: above gradients/private's
accounting, used by training; ledger_file.py reads and writes. Imports no TensorFlow.

What it does not do: find out that two datasets overlap whose source and content both differ; protect the file from
its owner; count runs that were started without it. The file is not to be published: it holds hashes of the datasets'
contents, on which whoever knows all examples but one can try the last one; a key in the same file would not help.
The settings of each run are taken as chosen without looking at the outcome of earlier ones; bounds for settings chosen
adaptively (privacy odometers) are wider.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tfbig.errors import GateError, UsageError
from tfbig.gradients.private.accounting import accountant_for, composed_epsilon
from tfbig.gradients.private.ledger_file import LedgerFile
from tfbig.gradients.private.ledger_format import Charge, DatasetBudget
from tfbig.gradients.private.mechanism import Accountant, Adjacency, Mechanism
from tfbig.gradients.private.statement import epsilon_in_words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Balance:
    """What a dataset's runs have spent together.

    Args:
        spent_epsilon: Of all charges composed; what runs in progress have reserved counts as spent.
        delta: The ledger's, that `spent_epsilon` holds at.
        limit_epsilon: What may be spent.
        accountant: Whose composition it is.
        adjacency: The neighbouring relation of `spent_epsilon`; with runs of several, the one that they share.
        runs: The charges, in the order in which they began.
    """

    spent_epsilon: float
    delta: float
    limit_epsilon: float
    accountant: Accountant
    adjacency: Adjacency
    runs: tuple[Charge, ...]


class BudgetLedger:
    """The privacy budgets of one ledger file.

    Guarantees: a run that `reserve` let pass is on the disk before `reserve` returns; over all processes that use
    the same file, the charges of a dataset never compose to more than its limit; a file that cannot be read whole
    and sound is never overwritten.

    Args:
        path: The JSON file; made at the first charge. Through a symbolic link the file that it names is used.
        lock_timeout_s: How long to wait for another process that is writing, in seconds.
    """

    def __init__(self, path: Path, lock_timeout_s: float = 15.0) -> None:
        self._file = LedgerFile(path, lock_timeout_s)

    def reserve(
        self,
        *,
        run_id: str,
        run_dir: str,
        dataset: str,
        fingerprint: str,
        mechanism: Mechanism,
        num_steps: int,
        limit_epsilon: float | None,
        limit_delta: float | None,
        already_charged: bool = False,
        mean_trials: float | None = None,
    ) -> Balance:
        """Charges a run before it starts; a run that is charged already (a resume) only for the steps it lacks.

        Args:
            run_id: Names the run over its resumes; drawn with its secret, and kept as long. So a run that was killed
                before its first checkpoint goes on as the same, and one trained anew in an old folder is another.
            run_dir: Where it is, for the reader of the ledger.
            dataset: The source of the data, by the one name that all spellings of its path share.
            fingerprint: Of the whole source's content, before it is split or limited; empty where it is not known. A
                dataset is the same where the source OR the fingerprint is.
            mechanism: What the run does.
            num_steps: All its steps, those done before a resume with them; at least 1.
            limit_epsilon: The dataset's budget, above 0; it must be given at the first charge and may not change.
            limit_delta: The delta at which runs are composed, above 0 and below 1; as `limit_epsilon`.
            already_charged: The run has been charged in this ledger before: its charge must be there.
            mean_trials: Of a search whose number of trials is drawn at random, and that releases the best alone: its
                mean; `num_steps` are then of one trial.

        Returns:
            The balance with this run in it.

        Raises:
            GateError: The run would pass the limit; or its charge is missing, or the file damaged.
            UsageError: The limit is another than the ledger's, or the run is charged with other settings.
            EnvironmentFault: The file cannot be read, written or locked.
        """
        if num_steps < 1 or not (run_id and run_dir and dataset):
            raise ValueError(
                f"A charge needs a run, a dataset and steps, got {run_id!r} in {run_dir!r}, {dataset!r}, {num_steps}."
            )
        asked = Charge(run_id, run_dir, mechanism, num_steps, 0, _now(), mean_trials)
        with self._file.locked() as content:
            budgets = content.read(must_exist=already_charged)
            _refuse_other_dataset(budgets, run_id, dataset, fingerprint)
            others = [budget for budget in budgets if not budget.holds(dataset, fingerprint)]
            same = [budget for budget in budgets if budget.holds(dataset, fingerprint)]
            before = _merged(same, dataset, fingerprint, _limit(same, dataset, limit_epsilon, limit_delta))
            if already_charged and before.charge(run_id) is None:
                raise GateError(
                    f"Run {run_id} was charged to the privacy ledger {self._file.path} before, and its charge is no "
                    "longer there; put the ledger back from a backup before resuming."
                )
            after = before.with_charge(_updated(before.charge(run_id), asked))
            balance = _balance(after)
            if same == [after]:
                return balance
            if not balance.spent_epsilon <= balance.limit_epsilon:
                raise GateError(_over_limit(before, balance, asked, self._file.path))
            content.write([*others, after])
        if others and not same:
            log.warning(
                "The privacy ledger %s knows neither the source nor the content of %s, and begins a budget for it "
                "beside those of %s; where it is a part or a version of one of them, the two budgets add up.",
                self._file.path, dataset, ", ".join(other.sources[0] for other in others[:3]),
            )  # fmt: skip
        log.info(
            "Charged to the privacy ledger %s: %s of epsilon %g at delta %g spent or reserved by %d runs.",
            self._file.path, epsilon_in_words(balance.spent_epsilon), balance.limit_epsilon, balance.delta,
            len(balance.runs),
        )  # fmt: skip
        return balance

    def settle(self, run_id: str, num_steps: int) -> None:
        """Lowers a run's charge to the steps that it took; a second call never lowers it below the first's.

        Args:
            run_id: As in `reserve`.
            num_steps: Steps taken since the run's very beginning, from 0.

        Raises:
            GateError: The run has no charge here, or took more steps than it was charged for; or the file is damaged.
            EnvironmentFault: The file cannot be read, written or locked.
        """
        with self._file.locked() as content:
            budgets = content.read(must_exist=True)
            budget = next((one for one in budgets if one.charge(run_id) is not None), None)
            charge = None if budget is None else budget.charge(run_id)
            if budget is None or charge is None:
                raise GateError(
                    f"Run {run_id} has no charge in the privacy ledger {self._file.path} any more; put the ledger "
                    "back from a backup."
                )
            if num_steps > charge.num_steps:
                raise GateError(
                    f"Run {run_id} took {num_steps} steps but the privacy ledger {self._file.path} was charged for "
                    f"{charge.num_steps}; its balance is too low. Correct num_steps of that run in the file."
                )
            done = max(num_steps, charge.num_steps_done)
            settled = dataclasses.replace(charge, num_steps=done, num_steps_done=done)
            content.write([one.with_charge(settled) if one is budget else one for one in budgets])

    def balance(self, dataset: str, fingerprint: str) -> Balance | None:
        """What the dataset's runs have spent together; None where the ledger does not know it.

        Raises:
            GateError: The file is damaged.
            EnvironmentFault: The file cannot be read.
        """
        same = [budget for budget in self._file.read() if budget.holds(dataset, fingerprint)]
        if not same:
            return None
        return _balance(_merged(same, dataset, fingerprint, _limit(same, dataset, None, None)))

    def balances(self) -> dict[str, Balance]:
        """What each dataset's runs have spent together, by the first of its sources.

        Raises:
            GateError: The file is damaged.
            EnvironmentFault: The file cannot be read.
        """
        return {budget.sources[0]: _balance(budget) for budget in self._file.read()}


def _balance(budget: DatasetBudget) -> Balance:
    events = [charge.event for charge in budget.charges]
    accountant = accountant_for(events)
    shuffled = any(charge.mechanism.adjacency == "replace_special" for charge in budget.charges)
    return Balance(
        spent_epsilon=composed_epsilon(events, delta=budget.limit_delta, accountant=accountant),
        delta=budget.limit_delta,
        limit_epsilon=budget.limit_epsilon,
        accountant=accountant,
        adjacency="replace_special" if shuffled else "add_or_remove_one",
        runs=budget.charges,
    )


def _updated(charged: Charge | None, asked: Charge) -> Charge:
    """The charge of a run that asks again: of the steps that it was charged for and asks, the more."""
    if charged is None:
        return asked
    if charged.mechanism != asked.mechanism or charged.mean_trials != asked.mean_trials:
        raise UsageError(
            f"Run {asked.run_id} is charged in the privacy ledger as {_settings(charged.mechanism)}, but goes on with "
            f"{_settings(asked.mechanism)}; resume it with its own settings, or start a new run."
        )
    return dataclasses.replace(charged, num_steps=max(charged.num_steps, asked.num_steps))


def _refuse_other_dataset(budgets: Sequence[DatasetBudget], run_id: str, dataset: str, fingerprint: str) -> None:
    for budget in budgets:
        if budget.charge(run_id) is not None and not budget.holds(dataset, fingerprint):
            raise UsageError(
                f"Run {run_id} is charged in the privacy ledger to {budget.sources[0]}, but goes on with {dataset}, "
                "whose source and content are both others; start a new run for it."
            )


def _limit(
    same: Sequence[DatasetBudget], dataset: str, epsilon: float | None, delta: float | None
) -> tuple[float, float]:
    """The limit that the ledger holds for a dataset, or at its first charge the given one."""
    written = sorted({(budget.limit_epsilon, budget.limit_delta) for budget in same})
    if len(written) > 1:
        raise UsageError(
            f"{dataset} has the source of one dataset in the privacy ledger and the content of another, and their "
            f"limits differ: {' and '.join(f'epsilon {e:g} at delta {d:g}' for e, d in written)}; the ledger's owner "
            "has to make them equal in the file."
        )
    if not written:
        if epsilon is None or delta is None or not (0 < epsilon < math.inf) or not (1e-12 <= delta < 1):
            raise UsageError(
                f"The privacy ledger does not know {dataset} yet: its limit must be given with --dp.ledger_epsilon, "
                "above 0 (typical values are 1 to 10), at a --dp.delta from 1e-12 to below 1; got epsilon "
                f"{epsilon} and delta {delta}."
            )
        return float(epsilon), float(delta)
    for name, given, kept in (("epsilon", epsilon, written[0][0]), ("delta", delta, written[0][1])):
        if given is not None and given != kept:
            raise UsageError(
                f"The privacy ledger's limit for {dataset} is {name} {kept:g}, got {given:g}; a limit is changed in "
                "the file by its owner alone. Leave it out, or give the same."
            )
    return written[0]


def _merged(same: Sequence[DatasetBudget], dataset: str, fingerprint: str, limit: tuple[float, float]) -> DatasetBudget:
    """One budget of those that turn out to be the same dataset, with this source and content among its names."""
    sources = [*(source for budget in same for source in budget.sources), dataset]
    prints = [*(each for budget in same for each in budget.fingerprints), *([fingerprint] if fingerprint else [])]
    return DatasetBudget(
        sources=tuple(dict.fromkeys(sources)),
        fingerprints=tuple(dict.fromkeys(prints)),
        limit_epsilon=limit[0],
        limit_delta=limit[1],
        charges=tuple(charge for budget in same for charge in budget.charges),
    )


def _over_limit(before: DatasetBudget, after: Balance, asked: Charge, path: Path) -> str:
    spent = _balance(before)
    own = asked.event
    alone = composed_epsilon([own], delta=after.delta, accountant=accountant_for([own]))
    return (
        f"The privacy budget of {before.sources[0]} does not allow this run: {epsilon_in_words(spent.spent_epsilon)} "
        f"of epsilon {after.limit_epsilon:g} at delta {after.delta:g} is spent or reserved by {len(spent.runs)} runs, "
        f"this one asks for {epsilon_in_words(alone)}, and together they would be at "
        f"{epsilon_in_words(after.spent_epsilon)}. Train fewer steps or with more noise; or let the owner of the "
        f"ledger {path} raise the limit in it."
    )


def _settings(mechanism: Mechanism) -> str:
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(mechanism).items())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
