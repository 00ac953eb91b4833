"""A run's first session chooses what `auto` stands for, and each later one keeps it."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfbig.cluster import Cluster
from tfbig.config import RunConfig
from tfbig.errors import UsageError, WorkerLost
from tfbig.pipelines._choice import NAME, settled, settled_before
from tfbig.pipelines._command_line import parse
from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK
from tfbig.team import Workers
from tfbig.training import assembly
from tfbig.training.run_directory import RunDirectory, UnwrittenRun

AUTO = ["--runtime.precision", "auto", "--runtime.jit_compile", "auto"]
QUICK = ["--data.limit", "100", "--train.epochs", "1"]


def _config(*arguments: str) -> RunConfig:
    return parse(TASK, [*QUICK, *arguments])


def test_without_auto_nothing_is_chosen(tmp_path: Path) -> None:
    config = _config("--runtime.jit_compile")
    assert config.runtime.jit_compile is True
    assert settled(TASK, config, RunDirectory(tmp_path)) == (config, None, None)
    assert settled_before(config, RunDirectory(tmp_path)) is config


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_run_that_goes_on_keeps_its_choice(tmp_path: Path, jit_compile: bool) -> None:
    run = RunDirectory(tmp_path)
    record = {"precision": "bfloat16", "jit_compile": jit_compile, "reason": "once", "timed": []}
    run.write_json("environment.json", {NAME: record})
    config = _config(*AUTO)
    found, choice, _ = settled(TASK, config, run)
    assert choice is not None and choice.record() == {**record, "timed": ()}
    for kept in (found, settled_before(config, run)):
        assert (kept.runtime.precision, kept.runtime.jit_compile) == ("bfloat16", jit_compile)


def _two_workers() -> list[Workers]:
    ours, theirs = socket.socketpair()
    addresses = ("a:1", "b:2")
    return [Workers(Cluster(addresses, 0), {1: ours}), Workers(Cluster(addresses, 1), {0: theirs})]


@pytest.fixture
def pair() -> Iterator[list[Workers]]:
    """Two workers of one run, over a connection."""
    found = _two_workers()
    yield found
    for worker in found:
        worker.leave(WorkerLost(""))


def _settled_by_both(pair: list[Workers], run: RunDirectory, config: RunConfig) -> list[RunConfig]:
    """What the chief settles on, who has the run's folder, and what the other does, who has none."""
    chief, other = pair
    return [
        settled(TASK, config, run, team=chief)[0],
        settled(TASK, config, UnwrittenRun(run.path), team=other)[0],
    ]


def test_several_workers_keep_the_choice_that_the_chief_has_recorded(tmp_path: Path, pair: list[Workers]) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("environment.json", {NAME: {"precision": "bfloat16", "jit_compile": False, "timed": []}})
    for found in _settled_by_both(pair, run, _config(*AUTO)):
        assert (found.runtime.precision, found.runtime.jit_compile) == ("bfloat16", False)


def test_a_recorded_choice_that_several_workers_cannot_keep_is_refused(tmp_path: Path, pair: list[Workers]) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("environment.json", {NAME: {"precision": "float32", "jit_compile": True, "timed": []}})
    chief, other = pair
    for team, folder in ((chief, run), (other, UnwrittenRun(tmp_path))):
        with pytest.raises(UsageError, match="jit_compile"):
            settled(TASK, _config(*AUTO), folder, team=team)


def test_one_process_under_tf_config_keeps_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}')
    run = RunDirectory(tmp_path)
    run.write_json("environment.json", {NAME: {"precision": "bfloat16", "jit_compile": True, "timed": []}})
    found, _, _ = settled(TASK, _config(*AUTO, "--runtime.strategy", "none"), run)
    assert (found.runtime.precision, found.runtime.jit_compile) == ("bfloat16", True)


def test_private_training_and_several_workers_are_not_timed(tmp_path: Path, pair: list[Workers]) -> None:
    private, choice, _ = settled(TASK, _config(*AUTO, "--dp.noise_multiplier", "1"), RunDirectory(tmp_path))
    assert choice is not None and not choice.timed and "private" in choice.reason
    assert (private.runtime.precision, private.runtime.jit_compile) == ("float32", False)
    for worker in _settled_by_both(pair, RunDirectory(tmp_path), _config(*AUTO)):
        assert (worker.runtime.precision, worker.runtime.jit_compile) == ("float32", False)


@pytest.mark.slow
def test_a_chosen_run_is_the_run_with_those_settings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    chosen, given = tmp_path / "chosen", tmp_path / "given"
    assert main(TASK, ["--config", "digits", *QUICK, "--runtime.precision", "auto", "--run_dir", str(chosen)]) == 0
    choice = json.loads((chosen / "environment.json").read_text())[NAME]
    assert "precision: auto" in (chosen / "config.yaml").read_text()
    assert [timing["failure"] for timing in choice["timed"]] == [""] * len(choice["timed"])
    settings = ["--runtime.precision", choice["precision"], "--run_dir", str(given)]
    assert main(TASK, ["--config", "digits", *QUICK, *settings]) == 0
    for name in ("evaluation.json", "predictions.csv"):
        assert (chosen / name).read_text() == (given / name).read_text()


@pytest.mark.slow
def test_what_is_timed_is_what_will_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(*arguments: str) -> set[tuple[str, int]]:
        config = dataclasses.replace(_config(*arguments, "--runtime.jit_compile", "auto"), resume="never")
        choice = settled(TASK, config, RunDirectory(tmp_path))[1]
        assert choice is not None and len(choice.timed) == 2
        return {(timing.part, timing.num_steps) for timing in choice.timed}

    assert parts("--adapt.mode", "full") == {("network", 5)}
    assert parts("--adapt.mode", "head") == {("head", 5)}
    assert parts("--adapt.mode", "head", "--options.augment", "flip") == {("network", 5)}
    # All features do not fit, though those of the two batches would: 256 numbers for each of some 90 examples.
    monkeypatch.setenv("TFBIG_CACHE_GB", "0")
    monkeypatch.setattr(assembly, "_FEATURE_MEMORY_BYTES", 70 * 256 * 4)
    assert parts("--adapt.mode", "head", "--data.batch_size", "16") == {("network", 5)}


@pytest.mark.slow
def test_timing_leaves_no_features_behind(tmp_path: Path, feature_cache_folder: Path) -> None:
    config = _config("--adapt.mode", "head", "--runtime.jit_compile", "auto")
    found, choice, splits = settled(TASK, config, RunDirectory(tmp_path))
    assert choice is not None and len(choice.timed) == 2 and splits is not None
    assert isinstance(found.runtime.jit_compile, bool) and not found.dry_run
    assert not feature_cache_folder.exists() or not any(feature_cache_folder.iterdir())
