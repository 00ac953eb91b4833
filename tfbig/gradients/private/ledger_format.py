"""What the privacy ledger holds, and its form in JSON, checked value by value.

    {"format": "tfbig-privacy-ledger-1", "datasets": [
        {"sources": [...], "fingerprints": [...], "limit_epsilon": 8.0, "limit_delta": 1e-05, "charges": [
            {"run_id", "run_dir", "started", "num_steps", "num_steps_done", "noise_multiplier", "num_examples",
             "batch_size", "sampling", "noise", and of a search "mean_trials"}]}]}

Nothing is taken on trust: unknown or repeated keys, numbers out of range, NaN and runs that are charged twice are
refused, since a ledger that is read wrongly grants privacy that is already spent. In the tree: below
gradients/private's ledger. Imports no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tfbig.gradients.private.mechanism import Mechanism, Noise, Sampling
from tfbig.gradients.private.selection import Selection

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_FORMAT = "tfbig-privacy-ledger-1"
_MECHANISM = tuple(field.name for field in dataclasses.fields(Mechanism))


@dataclass(frozen=True)
class Charge:
    """What one run has been charged for.

    Args:
        run_id: Names the run for good.
        run_dir: Where it was when it began.
        mechanism: What it does.
        num_steps: Steps that count: those planned, or those taken once it is settled.
        num_steps_done: Steps that it is known to have taken; the charge never falls below them.
        started: When it was first charged, ISO, UTC.
        mean_trials: Of a search whose number of trials was drawn at random, its mean; the steps are then of one trial.
    """

    run_id: str
    run_dir: str
    mechanism: Mechanism
    num_steps: int
    num_steps_done: int
    started: str
    mean_trials: float | None = None

    @property
    def event(self) -> DpEvent:
        """In dp-accounting's terms."""
        if self.mean_trials is None:
            return self.mechanism.event(self.num_steps)
        return Selection(self.mechanism, self.num_steps, self.mean_trials).event


@dataclass(frozen=True)
class DatasetBudget:
    """The limit and the charges of one dataset.

    Args:
        sources: What users have called it.
        fingerprints: Of the contents it has had.
        limit_epsilon: What its runs may spend together.
        limit_delta: At this delta.
        charges: One a run.
    """

    sources: tuple[str, ...]
    fingerprints: tuple[str, ...]
    limit_epsilon: float
    limit_delta: float
    charges: tuple[Charge, ...]

    def holds(self, source: str, fingerprint: str) -> bool:
        """Whether data of this source or this content is this dataset; an empty fingerprint is like no other."""
        return source in self.sources or (fingerprint != "" and fingerprint in self.fingerprints)

    def charge(self, run_id: str) -> Charge | None:
        """The charge of a run."""
        return next((charge for charge in self.charges if charge.run_id == run_id), None)

    def with_charge(self, charge: Charge) -> DatasetBudget:
        """The same with a run's charge added, or put in the place of its former one."""
        if self.charge(charge.run_id) is None:
            return dataclasses.replace(self, charges=(*self.charges, charge))
        charges = tuple(charge if one.run_id == charge.run_id else one for one in self.charges)
        return dataclasses.replace(self, charges=charges)


def encoded(budgets: Sequence[DatasetBudget]) -> bytes:
    """The bytes of a file that holds the budgets.

    Raises:
        ValueError: A value could not be read back.
    """
    document = {"format": _FORMAT, "datasets": [_as_json(budget) for budget in budgets]}
    raw = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
    parsed(raw)
    return raw


def _as_json(budget: DatasetBudget) -> dict[str, object]:
    charges = [
        {
            "run_id": charge.run_id,
            "run_dir": charge.run_dir,
            "started": charge.started,
            "num_steps": charge.num_steps,
            "num_steps_done": charge.num_steps_done,
            **dataclasses.asdict(charge.mechanism),
            **({} if charge.mean_trials is None else {"mean_trials": charge.mean_trials}),
        }
        for charge in budget.charges
    ]
    return {
        "sources": list(budget.sources),
        "fingerprints": list(budget.fingerprints),
        "limit_epsilon": budget.limit_epsilon,
        "limit_delta": budget.limit_delta,
        "charges": charges,
    }


