"""The two stages of a run: it is trained in its folder, then judged, exported and described.

A run has both; a trial of a search has the first, and the search as a whole the second. Used by _main.py,
_search.py and _search_trials.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias, cast

from tfbig.config import RunConfig
from tfbig.errors import UsageError
from tfbig.paths import expanded
from tfbig.pipelines import _choice
from tfbig.pipelines._command_line import to_yaml
from tfbig.pipelines._export import export_version
from tfbig.pipelines._runtime import runtime_of
from tfbig.pipelines._workers import (
    chiefs_private_state,
    refuse_other_data_than_chiefs,
    refuse_other_network_than_chiefs,
)
from tfbig.team import Team
from tfbig.training.run_directory import RunDirectory, now
from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.data.splits import Splits
    from tfbig.evaluation.evaluate import Evaluation
    from tfbig.training.assembly import Assembly
    from tfbig.training.callbacks import Ledger


Outcome: TypeAlias = tuple[dict[str, object], int]
"""What the command line prints last, and its exit code: 75 where a privacy budget ended the run early."""


@contextlib.contextmanager
def trained(
    task: Task,
    config: RunConfig,
    run_directory: RunDirectory,
    splits: Splits | None = None,
    *,
    team: Team | None = None,
) -> Iterator[tuple[Assembly, Ledger]]:
    """Trains a run to its end, from wherever it stopped; inside the block is its runtime.

    Args:
        task: The job.
        config: Everything about it, free of conflicts.
        run_directory: Its folder, locked.
        splits: The data where it is loaded already.
        team: The workers that train it together, each of which calls this; by default this process alone.

    Yields:
        The assembly, whose network holds the weights to use, and where the run ended.
    """
    import tensorflow as tf

    from tfbig.training import private_state
    from tfbig.training.assembly import assemble
    from tfbig.training.environment import describe
    from tfbig.training.fit import begin_anew, fit

    team = team or Team()
    written, (config, choice, loaded) = config, _choice.settled(task, config, run_directory, team=team)
    splits = splits or loaded
    with runtime_of(config, team=team) as strategy:
        # A private run that goes on draws with the secret that it began with.
        goes_on = config.dp.is_private and config.resume != "never" and team.is_chief
        state = private_state.read(run_directory.checkpoints) if goes_on else None
        state = chiefs_private_state(config, state, team)
        splits = splits or task.load(config)
        refuse_other_data_than_chiefs(splits.manifest, team)
        assembly = assemble(task, config, splits, strategy, state)
        refuse_other_network_than_chiefs(assembly, team)
        devices = [device.name for device in tf.config.list_logical_devices()]
        environment = describe(devices=devices, num_replicas=strategy.num_replicas_in_sync)
        if choice is not None:
            environment[_choice.NAME] = choice.record()
        if config.resume == "never" and team.is_chief:
            begin_anew(assembly, config, run_directory)
        refuse_other_data(assembly.splits.manifest, run_directory)
        refuse_other_replicas(config, strategy.num_replicas_in_sync, run_directory)
        # First of all its files, for by it the folder of a run that was killed is known as one.
        run_directory.write_text("config.yaml", to_yaml(task, written))
        run_directory.update_status("running")
        run_directory.write_json("environment.json", environment)
        run_directory.write_json("data_manifest.json", dict(assembly.splits.manifest))
        yield assembly, fit(assembly, config, run_directory, team=team)


def conclude(
    task: Task,
    config: RunConfig,
    run_directory: RunDirectory,
    assembly: Assembly,
    *,
    ledger: Ledger,
    epsilon: float | None,
    is_stopped: bool = False,
) -> dict[str, object]:
    """Judges a trained network on the test split, exports it where that is asked for, and describes it.

    Args:
        task: The job.
        config: What the network was trained with.
        run_directory: Where the run's files go.
        assembly: Holds the trained network and the data.
        ledger: Where the training ended.
        epsilon: What was spent; None where training is not private.
        is_stopped: Whether a privacy budget ended the run.

    Returns:
        What the command line prints last.
    """
    evaluation = _judge(assembly, config, run_directory, ledger)
    exported = export_version(task, assembly, expanded(config.export.dir)) if config.export.dir else None
    figures = cast(dict[str, dict[str, object]], evaluation.report["metrics"])
    result: dict[str, object] = {
        "run_dir": str(run_directory.path),
        "export": None if exported is None else str(exported),
        "metrics": {f"test_{name}": figure["value"] for name, figure in figures.items()},
        "epsilon": epsilon,
    }
    run_directory.update_status(
        "stopped" if is_stopped else "done", epoch=ledger.epoch, step=ledger.global_step, finished=now(), result=result
    )
    _write_card(run_directory)
    return result


def refuse_other_data(manifest: Mapping[str, object], run_directory: RunDirectory) -> None:
    """A run goes on with the data it began with, or not at all."""
    before = run_directory.read_json("data_manifest.json").get("fingerprint")
    if before is not None and before != manifest.get("fingerprint"):
        raise UsageError(
            f"The data has changed since the run in {run_directory.path} began; choose another --run_dir, or train it "
            "anew with --resume never."
        )


def refuse_other_replicas(config: RunConfig, num_replicas: int, run_directory: RunDirectory) -> None:
    """A private run whose steps share noise goes on with as many replicas as it began with: each draws its own share.

    Args:
        config: What is to go on.
        num_replicas: Copies of the network that train together.
        run_directory: Where the run began.

    Raises:
        UsageError: It began with another number, and its mechanism is the tree.
    """
    before = run_directory.read_json("environment.json").get("num_replicas")
    if config.dp.mechanism == "tree" and before not in (None, num_replicas):
        raise UsageError(
            f"The noise of --dp.mechanism tree spans steps, and the run in {run_directory.path} draws it on {before} "
            f"devices, not {num_replicas}; go on with {before}, or train it anew with --resume never."
        )


def _judge(
    assembly: Assembly, config: RunConfig, run_directory: RunDirectory, ledger: Ledger
) -> Evaluation:
    """The test split's figures, predictions.csv and report.html."""
    from tfbig.evaluation.charts import confusion_matrix_png, drawn_confusions
    from tfbig.evaluation.evaluate import evaluate, write_predictions
    from tfbig.evaluation.report import write_report
    from tfbig.training.tensorboard import write_picture

    splits = assembly.splits
    network, test = assembly.judged()
    evaluation = evaluate(
        network, test, splits.spec, batch_size=assembly.physical_batch_size, seed=config.runtime.seed
    )
    run_directory.write_json("evaluation.json", evaluation.report)
    write_predictions(run_directory.path / "predictions.csv", evaluation, splits.spec.class_names)
    write_report(run_directory.path, evaluation=evaluation, pictures=splits.test.payload, history=ledger.history)
    matrix = drawn_confusions(evaluation.report)
    if matrix is not None:
        png = confusion_matrix_png(matrix, splits.spec.class_names)
        write_picture(run_directory.tensorboard, "confusion_matrix", png, step=ledger.global_step)
    return evaluation


def _write_card(run_directory: RunDirectory) -> None:
    from tfbig.evaluation.model_card import write_model_card

    write_model_card(run_directory.path)
