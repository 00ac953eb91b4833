"""A search whose process, workers, launcher or disk fail: one sentence, and the same command goes on as if not."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK
from tfbig.search.journal import NAME

SPACE = ["--adapt.mode", "head", "--tune.space.train.learning_rate.log", "[1e-3, 1e-1]"]
# A worker of this job never comes so far as to import TensorFlow.
DOOMED = """
import os, sys
from tfbig.pipelines.image_finetune import TASK
if __name__ == "__main__":
    {end}
"""


def _command(arguments: list[str], folder: Path) -> subprocess.Popen:
    paths = [str(folder), *(path for path in sys.path if path)]
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def _journal(run: Path) -> list[dict]:
    path = run / "trials" / NAME
    # The last line may be half of one, after a kill.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _ends(run: Path) -> dict[int, tuple]:
    found = [line for line in _journal(run) if line["event"] == "end"]
    assert len(found) == len({line["trial"] for line in found})
    return {line["trial"]: (line["state"], line.get("score")) for line in found}


def _weights(folder: Path) -> list[np.ndarray]:
    with np.load(folder / "checkpoints" / "best.npz") as stored:
        return [stored[name] for name in sorted(stored.files) if name != "meta.json"]


def _assert_same_search(one: Path, other: Path, num_trials: int) -> None:
    assert _ends(one) == _ends(other)
    assert sorted(_ends(one)) == list(range(num_trials))
    for folder in [Path(), *(Path("trials") / f"{number:04d}" for number in range(num_trials))]:
        pairs = zip(_weights(one / folder), _weights(other / folder), strict=True)
        assert all(np.array_equal(first, second) for first, second in pairs), folder


def _until(process: subprocess.Popen, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()[-2000:]


def _wait_for_end(pids: set[int]) -> None:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("end", "exit_code", "words"),
    [
        ("os.kill(os.getpid(), 9)", 4, "Workers were killed 3 times in a row before they could begin a trial"),
        ("print('error: the data is gone; put it back.', file=sys.stderr); sys.exit(3)", 3,
         "error: the data is gone; put it back."),
        ("sys.exit(1)", 1, "worker 0 ended with exit code 1."),
    ],
)  # fmt: skip
def test_a_worker_that_always_ends_ends_the_search_with_its_reason(
    end: str, exit_code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "doomed.py").write_text(DOOMED.format(end=end))
    launch = ["tfbig", "launch", "--tune", "--workers", "1", "doomed", *SPACE, "--tune.max_trials", "2"]
    process = _command([*launch, "--run_dir", "shared"], tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == exit_code, err
    assert words in err.splitlines()[-1]
    assert err.count("worker 0 was killed by SIGKILL; starting it again") == (3 if exit_code == 4 else 0)
    assert "Traceback" not in err
    # Nothing bars the folder to another search.
    assert not (tmp_path / "shared" / "config.yaml").exists()


@pytest.mark.parametrize("share", [0.6, pytest.param(0.05, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_search_and_no_trial(
    share: float, arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A limit on the size of a file stands for the disk, here below that of a checkpoint."""
    search = [*SPACE, "--tune.max_trials", "2"]
    assert main(TASK, arguments(tmp_path / "whole", *search)) == 0
    size = (tmp_path / "whole" / "trials" / "0000" / "checkpoints" / "best.npz").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), hard))
    try:
        code = main(TASK, arguments(tmp_path / "parts", *search))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert code == 4, err
    assert "File too large" in err.splitlines()[-1]
    # The trial is as it was: it has neither failed nor been tried in vain.
    assert _ends(tmp_path / "parts") == {}
    assert main(TASK, arguments(tmp_path / "parts", *search)) == 0
    _assert_same_search(tmp_path / "whole", tmp_path / "parts", 2)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_ends_a_search_at_once_and_it_goes_on(
    numbers: tuple[int, int], arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    search = ["tfbig.pipelines.image_finetune", *SPACE, "--tune.max_trials", "3", "--train.epochs", "30"]
    words = [*search, *arguments(tmp_path / "parts")[:-4], "--run_dir"]
    whole = _command([*words, "whole"], tmp_path)
    assert whole.wait(timeout=300) == 0, whole.stderr.read()[-2000:]
    parts = tmp_path / "parts"
    for at in range(3):
        process = _command([*words, "parts"], tmp_path)
        # Within the training of one trial, in the others anywhere between.
        rows, count = parts / "trials" / f"{at:04d}" / "metrics.jsonl", 2 + 3 * at
        _until(process, lambda: rows.exists() and rows.read_text().count("\n") >= count)  # noqa: B023
        begun = time.monotonic()
        process.send_signal(numbers[0])
        time.sleep(0.01 * at)
        process.send_signal(numbers[1])
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (75, ""), err[-2000:]
        assert time.monotonic() - begun < 15
        assert "Traceback" not in err and "Exception" not in err, err[-2000:]
        assert json.loads((parts / "status.json").read_text())["state"] == "interrupted"
        assert at not in _ends(parts)
    last = _command([*words, "parts"], tmp_path)
    assert last.wait(timeout=300) == 0, last.stderr.read()[-2000:]
    _assert_same_search(tmp_path / "whole", parts, 3)


@pytest.mark.slow
@pytest.mark.parametrize("num_ended", [None, 0, 1])
def test_a_new_search_in_the_place_of_an_old_one_survives_its_launchers_death(
    num_ended: int | None, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Killed before the new one has taken the old one's place (None), before its first trial's end, and after it."""
    launch = ["tfbig", "launch", "--tune", "--workers", "2", "image_finetune", *SPACE, "--tune.max_trials", "4"]
    launch += [*arguments(tmp_path / "run")[:-2], "--run_dir", "run"]
    run = tmp_path / "run"
    old = _command([*launch, "--runtime.seed", "1"], tmp_path)
    assert old.wait(timeout=300) == 0, old.stderr.read()[-2000:]
    before = (run / "trials" / NAME).read_bytes()

    process = _command([*launch, "--resume", "never"], tmp_path)
    if num_ended is None:
        time.sleep(1)
    else:
        journal = run / "trials" / NAME
        _until(process, lambda: not journal.exists() or journal.read_bytes() != before)
        _until(process, lambda: len(_journal(run)) > 0 and len(_ends(run)) >= num_ended)
    workers = {line["process"] for line in _journal(run) if line["event"] == "begin"}
    process.kill()
    process.communicate()
    if num_ended is None:
        time.sleep(5)
        assert (run / "trials" / NAME).read_bytes() == before
        assert json.loads((run / "status.json").read_text())["state"] == "done"
        last = _command([*launch, "--resume", "never"], tmp_path)
    else:
        _wait_for_end(workers)
        last = _command(launch, tmp_path)
    assert last.wait(timeout=300) == 0, last.stderr.read()[-2000:]
    alone = _command([*launch[:-1], "alone"], tmp_path)
    assert alone.wait(timeout=300) == 0, alone.stderr.read()[-2000:]
    assert {n: end[0] for n, end in _ends(run).items()} == dict.fromkeys(range(4), "done")
    scores = {number: score for number, (_, score) in _ends(tmp_path / "alone").items()}
    assert {number: score for number, (_, score) in _ends(run).items()} == pytest.approx(scores, rel=1e-5)