def parsed(raw: bytes) -> tuple[DatasetBudget, ...]:
    """The budgets in a file's bytes.

    Raises:
        ValueError: Saying which value is wrong.
    """
    document = json.loads(raw.decode(), object_pairs_hook=_without_repeats)
    top = _object(document, ("format", "datasets"), "the file")
    if top["format"] != _FORMAT:
        raise ValueError(f"its format is {top['format']!r}, expected {_FORMAT!r}")
    budgets = tuple(_budget(entry, f"dataset {i}") for i, entry in enumerate(_list(top["datasets"], "datasets")))
    runs = [charge.run_id for budget in budgets for charge in budget.charges]
    if len(set(runs)) < len(runs):
        raise ValueError("a run is charged twice")
    return budgets


def _budget(value: object, where: str) -> DatasetBudget:
    entry = _object(value, tuple(field.name for field in dataclasses.fields(DatasetBudget)), where)
    charges = _list(entry["charges"], f"{where}: charges")
    budget = DatasetBudget(
        sources=tuple(_text(each, f"{where}: a source") for each in _list(entry["sources"], f"{where}: sources")),
        fingerprints=tuple(
            _text(each, f"{where}: a fingerprint") for each in _list(entry["fingerprints"], f"{where}: fingerprints")
        ),
        limit_epsilon=_number(entry["limit_epsilon"], f"{where}: limit_epsilon"),
        limit_delta=_number(entry["limit_delta"], f"{where}: limit_delta"),
        charges=tuple(_charge(each, f"{where}, charge {i}") for i, each in enumerate(charges)),
    )
    if not budget.sources or budget.limit_epsilon <= 0 or not 1e-12 <= budget.limit_delta < 1:
        raise ValueError(f"{where} needs a source, a limit_epsilon above 0 and a limit_delta from 1e-12 to below 1")
    return budget


def _charge(value: object, where: str) -> Charge:
    own = ("run_id", "run_dir", "started", "num_steps", "num_steps_done")
    is_search = isinstance(value, dict) and "mean_trials" in value
    entry = _object(value, (*own, *_MECHANISM, *(("mean_trials",) if is_search else ())), where)
    charge = Charge(
        run_id=_text(entry["run_id"], f"{where}: run_id"),
        run_dir=_text(entry["run_dir"], f"{where}: run_dir"),
        started=_text(entry["started"], f"{where}: started"),
        num_steps=_whole(entry["num_steps"], f"{where}: num_steps"),
        num_steps_done=_whole(entry["num_steps_done"], f"{where}: num_steps_done"),
        mechanism=Mechanism(
            noise_multiplier=_number(entry["noise_multiplier"], f"{where}: noise_multiplier"),
            num_examples=_whole(entry["num_examples"], f"{where}: num_examples"),
            batch_size=_whole(entry["batch_size"], f"{where}: batch_size"),
            sampling=cast(Sampling, _text(entry["sampling"], f"{where}: sampling")),
            noise=cast(Noise, _text(entry["noise"], f"{where}: noise")),
        ),
    )
    if is_search:
        charge = dataclasses.replace(charge, mean_trials=_number(entry["mean_trials"], f"{where}: mean_trials"))
        if charge.mean_trials is not None and charge.mean_trials < 1:
            raise ValueError(f"{where}: mean_trials must be at least 1")
    if charge.num_steps_done > charge.num_steps:
        raise ValueError(f"{where}: more steps are done than charged")
    return charge


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _object(value: object, keys: Sequence[str], where: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"{where} must have exactly {', '.join(keys)}")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must be a text, got {str(value)[:40]!r}")
    return value


def _whole(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 2**53:
        raise ValueError(f"{where} must be a whole number from 0, got {str(value)[:40]!r}")
    return value


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1e12:
        raise ValueError(f"{where} must be a number from 0 to 1e12, got {str(value)[:40]!r}")
    return float(value)
