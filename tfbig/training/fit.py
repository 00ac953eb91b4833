"""Training an assembled run in its run directory, from wherever an earlier session stopped.

assembly.py puts the run together; here its callbacks meet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from pathlib import Path

import keras
import tensorflow as tf

from tfbig.config import RunConfig, flatten
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sources import resolved
from tfbig.errors import EnvironmentFault, TfbigError, UsageError
from tfbig.paths import expanded
from tfbig.team import Team
from tfbig.training import callbacks, checkpoints, private_state
from tfbig.training.assembly import Assembly, monitor_of
from tfbig.training.callback_list import StepCallbacks
from tfbig.training.distribution import FedLater, fed
from tfbig.training.privacy import NOT_PRIVATE, BudgetGuard, BudgetSpent, Privacy, PrivacyMeter
from tfbig.training.progress import progress
from tfbig.training.run_directory import RunDirectory
from tfbig.training.state import RunState
from tfbig.training.tensorboard import TensorBoardLog

log = logging.getLogger(__name__)

_BEST = "best.npz"


def fit(
    assembly: Assembly, config: RunConfig, run: RunDirectory, *, team: Team | None = None
) -> callbacks.Ledger:
    """Trains to the end, going on from the run's last checkpoint where there is one.

    Args:
        assembly: From `assemble`. Its network holds the weights to use afterwards.
        config: What it was assembled from.
        run: The run's folder, locked.
        team: The workers that call it together; only the chief's network holds the weights to use afterwards where
            they are those of the best epoch, and only the chief keeps a private run's promise and budget.

    Returns:
        Where the run ended, and the figures of each epoch.

    Raises:
        DivergedError: The loss is no longer finite.
        Interrupted: A signal asked to stop; the state is saved.
        WorkerLost: Another worker is gone.
    """
    team = team or Team()
    ledger = callbacks.Ledger(steps_per_epoch=assembly.plan.steps_per_epoch)
    privacy = assembly.privacy
    monitor = monitor_of(assembly.objective, config, has_validation=assembly.validation is not None)
    average = _average(assembly, config)
    state = RunState(assembly.learner, ledger, average, run.checkpoints, team)
    state.restore()
    run.write_history(ledger.history)
    is_spent = privacy is not None and privacy.is_spent(ledger.global_step)
    try:
        if ledger.epoch < config.train.epochs and not monitor.is_over(ledger.history) and not is_spent:
            if privacy is not None and team.is_chief:
                _begin_privately(privacy, assembly, config, run, has_begun=ledger.global_step > 0)
            # The others step only once the budget is charged.
            team.decide({})
            if ledger.global_step:
                log.info("going on from epoch %d, step %d", ledger.epoch + 1, ledger.step)
            run.update_status("running")
            _train(assembly, config, run, ledger=ledger, monitor=monitor, average=average, state=state, team=team)
    except BudgetSpent as stop:
        log.warning("%s", stop)
    finally:
        if privacy is not None and team.is_chief and ledger.global_step:
            _write_promise(privacy, config, run, ledger.global_step)
    if not team.is_chief:
        return ledger
    if privacy is not None:
        _end_privately(privacy, config, run, ledger.global_step)
    _use_final_weights(assembly, config, run, average, has_epoch=bool(ledger.history))
    return ledger


def begin_anew(assembly: Assembly, config: RunConfig, run: RunDirectory) -> None:
    """Empties the folder for a run that starts from nothing, once no privacy budget can refuse it any more.

    Args:
        assembly: Of the new run.
        config: What it was assembled from.
        run: The run's folder, locked.

    Raises:
        UsageError: Examples are counted wrongly, or the dataset's limit is another.
        GateError: The dataset's budget does not allow the run.
    """
    privacy = assembly.privacy
    if privacy is not None:
        _refuse_wrong_count(privacy, assembly)
        _charge(privacy, assembly, config, run, has_begun=False)
    run.clear()
    if privacy is not None:
        # At once: what is charged goes on as the same run where it is killed before its first step.
        private_state.write(run.checkpoints, privacy.state)


def restore_final(assembly: Assembly, config: RunConfig, run: RunDirectory) -> callbacks.Ledger:
    """Puts the weights of a run that has ended into the network, as `fit` leaves them, without training.

    Args:
        assembly: From `assemble`.
        config: What it was assembled from.
        run: The run's folder.

    Returns:
        Where the run ended; at step 0 where it has no checkpoint.
    """
    ledger = callbacks.Ledger(steps_per_epoch=assembly.plan.steps_per_epoch)
    average = _average(assembly, config)
    RunState(assembly.learner, ledger, average, run.checkpoints).restore()
    if ledger.global_step:
        _use_final_weights(assembly, config, run, average, has_epoch=bool(ledger.history))
    return ledger


def _average(assembly: Assembly, config: RunConfig) -> callbacks.MovingAverage | None:
    decay = config.train.ema_decay
    return None if decay is None else callbacks.MovingAverage(assembly.learner.network, decay)


def _train(
    assembly: Assembly,
    config: RunConfig,
    run: RunDirectory,
    *,
    ledger: callbacks.Ledger,
    monitor: callbacks.Monitor,
    average: callbacks.MovingAverage | None,
    state: RunState,
    team: Team,
) -> None:
    """Runs Keras's fit: once for the rest of a half-done epoch, once for all whole ones."""
    learner, signals = assembly.learner, callbacks.Signals()
    guard = callbacks.DivergenceGuard(is_private=assembly.privacy is not None)
    meter = None if assembly.privacy is None else PrivacyMeter(assembly.privacy, ledger)
    chain: list[keras.callbacks.Callback] = [guard, *([meter] if meter else [])]
    chain.append(callbacks.Progression(ledger, monitor, run))
    if average is not None:
        chain.append(average)
    if config.train.keep == "best" and assembly.validation is not None and team.is_chief:
        best = run.checkpoints / _BEST
        chain.append(callbacks.KeepBest(learner.network, ledger, monitor, best, average))

    def save() -> None:
        if assembly.privacy is not None and team.is_chief:
            # First, so that no checkpoint is ever of more steps than dp.json counts.
            _write_promise(assembly.privacy, config, run, ledger.global_step)
        state.save()

    saver = callbacks.Saver(save, ledger, guard, signals, every_s=config.train.checkpoint_every_s, team=team)
    shown = _shown(assembly, config, run, ledger, meter) if team.is_chief else []
    chain += [*shown, state, saver]
    if assembly.privacy is not None:
        chain.append(BudgetGuard(assembly.privacy, ledger, saver))

    validation = None
    if assembly.validation is not None:
        whole = IndexPlan(len(assembly.validation), assembly.physical_batch_size, shuffle=False)
        make = functools.partial(fed, learner.distribute_strategy, assembly.validation, whole)
        validation = FedLater(make, whole.steps_per_epoch)
    with signals.caught(), contextlib.ExitStack() as stack:
        for callback in shown:
            stack.enter_context(contextlib.closing(callback))
        while ledger.epoch < config.train.epochs and not monitor.is_over(ledger.history):
            learner.fit(
                fed(
                    learner.distribute_strategy,
                    assembly.train,
                    assembly.plan,
                    position=ledger.position,
                    augment=assembly.augment,
                ),
                initial_epoch=ledger.epoch,
                epochs=ledger.epoch + 1 if ledger.step else config.train.epochs,
                validation_data=validation,
                callbacks=StepCallbacks(chain, learner),
                shuffle=False,
                verbose=0,
            )


