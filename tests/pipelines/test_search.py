"""A search as a command: each trial a run of its own, the best one judged, whatever happens in between."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK
from tfbig.search.trials import MAX_DEATHS
from tfbig.training.run_directory import open_run

SMALL = ["--adapt.mode", "head", "--data.limit", "150", "--data.batch_size", "32", "--train.epochs", "3"]
SPACE = ["--tune.space", "{train.learning_rate: {log: [1e-3, 1e-1]}, options.label_smoothing: {choice: [0, 0.1]}}"]


def _ends(run: Path) -> dict[int, dict]:
    lines = [json.loads(line) for line in (run / "trials" / "journal.jsonl").read_text().splitlines()]
    return {line["trial"]: line for line in lines if line["event"] == "end"}


def _weights(run: Path) -> list[np.ndarray]:
    with np.load(run / "checkpoints" / "best.npz") as stored:
        return [stored[name] for name in sorted(stored.files) if name != "meta.json"]


def test_a_search_is_runs_of_their_own_and_its_best_is_judged_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "search"
    arguments = [*SMALL, *SPACE, "--tune.max_trials", "3", "--run_dir", str(run)]
    assert main(TASK, arguments) == 0
    assert {0.0, 0.1} == {
        trial["values"]["options.label_smoothing"] for trial in json.loads((run / "search.json").read_text())["trials"]
    }
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {"run_dir", "export", "metrics", "epsilon"}

    search = json.loads((run / "search.json").read_text())
    scores = [trial["score"] for trial in search["trials"]]
    assert [trial["state"] for trial in search["trials"]] == ["done"] * 3
    assert search["best"] == int(np.argmin(scores))
    folders = sorted(path for path in (run / "trials").iterdir() if path.is_dir())
    assert [path.name for path in folders] == ["0000", "0001", "0002"]
    for folder in folders:
        assert (folder / "config.yaml").is_file()
        # Only the winner sees the test split.
        assert not (folder / "evaluation.json").exists()
        assert not (folder / "predictions.csv").exists()
        assert list((run / "tensorboard" / "trials" / folder.name).glob("events*"))
    for folder, trial in zip(folders, search["trials"], strict=True):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        least, smoothing = min(row["val_loss"] for row in rows), trial["values"]["options.label_smoothing"]
        # Of the true labels: what smoothing adds to its own objective is no reason to choose another.
        assert trial["score"] == pytest.approx(least, rel=1e-3) if not smoothing else trial["score"] < least
    best = folders[search["best"]]
    assert all(np.array_equal(a, b) for a, b in zip(_weights(best), _weights(run), strict=True))
    assert "Importance" in (run / "report.html").read_text()
    assert f"<dd>{search['settings']['train.learning_rate']}</dd>" in (run / "report.html").read_text()

    # Any trial is what its own configuration gives, by itself.
    alone = tmp_path / "alone"
    assert main(TASK, ["--config", str(folders[1] / "config.yaml"), "--run_dir", str(alone)]) == 0
    assert all(np.array_equal(a, b) for a, b in zip(_weights(folders[1]), _weights(alone), strict=True))

    capsys.readouterr()
    assert main(TASK, arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    # Neither a smaller search, nor one of a part of the space, nor a plain run is told that it is finished.
    others = (
        [*arguments, "--tune.max_trials", "2"],
        [*arguments, "--tune.space.options.label_smoothing", "null"],
        [*SMALL, "--run_dir", str(run)],
    )
    for other in others:
        assert main(TASK, other) == 2
        assert "other settings: tune." in capsys.readouterr().err


def test_more_trials_are_the_same_search_but_not_of_a_private_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, *SPACE, "--data.limit", "60", "--train.epochs", "1"]
    private = ["--dp.target_epsilon", "8", "--dp.delta", "1e-3"]
    for number, flags in enumerate(([], [], private, private)):
        assert main(TASK, [*arguments, *flags, "--tune.max_trials", str(1 + number % 2)]) == 0
    folders = [json.loads(line)["run_dir"] for line in capsys.readouterr().out.splitlines()]
    assert folders[0] == folders[1]
    assert len({*folders[1:]}) == 3


@pytest.mark.parametrize(
    # A Bayesian search draws its first six at random.
    ("tuner", "num_trials"), [("random", 4), pytest.param("bayesian", 8, marks=pytest.mark.slow)]
)
def test_a_search_that_takes_more_trials_equals_one_that_asked_for_them_at_once(
    tmp_path: Path, tuner: str, num_trials: int
) -> None:
    arguments = [*SMALL, *SPACE, "--tune.tuner", tuner, "--data.limit", "80", "--train.epochs", "2"]
    grown = [*arguments, "--export.dir", str(tmp_path / "served"), "--run_dir", str(tmp_path / "grown")]
    assert main(TASK, [*grown, "--tune.max_trials", "2"]) == 0
    assert main(TASK, [*grown, "--tune.max_trials", str(num_trials)]) == 0
    assert main(TASK, [*arguments, "--run_dir", str(tmp_path / "whole"), "--tune.max_trials", str(num_trials)]) == 0
    ends = {name: _ends(tmp_path / name) for name in ("grown", "whole")}
    assert len(ends["grown"]) == num_trials
    assert [end["score"] for end in ends["grown"].values()] == [end["score"] for end in ends["whole"].values()]
    best = {name: json.loads((tmp_path / name / "search.json").read_text())["best"] for name in ends}
    assert best["grown"] == best["whole"]
    assert all(
        np.array_equal(a, b) for a, b in zip(_weights(tmp_path / "grown"), _weights(tmp_path / "whole"), strict=True)
    )
    assert sorted(path.name for path in (tmp_path / "served").iterdir() if path.name.isdecimal()) == ["1", "2"]


def test_a_trial_that_diverges_fails_and_the_search_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    # With such a decay the weights grow a thousandfold a step.
    decay = ["--train.learning_rate", "1", "--tune.space.train.weight_decay.choice"]
    arguments = [*SMALL, *decay, "[0.001, 1000]", "--tune.max_trials", "9", "--run_dir", str(tmp_path / "one")]
    assert main(TASK, arguments) == 0
    ends = _ends(tmp_path / "one")
    assert sorted(end["state"] for end in ends.values()) == ["done", "failed"]
    assert json.loads((tmp_path / "one" / "search.json").read_text())["settings"] == {"train.weight_decay": 0.001}
    failed = next(number for number, end in ends.items() if end["state"] == "failed")
    status = json.loads((tmp_path / "one" / "trials" / f"{failed:04d}" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "--train.learning_rate" in status["reason"]

    capsys.readouterr()
    arguments = [*SMALL, *decay, "[1000, 2000]", "--tune.max_trials", "9", "--run_dir", str(tmp_path / "two")]
    assert main(TASK, arguments) == 5
    err = capsys.readouterr().err
    assert "All 2 trials of the search failed" in err
    assert json.loads((tmp_path / "two" / "status.json").read_text())["state"] == "failed"


def test_executions_of_a_trial_count_by_their_mean(tmp_path: Path) -> None:
    run = tmp_path / "search"
    arguments = [*SMALL, *SPACE, "--tune.max_trials", "1", "--tune.executions", "2", "--run_dir", str(run)]
    assert main(TASK, arguments) == 0
    single = [json.loads((run / "trials" / name / "status.json").read_text()) for name in ("0000", "0000.1")]
    scores = [status["validation_loss"] for status in single]
    assert scores[0] != scores[1]
    assert _ends(run)[0]["score"] == pytest.approx(sum(scores) / 2)
    # Other draws of the network, and the same examples in each split.
    prints = [json.loads((run / "trials" / name / "data_manifest.json").read_text()) for name in ("0000", "0000.1")]
    assert prints[0]["fingerprint"] == prints[1]["fingerprint"]
    assert prints[0]["fingerprint"] == json.loads((run / "data_manifest.json").read_text())["fingerprint"]


def test_two_searches_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [*SMALL, *SPACE, "--tune.max_trials", "2", "--run_dir", str(tmp_path / "search")]
    with open_run(tmp_path / "search"):
        assert main(TASK, arguments) == 2
    assert "Another run is using" in capsys.readouterr().err


def test_a_search_without_a_validation_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [*SMALL, *SPACE, "--tune.max_trials", "2", "--run_dir", str(tmp_path / "search")]
    assert main(TASK, [*arguments, "--data.validation_fraction", "0"]) == 2
    assert "--data.validation_fraction" in capsys.readouterr().err


def _started(arguments: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip


def _trials_told(run: Path) -> int:
    path = run / "trials" / "journal.jsonl"
    return path.read_text().count('"end"') if path.exists() else -1


@pytest.mark.slow
def test_a_search_that_was_interrupted_three_times_equals_one_that_was_not(tmp_path: Path) -> None:
    job = ["tfbig.pipelines.image_finetune", *SMALL, *SPACE, "--tune.max_trials", "5"]
    job += ["--train.checkpoint_every_s", "0"]
    whole = _started([*job, "--run_dir", "whole"], tmp_path)
    assert whole.wait(timeout=600) == 0, whole.stderr.read()[-2000:]
    draw = random.Random(os.environ.get("TFBIG_SEED", "search"))
    parts = [*job, "--run_dir", "parts"]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        before = _trials_told(tmp_path / "parts")
        process = _started(parts, tmp_path)
        while _trials_told(tmp_path / "parts") == before and process.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 4))
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode in ({-9, 0} if number == signal.SIGKILL else {75, 0}), err[-2000:]
    last = _started(parts, tmp_path)
    out, err = last.communicate(timeout=600)
    assert last.returncode == 0, err[-2000:]
    one, other = _ends(tmp_path / "whole"), _ends(tmp_path / "parts")
    assert {n: (end["state"], end["score"]) for n, end in one.items()} == {
        n: (end["state"], end["score"]) for n, end in other.items()
    }
    for number in one:
        first, second = (_weights(tmp_path / run / "trials" / f"{number:04d}") for run in ("whole", "parts"))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), number


@pytest.mark.slow
def test_two_workers_run_each_trial_once_and_a_killed_ones_again(tmp_path: Path) -> None:
    search = [*SMALL, *SPACE, "--tune.max_trials", "8", "--train.checkpoint_every_s", "0"]
    launch = ["tfbig", "launch", "--tune", "--workers", "2", "image_finetune", *search, "--run_dir", "shared",
              "--export.dir", "served"]  # fmt: skip
    process = _started(launch, tmp_path)
    journal = tmp_path / "shared" / "trials" / "journal.jsonl"
    running: list[dict] = []
    while not running and process.poll() is None:
        time.sleep(0.02)
        begun = [json.loads(line) for line in journal.read_text().split("\n")[:-1]] if journal.exists() else []
        ended = {line["trial"] for line in begun if line["event"] == "end"}
        if len(ended) >= 2:
            # At this moment none may be running.
            running = [line for line in begun if line["event"] == "begin" and line["trial"] not in ended]
    os.kill(running[-1]["process"], signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    assert "was killed by SIGKILL" in err
    result = json.loads(out.splitlines()[-1])
    assert (result["run_dir"], result["export"]) == ("shared", "served/1")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["trial"] for line in lines if line["event"] == "new"] == list(range(8))
    assert sorted(line["trial"] for line in lines if line["event"] == "end") == list(range(8))
    begins = [line["trial"] for line in lines if line["event"] == "begin"]
    assert begins.count(running[-1]["trial"]) == 2
    assert len(begins) == 9
    assert len({line["process"] for line in lines if line["event"] == "begin"}) >= 2

    alone = _started(["tfbig.pipelines.image_finetune", *search, "--run_dir", "alone"], tmp_path)
    assert alone.wait(timeout=600) == 0
    same = {number: end["score"] for number, end in _ends(tmp_path / "alone").items()}
    assert {number: end["score"] for number, end in _ends(tmp_path / "shared").items()} == pytest.approx(same, rel=1e-5)


@pytest.mark.slow
def test_workers_end_with_their_launcher_and_a_second_launch_goes_on(tmp_path: Path) -> None:
    launch = ["tfbig", "launch", "--tune", "--workers", "2", "image_finetune", *SMALL, *SPACE, "--tune.max_trials", "6",
              "--run_dir", "shared"]  # fmt: skip
    process = _started(launch, tmp_path)
    while _trials_told(tmp_path / "shared") < 1 and process.poll() is None:
        time.sleep(0.05)
    second = _started(launch, tmp_path)
    _, err = second.communicate(timeout=60)
    assert (second.returncode, "Another run is using" in err) == (2, True)
    process.kill()
    process.communicate()
    lines = [json.loads(line) for line in (tmp_path / "shared" / "trials" / "journal.jsonl").read_text().splitlines()]
    workers = {line["process"] for line in lines if line["event"] == "begin"}
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    again = _started(launch, tmp_path)
    time.sleep(8)
    again.terminate()
    _, err = again.communicate(timeout=120)
    assert again.returncode in (0, 75), err[-2000:]
    last = _started(launch, tmp_path)
    _, err = last.communicate(timeout=600)
    assert last.returncode == 0, err[-2000:]
    assert sorted(_ends(tmp_path / "shared")) == list(range(6))
    assert MAX_DEATHS > 3
