"""`python -m tfbig privacy` and `ledger`: what a run promises and what a dataset has spent, read from real files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfbig.__main__ import main
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.mechanism import Mechanism, Noise, Sampling
from tfbig.gradients.private.record import privacy_record

DELTA, STEPS = 1e-5, 37


def _run(folder: Path, *, noise: Noise = "gaussian", sampling: Sampling = "poisson") -> tuple[Path, Mechanism]:
    mechanism = Mechanism(1.1, 5000, 150, sampling, noise)
    record = privacy_record(
        mechanism, num_steps=STEPS, planned_steps=STEPS, delta=DELTA, l2_norm_clip=1.0,
        accountant="rdp", trained_variables=["head/kernel"], engine="tapped",
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "dp.json").write_text(json.dumps(record), encoding="utf-8")
    return folder, mechanism


def _epsilons(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"^  epsilon, .*: ([\d.]+)$", text, re.MULTILINE)]


def test_the_figures_are_those_of_the_runs_own_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, mechanism = _run(tmp_path / "run")
    assert main(["privacy", str(run)]) == 0
    text = capsys.readouterr().out
    once, poisson = _epsilons(text)
    # Rounded up to three decimals; one step too many would be seen.
    assert 0 <= poisson - epsilon(mechanism, STEPS, delta=DELTA, accountant="rdp") < 1.001e-3
    assert once > poisson
    assert "-differentially private" in text and "- The choice of settings" in text


def test_a_person_with_several_examples_costs_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = _run(tmp_path / "run")
    assert main(["privacy", str(run), "--max_examples_per_user", "3"]) == 0
    figures = _epsilons(capsys.readouterr().out)
    assert len(figures) == 4 and figures[3] > 3 * figures[1]


def test_other_runs_get_no_figures_that_do_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shuffled, _ = _run(tmp_path / "shuffled", sampling="shuffle")
    assert main(["privacy", str(shuffled)]) == 0
    assert len(_epsilons(capsys.readouterr().out)) == 1
    tree, _ = _run(tmp_path / "tree", sampling="shuffle", noise="tree")
    assert main(["privacy", str(tree)]) == 0
    assert not _epsilons(capsys.readouterr().out)
    assert main(["privacy", str(tree), "--max_examples_per_user", "3"]) == 2


@pytest.mark.parametrize(
    ("content", "exit_code", "words"),
    [
        (None, 2, "holds no dp.json"),
        ("{", 3, "put a copy back"),
        ("[]", 3, "put a copy back"),
        ('{"statement": "x", "not_covered": []}', 3, "KeyError: 'noise'"),
        ('{"statement": "x", "not_covered": 3}', 3, "put a copy back"),
    ],
)
def test_what_is_no_promise_is_named(
    content: str | None, exit_code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "dp.json").write_text(content, encoding="utf-8")
    assert main(["privacy", str(tmp_path)]) == exit_code
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_the_ledger_shows_what_is_spent_and_by_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "budgets.json"
    mechanism = Mechanism(1.1, 5000, 150, "poisson")
    ledger = BudgetLedger(path)
    for name in ("one", "two"):
        balance = ledger.reserve(
            run_id=name, run_dir=f"runs/{name}", dataset="digits", fingerprint="", mechanism=mechanism,
            num_steps=STEPS, limit_epsilon=6.0, limit_delta=DELTA,
        )  # fmt: skip
    ledger.settle("two", 30)
    balance = ledger.balance("digits", "") or balance
    before = path.read_bytes()
    assert main(["ledger", str(path)]) == 0
    head, one, two = capsys.readouterr().out.splitlines()
    [spent] = re.findall(r"epsilon ([\d.]+) of 6 at delta 1e-05 .* by 2 runs", head)
    assert 0 <= float(spent) - balance.spent_epsilon < 1.001e-3
    assert f"{STEPS} steps" in one and "runs/one" in one
    assert "30 of 30 steps" in two and "runs/two" in two
    assert path.read_bytes() == before


def test_a_wrong_ledger_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", str(tmp_path / "none.json")]) == 2
    assert "There is no privacy ledger" in capsys.readouterr().err
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{}", encoding="utf-8")
    assert main(["ledger", str(damaged)]) == 6
    assert damaged.read_text(encoding="utf-8") == "{}" and [*tmp_path.iterdir()] == [damaged]


def test_they_answer_without_tensorflow(tmp_path: Path) -> None:
    run, _ = _run(tmp_path / "run")
    script = f"""
import sys
from tfbig.__main__ import main
main(["privacy", {str(run)!r}])
sys.exit("imported" if {{"tensorflow", "keras"}} & set(sys.modules) else 0)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
