"""A small network, the words of a private run's command, and a run that has ended, for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from private_commands import HEAD, Outcome, begin, run_command


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose weights count as pretrained."""
    path = tmp_path_factory.mktemp("backbone") / "small.keras"
    keras.utils.set_random_seed(0)
    keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(),
         keras.layers.Dense(16, activation="relu")]
    ).save(path)  # fmt: skip
    return path


@pytest.fixture(scope="session")
def arguments(backbone: Path) -> Callable[..., list[str]]:
    """The words of a command that trains in a moment."""

    def made(run_dir: Path, *more: str) -> list[str]:
        return ["--model.backbone", f"keras:{backbone}", "--data.limit", "120", "--data.batch_size", "32",
                "--train.epochs", "2", "--run_dir", str(run_dir), *more]  # fmt: skip

    return made


@pytest.fixture(scope="session")
def finished(
    arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], Outcome]:
    """A private run of the head to the end, its folder, its command and what that gave."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    words = arguments(run_dir, *HEAD, "--dp.target_epsilon", "8", "--train.log_graph", "true")
    begin(run_dir, words)
    outcome = run_command(words)
    assert outcome.exit_code == 0, outcome.err
    return run_dir, words, outcome
