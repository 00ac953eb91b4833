"""What fit assembles, on a job small enough to check by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.config import AdaptConfig, DataConfig, DpConfig, RunConfig, TrainConfig
from tfbig.data.batches import Augment, batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import DataSpec, Splits, array_split
from tfbig.errors import DivergedError, UsageError
from tfbig.networks import adapters, heads, scratch
from tfbig.networks.backbones import Backbone
from tfbig.objectives.supervised import classification
from tfbig.runtime import runtime
from tfbig.training import assembly as assembling
from tfbig.training import callbacks, checkpoints, features, fit
from tfbig.training.assembly import Assembly, assemble
from tfbig.training.callbacks import Ledger, Monitor
from tfbig.training.optimizers import WarmupCosine, make_optimizer, without_decay
from tfbig.training.run_directory import open_run
from tfbig.training.task import Task
from tfbig.training.tensorboard import TensorBoardLog


@dataclasses.dataclass(frozen=True)
class _NoOptions:
    """None."""


def _splits(config: RunConfig) -> Splits:
    rng = np.random.default_rng(0)

    def split(size: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 3, size)
        x = rng.uniform(0, 0.3, (size, 16, 16, 3)).astype("f4")
        x[np.arange(size), :, y * 5] += 0.6  # a bright column tells the class
        return x, y

    train, validation, test = (array_split(*split(size)) for size in (70, 24, 24))
    return Splits(train, validation, test, DataSpec(tf.TensorSpec([None, 16, 16, 3]), 70, ("a", "b", "c")))


def _build(config: RunConfig, spec: DataSpec) -> keras.Model:
    body = scratch.build("convnet", 16)
    backbone = Backbone("scratch:convnet", keras.Model(body.inputs, body.outputs, name="backbone"), 16, True)
    network = heads.classifier(backbone, 3, inference_mode=True)
    return adapters.freeze(network) or network if config.adapt.mode == "head" else network


TASK = Task(
    name="columns", options=_NoOptions, load=_splits, build=_build,
    objective=lambda config, splits: classification(3), signatures=lambda network, spec: {},
)  # fmt: skip


def _config(mode: str = "head", **train: object) -> RunConfig:
    settings = TrainConfig(**{"epochs": 3, "learning_rate": 0.01, **train})
    return RunConfig(DataConfig(batch_size=16), adapt=AdaptConfig(mode=mode), train=settings, options=_NoOptions())


def _fit(config: RunConfig, folder: Path, task: Task = TASK) -> tuple[Assembly, Ledger]:
    with open_run(folder) as run, runtime(strategy="none", precision="float32", seed=0) as strategy:
        assembly = assemble(task, config, task.load(config), strategy)
        return assembly, fit.fit(assembly, config, run)


def _weights(network: keras.Model) -> np.ndarray:
    return np.concatenate([np.ravel(variable) for variable in network.variables])


def test_cached_features_give_the_result_of_computing_them_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, history = _fit(_config(), tmp_path / "cached")
    assert cached.learner.network is not cached.network
    monkeypatch.setattr(assembling, "_FEATURE_MEMORY_BYTES", 0)
    computed, history_computed = _fit(_config(), tmp_path / "computed")
    assert computed.learner.network is computed.network
    np.testing.assert_allclose(_weights(cached.network), _weights(computed.network), atol=1e-5)
    for ours, theirs in zip(history.history, history_computed.history, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-5)


NAMED = dataclasses.replace(
    TASK, load=lambda config: dataclasses.replace(_splits(config), manifest={"fingerprint": "columns"})
)


def test_features_on_the_disk_give_the_run_in_memory_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature_cache_folder: Path
) -> None:
    computed, _ = _fit(_config(), tmp_path / "computed", NAMED)
    network, test = computed.judged()
    assert network is computed.learner.network and len(list(feature_cache_folder.iterdir())) == 3
    logits, expected = (
        np.concatenate([model(x).numpy() for x, _, _ in batches(split, IndexPlan(24, 8, shuffle=False))])
        for model, split in ((network, test), (computed.network, computed.splits.test))
    )
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(features, "_computed", None)
        # Another head and schedule, as a trial of a tuning has it; then the same run again.
        with runtime(strategy="none", precision="float32", seed=0) as strategy:
            assemble(NAMED, _config(epochs=1, learning_rate=0.1), NAMED.load(_config()), strategy)
        read, _ = _fit(_config(), tmp_path / "read", NAMED)
        read.judged()
    monkeypatch.setenv("TFBIG_CACHE_GB", "0")
    in_memory, _ = _fit(_config(), tmp_path / "in_memory", NAMED)
    np.testing.assert_array_equal(_weights(read.network), _weights(computed.network))
    np.testing.assert_array_equal(_weights(in_memory.network), _weights(computed.network))


def test_a_dry_run_and_data_without_a_fingerprint_leave_no_features(
    tmp_path: Path, feature_cache_folder: Path
) -> None:
    with runtime(strategy="none", precision="float32", seed=0) as strategy:
        for task, config in ((NAMED, dataclasses.replace(_config(), dry_run=True)), (TASK, _config())):
            assert assemble(task, config, task.load(config), strategy).learner.network.name == "head"
    assert not feature_cache_folder.exists()


def _darkened(config: RunConfig, spec: DataSpec) -> Augment:
    """Draws nothing, so that views and live augmentation have to agree."""
    return lambda batch, seed: batch._replace(x=batch.x * 0.5)


def test_views_that_draw_nothing_equal_live_augmentation(tmp_path: Path) -> None:
    task = dataclasses.replace(NAMED, augment=_darkened)
    views = dataclasses.replace(_config(), adapt=AdaptConfig(mode="head", cached_views=2))
    cached, ledger = _fit(views, tmp_path / "cached", task)
    live, ledger_live = _fit(_config(), tmp_path / "live", task)
    assert cached.learner.network is not cached.network and live.learner.network is live.network
    np.testing.assert_allclose(_weights(cached.network), _weights(live.network), atol=1e-5)
    for ours, theirs in zip(ledger.history, ledger_live.history, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-5)


def test_views_without_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembling, "_FEATURE_MEMORY_BYTES", 0)
    monkeypatch.setenv("TFBIG_CACHE_GB", "0")
    task = dataclasses.replace(NAMED, augment=_darkened)
    views = dataclasses.replace(_config(), adapt=AdaptConfig(mode="head", cached_views=2))
    with runtime(strategy="none", precision="float32", seed=0) as strategy:
        with pytest.raises(UsageError, match="cached_views 2"):
            assemble(task, views, task.load(views), strategy)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    # A rate so high that the loss goes up and down.
    config = _config(epochs=40, learning_rate=3.0, early_stopping_patience=2, schedule="constant")
    assembly, ledger = _fit(config, tmp_path / "run")
    losses = [row["val_loss"] for row in ledger.history]
    best = int(np.argmin(losses))
    assert len(losses) < 40 and len(losses) - 1 - best == 2
    kept = assembly.learner.evaluate(
        batches(assembly.validation, IndexPlan(24, 16, shuffle=False)), verbose=0, return_dict=True
    )
    assert kept["loss"] == pytest.approx(losses[best], rel=1e-5)
    assert checkpoints.read(tmp_path / "run" / "checkpoints" / "best.npz").meta["epoch"] == best + 1


def test_what_the_first_step_does_not_need_comes_after_it_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def noted(name: str, function: Callable) -> Callable:
        def call(*args: object, **settings: object) -> object:
            made.append(name)
            return function(*args, **settings)

        return call

    hyperparameters = TensorBoardLog._write_hyperparameters
    monkeypatch.setattr(TensorBoardLog, "_write_hyperparameters", noted("hyperparameters", hyperparameters))
    monkeypatch.setattr(fit, "fed", noted("batches", fit.fed))
    # Of a step the first that fit is told.
    counted = callbacks.DivergenceGuard.on_train_batch_end
    monkeypatch.setattr(callbacks.DivergenceGuard, "on_train_batch_end", noted("step", counted))
    _, ledger = _fit(dataclasses.replace(_config(epochs=2), data=DataConfig(batch_size=64)), tmp_path / "run")
    assert made == ["batches", "step", "hyperparameters", "step", "batches", "step", "step"]
    assert [row["val_loss"] > 0 for row in ledger.history] == [True, True]


def test_keep_last_keeps_the_last(tmp_path: Path) -> None:
    assembly, _ = _fit(_config(keep="last"), tmp_path / "run")
    last = checkpoints.load_latest(tmp_path / "run" / "checkpoints").groups["network"]
    for ours, theirs in zip(assembly.learner.network.variables, last, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs)


def test_the_moving_average_is_what_its_formula_says(tmp_path: Path) -> None:
    config = _config(epochs=1, ema_decay=0.5, keep="last", checkpoint_every_s=0.0)
    plain, _ = _fit(_config(epochs=1, keep="last"), tmp_path / "plain")
    averaged, _ = _fit(config, tmp_path / "averaged")
    stored = checkpoints.load_latest(tmp_path / "averaged" / "checkpoints")
    for live, expected in zip(stored.groups["network"], plain.learner.network.variables, strict=False):
        np.testing.assert_allclose(live, np.asarray(expected), atol=1e-6)
    trained = averaged.learner.network.trainable_variables
    for ours, average in zip(trained, stored.groups["averages"], strict=True):
        np.testing.assert_allclose(np.asarray(ours), average)
    assert not np.allclose(np.asarray(trained[0]), np.asarray(plain.learner.network.trainable_variables[0]))


def test_no_checkpoint_lies_between_the_last_step_and_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions, save = [], checkpoints.save

    def watched(folder: Path, step: int, checkpoint: checkpoints.Checkpoint) -> Path:
        positions.append((checkpoint.meta["epoch"], checkpoint.meta["step"]))
        return save(folder, step, checkpoint)

    monkeypatch.setattr(checkpoints, "save", watched)
    _fit(_config(epochs=2, checkpoint_every_s=0.0), tmp_path / "run")
    assert positions == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0)]


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_no_checkpoint_of_it(tmp_path: Path) -> None:
    config = _config(mode="full", learning_rate=999.0, optimizer="sgd", epochs=20)
    spoiled = dataclasses.replace(
        TASK, objective=lambda config, splits: _overflowing(classification(3))
    )
    with open_run(tmp_path / "run") as run, runtime(strategy="none", precision="float32", seed=0) as strategy:
        assembly = assemble(spoiled, config, TASK.load(config), strategy)
        with pytest.raises(DivergedError, match=r"step \d+"):
            fit.fit(assembly, config, run)
    stored = checkpoints.load_latest(tmp_path / "run" / "checkpoints")
    assert stored is None or all(np.isfinite(array).all() for array in stored.groups["network"])


def _overflowing(objective: object) -> object:
    def losses(network: keras.Model, batch: object, *, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        values, outputs = objective.losses(network, batch, training=training)
        return tf.exp(values * 100.0), outputs

    return dataclasses.replace(objective, losses=losses)


def test_patience_needs_a_validation_split(tmp_path: Path) -> None:
    no_validation = dataclasses.replace(TASK, load=lambda config: dataclasses.replace(_splits(config), validation=None))
    config = _config(early_stopping_patience=1)
    with open_run(tmp_path / "run") as run, runtime(strategy="none", precision="float32", seed=0) as strategy:
        with pytest.raises(UsageError, match="validation"):
            assemble(no_validation, config, no_validation.load(config), strategy)
    assert not run.path.exists()


@pytest.mark.parametrize("origin", ["given", "drawn from train", None])
def test_a_private_run_says_what_validation_chose_and_where_it_is_from(origin: str | None) -> None:
    config = dataclasses.replace(_config(keep="best"), dp=DpConfig(noise_multiplier=1.0))
    manifest = {"limit": 70, "splits": {"test": {"origin": "given"}, "validation": {"origin": origin}}}
    splits = dataclasses.replace(TASK.load(config), manifest=manifest if origin else {})
    if origin is None:
        splits = dataclasses.replace(splits, validation=None)
    with runtime(strategy="none", precision="float32", seed=0) as strategy:
        described = assemble(TASK, config, splits, strategy).privacy.described
    # Without a validation split the last epoch is kept, and what nothing is known of counts as drawn.
    expected = {"given": (["the best epoch"], [], True), "drawn from train": (["the best epoch"], ["validation"], True),
                None: ([], ["test"], False)}  # fmt: skip
    shown = (described["chosen_on_validation"], described["drawn_splits"], described["is_limited"])
    assert shown == expected[origin]


def test_a_dataset_is_charged_by_its_place_and_its_whole_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dp = DpConfig(noise_multiplier=2.0, ledger="ledger.json", ledger_epsilon=90.0)
    config = dataclasses.replace(_config(), data=DataConfig(source="folder:./a/..", batch_size=16), dp=dp)
    manifest = {"content": "of all", "fingerprint": "of the splits"}
    splits = dataclasses.replace(TASK.load(config), manifest=manifest)
    with open_run(tmp_path / "run") as run, runtime(strategy="none", precision="float32", seed=0) as strategy:
        fit.begin_anew(assemble(TASK, config, splits, strategy), config, run)
    [budget] = json.loads((tmp_path / "ledger.json").read_text())["datasets"]
    assert (budget["sources"], budget["fingerprints"]) == ([f"folder:{tmp_path.resolve()}"], ["of all"])


def test_monitor_prefers_the_first_of_equals_and_counts_from_it() -> None:
    rows = [{"val_accuracy": value} for value in (0.1, 0.5, 0.5, 0.4)]
    monitor = Monitor("val_accuracy", "max", patience=2)
    assert monitor.best_row(rows) == 1
    assert monitor.is_over(rows) and not monitor.is_over(rows[:3])


def test_schedule_rises_then_falls_to_nothing() -> None:
    schedule = WarmupCosine(0.1, num_steps=100, warmup_steps=10, falls=True)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[11:]) < 0)
    assert rates.max() == pytest.approx(0.1, rel=0.02) and rates[100] == pytest.approx(0.0, abs=1e-8)
    flat = WarmupCosine(0.1, num_steps=100, warmup_steps=0, falls=False)
    assert float(flat(0)) == float(flat(99)) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_slow_variables_move_by_their_share_and_vectors_do_not_decay(name: str) -> None:
    def moved(slow_scale: float, decay: float) -> list[np.ndarray]:
        variables = [keras.Variable(np.ones((2, 2), "f4")), keras.Variable(np.ones((2, 2), "f4")),
                     keras.Variable(np.ones(2, "f4"))]  # fmt: skip
        optimizer = make_optimizer(
            name,
            learning_rate=WarmupCosine(0.1, num_steps=10, warmup_steps=0, falls=False),
            weight_decay=decay,
            undecayed=without_decay(variables),
            slow=variables[:1],
            slow_scale=slow_scale,
        )
        gradients = [tf.ones((2, 2)) * (1.0 - bool(decay)), tf.ones((2, 2)) * (1.0 - bool(decay)), tf.zeros(2)]
        optimizer.apply(gradients, variables)
        return [1.0 - np.asarray(variable) for variable in variables]

    slow, fast, _ = moved(0.25, 0.0)
    np.testing.assert_allclose(slow, 0.25 * fast, rtol=1e-4)
    slow, decayed, vector = moved(0.25, 0.5)
    np.testing.assert_allclose(decayed, 0.05, rtol=1e-4)
    np.testing.assert_allclose(slow, 0.25 * decayed, rtol=1e-4)
    assert (vector == 0).all()
