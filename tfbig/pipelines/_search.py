"""A search as a command: trials one after another in this process, then the best of them as the run itself.

Each trial is a run directory under `trials/` (_search_trials.py), trained by the same code as any run.
The network of the best one, as its trial trained it, becomes the search's: training it again would give the same
weights, for a run is a function of its configuration. Only that network sees the test split.
Several processes may do this in one folder (_search_workers.py); search/trials.py divides the trials among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfbig.config import RunConfig
from tfbig.errors import DivergedError, TfbigError, UsageError
from tfbig.pipelines._command_line import to_yaml
from tfbig.pipelines._runtime import runtime_of
from tfbig.pipelines._search_space import parameters
from tfbig.pipelines._search_trials import config_of, run_trials
from tfbig.pipelines._stages import Outcome, conclude, refuse_other_data
from tfbig.search.journal import has_begun
from tfbig.training.run_directory import RunDirectory
from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.data.splits import Splits
    from tfbig.search.privacy import PrivateSearch
    from tfbig.search.trials import Trials

log = logging.getLogger(__name__)


def search(task: Task, config: RunConfig, run_directory: RunDirectory) -> Outcome:
    """Runs the trials that are left, and concludes the search.

    Args:
        task: The job.
        config: With a search, free of conflicts.
        run_directory: Of the search, locked.

    Raises:
        DivergedError: All trials failed.
    """
    with begun(task, config, run_directory):
        return work(task, config, run_directory, 0)


def work(task: Task, config: RunConfig, run_directory: RunDirectory, number: int) -> Outcome:
    """One worker's part of a search that has begun: trials until all have ended, and with number 0 the conclusion.

    Args:
        task: The job.
        config: With a search, free of conflicts.
        run_directory: Of the search, locked by whoever began it.
        number: Of the worker, from 0.

    Raises:
        UsageError: There is no validation split.
        DivergedError: All trials failed.
    """
    from tfbig.search import privacy
    from tfbig.search.trials import planned

    splits = task.load(config)
    if splits.validation is None:
        raise UsageError(
            "A search chooses by the loss on a validation split, and there is none; give --data.validation_fraction "
            "0.1, or a validation split."
        )
    if config.resume != "never":
        refuse_other_data(splits.manifest, run_directory)
    private = _planned_privacy(config, run_directory, splits) if config.dp.is_private else None
    if config.resume == "never":
        # Nothing can refuse the new search any more, so the old one may go.
        run_directory.clear()
        if private is not None:
            planned(run_directory.path / "trials", private.to_json, lambda plan: None)
        _write_down(task, config, run_directory)
    if number == 0:
        run_directory.write_json("data_manifest.json", dict(splits.manifest))
    common = config if private is None else privacy.trial_config(config, private)
    trials = trials_of(task, config, run_directory, private)
    run_trials(task, common, trials, splits)
    if number > 0:
        return {}, 0
    trials.refresh()
    if private is not None:
        _end_privately(private, config, run_directory, trials)
    run_directory.write_json("search.json", _summary(task, config, trials))
    return _concluded(task, common, run_directory, trials, splits, None if private is None else private.epsilon)


@contextlib.contextmanager
def begun(task: Task, config: RunConfig, run_directory: RunDirectory) -> Iterator[None]:
    """Around a search: writes down what is searched, and leaves nothing of one that was refused before its first trial.

    One that starts anew is written down by `work`, where it takes the place of the old one.
    """
    if config.resume == "never":
        yield
        return
    _write_down(task, config, run_directory)
    try:
        yield
    except TfbigError:
        if not has_begun(run_directory.path / "trials"):
            run_directory.clear()
        raise


def _write_down(task: Task, config: RunConfig, run_directory: RunDirectory) -> None:
    # By config.yaml a folder is known as a run's, so it comes first.
    run_directory.write_text("config.yaml", to_yaml(task, config))
    run_directory.update_status("running")


def _planned_privacy(config: RunConfig, run_directory: RunDirectory, splits: Splits) -> PrivateSearch:
    """What a private search decides before its first trial, charged to its dataset's budget."""
    from tfbig.data.sources import resolved
    from tfbig.search import privacy
    from tfbig.search.trials import planned
    from tfbig.training.fit import ledger_path

    def draw() -> dict[str, object]:
        return privacy.plan(config, num_examples=splits.spec.num_train).to_json()

    def charge(plan: dict[str, object]) -> None:
        path = ledger_path(config)
        if path is not None:
            privacy.charge(
                privacy.from_json(plan),
                path,
                run_dir=run_directory.path.resolve(),
                dataset=resolved(config.data.source),
                fingerprint=str(splits.manifest.get("content", "")),
                limit_epsilon=config.dp.ledger_epsilon,
            )

    if config.resume == "never":
        plan = draw()
        charge(plan)
    else:
        plan = planned(run_directory.path / "trials", draw, charge)
    found = privacy.from_json(plan)
    noise = found.selection.mechanism.noise_multiplier
    log.info("a private search: epsilon %.4g as a whole, noise multiplier %.5g", found.epsilon, noise)
    return found


