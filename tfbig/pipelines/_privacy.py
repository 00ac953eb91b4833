"""What private runs have promised and spent: the commands `privacy` and `ledger`, which only read.

In the tree: beside the audit, above gradients/private's accounting. Imports no TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tfbig.errors import DataError, UsageError
from tfbig.gradients.private.ledger import Balance, BudgetLedger
from tfbig.gradients.private.statement import epsilon_in_words, privacy_statement
from tfbig.paths import expanded


def print_privacy(run_dir: Path, *, max_examples_per_user: int | None = None) -> None:
    """Prints what a private run promises, what it does not, and TF Privacy's figures for it.

    Args:
        run_dir: Of the run.
        max_examples_per_user: Training examples that one person has at most, at least 1; with it there are figures
            for a whole person. None where no bound is known.

    Raises:
        UsageError: It is not the folder of a private run, or figures for a person are asked of a tree's noise.
        DataError: dp.json is damaged.
    """
    promise = _promise(run_dir)
    try:
        lines = [str(promise["statement"]), "", "Not covered:"]
        lines += [f"- {gap}" for gap in _texts(promise["not_covered"])]
        lines += ["", *_figures(promise, max_examples_per_user)]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise DataError(
            f"{run_dir / 'dp.json'} is damaged ({type(error).__name__}: {error}); put a copy back, or give the run's "
            "own command once more, which writes it anew."
        ) from error
    print("\n".join(lines))


def _promise(run_dir: Path) -> Mapping[str, object]:
    path = run_dir / "dp.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{run_dir} holds no dp.json, so it is not the folder of a run with --dp.target_epsilon or "
            "--dp.noise_multiplier that has taken a step; give the one that its last line names as run_dir."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); put a copy back.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it must hold an object; put a copy back.")
    return content


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError("a list was expected")
    return [str(each) for each in value]


def _figures(promise: Mapping[str, object], max_examples_per_user: int | None) -> list[str]:
    if "search" in promise:
        if max_examples_per_user is not None:
            raise UsageError("--max_examples_per_user has figures for a run, and this is a search; leave it out.")
        return ["TF Privacy's statement describes a single run, and this is a search."]
    if promise["noise"] != "gaussian":
        if max_examples_per_user is not None:
            raise UsageError(
                "--max_examples_per_user has figures for DP-SGD alone, and this run's noise was added along a tree; "
                "leave it out."
            )
        return ["TF Privacy's statement describes DP-SGD alone, and this run's noise was added along a tree."]
    probability = float(str(promise["sampling_probability"]))
    statement = privacy_statement(
        number_of_examples=int(str(promise["num_examples"])),
        batch_size=int(str(promise["batch_size"])),
        # Less by rounding alone, so that no step is counted that was not taken.
        num_epochs=int(str(promise["steps"])) * probability * (1 - 1e-12),
        noise_multiplier=float(str(promise["noise_multiplier"])),
        delta=float(str(promise["delta"])),
        max_examples_per_user=max_examples_per_user,
        # The one with figures for persons, and what TF Privacy takes.
        accountant="rdp",
        sampling="shuffle" if promise["sampling"] == "shuffle" else "poisson",
    )
    return ["As TF Privacy's compute_dp_sgd_privacy_statement counts it:", *statement.splitlines()]


def print_ledger(path: Path) -> None:
    """Prints what is spent of each dataset's budget, and by which runs.

    Args:
        path: The ledger.

    Raises:
        UsageError: There is no such file.
        GateError: It is damaged.
        EnvironmentFault: It cannot be read.
    """
    path = expanded(path)
    if not path.is_file():
        raise UsageError(f"There is no privacy ledger {path}; give the file that runs were given as --dp.ledger.")
    balances = BudgetLedger(path).balances()
    for dataset, balance in balances.items():
        print(_spent(dataset, balance))
        for run in balance.runs:
            taken = f"{run.num_steps_done} of {run.num_steps} steps" if run.num_steps_done else f"{run.num_steps} steps"
            noise = f"noise multiplier {run.mechanism.noise_multiplier:.4g}"
            print(f"  {run.started}  {taken}, {noise}, batches of {run.mechanism.batch_size}  {run.run_dir}")
    if not balances:
        print(f"{path} holds no dataset yet.")


def _spent(dataset: str, balance: Balance) -> str:
    return (
        f"{dataset}: epsilon {epsilon_in_words(balance.spent_epsilon)} of {balance.limit_epsilon:g} at delta "
        f"{balance.delta:g} is spent or reserved by {len(balance.runs)} runs ({balance.accountant.upper()})"
    )
