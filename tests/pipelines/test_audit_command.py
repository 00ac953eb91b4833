"""`python -m tfbig audit` on real runs: what it says of a whole one, of a lie, of a bug, and of what is no run."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorflow as tf

from tfbig.__main__ import main
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import PoissonPlan
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.mechanism import Mechanism
from tfbig.gradients.private.noise import GaussianNoise
from tfbig.pipelines._audit import _plan

COMMON = ["--adapt.mode", "head", "--data.limit", "400", "--train.epochs", "4", "--data.batch_size", "64"]
KEYS = {
    "run_dir", "claimed_epsilon", "delta", "epsilon_lower_bound", "consistent", "membership_auc",
    "membership_advantage", "membership_tpr_at_1_fpr", "membership_auc_validation",
}  # fmt: skip


def train(run_dir: Path, *flags: str) -> Path:
    command = [sys.executable, "-m", "tfbig.pipelines.image_finetune", *COMMON, *flags, "--run_dir", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return run_dir


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on the bundled backbone, with much noise, so that little is claimed."""
    path = tmp_path_factory.mktemp("runs") / "private"
    return train(path, "--dp.noise_multiplier", "4", "--dp.delta", "1e-5", "--train.ema_decay", "0.9")


@pytest.fixture
def copy(private_run: Path, tmp_path: Path) -> Path:
    """The private run, to be spoiled."""
    return Path(shutil.copytree(private_run, tmp_path / "copy"))


