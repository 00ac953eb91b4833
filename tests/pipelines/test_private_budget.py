"""What private runs may spend: a run's own budget, and a dataset's over runs, from the command line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from private_commands import (
    HEAD,
    NOISE,
    NUM_STEPS,
    PER_EPOCH,
    Outcome,
    poisson_epsilon,
    read_history,
    read_json,
    run_command,
    start,
)  # fmt: skip

from tfbig.data.images import png_bytes
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.training import checkpoints, private_state

# The budget of one run.


@pytest.mark.parametrize(
    ("max_epsilon", "steps", "is_exported"),
    [
        pytest.param("3.6", 2, False, id="first-epoch"),
        pytest.param("4.5", 4, False, id="epochs-end", marks=pytest.mark.slow),
        pytest.param("5.6", 7, True, id="later-with-export", marks=pytest.mark.slow),
    ],
)
def test_a_budget_ends_the_run_before_it_is_passed(
    max_epsilon: str, steps: int, is_exported: bool, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    run_dir, served, ledger = tmp_path / "run", tmp_path / "served", tmp_path / "ledger.json"
    words = arguments(run_dir, *HEAD, *NOISE, "--dp.max_epsilon", max_epsilon,
                      "--dp.ledger", str(ledger), "--dp.ledger_epsilon", "9")  # fmt: skip
    words += ["--export.dir", str(served)] if is_exported else []
    outcome = run_command(words)
    assert outcome.exit_code == 75, outcome.err
    assert outcome.result["metrics"]["test_accuracy"] >= 0
    assert outcome.result["export"] == (str(served / "1") if is_exported else None)
    record = read_json(run_dir)
    assert (record["steps"], record["planned_steps"]) == (steps, NUM_STEPS)
    assert record["epsilon"] == outcome.result["epsilon"] <= float(max_epsilon) < poisson_epsilon(steps + 1)
    assert record["epsilon"] == pytest.approx(poisson_epsilon(steps), rel=1e-3)
    assert len(read_history(run_dir)) == steps // PER_EPOCH
    assert checkpoints.load_latest(run_dir / "checkpoints").meta["step"] == steps % PER_EPOCH
    # Only what the budget allows was ever charged, and the secret is gone as from any run that ended.
    [charge] = BudgetLedger(ledger).balance("digits", "").runs
    assert charge.num_steps == steps
    assert private_state.read(run_dir / "checkpoints").secret is None
    again = run_command(words)
    assert (again.exit_code, again.result) == (75, outcome.result)
    assert [path.parent.name for path in served.glob("*/saved_model.pb")] == ["1"] * is_exported


def test_a_budget_within_the_first_epoch_ends_a_run_that_keeps_the_best(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    outcome = run_command(arguments(tmp_path / "run", *HEAD, *NOISE, "--dp.max_epsilon", "3.6", "--train.keep", "best"))
    assert outcome.exit_code == 75, outcome.err
    assert outcome.result["epsilon"] <= 3.6


def test_a_budget_below_one_step_is_refused_before_training(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    outcome = run_command(arguments(tmp_path / "run", *HEAD, *NOISE, "--dp.max_epsilon", "0.5"))
    assert outcome.exit_code == 6 and "before the first step" in outcome.err and not outcome.result
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_plans_and_charges_nothing(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    outcome = run_command(arguments(tmp_path / "run", *HEAD, *NOISE, "--dry_run", "--dp.ledger", str(ledger),
                                 "--dp.ledger_epsilon", "9"))  # fmt: skip
    assert outcome.exit_code == 0, outcome.err
    # Of the whole run, though it holds some of the examples only.
    assert outcome.result["epsilon"] == pytest.approx(poisson_epsilon(NUM_STEPS), rel=1e-3)
    assert not list(tmp_path.iterdir())


# The budget of a dataset over runs.


@pytest.mark.slow
def test_the_last_of_three_runs_is_refused(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    more = [*HEAD, *NOISE, "--train.epochs", "1", "--dp.ledger", str(ledger)]
    words = arguments(tmp_path / "one", *more, "--dp.ledger_epsilon", "6.2")
    assert run_command(words).exit_code == 0
    # To train anew is another run, and is charged as one.
    assert run_command([*words, "--resume", "never"]).exit_code == 0
    charges = BudgetLedger(ledger).balance("digits", "").runs
    assert [charge.num_steps for charge in charges] == [PER_EPOCH, PER_EPOCH]
    assert len({charge.run_id for charge in charges}) == 2
    before = ledger.read_bytes()
    third = run_command(arguments(tmp_path / "three", *more))
    assert third.exit_code == 6, third.err
    spent = poisson_epsilon(2 * PER_EPOCH)
    assert f"{spent:.2f}" in third.err and "of epsilon 6.2" in third.err and "2 runs" in third.err
    # Nothing bars the folder to the same run with other settings.
    assert not (tmp_path / "three").exists()
    # What is there is answered without a charge.
    assert run_command(words).exit_code == 0 and ledger.read_bytes() == before


def test_what_is_refused_to_train_anew_loses_nothing(
    finished: tuple[Path, list[str], Outcome], tmp_path: Path
) -> None:
    run_dir, words, _ = finished
    copy, ledger = Path(shutil.copytree(run_dir, tmp_path / "run")), tmp_path / "ledger.json"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    outcome = run_command([*words, "--run_dir", str(copy), "--resume", "never", "--dp.ledger", str(ledger),
                        "--dp.ledger_epsilon", "2"])  # fmt: skip
    assert outcome.exit_code == 6 and "does not allow this run" in outcome.err, outcome.err
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before and not ledger.exists()


@pytest.mark.slow
def test_the_same_pictures_have_one_budget(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(60):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)))
    monkeypatch.chdir(tmp_path)
    ledger = tmp_path / "ledger.json"
    more = [*HEAD, "--dp.target_epsilon", "5", "--train.epochs", "1", "--data.batch_size", "16",
            "--dp.ledger", str(ledger)]  # fmt: skip
    limit = ["--dp.ledger_epsilon", "6"]
    first = run_command(arguments(tmp_path / "one", *more, "--data.source", "folder:photos", *limit))
    assert first.exit_code == 0, first.err
    for place in (f"{tmp_path}/../{tmp_path.name}/photos/", shutil.copytree("photos", "copy")):
        again = run_command(arguments(tmp_path / f"of_{Path(place).name}", *more, "--data.source", f"folder:{place}",
                                   "--runtime.seed", "5", "--data.limit", "30"))  # fmt: skip
        assert again.exit_code == 6 and "spent or reserved by 1 runs" in again.err, again.err


@pytest.mark.slow
def test_patience_that_ends_a_run_gives_back(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    # Too slow to better anything, so the second epoch is the last.
    outcome = run_command(arguments(tmp_path / "run", *HEAD, *NOISE, "--train.epochs", "6", "--train.learning_rate",
                                 "1e-12", "--train.early_stopping_patience", "1", "--dp.ledger", str(ledger),
                                 "--dp.ledger_epsilon", "20"))  # fmt: skip
    assert outcome.exit_code == 0, outcome.err
    [charge] = BudgetLedger(ledger).balance("digits", "").runs
    record = read_json(tmp_path / "run")
    assert charge.num_steps == record["steps"] == 2 * PER_EPOCH < record["planned_steps"] == 6 * PER_EPOCH
    assert outcome.result["epsilon"] == pytest.approx(poisson_epsilon(2 * PER_EPOCH), rel=1e-3)
    assert any("When to stop" in gap or "when to stop" in gap for gap in record["not_covered"])


@pytest.mark.slow
def test_two_runs_at_once_cannot_both_take_the_last_of_a_budget(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.json"
    more = [*HEAD, *NOISE, "--train.epochs", "1", "--dp.ledger", str(ledger), "--dp.ledger_epsilon", "5"]
    processes = [start(arguments(tmp_path / name, *more)) for name in ("one", "two", "three")]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 6, 6], errors
    refused = [error for code, error in zip(codes, errors, strict=True) if code == 6]
    assert all("does not allow this run" in error for error in refused)
    assert len(BudgetLedger(ledger).balance("digits", "").runs) == 1
