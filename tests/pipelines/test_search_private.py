"""A private search: one promise for all of it, one charge, and nothing promised that does not hold."""

import json
import subprocess
import sys
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import dp_event, pld, rdp

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.pipelines._command_line import parse
from tfbig.pipelines._main import main
from tfbig.pipelines._search_space import check_search
from tfbig.pipelines.image_finetune import TASK
from tfbig.search import privacy

PUBLIC = [
    "--adapt.mode", "head", "--data.limit", "200", "--data.batch_size", "64", "--train.epochs", "1",
    "--tune.space.train.learning_rate.choice", "[0.01, 0.02]",
]  # fmt: skip
PRIVATE = [*PUBLIC, "--dp.target_epsilon", "8"]


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize("tuner", ["random", pytest.param("bayesian", marks=pytest.mark.slow)])
def test_a_private_search_promises_one_epsilon_and_charges_it_once(
    tuner: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is short: the law of the draw itself is tested elsewhere.
    monkeypatch.setattr(privacy, "draw_num_trials", lambda mean: 3)
    run, ledger = tmp_path / "search", tmp_path / "ledger.json"
    arguments = [*PRIVATE, "--tune.tuner", tuner, "--tune.max_trials", "2", "--run_dir", str(run),
                 "--dp.ledger", str(ledger), "--dp.ledger_epsilon", "20"]  # fmt: skip
    assert main(TASK, arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    promise, search = _json(run / "dp.json"), _json(run / "search.json")
    assert 7.8 < result["epsilon"] == promise["epsilon"] <= 8
    # Of two choices a random private search takes three trials all the same: each is a draw of its own.
    assert len(search["trials"]) == (3 if tuner == "random" else 2)
    assert promise["search"]["counted_as"] == {
        "random": "RepeatAndSelectDpEvent", "bayesian": "all trials composed"
    }[tuner]  # fmt: skip
    assert any("validation split" in gap for gap in promise["not_covered"])
    assert "trials/" in promise["not_private_files"]
    assert any("delete trials/, search.json, " in gap for gap in promise["not_covered"]) == (tuner == "random")
    assert {"trials/", "search.json", "report.html", "tensorboard/"} <= set(promise["not_private_files"])
    # What was tried is drawn from a secret, which stays in the journal.
    journal = run / "trials" / "journal.jsonl"
    seed = json.loads(journal.read_text().splitlines()[0])["plan"]["seed"]
    assert (seed > 2**64) == (tuner == "random")
    assert journal.stat().st_mode & 0o077 == 0
    if tuner == "random":
        assert not [path for path in run.rglob("*") if path.is_file() and path != journal
                    and str(seed).encode() in path.read_bytes()]  # fmt: skip
    again = subprocess.run([sys.executable, "-c", promise["recompute"]], capture_output=True, text=True, timeout=120)
    assert float(again.stdout) == pytest.approx(promise["epsilon"], rel=1e-6), again.stderr

    trial = _json(run / "trials" / "0000" / "dp.json")
    assert trial["epsilon"] < promise["epsilon"]
    assert trial["noise_multiplier"] == promise["noise_multiplier"]
    secrets = {_json(path)["run_id"] for path in (run / "trials").glob("*/checkpoints/private_state.json")}
    assert len(secrets) == len(search["trials"])
    assert promise["statement"] in (run / "MODEL_CARD.md").read_text()

    [dataset] = _json(ledger)["datasets"]
    [charge] = dataset["charges"]
    assert charge.get("mean_trials") == (2.0 if tuner == "random" else None)
    # Interrupted before its end, it goes on as the same search: the same number of trials, the same charge.
    status = _json(run / "status.json")
    (run / "status.json").write_text(json.dumps({"state": "interrupted", "started": status["started"]}))
    monkeypatch.setattr(privacy, "draw_num_trials", lambda mean: 9)
    assert main(TASK, arguments) == 0
    assert _json(ledger)["datasets"] == [dataset]
    assert len(_json(run / "search.json")["trials"]) == len(search["trials"])


def test_a_plan_comes_back_from_the_journal_and_a_damaged_one_does_not() -> None:
    config = parse(TASK, [*PUBLIC, "--dp.noise_multiplier", "1", "--tune.max_trials", "2"])
    plan = privacy.plan(config, num_examples=200)
    content = json.loads(json.dumps(plan.to_json()))
    assert privacy.from_json(content) == plan
    mechanism = content["selection"]["mechanism"]
    for damaged in (
        {},
        {**content, "selection": None},
        {name: value for name, value in content.items() if name != "seed"},
        {**content, "selection": {**content["selection"], "mechanism": {**mechanism, "sampling": "none"}}},
    ):
        with pytest.raises(EnvironmentFault, match="damaged.*--resume never"):
            privacy.from_json(damaged)


def test_a_search_beyond_the_budget_runs_no_trial(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "search"
    code = main(TASK, [*PRIVATE, "--tune.max_trials", "2", "--run_dir", str(run), "--dp.ledger", str(tmp_path / "l"),
                       "--dp.ledger_epsilon", "2"])  # fmt: skip
    assert code == 6
    assert "privacy budget" in capsys.readouterr().err
    # Nor does it bar the folder for one that is within it.
    assert not run.exists() or not [path for path in run.iterdir() if path.name != ".lock"]


def test_a_search_that_is_refused_anew_leaves_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "search"
    arguments = [*PUBLIC, "--tune.max_trials", "1", "--run_dir", str(run)]
    assert main(TASK, arguments) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    private = ["--dp.target_epsilon", "8", "--dp.ledger", str(tmp_path / "l"), "--dp.ledger_epsilon", "2"]
    assert main(TASK, [*arguments, *private, "--resume", "never"]) == 6
    assert main(TASK, [*arguments, "--data.validation_fraction", "0", "--resume", "never"]) == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(TASK, [*arguments, "--train.epochs", "2", "--resume", "never"]) == 0
    rows = (run / "trials" / "0000" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2


@pytest.mark.slow
def test_failed_private_trials_keep_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "draw_num_trials", lambda mean: 6)
    run = tmp_path / "search"
    decay = ["--train.learning_rate", "1", "--tune.space.train.weight_decay.choice", "[0.001, 1e30]"]
    decay += ["--tune.space.train.learning_rate", "null", "--train.epochs", "3"]
    main(TASK, [*PRIVATE, *decay, "--tune.max_trials", "2", "--run_dir", str(run)])
    lines = [json.loads(line) for line in (run / "trials" / "journal.jsonl").read_text().splitlines()]
    failed = [line["trial"] for line in lines if line.get("state") == "failed"]
    states = [run / "trials" / f"{number:04d}" / "checkpoints" / "private_state.json" for number in failed]
    assert any(path.exists() for path in states)
    assert all(_json(path)["secret"] is None for path in states if path.exists())


def test_a_budget_within_a_run_is_refused_in_a_search() -> None:
    config = parse(TASK, [*PRIVATE, "--tune.max_trials", "2", "--dp.max_epsilon", "3"])
    with pytest.raises(UsageError, match="search as a whole"):
        check_search(TASK, config)


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_the_promise_counts_each_execution_and_each_trial(tuner: str, tmp_path: Path) -> None:
    epochs, executions, trials, steps_per_epoch = 2, 3, 4, 4
    arguments = [*PUBLIC, "--train.epochs", str(epochs), "--dp.noise_multiplier", "3", "--tune.tuner", tuner]
    arguments += ["--tune.executions", str(executions), "--tune.max_trials", str(trials)]
    plan = privacy.plan(parse(TASK, arguments), num_examples=200)
    one = dp_accounting.PoissonSampledDpEvent(64 / 200, dp_accounting.GaussianDpEvent(3.0))
    run = dp_accounting.SelfComposedDpEvent(one, executions * epochs * steps_per_epoch)
    if tuner == "random":
        accountant = rdp.RdpAccountant()
        accountant.compose(dp_event.RepeatAndSelectDpEvent(run, trials, 1))
    else:
        accountant = pld.PLDAccountant()
        accountant.compose(run, trials)
    assert plan.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=0.02)
    # What is charged is what is promised.
    ledger = tmp_path / "ledger.json"
    privacy.charge(plan, ledger, run_dir=tmp_path, dataset="d", fingerprint="f", limit_epsilon=100)
    [balance] = BudgetLedger(ledger).balances().values()
    assert balance.spent_epsilon == pytest.approx(plan.epsilon, rel=0.02)


SHUFFLED_TREE = ["--dp.mechanism", "tree", "--dp.sampling", "shuffle"]


@pytest.mark.parametrize(
    ("words", "used"),
    [([], "rdp"), (["--tune.tuner", "bayesian"], "pld"), (["--tune.tuner", "bayesian", *SHUFFLED_TREE], "rdp")],
)
def test_an_accountant_that_a_search_would_not_use_is_refused(words: list[str], used: str) -> None:
    arguments = [*PUBLIC, "--dp.noise_multiplier", "1", "--tune.max_trials", "2", *words]
    for given in ([], ["--dp.accountant", used]):
        config = parse(TASK, [*arguments, *given])
        check_search(TASK, config)
        assert privacy.plan(config, num_examples=200).selection.accountant == config.dp.accountant == used
    other = "pld" if used == "rdp" else "rdp"
    with pytest.raises(UsageError, match=f"counted by {used}.*got --dp.accountant {other}; leave it out"):
        check_search(TASK, parse(TASK, [*arguments, "--dp.accountant", other]))