def last_line(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    exit_code = main(["audit", str(run_dir)])
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in err
    return exit_code, errors[0]


def test_a_private_run_is_consistent(private_run: Path) -> None:
    before = {path: path.read_bytes() for path in private_run.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "tfbig", "audit", str(private_run), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result, stored = last_line(done.stdout), json.loads((private_run / "audit.json").read_text())
    assert set(result) == KEYS and result["consistent"]
    claimed = json.loads((private_run / "dp.json").read_text())["epsilon"]
    assert result["claimed_epsilon"] == claimed and 0 <= result["epsilon_lower_bound"] <= claimed
    assert 0.4 < result["membership_auc"] < 0.6
    assert stored["membership"]["auc"]["value"] == result["membership_auc"]
    # The losses are those of the network that was evaluated: its moving average.
    evaluated = json.loads((private_run / "evaluation.json").read_text())["metrics"]["loss"]["value"]
    assert stored["membership"]["mean_loss_of_others"] == pytest.approx(evaluated, rel=1e-4)
    assert {check["canaries"] for check in stored["canaries"]["checks"]} == {"input", "direction"}
    assert "not covered by the run" in (private_run / "audit.html").read_text()
    assert "Consistent" in done.stderr
    # It adds its two files and changes nothing else.
    assert {path: path.read_bytes() for path in before} == before
    added = {path.name for path in private_run.rglob("*") if path.is_file()} - {path.name for path in before}
    assert added == {"audit.json", "audit.html"}


def test_a_run_without_its_noise_is_found_out(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very command, on a rule whose noise was forgotten."""
    drawn: Callable[..., list[tf.Tensor]] = GaussianNoise.__call__
    monkeypatch.setattr(
        GaussianNoise, "__call__", lambda self, shapes, step: [0.0 * noise for noise in drawn(self, shapes, step)]
    )
    assert main(["audit", str(copy)]) == 6
    out, err = capsys.readouterr()
    result = last_line(out)
    assert not result["consistent"]
    assert "error: The run's claim is contradicted" in err
    assert json.loads((copy / "audit.json").read_text())["consistent"] is False


@pytest.mark.parametrize("num_canaries", [20, 300])
@pytest.mark.parametrize(
    "plan",
    [
        PoissonPlan(num_examples=100, batch_size=30, physical_batch_size=8, seed=1),
        IndexPlan(100, 30, seed=2**100, multiple=8),
    ],
)
def test_what_is_audited_is_the_plan_of_the_run(plan: PoissonPlan | IndexPlan, num_canaries: int) -> None:
    audited = _plan(SimpleNamespace(plan=plan), num_canaries)
    assert audited.num_examples >= num_canaries and audited.steps_per_epoch == plan.steps_per_epoch
    assert audited.batch_size * plan.num_examples == plan.batch_size * audited.num_examples
    same = {"num_examples": plan.num_examples, "batch_size": plan.batch_size}
    assert dataclasses.replace(audited, **same) == plan


def test_too_small_a_claim_is_found_out(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((copy / "dp.json").read_text())
    (copy / "dp.json").write_text(json.dumps({**content, "epsilon": content["epsilon"] / 2}))
    exit_code, error = refused(copy, capsys)
    assert exit_code == 6 and "its own noise, sampling and steps give" in error


def test_the_claim_of_another_run_is_found_out(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((copy / "dp.json").read_text())
    mechanism = Mechanism(content["noise_multiplier"], content["num_examples"], content["batch_size"], "poisson")
    fewer = {"steps": 1, "epsilon": epsilon(mechanism, 1, delta=content["delta"])}
    (copy / "dp.json").write_text(json.dumps({**content, **fewer}))
    exit_code, error = refused(copy, capsys)
    assert exit_code == 6 and f"steps 1 there, {content['steps']} in the run" in error


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"epsilon": 1}'])
def test_a_damaged_record_is_refused(copy: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "dp.json").write_text(content)
    exit_code, error = refused(copy, capsys)
    assert exit_code == 3 and "dp.json is damaged" in error


def test_what_cannot_be_audited_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(tmp_path / "nowhere", capsys)[0] == 2
    (tmp_path / "other").mkdir()
    exit_code, error = refused(tmp_path / "other", capsys)
    assert exit_code == 2 and "not the folder of a run" in error

    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    exit_code, error = refused(copy, capsys)
    assert exit_code == 2 and "it is interrupted" in error
    (copy / "status.json").write_text(json.dumps(status))

    record = (copy / "dp.json").read_text()
    (copy / "dp.json").unlink()
    exit_code, error = refused(copy, capsys)
    assert exit_code == 3 and "dp.json is missing" in error
    (copy / "dp.json").write_text(record)

    manifest = (copy / "data_manifest.json").read_text()
    changed = {**json.loads(manifest), "fingerprint": "of other data"}
    (copy / "data_manifest.json").write_text(json.dumps(changed))
    exit_code, error = refused(copy, capsys)
    assert exit_code == 3 and "The data has changed" in error
    (copy / "data_manifest.json").write_text(manifest)

    settings = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(settings.replace("source: digits", f"source: folder:{tmp_path}/gone"))
    assert refused(copy, capsys)[0] == 3
    (copy / "config.yaml").write_text(settings)

    for checkpoint in (copy / "checkpoints").glob("*.npz"):
        checkpoint.unlink()
    exit_code, error = refused(copy, capsys)
    assert exit_code == 4 and "no checkpoint" in error


@pytest.mark.slow
def test_a_public_run_that_learned_by_heart_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Membership alone: no claim, no canaries."""
    heart = ["--adapt.mode", "full", "--data.limit", "60", "--data.batch_size", "10", "--train.epochs", "12"]
    run_dir = train(tmp_path / "public", *heart)
    assert main(["audit", str(run_dir)]) == 0
    result = last_line(capsys.readouterr().out)
    assert set(result) == KEYS and result["consistent"]
    assert result["claimed_epsilon"] is None and result["epsilon_lower_bound"] is None
    assert result["membership_auc"] > 0.6


@pytest.mark.parametrize("flags", [["--canaries", "5"], ["--canaries", "many"], ["--seed", "-1"], ["--steps", "0"]])
def test_odd_flags_are_usage_errors(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", "somewhere", *flags])
    assert stop.value.code == 2
    assert "must be a whole number" in capsys.readouterr().err
