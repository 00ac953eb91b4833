"""What the tests of private runs share: their settings, the command in this process or in one of its own, its files."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dp_accounting
from dp_accounting import pld

from tfbig.pipelines._command_line import parse, to_yaml
from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK
from tfbig.training import private_state
from tfbig.training.private_state import PrivateState

SECRET = 0xC0FFEE00DDBA11AD5EEDED0FACEFEED5
NOISE = ["--dp.noise_multiplier", "1"]
HEAD = ["--adapt.mode", "head"]
NUM_STEPS = 8  # Two epochs of 120 examples, 32 a step.
PER_EPOCH = 4


@dataclass(frozen=True)
class Outcome:
    """What a command gave."""

    exit_code: int
    result: dict
    err: str


def run_command(words: list[str]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(TASK, words)
    lines = out.getvalue().splitlines()
    return Outcome(code, json.loads(lines[-1]) if lines else {}, err.getvalue())


def begin(run_dir: Path, words: list[str], secret: int = SECRET) -> None:
    """Makes the folder of a run that has drawn its secret, and was killed before anything else."""
    private_state.write(run_dir / "checkpoints", PrivateState(f"{run_dir.name}-0", secret))
    (run_dir / "config.yaml").write_text(to_yaml(TASK, parse(TASK, words)))


def read_json(run_dir: Path, name: str = "dp.json") -> dict:
    return json.loads((run_dir / name).read_text())


def read_history(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def start(words: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "tfbig.pipelines.image_finetune", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def poisson_epsilon(steps: int) -> float:
    step = dp_accounting.PoissonSampledDpEvent(32 / 120, dp_accounting.GaussianDpEvent(1.0))
    return pld.PLDAccountant().compose(dp_accounting.SelfComposedDpEvent(step, steps)).get_epsilon(1e-5)