def _end_privately(private: PrivateSearch, config: RunConfig, run_directory: RunDirectory, trials: Trials) -> None:
    """Erases the secrets of trials that failed, and so keep theirs, and writes down the promise."""
    from tfbig.search import privacy
    from tfbig.training import private_state

    for checkpoints in trials.folder.glob("*/checkpoints"):
        private_state.erase(checkpoints)
    if trials.best is not None:
        best = RunDirectory(trials.folder / trials.best.name)
        promise = privacy.record_of(private, best.read_json("dp.json"), ledger=config.dp.ledger)
        run_directory.write_json("dp.json", promise)


def trials_of(
    task: Task, config: RunConfig, run_directory: RunDirectory, private: PrivateSearch | None
) -> Trials:
    """The trials of a search, as far as they are written down; `private` says how many, and from what seed."""
    from tfbig.search.trials import Trials

    return Trials(
        run_directory.path / "trials",
        parameters(task, config),
        tuner=config.tune.tuner,
        max_trials=private.num_trials if private else config.tune.max_trials or 0,
        max_epochs=config.train.epochs,
        seed=private.seed if private else config.runtime.seed,
        may_repeat=config.dp.is_private,
    )


def _concluded(
    task: Task,
    config: RunConfig,
    run_directory: RunDirectory,
    trials: Trials,
    splits: Splits,
    epsilon: float | None,
) -> Outcome:
    """Makes the best trial's network the search's, and judges it, alone of all, on the test split."""
    from tfbig.training import private_state
    from tfbig.training.assembly import assemble
    from tfbig.training.environment import describe
    from tfbig.training.fit import restore_final

    best = trials.best
    if best is None:
        raise DivergedError(
            f"All {len(trials.all)} trials of the search failed, the first because: {trials.all[0].reason} Give a "
            "space with lower learning rates, or begin from the settings of a run that works."
        )
    winner = dataclasses.replace(config_of(config, best, run_directory), export=config.export)
    shutil.rmtree(run_directory.checkpoints, ignore_errors=True)
    shutil.copytree(trials.folder / best.name / "checkpoints", run_directory.checkpoints)
    with runtime_of(winner) as strategy:
        state = private_state.read(run_directory.checkpoints) if config.dp.is_private else None
        assembly = assemble(task, winner, splits, strategy, state)
        ledger = restore_final(assembly, winner, run_directory)
        run_directory.write_history(ledger.history)
        run_directory.write_json("environment.json", describe(devices=[], num_replicas=strategy.num_replicas_in_sync))
        result = conclude(task, winner, run_directory, assembly, ledger=ledger, epsilon=epsilon)
    return result, 0


_TOLD = ("number", "values", "state", "score", "reason", "seconds", "facts")


def _summary(task: Task, config: RunConfig, trials: Trials) -> dict[str, object]:
    """The content of search.json."""
    from tfbig.evaluation.importance import importance

    space: list[dict[str, object]] = [
        {"name": each.name, "kind": each.kind, "values": list(each.values)} for each in parameters(task, config)
    ]
    epochs = sorted({trial.values["train.epochs"] for trial in trials.all if "train.epochs" in trial.values}, key=str)
    if config.tune.tuner == "hyperband":
        space.append({"name": "train.epochs", "kind": "choice", "values": epochs})
    done = [trial for trial in trials.all if trial.score is not None]
    scores = [trial.score or 0.0 for trial in done]
    found = []
    for each in space:
        values = [trial.values[str(each["name"])] for trial in done]
        decided = importance(values, scores, is_range=each["kind"] != "choice", seed=config.runtime.seed)
        found.append({"name": each["name"], "share": decided.share, "chance": decided.chance})
    best = trials.best
    return {
        "tuner": config.tune.tuner,
        "executions": config.tune.executions,
        "best": None if best is None else best.number,
        "settings": {} if best is None else best.values,
        "parameters": space,
        "importance": found,
        "trials": [{name: getattr(trial, name) for name in _TOLD} for trial in trials.all],
    }
