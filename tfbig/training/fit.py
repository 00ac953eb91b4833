"""Training: the only place that assembles, and so the only place where features meet.

`assemble` turns a task and its configuration into a learner on its data; `fit` trains it in a run
directory, from wherever an earlier session stopped. Everything below takes plain arguments.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import cast

import keras
import tensorflow as tf

from tfbig.config import RunConfig, flatten
from tfbig.data.splits import Augment, IndexPlan, Split, Splits, batches
from tfbig.errors import EnvironmentFault, UsageError
from tfbig.gradients.rule import clipped, mean_gradient
from tfbig.networks.adapters import split_frozen
from tfbig.objectives.supervised import Objective
from tfbig.training import callbacks, checkpoints, features
from tfbig.training.learner import Learner
from tfbig.training.optimizers import WarmupCosine, make_optimizer, without_decay
from tfbig.training.progress import progress
from tfbig.training.run_directory import RunDirectory
from tfbig.training.state import RunState
from tfbig.training.task import Task
from tfbig.training.tensorboard import TensorBoardLog

log = logging.getLogger(__name__)

_FEATURE_CACHE_BYTES = 4 * 2**30
_BEST = "best.npz"


@dataclass(frozen=True)
class Assembly:
    """Everything a run trains with.

    Args:
        network: Features in, logits out; what is evaluated and exported.
        learner: Trains `network`, or only the part of it behind a frozen trunk whose features are cached.
        splits: The data as `network` takes it.
        train: What the learner trains on: `splits.train`, or its cached features.
        validation: Likewise; None where there is no validation split.
        plan: Which examples each step sees.
        augment: Changes each training batch, or None.
        objective: What is minimised.
    """

    network: keras.Model
    learner: Learner
    splits: Splits
    train: Split
    validation: Split | None
    plan: IndexPlan
    augment: Augment | None
    objective: Objective


def assemble(task: Task, config: RunConfig, splits: Splits, strategy: tf.distribute.Strategy) -> Assembly:
    """Builds the network and ties it to the data, an objective and an optimizer.

    Args:
        task: The job.
        config: Everything about it; free of conflicts.
        splits: The data, as `task.load` gives it.
        strategy: Where to train, from `runtime`.
    """
    if config.data.batch_size % strategy.num_replicas_in_sync:
        raise UsageError(
            f"--data.batch_size {config.data.batch_size} must be a multiple of the {strategy.num_replicas_in_sync} "
            "devices that share each batch."
        )
    objective = task.objective(config, splits)
    # Before the work of computing features: it refuses patience without a validation split.
    _monitor(objective, config, has_validation=splits.validation is not None)
    augment = task.augment(config, splits.spec)
    with strategy.scope():
        network = task.build(config, splits.spec)
        splits = task.prepare(splits, network)
        trunk, trained = (None, network) if augment is not None else _split(network, splits)
        train, validation = splits.train, splits.validation
        if trunk is not None:
            train = features.extract(trunk, train, batch_size=config.data.batch_size)
            validation = validation and features.extract(trunk, validation, batch_size=config.data.batch_size)
        plan = IndexPlan(len(train), config.data.batch_size, seed=config.runtime.seed)
        clip_norm = config.train.clip_norm
        rule = mean_gradient if clip_norm is None else clipped(mean_gradient, clip_norm)
        learner = Learner(trained, objective, rule)
        optimizer = _optimizer(config, trained, plan)
        optimizer.build(trained.trainable_variables)
        learner.compile(optimizer=optimizer, jit_compile=config.runtime.jit_compile)
    return Assembly(network, learner, splits, train, validation, plan, augment, objective)


def fit(assembly: Assembly, config: RunConfig, run: RunDirectory) -> callbacks.Ledger:
    """Trains to the end, going on from the run's last checkpoint where there is one.

    Args:
        assembly: From `assemble`. Its network holds the weights to use afterwards.
        config: What it was assembled from.
        run: The run's folder, locked.

    Returns:
        Where the run ended, and the figures of each epoch.

    Raises:
        DivergedError: The loss is no longer finite.
        Interrupted: A signal asked to stop; the state is saved.
    """
    ledger = callbacks.Ledger(steps_per_epoch=assembly.plan.steps_per_epoch)
    monitor = _monitor(assembly.objective, config, has_validation=assembly.validation is not None)
    average = None
    if config.train.ema_decay is not None:
        average = callbacks.MovingAverage(assembly.learner.network, config.train.ema_decay)
    state = RunState(assembly.learner, ledger, average, run.checkpoints)
    state.restore()
    run.write_history(ledger.history)
    if ledger.epoch < config.train.epochs and not monitor.is_over(ledger.history):
        run.update_status("running")
        _train(assembly, config, run, ledger=ledger, monitor=monitor, average=average, state=state)
    _use_final_weights(assembly, config, run, average)
    return ledger


def _train(
    assembly: Assembly,
    config: RunConfig,
    run: RunDirectory,
    *,
    ledger: callbacks.Ledger,
    monitor: callbacks.Monitor,
    average: callbacks.MovingAverage | None,
    state: RunState,
) -> None:
    """Runs Keras's fit: once for the rest of a half-done epoch, once for all whole ones."""
    learner, signals, guard = assembly.learner, callbacks.Signals(), callbacks.DivergenceGuard()
    board = _tensorboard(assembly, config, run, ledger)
    bar = progress(ledger, num_epochs=config.train.epochs)
    chain: list[keras.callbacks.Callback] = [guard, callbacks.Progression(ledger, monitor, run)]
    if average is not None:
        chain.append(average)
    if config.train.keep == "best" and assembly.validation is not None:
        best = run.checkpoints / _BEST
        chain.append(callbacks.KeepBest(learner.network, ledger, monitor, best, average))
    saver = callbacks.Saver(state.save, ledger, guard, signals, every_s=config.train.checkpoint_every_s)
    chain += [bar, board, state, saver]

    validation = None
    if assembly.validation is not None:
        whole = IndexPlan(len(assembly.validation), config.data.batch_size, shuffle=False)
        validation = batches(assembly.validation, whole)
    with signals.caught(), contextlib.closing(bar), contextlib.closing(board):
        board.open()
        while ledger.epoch < config.train.epochs and not monitor.is_over(ledger.history):
            learner.fit(
                batches(assembly.train, assembly.plan, position=ledger.position, augment=assembly.augment),
                initial_epoch=ledger.epoch,
                epochs=ledger.epoch + 1 if ledger.step else config.train.epochs,
                validation_data=validation,
                callbacks=chain,
                shuffle=False,
                verbose=0,
            )


