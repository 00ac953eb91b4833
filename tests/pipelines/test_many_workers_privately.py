"""Private training over real processes: the draws and the epsilon of one process, noise once, one charge."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

JOB = [sys.executable, "-m", "tfbig.pipelines.image_finetune"]
LAUNCH = [sys.executable, "-m", "tfbig", "launch", "--workers", "2"]
# Almost no noise: each replica draws a share of its own, so only without it are the weights the same.
ARGUMENTS = [
    "--adapt.mode", "head", "--train.optimizer", "sgd", "--train.learning_rate", "0.05", "--train.schedule", "constant",
    "--train.epochs", "4", "--data.limit", "300", "--data.batch_size", "30", "--dp.noise_multiplier", "0.005",
    "--dp.l2_norm_clip", "0.01", "--train.momentum", "0", "--dp.accountant", "rdp", "--train.checkpoint_every_s", "0",
]  # fmt: skip


def _done(command: Sequence[str], timeout_s: float = 300) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _weights(run_dir: Path) -> list[np.ndarray]:
    with np.load(max((run_dir / "checkpoints").glob("step-*.npz"))) as stored:
        return [stored[name] for name in sorted(stored.files) if name.startswith("network")]


@pytest.mark.slow
def test_a_private_run_is_the_same_over_two_workers_and_charged_once(tmp_path: Path) -> None:
    one, two, ledger = tmp_path / "one", tmp_path / "two", tmp_path / "ledger.json"
    started = subprocess.Popen([*JOB, *ARGUMENTS, "--run_dir", str(one)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list((one / "checkpoints").glob("step-*.npz")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait(120) == 75, started.communicate()[1]
    # The same secret, and so the same draws of examples.
    shutil.copytree(one, two)
    alone = _done([*JOB, *ARGUMENTS, "--run_dir", str(one)])
    together = _done([*LAUNCH, "image_finetune", *ARGUMENTS, "--run_dir", str(two)])
    assert together["epsilon"] == alone["epsilon"] > 0
    for ours, theirs in zip(_weights(one), _weights(two), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)

    usual = [word if word != "0.005" else "1.0" for word in ARGUMENTS]
    budget = ["--dp.ledger", str(ledger), "--dp.ledger_epsilon", "90"]
    charged = _done([*LAUNCH, "image_finetune", *usual, *budget, "--run_dir", str(tmp_path / "charged")])
    [dataset] = json.loads(ledger.read_text())["datasets"]
    assert len(dataset["charges"]) == 1 and charged["epsilon"] < 90
    promise = json.loads((tmp_path / "charged" / "dp.json").read_text())
    assert charged["epsilon"] == pytest.approx(promise["epsilon"])


_DRAWS = """
import sys
import numpy as np
import tensorflow as tf
from tfbig.cluster import from_environment
from tfbig.gradients.private.noise import GaussianNoise
from tfbig.meeting import meet
from tfbig.runtime import runtime

team = meet(from_environment(), {}, timeout_s=120)
with runtime(strategy="multiworker", precision="float32", seed=0, team=team) as strategy:
    @tf.function
    def draw():
        def replica():
            [share] = GaussianNoise(2**100)([(200_000,)], tf.constant(3))
            return share, tf.distribute.get_replica_context().all_reduce("SUM", share)
        return strategy.run(replica)
    share, total = (np.asarray(strategy.experimental_local_results(value)[0]) for value in draw())
    team.wait_for_all()
team.leave(None)
other = total - share
print(share.std(), other.std(), total.std(), np.corrcoef(share, other)[0, 1])
"""


@pytest.mark.slow
def test_the_noise_of_two_workers_is_independent_and_adds_up_to_that_of_one(tmp_path: Path) -> None:
    (tmp_path / "draws.py").write_text(_DRAWS)
    done = subprocess.run(
        [*LAUNCH, "draws"], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    own, other, total, correlation = map(float, done.stdout.split())
    assert own == pytest.approx(0.5**0.5, rel=0.01) and other == pytest.approx(0.5**0.5, rel=0.01)
    assert total == pytest.approx(1.0, rel=0.01)
    assert abs(correlation) < 0.02
