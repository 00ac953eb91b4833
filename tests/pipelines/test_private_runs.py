"""Private training from the command line: what it promises is what it says everywhere, and what it did."""

import itertools
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dp_accounting
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from dp_accounting import pld
from private_commands import (
    HEAD,
    NOISE,
    NUM_STEPS,
    PER_EPOCH,
    SECRET,
    Outcome,
    begin,
    read_history,
    read_json,
    run_command,
    start,
)  # fmt: skip

from tfbig.data.sampling import PoissonPlan
from tfbig.gradients.private.ledger import BudgetLedger
from tfbig.gradients.private.noise import GaussianNoise
from tfbig.pipelines._command_line import parse
from tfbig.pipelines.image_finetune import TASK
from tfbig.runtime import runtime
from tfbig.training import checkpoints, private_state
from tfbig.training.assembly import Assembly, assemble
from tfbig.training.fit import fit
from tfbig.training.private_state import PrivateState
from tfbig.training.run_directory import open_run


def _restart(run_dir: Path, copy: Path) -> Path:
    """A copy of a finished run, as it was when it had trained but not ended."""
    shutil.copytree(run_dir, copy)
    (copy / "status.json").write_text('{"state": "running", "started": "2026-01-01T00:00:00+00:00"}')
    return copy


def _recomputed(program: str, tmp_path: Path) -> float:
    """What the program prints in a process that cannot import tfbig."""
    blocked = "import sys\nsys.modules['tfbig'] = None\n" + program
    done = subprocess.run([sys.executable, "-I", "-c", blocked], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


# What a finished run says.


def test_dp_json_says_what_anyone_needs_to_recompute_it(
    finished: tuple[Path, list[str], Outcome], tmp_path: Path
) -> None:
    record = read_json(finished[0])
    assert {"epsilon", "delta", "noise_multiplier", "l2_norm_clip", "sampling_probability", "steps", "accountant",
            "adjacency"} <= set(record)  # fmt: skip
    assert (record["delta"], record["l2_norm_clip"], record["steps"]) == (1e-5, 1.0, NUM_STEPS)
    assert (record["sampling"], record["accountant"], record["adjacency"]) == ("poisson", "pld", "add_or_remove_one")
    assert record["sampling_probability"] == pytest.approx(32 / 120)
    assert record["trained_variables"] == ["logits/kernel", "logits/bias"] and record["engine"] == "tapped"
    assert 0.98 * 8 <= record["epsilon"] <= 8
    assert _recomputed(record["recompute"], tmp_path) == pytest.approx(record["epsilon"], rel=1e-3)


def test_epsilon_is_the_same_wherever_it_stands(finished: tuple[Path, list[str], Outcome]) -> None:
    run_dir, _, outcome = finished
    epsilon = read_json(run_dir)["epsilon"]
    assert outcome.result["epsilon"] == epsilon
    column = [row["epsilon"] for row in read_history(run_dir)]
    assert len(column) == 2 and 0 < column[0] < column[1] == epsilon
    assert _scalars(run_dir, "epsilon") == pytest.approx(dict(zip((PER_EPOCH, NUM_STEPS), column, strict=True)))
    lines = [line for line in outcome.err.splitlines() if line.startswith("epoch ")]
    assert [f"epsilon {value:.4f}" in line for value, line in zip(column, lines, strict=True)] == [True, True]
    assert f"| epsilon | {epsilon:.4g}"[:14] in (run_dir / "MODEL_CARD.md").read_text()
    assert str(read_json(run_dir, "status.json")["result"]["epsilon"]) == str(epsilon)


def test_the_pages_say_what_is_not_private(finished: tuple[Path, list[str], Outcome]) -> None:
    run_dir, _, _ = finished
    report, card = (run_dir / "report.html").read_text(), (run_dir / "MODEL_CARD.md").read_text()
    assert "Trained with differential privacy" in report and "do not publish them" in report
    assert "without differential privacy" not in card
    for gap in read_json(run_dir)["not_covered"]:
        assert gap.split(":")[0][:40] in card


def test_tensorboard_shows_no_training_example(finished: tuple[Path, list[str], Outcome]) -> None:
    summaries = {(role, tag): plugin for role, tag, plugin, _, _ in _summaries(finished[0])}
    pictures = {where for where, plugin in summaries.items() if plugin == "images"}
    # The counts of the test split, and no picture of anybody.
    assert pictures == {("test", "confusion_matrix")}
    texts = [value for _, tag, _, _, value in _summaries(finished[0]) if tag == "notice"]
    assert len(texts) == 1 and b"Not private" in texts[0]


def test_the_secret_is_erased_when_the_run_has_ended(finished: tuple[Path, list[str], Outcome]) -> None:
    run_dir, _, _ = finished
    kept = private_state.read(run_dir / "checkpoints")
    assert kept.secret is None and kept.run_id == "run-0"
    assert stat.S_IMODE((run_dir / "checkpoints" / "private_state.json").stat().st_mode) == 0o600
    # Nor what the noise was drawn with.
    for number, num_bytes in ((SECRET, 16), (GaussianNoise(SECRET)._key, 8)):
        signs = [str(number).encode(), f"{number:x}".encode(), number.to_bytes(num_bytes, "little"),
                 number.to_bytes(num_bytes, "big")]  # fmt: skip
        for path in filter(Path.is_file, run_dir.rglob("*")):
            content = path.read_bytes()
            assert not [sign for sign in signs if sign in content or sign in content.lower()], path


def test_the_same_command_again_gives_the_finished_result(finished: tuple[Path, list[str], Outcome]) -> None:
    run_dir, words, outcome = finished
    before = (run_dir / "dp.json").read_bytes()
    assert run_command(words).result == outcome.result
    assert (run_dir / "dp.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (["--dp.l2_norm_clip", "2"], "dp.l2_norm_clip"),
        (["--dp.target_epsilon", "9"], "dp.target_epsilon"),
        (["--dp.delta", "1e-6"], "dp.delta"),
        (["--dp.sampling", "shuffle"], "dp.sampling"),
        (["--dp.clip_quantile", "0.5"], "dp.clip_quantile"),
        (["--dp.max_epsilon", "20"], "dp.max_epsilon"),
        (["--dp.physical_batch_size", "4"], "dp.physical_batch_size"),
        (["--data.batch_size", "64"], "data.batch_size"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_alone(
    changed: list[str], name: str, finished: tuple[Path, list[str], Outcome]
) -> None:
    run_dir, words, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"}
    outcome = run_command([*words, *changed])
    assert outcome.exit_code == 2 and f"{name} (" in outcome.err, outcome.err
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name != ".lock"} == before


def _remove(path: Path) -> None:
    path.unlink()


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("spoil", "reason"), [(_remove, "is missing"), (_damage, "is damaged")])
def test_a_run_that_lost_its_secret_does_not_go_on(
    spoil: Callable[[Path], None], reason: str, finished: tuple[Path, list[str], Outcome], tmp_path: Path
) -> None:
    run_dir, words, _ = finished
    copy = _restart(run_dir, tmp_path / "run")
    spoil(copy / "checkpoints" / "private_state.json")
    outcome = run_command([*words, "--run_dir", str(copy)])
    assert outcome.exit_code == 4, outcome.err
    assert reason in outcome.err and "--resume never" in outcome.err
    assert sorted(path.name for path in (copy / "checkpoints").glob("*.npz"))


def test_a_kill_between_the_last_checkpoint_and_dp_json_does_not_lose_the_promise(
    finished: tuple[Path, list[str], Outcome], tmp_path: Path
) -> None:
    run_dir, words, result = finished
    copy = _restart(run_dir, tmp_path / "run")
    (copy / "dp.json").unlink()
    outcome = run_command([*words, "--run_dir", str(copy)])
    assert outcome.exit_code == 0 and outcome.result["epsilon"] == result.result["epsilon"]
    assert read_json(copy) == read_json(run_dir)
    assert "without differential privacy" not in (copy / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_shuffled_run_is_credited_no_amplification(
    arguments: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    words = arguments(run_dir, *HEAD, "--dp.noise_multiplier", "2", "--dp.sampling", "shuffle")
    with caplog.at_level(logging.WARNING, "tfbig"):
        outcome = run_command(words)
    assert outcome.exit_code == 0, outcome.err
    assert "no amplification" in caplog.text
    record = read_json(run_dir)
    # Two epochs, in each of which an example is in one sum: two Gaussians, whatever the batches are.
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 2)
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    expected = pld.PLDAccountant(relation).compose(event).get_epsilon(1e-5)
    assert record["epsilon"] == outcome.result["epsilon"] == pytest.approx(expected, rel=1e-3)
    assert record["adjacency"] == "replace_special" and record["sampling"] == "shuffle"
    assert _recomputed(record["recompute"], tmp_path) == pytest.approx(expected, rel=1e-3)


def test_the_last_weights_are_kept_in_private_training_and_the_best_otherwise(
    arguments: Callable[..., list[str]], finished: tuple[Path, list[str], Outcome], tmp_path: Path
) -> None:
    assert parse(TASK, arguments(tmp_path)).train.keep == "best"
    assert parse(TASK, arguments(tmp_path, *NOISE)).train.keep == "last"
    assert parse(TASK, arguments(tmp_path, *NOISE, "--train.keep", "best")).train.keep == "best"
    run_dir, _, _ = finished
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["keep"] == "last"
    assert not (run_dir / "checkpoints" / "best.npz").exists()


def _summaries(run_dir: Path) -> list[tuple[str, str, str, int, object]]:
    """(role, tag, plugin, step, value) of all that a run logged."""
    found = []
    for path in (run_dir / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor) if value.HasField("tensor") else None
                shown = content.flat[0] if content is not None and content.size else None
                found.append((path.parent.name, value.tag, value.metadata.plugin_data.plugin_name, event.step, shown))
    return found


def _scalars(run_dir: Path, tag: str) -> dict[int, float]:
    return {step: float(value) for role, name, plugin, step, value in _summaries(run_dir)
            if (name, plugin) == (tag, "scalars")}  # fmt: skip


# A run that is stopped goes on as if it had not been.


def _state(run_dir: Path) -> tuple[dict[str, list[np.ndarray]], list[dict]]:
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in read_history(run_dir)]
    return checkpoints.load_latest(run_dir / "checkpoints").groups, rows


def _assert_same(one: Path, other: Path) -> None:
    (groups, rows), (groups_expected, rows_expected) = _state(one), _state(other)
    assert rows == rows_expected and set(groups) == set(groups_expected)
    for name, members in groups_expected.items():
        for ours, theirs in zip(groups[name], members, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def _stop_in_process(words: list[str], step: int, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Runs a command that is asked to stop when it has saved a step."""
    save = checkpoints.save

    def asking(folder: Path, at: int, checkpoint: checkpoints.Checkpoint) -> Path:
        path = save(folder, at, checkpoint)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", asking)
        return run_command(words)


RESUMED = {
    "tree": [*HEAD, *NOISE, "--dp.sampling", "shuffle", "--dp.mechanism", "tree"],
    "all": [*NOISE, "--dp.clip_quantile", "0.5", "--train.ema_decay", "0.9", "--model.dropout", "0.2",
            "--options.augment", "flip,crop"],
}  # fmt: skip


@pytest.mark.parametrize("name", ["tree", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_stop_within_an_epoch_changes_nothing(
    name: str, arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger.json"
    more = [*RESUMED[name], "--train.checkpoint_every_s", "0"]
    whole, stopped = (arguments(tmp_path / part, *more) for part in ("whole", "stopped"))
    stopped += ["--dp.ledger", str(ledger), "--dp.ledger_epsilon", "20"]
    for words, part in ((whole, "whole"), (stopped, "stopped")):
        begin(tmp_path / part, words)
    expected = run_command(whole)
    assert expected.exit_code == 0, expected.err
    asked = _stop_in_process(stopped, 1, monkeypatch)
    assert asked.exit_code == 75 and "same command" in asked.err and not asked.result
    # Asked while a step is being saved, it stops after the next one.
    assert read_json(tmp_path / "stopped")["steps"] == 2
    charged = ledger.read_bytes()
    again = _stop_in_process(stopped, 5, monkeypatch)
    assert again.exit_code == 75 and read_json(tmp_path / "stopped")["steps"] == 6
    # Going on charges nothing, for all steps were charged when it began.
    assert ledger.read_bytes() == charged
    result = run_command(stopped)
    assert result.exit_code == 0, result.err
    assert result.result["metrics"] == expected.result["metrics"]
    assert result.result["epsilon"] == expected.result["epsilon"]
    _assert_same(tmp_path / "stopped", tmp_path / "whole")
    [charge] = BudgetLedger(ledger).balance("digits", "").runs
    assert (charge.run_id, charge.num_steps) == ("stopped-0", NUM_STEPS)


def _checkpointed_steps(run_dir: Path) -> int:
    steps = [int(path.stem.split("-")[1]) for path in (run_dir / "checkpoints").glob("step-*.npz")]
    return max(steps, default=0)


def _signal_at(process: subprocess.Popen, run_dir: Path, step: int, number: int) -> None:
    """Sends a signal as soon as a checkpoint of this step or a later one is there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if _checkpointed_steps(run_dir) >= step:
            os.kill(process.pid, number)
            process.communicate(timeout=120)
            return
        time.sleep(0.003)
    pytest.fail("the run ended before it could be stopped: " + process.communicate()[1][-2000:])


@pytest.mark.slow
def test_a_killed_run_draws_what_it_would_have_drawn(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Real kills, in an epoch of many steps, with a clipping norm that moves."""
    ledger = tmp_path / "ledger.json"
    more = [*HEAD, "--dp.noise_multiplier", "0.6", "--dp.clip_quantile", "0.5", "--data.batch_size", "8",
            "--train.epochs", "3", "--train.checkpoint_every_s", "0", "--dp.ledger", str(ledger)]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    limit = ["--dp.ledger_epsilon", "100"]
    for run_dir in (whole, killed):
        begin(run_dir, arguments(run_dir, *more, *limit))
    expected = run_command(arguments(whole, *more, *limit))
    assert expected.exit_code == 0, expected.err

    words = arguments(killed, *more, *limit)
    process = start(words)
    _signal_at(process, killed, 8, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert json.loads((killed / "dp.json").read_text())["steps"] >= _checkpointed_steps(killed)
    # It may have taken all of its steps, for all that the ledger knows.
    charges = BudgetLedger(ledger).balance("digits", "").runs
    assert [(charge.run_id, charge.num_steps) for charge in charges] == [("whole-0", 45), ("killed-0", 45)]
    again = start(words)
    _signal_at(again, killed, 14, signal.SIGKILL)
    # No promise is left over from an earlier session that trained less.
    assert json.loads((killed / "dp.json").read_text())["steps"] >= _checkpointed_steps(killed)
    asked = start(words)
    _signal_at(asked, killed, 24, signal.SIGTERM)
    assert asked.returncode == 75
    assert stat.S_IMODE((killed / "checkpoints" / "private_state.json").stat().st_mode) == 0o600
    result = run_command(words)
    assert result.exit_code == 0, result.err
    assert result.result["metrics"] == expected.result["metrics"]
    _assert_same(killed, whole)
    # The norm has moved, so that going on from its first value would have shown.
    [clip_norm] = _state(killed)[0]["rule"]
    assert abs(float(clip_norm) - 1.0) > 0.05
    assert len(BudgetLedger(ledger).balance("digits", "").runs) == 2


def test_another_secret_is_another_run(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    kernels = []
    for name, secret in (("one", SECRET), ("other", SECRET + 1)):
        # Every example each step, so that the noise alone can differ.
        words = arguments(tmp_path / name, *HEAD, *NOISE, "--train.epochs", "1", "--data.batch_size", "120")
        assembly, (kernel, _) = _trained(words, tmp_path / name, PrivateState("run", secret))
        kernels.append(np.asarray(assembly.learner.network.trainable_variables[0]) - kernel)
    one, other = kernels
    assert np.abs(one).max() > 0 and not np.allclose(one, other, rtol=0.1)


# With what else a run can have.


def _trained(
    words: list[str], folder: Path, state: PrivateState | None = None
) -> tuple[Assembly, list[np.ndarray]]:
    """A trained assembly, and its trained variables as they were before."""
    config = parse(TASK, words)
    settings = config.runtime
    with (
        open_run(folder) as run,
        runtime(strategy=settings.strategy, precision=settings.precision, seed=settings.seed) as strategy,
    ):
        assembly = assemble(TASK, config, TASK.load(config), strategy, state)
        before = [np.asarray(v).copy() for v in assembly.learner.network.trainable_variables]
        fit(assembly, config, run)
    return assembly, before


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches, attention, normalisation and a multilayer perceptron, with weights."""
    path = tmp_path_factory.mktemp("transformer") / "transformer.keras"
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Reshape((4, 16))(keras.layers.Conv2D(16, 4, strides=4)(inputs))
    x = x + keras.layers.MultiHeadAttention(2, 8)(keras.layers.LayerNormalization()(x), x)
    x = x + keras.layers.Dense(16)(keras.layers.Dense(32, "gelu")(x))
    keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x)).save(path)
    return path


TWO_STEPS = ["--data.limit", "60", "--data.batch_size", "30", "--train.epochs", "1"]


@pytest.mark.parametrize(
    ("more", "engine", "num_trained"),
    [
        pytest.param(["--train.ema_decay", "0.9", "--options.augment", "flip,crop"], "tapped", 6, id="full-average"),
        pytest.param(["--runtime.precision", "bfloat16"], "tapped", 6, id="bfloat16"),
        # Two for each of the four kernels of attention and the two of the perceptron, and the head.
        pytest.param(["--model.backbone", "keras:{transformer}", "--adapt.mode", "lora", "--adapt.lora_rank", "2"],
                     "tapped", 14, id="lora"),
        pytest.param(["--model.backbone", "bundled:glyphs", "--data.limit", "20", "--data.batch_size", "10"],
                     "by_example", None, id="hub-module", marks=pytest.mark.slow),
        pytest.param(["--runtime.jit_compile", "true"], "tapped", 6, id="jit", marks=pytest.mark.slow),
        pytest.param(["--model.backbone", "apps:MobileNetV3Small", "--model.weights", "none", "--model.norm", "group",
                      "--data.image_size", "32", "--data.limit", "20", "--data.batch_size", "10"],
                     "tapped", None, id="group-norm", marks=pytest.mark.slow),
        pytest.param(["--model.backbone", "scratch:convnet"], "tapped", 28, id="scratch", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_two_real_steps(
    more: list[str], engine: str, num_trained: int | None, arguments: Callable[..., list[str]], transformer: Path,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    words = [word.format(transformer=transformer) for word in (*TWO_STEPS, *NOISE, *more)]
    with caplog.at_level(logging.WARNING, "tfbig"):
        assembly, before = _trained(arguments(tmp_path / "run", *words), tmp_path / "run")
    after = [np.asarray(v) for v in assembly.learner.network.trainable_variables]
    assert num_trained is None or len(after) == num_trained
    for variable, old, new in zip(assembly.learner.network.trainable_variables, before, after, strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new), variable.path
    record = read_json(tmp_path / "run")
    assert (record["steps"], record["engine"]) == (2, engine)
    assert record["trained_variables"] == [v.path for v in assembly.learner.network.trainable_variables]
    assert ("by itself, which is exact and slow" in caplog.text) is (engine == "by_example")


TWO_DEVICES = """
import sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tfbig.pipelines._main import main
from tfbig.pipelines.image_finetune import TASK
words = sys.argv[1:]
assert main(TASK, [*words, "--dp.physical_batch_size", "7"]) == 2
sys.exit(main(TASK, words))
"""


@pytest.mark.slow
def test_two_devices_promise_what_one_does(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    one, two = (arguments(tmp_path / name, *HEAD, *NOISE, *TWO_STEPS) for name in ("one", "two"))
    two += ["--runtime.strategy", "mirrored"]
    assert run_command(one).exit_code == 0
    done = subprocess.run([sys.executable, "-c", TWO_DEVICES, *two], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "7 must be a multiple of the 2 devices" in done.stderr
    one_record, two_record = read_json(tmp_path / "one"), read_json(tmp_path / "two")
    for name in ("epsilon", "noise_multiplier", "steps", "sampling_probability", "trained_variables", "statement"):
        assert one_record[name] == two_record[name]
    weights = checkpoints.load_latest(tmp_path / "two" / "checkpoints").groups["network"]
    assert all(np.isfinite(array).all() for array in weights)
    assert not np.allclose(weights[-2], 0)


def test_without_noise_and_clipping_it_is_ordinary_training(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """On the head's cached features, against softmax regression written out."""
    rate, clip_norm, sigma = 0.15, 2.0, 2e-3
    words = arguments(tmp_path / "run", *HEAD, "--data.batch_size", "60", "--dp.noise_multiplier", str(sigma),
                      "--dp.l2_norm_clip", str(clip_norm), "--dp.accountant", "rdp", "--dp.physical_batch_size", "16",
                      "--train.optimizer", "sgd", "--train.momentum", "0", "--train.schedule", "constant",
                      "--train.learning_rate", str(rate), "--train.weight_decay", "0")  # fmt: skip
    assembly, (kernel, bias) = _trained(words, tmp_path / "run", PrivateState("run", SECRET))
    assert assembly.learner.network is not assembly.network
    plan = PoissonPlan(120, 60, 16, SECRET)
    features = np.asarray(assembly.train.gather(tf.range(120, dtype=tf.int64)), np.float64)  # (N, D)
    inputs = np.concatenate([features, np.ones((120, 1))], 1)  # (N, D + 1)
    weights = first = np.concatenate([kernel, bias[None]], 0).astype(np.float64)  # (D + 1, C)
    for epoch, step in itertools.product(range(2), range(plan.steps_per_epoch)):
        indices, drawn = plan.indices(epoch, step)
        x = inputs[indices[drawn > 0]]
        logits = x @ weights
        p = np.exp(logits - logits.max(1, keepdims=True))
        errors = p / p.sum(1, keepdims=True) - np.eye(10)[assembly.train.labels[indices[drawn > 0]]]
        # A linear layer's gradient of one example is an outer product.
        assert (np.linalg.norm(x, axis=1) * np.linalg.norm(errors, axis=1)).max() < clip_norm
        weights = weights - rate * x.T @ errors / 60
    ours = [np.asarray(v) for v in assembly.learner.network.trainable_variables]
    assert np.abs(weights - first).max() > 0.01
    np.testing.assert_allclose(ours[0], weights[:-1], atol=1e-4)
    np.testing.assert_allclose(ours[1], weights[-1], atol=1e-4)
