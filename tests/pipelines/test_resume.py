"""A run that is killed, or asked to stop, ends exactly as one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfbig.pipelines._command_line import parse, to_yaml
from tfbig.pipelines._main import held
from tfbig.pipelines.image_finetune import TASK

# Dropout, a moving average, random augmentation and a half-filled last batch: all that could differ.
ARGUMENTS = [
    "--model.backbone", "scratch:convnet", "--model.dropout", "0.2", "--options.augment", "crop,mixup",
    "--train.ema_decay", "0.9", "--train.epochs", "4", "--data.limit", "300", "--data.batch_size", "32",
    "--train.checkpoint_every_s", "0",
]  # fmt: skip


def _start(run_dir: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tfbig.pipelines.image_finetune", *ARGUMENTS, "--run_dir", str(run_dir), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def _stop_at(process: subprocess.Popen, run_dir: Path, step: int, number: int) -> None:
    """Sends a signal as soon as a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.stem.split("-")[1]) for path in (run_dir / "checkpoints").glob("step-*.npz")]
        if steps and max(steps) >= step:
            os.kill(process.pid, number)
            process.communicate(timeout=120)
            return
        time.sleep(0.005)
    pytest.fail("the run ended before it could be stopped: " + process.communicate()[1][-2000:])


def _state(run_dir: Path) -> tuple[list[np.ndarray], list[dict]]:
    last = max((run_dir / "checkpoints").glob("step-*.npz"))
    with np.load(last) as stored:
        arrays = [stored[name] for name in sorted(stored.files) if name != "meta.json"]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_how_long_to_wait_for_workers_is_no_part_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual, patient = (parse(TASK, [*ARGUMENTS, "--runtime.start_timeout_s", text]) for text in ("300", "900"))
    with held(TASK, usual) as (run, finished):
        assert finished is None
        run.write_text("config.yaml", to_yaml(TASK, usual))
        run.update_status("done", result={"run_dir": str(run.path), "export": None, "metrics": {}, "epsilon": None})
    with held(TASK, patient) as (same, finished):
        assert same.path == run.path and finished is not None and finished[1] == 0


def test_kill_and_stop_change_nothing(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = _finish(_start(whole))

    killed = _start(stopped)
    _stop_at(killed, stopped, 5, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    asked = _start(stopped)
    _stop_at(asked, stopped, 14, signal.SIGTERM)
    assert asked.returncode == 75
    assert json.loads((stopped / "status.json").read_text())["state"] == "interrupted"
    # A checkpoint that was damaged meanwhile costs a step, not the run.
    max((stopped / "checkpoints").glob("step-*.npz")).write_bytes(b"damaged")
    result = _finish(_start(stopped))

    assert result["metrics"] == expected["metrics"]
    (arrays, rows), (arrays_expected, rows_expected) = _state(stopped), _state(whole)
    assert rows == rows_expected
    for ours, theirs in zip(arrays, arrays_expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # A finished run answers at once with what it gave; other settings are refused.
    assert _finish(_start(stopped)) == result
    other = _start(stopped, "--train.learning_rate", "0.5")
    assert "train.learning_rate" in other.communicate(timeout=120)[1]
    assert other.returncode == 2