def _split(network: keras.Model, splits: Splits) -> tuple[keras.Model | None, keras.Model]:
    """A frozen trunk and the rest, where the trunk's features fit in memory."""
    trunk, rest = split_frozen(network)
    if trunk is None:
        return None, network
    num_examples = len(splits.train) + (len(splits.validation) if splits.validation else 0)
    needed = num_examples * rest.input_shape[-1] * 4
    if needed > _FEATURE_CACHE_BYTES:
        log.info("features would take %.1f GiB, so each epoch computes them again", needed / 2**30)
        return None, network
    return trunk, rest


def _optimizer(config: RunConfig, trained: keras.Model, plan: IndexPlan) -> keras.optimizers.Optimizer:
    train = config.train
    num_steps = train.epochs * plan.steps_per_epoch
    schedule = WarmupCosine(
        cast(float, train.learning_rate),
        num_steps=num_steps,
        warmup_steps=min(train.warmup_steps, num_steps - 1),
        falls=train.schedule == "cosine",
    )
    scale = config.adapt.backbone_lr_scale
    return make_optimizer(
        train.optimizer,
        learning_rate=schedule,
        momentum=train.momentum,
        weight_decay=cast(float, train.weight_decay),
        undecayed=without_decay(trained.trainable_variables),
        slow=trained.get_layer("backbone").trainable_variables if scale != 1.0 else (),
        slow_scale=scale,
    )


def _monitor(objective: Objective, config: RunConfig, *, has_validation: bool) -> callbacks.Monitor:
    patience = config.train.early_stopping_patience
    if not has_validation and patience is not None:
        raise UsageError(
            "--train.early_stopping_patience needs a validation split; give --data.validation_fraction 0.1 with it."
        )
    return callbacks.Monitor(("val_" if has_validation else "") + objective.monitor, objective.mode, patience)


def _tensorboard(
    assembly: Assembly, config: RunConfig, run: RunDirectory, ledger: callbacks.Ledger
) -> TensorBoardLog:
    first = batches(assembly.splits.train, assembly.plan, augment=assembly.augment).take(1)
    return TensorBoardLog(
        run.tensorboard,
        ledger,
        hyperparameters=flatten(config),
        first_batch=next(iter(first))[0],
        graph=assembly.network if config.train.log_graph else None,
        profile_steps=config.train.profile_steps,
    )


def _use_final_weights(
    assembly: Assembly, config: RunConfig, run: RunDirectory, average: callbacks.MovingAverage | None
) -> None:
    """Leaves in the network what is to be evaluated: the best epoch, the average, or the last step."""
    best = run.checkpoints / _BEST
    if config.train.keep == "best" and assembly.validation is not None:
        try:
            kept = checkpoints.read(best)
        except ValueError as error:
            raise EnvironmentFault(f"{error}; --resume never trains this run again.") from error
        checkpoints.assign("network", assembly.learner.network.variables, kept.groups.get("network", []))
    elif average is not None:
        average.swap()