def _begin_privately(
    privacy: Privacy, assembly: Assembly, config: RunConfig, run: RunDirectory, *, has_begun: bool
) -> None:
    """Keeps the run's secret, and charges the dataset's budget before the first step."""
    _refuse_wrong_count(privacy, assembly)
    if privacy.state.secret is None:
        raise EnvironmentFault(
            f"The secret of the private run in {run.path} was erased when it ended, so it cannot train on; train anew "
            "with --resume never."
        )
    is_new = private_state.read(run.checkpoints) is None
    private_state.write(run.checkpoints, privacy.state)
    try:
        _charge(privacy, assembly, config, run, has_begun=has_begun)
    except TfbigError:
        if is_new:
            # Nothing is left that would bar the folder to the same run with more noise or fewer steps.
            run.clear()
        raise


def _refuse_wrong_count(privacy: Privacy, assembly: Assembly) -> None:
    if len(assembly.splits.train) != privacy.mechanism.num_examples:
        raise UsageError(
            f"The data's spec says {privacy.mechanism.num_examples} training examples, but there are "
            f"{len(assembly.splits.train)}, so the privacy would be counted wrongly; mend num_train in the job's load."
        )


def _charge(privacy: Privacy, assembly: Assembly, config: RunConfig, run: RunDirectory, *, has_begun: bool) -> None:
    """Charges the dataset's budget, where there is one; a run that is charged already pays nothing again."""
    path = ledger_path(config)
    if path is not None:
        privacy.charge(
            path,
            run_dir=run.path.resolve(),
            dataset=resolved(config.data.source),
            # Of the whole source: that of the splits depends on the seed and the limit.
            fingerprint=str(assembly.splits.manifest.get("content", "")),
            limit_epsilon=config.dp.ledger_epsilon,
            has_begun=has_begun,
        )


