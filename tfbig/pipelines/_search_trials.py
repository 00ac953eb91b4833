"""The trials of a search in this process, one after another: each a run of its own, judged on the validation split.

Used by _search.py; search/trials.py says which trial is next, and training/fit.py trains it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from typing import TYPE_CHECKING, cast

from tfbig.config import RunConfig
from tfbig.errors import DivergedError, EnvironmentFault, UsageError, shortage
from tfbig.pipelines._stages import trained
from tfbig.search.space import with_values
from tfbig.training.conflicts import check_conflicts
from tfbig.training.run_directory import RunDirectory, now, open_run
from tfbig.training.task import Task

if TYPE_CHECKING:
    import numpy as np

    from tfbig.data.splits import Split, Splits
    from tfbig.search.trials import Trial, Trials
    from tfbig.training.assembly import Assembly

log = logging.getLogger(__name__)


def run_trials(task: Task, config: RunConfig, trials: Trials, splits: Splits) -> None:
    """Runs trials until all have ended.

    Args:
        task: The job.
        config: Of the search.
        trials: Which there are.
        splits: The data, the same for all of them.

    Raises:
        Interrupted: A signal asked to stop; the trial goes on where it was.
    """
    import keras

    log.info("the trials are in %s", trials.folder)
    while True:
        with contextlib.ExitStack() as held:
            begun = trials.begin(held)
            if begun is None:
                return
            trial, run = begun
            shown = ", ".join(f"{name} {_short(value)}" for name, value in trial.values.items())
            log.info("trial %s of %d: %s", trial.name, trials.max_trials, shown)
            _run_trial(task, config, trials, splits, begun=(trial, run))
        # The next one gets the memory, and names and seeds as if it were the first.
        keras.utils.clear_session()
        gc.collect()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _run_trial(
    task: Task, config: RunConfig, trials: Trials, splits: Splits, *, begun: tuple[Trial, RunDirectory]
) -> None:
    from tfbig.training.tensorboard import write_trial

    trial, run = begun
    try:
        scores: list[float] = []
        seconds, facts = 0.0, dict[str, float]()
        for execution in range(config.tune.executions):
            with contextlib.ExitStack() as held:
                folder = run.path.with_name(f"{trial.name}.{execution}")
                own = run if execution == 0 else held.enter_context(open_run(folder))
                score, spent, facts = _executed(task, config_of(config, trial, own, execution), own, splits)
                scores.append(score)
                seconds += spent
    except BaseException as error:
        reason = _failure(error)
        # A folder without its configuration is nobody's run.
        is_run = (run.path / "config.yaml").exists()
        if reason is None:
            # It ends the search, not the trial, which goes on where it was; a full disk takes no word of that.
            with contextlib.suppress(EnvironmentFault):
                trials.pause(trial)
                if is_run:
                    run.update_status("interrupted", reason=str(error) or "interrupted", finished=now())
            raise
        if is_run:
            run.update_status("failed", reason=reason, finished=now())
        write_trial(trials.folder.parent / "tensorboard", trial.name, trial.values, {})
        trials.fail(trial, reason)
        log.warning("trial %s failed: %s", trial.name, reason)
        return
    score = sum(scores) / len(scores)
    write_trial(trials.folder.parent / "tensorboard", trial.name, trial.values, {"validation_loss": score, **facts})
    trials.end(trial, score=score, seconds=round(seconds, 3), facts=facts)
    best = trials.best
    told = "" if best is None else f"; best so far {best.score:.4g}, of trial {best.name}"
    log.info("trial %s: validation loss %.4g%s", trial.name, score, told)


def _failure(error: BaseException) -> str | None:
    """Why a trial failed; None where what happened is not the trial's."""
    short_of = shortage(error)
    if short_of is not None:
        return "the memory is too small" if short_of == "memory" else None
    return str(error) if isinstance(error, (DivergedError, UsageError)) else None


def config_of(config: RunConfig, trial: Trial, run: RunDirectory, execution: int = 0) -> RunConfig:
    """A trial's own configuration: a run like any other, in its own folder, that exports nothing.

    Raises:
        UsageError: Its settings cannot work together, or privacy forbids them.
    """
    try:
        plain = with_values(config, trial.values)
    except ValueError as error:
        raise UsageError(str(error)) from error
    check_conflicts(plain)
    seed = (config.runtime.seed + execution) % 2**31
    return dataclasses.replace(
        plain,
        run_dir=str(run.path),
        resume="auto",
        runtime=dataclasses.replace(plain.runtime, seed=seed),
        export=dataclasses.replace(plain.export, dir=None),
    )


def _executed(
    task: Task, config: RunConfig, run: RunDirectory, splits: Splits
) -> tuple[float, float, dict[str, float]]:
    """Trains one run of a trial: its loss on the validation split, the seconds it trained, and what else is known."""
    with trained(task, config, run, splits) as (assembly, ledger):
        losses, accuracy = _validated(assembly)
        score = float(losses.mean())
        run.update_status("done", epoch=ledger.epoch, step=ledger.global_step, finished=now(), validation_loss=score)
    facts = {"epochs": float(ledger.epoch)}
    return score, ledger.seconds, facts if accuracy is None else {**facts, "validation_accuracy": accuracy}


def _validated(assembly: Assembly) -> tuple[np.ndarray, float | None]:
    """(N,) losses of the validation examples, and the accuracy where each has one class.

    The loss of the true labels and not the objective's, whose smoothing or weights may differ from trial to trial.
    """
    from tfbig.evaluation.evaluate import predict
    from tfbig.evaluation.metrics import example_losses

    split = cast("Split", assembly.validation)
    network, spec = assembly.learner.network, assembly.splits.spec
    probabilities = predict(network, split, batch_size=assembly.physical_batch_size, spec=spec)
    accuracy = None if split.labels.ndim == 2 else float((probabilities.argmax(axis=1) == split.labels).mean())
    return example_losses(split.labels, probabilities), accuracy