def _write_promise(privacy: Privacy, config: RunConfig, run: RunDirectory, num_steps: int) -> None:
    run.write_json("dp.json", privacy.record(num_steps, ledger=ledger_path(config)))


def _end_privately(privacy: Privacy, config: RunConfig, run: RunDirectory, num_steps: int) -> None:
    """Gives back what the run did not spend of the dataset's budget, and erases its secret."""
    path = ledger_path(config)
    if path is not None and privacy.state.secret is not None:
        privacy.settle(path, num_steps)
    private_state.write(run.checkpoints, dataclasses.replace(privacy.state, secret=None))


def ledger_path(config: RunConfig) -> Path | None:
    """The file of the privacy budgets; None where there is none."""
    return expanded(config.dp.ledger) if config.dp.ledger else None


def _shown(
    assembly: Assembly,
    config: RunConfig,
    run: RunDirectory,
    ledger: callbacks.Ledger,
    meter: PrivacyMeter | None,
) -> list:
    """What the user sees of the training; each is to be closed."""
    bar = progress(ledger, num_epochs=config.train.epochs, live=meter.figures if meter else dict)
    board = _tensorboard(assembly, config, run, ledger)
    board.open()
    return [bar, board]


def _tensorboard(
    assembly: Assembly, config: RunConfig, run: RunDirectory, ledger: callbacks.Ledger
) -> TensorBoardLog:
    is_private = assembly.privacy is not None

    def first_batch() -> tf.Tensor:
        return next(iter(batches(assembly.splits.train, assembly.plan, augment=assembly.augment).take(1)))[0]

    return TensorBoardLog(
        run.tensorboard,
        ledger,
        hyperparameters=flatten(config),
        # Private examples are shown nowhere.
        first_batch=None if is_private else first_batch,
        notice=NOT_PRIVATE if is_private else None,
        graph=assembly.network if config.train.log_graph else None,
        profile_steps=config.train.profile_steps,
    )


def _use_final_weights(
    assembly: Assembly,
    config: RunConfig,
    run: RunDirectory,
    average: callbacks.MovingAverage | None,
    *,
    has_epoch: bool,
) -> None:
    """Leaves in the network what is to be evaluated: the best epoch, the average, or the last step.

    A privacy budget may end a run within its first epoch, so that there is no best one.
    """
    best = run.checkpoints / _BEST
    if config.train.keep == "best" and assembly.validation is not None and has_epoch:
        try:
            kept = checkpoints.read(best)
        except ValueError as error:
            raise EnvironmentFault(f"{error}; --resume never trains this run again.") from error
        checkpoints.assign("network", assembly.learner.network.variables, kept.groups.get("network", []))
    elif average is not None:
        average.swap()
