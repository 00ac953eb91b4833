"""What every job's `python -m` does: configuration in, run directory and one JSON line out."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias, cast

from tfbig.config import RunConfig, flatten
from tfbig.errors import EnvironmentFault, Interrupted, TfbigError, UsageError
from tfbig.pipelines import _choice
from tfbig.pipelines._command_line import parse, print_help, to_yaml
from tfbig.pipelines._dry_run import dry_run
from tfbig.pipelines._export import export_version
from tfbig.recipes import read_recipe
from tfbig.startup import import_tensorflow
from tfbig.training.conflicts import check_conflicts
from tfbig.training.run_directory import RunDirectory, now, open_run
from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.evaluation.evaluate import Evaluation
    from tfbig.training.assembly import Assembly
    from tfbig.training.callbacks import Ledger

log = logging.getLogger(__name__)


def main(task: Task, arguments: Sequence[str] | None = None) -> int:
    """Runs a job from its command line.

    Args:
        task: The job.
        arguments: The command line's, by default this process's.

    Returns:
        The exit code: 0 done, otherwise that of the TfbigError, 75 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words or "--help_all" in words:
        print_help(task, everything="--help_all" in words)
        return 0
    debug = "--debug" in words
    print_config = "--print_config" in words
    words = [word for word in words if word not in ("--debug", "--print_config")]
    try:
        config = parse(task, words)
        check_conflicts(config)
        if print_config:
            print(to_yaml(task, config), end="")
            return 0
        result, exit_code = run(task, config)
        print(json.dumps(result, ensure_ascii=False))
        return exit_code
    except TfbigError as error:
        return _report(error, error.exit_code, debug)
    except KeyboardInterrupt:
        return _report(Interrupted("Interrupted; the same command begins where the last checkpoint is."), 75, debug)
    except Exception as error:
        # From any library: TensorFlow has its own exception for a full disk, and a bug may be anywhere.
        if type(error).__name__ == "ResourceExhaustedError" or isinstance(error, MemoryError):
            small = EnvironmentFault("The memory is too small; lower --data.batch_size, --data.image_size or the head.")
            return _report(small, small.exit_code, debug)
        if "No space left on device" in str(error):
            full = EnvironmentFault("The disk is full; make room, and give the same command again to go on.")
            return _report(full, full.exit_code, debug)
        return _report(error, 1, debug)


Outcome: TypeAlias = tuple[dict[str, object], int]
"""What the command line prints last, and its exit code: 75 where a privacy budget ended the run early."""


def run(task: Task, config: RunConfig) -> Outcome:
    """Trains, judges and exports.

    Args:
        task: The job.
        config: Everything about it, free of conflicts.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("tfbig").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    import_tensorflow()
    if config.export.dir:
        from tfbig.serving.staging import check_writable

        # Before the hours of work that would go into it.
        check_writable(Path(config.export.dir).expanduser())
    if config.dry_run:
        return dry_run(task, _choice.settled(task, config, None)[0]), 0
    path = Path(config.run_dir or f"runs/{_run_name(task, config)}").expanduser()
    with open_run(path) as run_directory:
        finished = _earlier_result(task, config, run_directory)
        if finished is not None:
            how = "stopped at its privacy budget" if finished[1] else "is finished"
            log.warning("%s %s; --resume never trains it again", path, how)
            return finished
        # With --resume never, what is there is the earlier run's until the folder is cleared.
        foreign = run_directory.read_json("status.json") if config.resume == "never" else None
        try:
            return _run_in(task, config, run_directory)
        except BaseException as error:
            if (path / "config.yaml").exists() and run_directory.read_json("status.json") != foreign:
                stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
                state, reason = "interrupted" if stopped else "failed", str(error) or "interrupted"
                run_directory.update_status(state, reason=reason, finished=now())
            raise


def _run_in(task: Task, config: RunConfig, run_directory: RunDirectory) -> Outcome:
    import tensorflow as tf

    from tfbig.runtime import runtime
    from tfbig.training import private_state
    from tfbig.training.assembly import assemble
    from tfbig.training.environment import describe
    from tfbig.training.fit import begin_anew, fit

    written, (config, choice, splits) = config, _choice.settled(task, config, run_directory)
    settings = config.runtime
    with runtime(
        strategy=settings.strategy,
        precision=settings.precision,
        seed=settings.seed,
        exact_float32=config.dp.is_private,
    ) as strategy:
        # A private run that goes on draws with the secret that it began with.
        goes_on = config.dp.is_private and config.resume != "never"
        state = private_state.read(run_directory.checkpoints) if goes_on else None
        assembly = assemble(task, config, splits or task.load(config), strategy, state)
        devices = [device.name for device in tf.config.list_logical_devices()]
        environment = describe(devices=devices, num_replicas=strategy.num_replicas_in_sync)
        if choice is not None:
            environment[_choice.NAME] = choice.record()
        if config.resume == "never":
            begin_anew(assembly, config, run_directory)
        run_directory.update_status("running")
        _refuse_other_data(assembly.splits.manifest, run_directory)
        run_directory.write_text("config.yaml", to_yaml(task, written))
        run_directory.write_json("environment.json", environment)
        run_directory.write_json("data_manifest.json", dict(assembly.splits.manifest))
        ledger = fit(assembly, config, run_directory)
        evaluation = _judge(assembly, config, run_directory, ledger)
        exported = export_version(task, assembly, Path(config.export.dir).expanduser()) if config.export.dir else None
    figures = cast(dict[str, dict[str, object]], evaluation.report["metrics"])
    metrics = {f"test_{name}": figure["value"] for name, figure in figures.items()}
    result: dict[str, object] = {
        "run_dir": str(run_directory.path),
        "export": None if exported is None else str(exported),
        "metrics": metrics,
        "epsilon": None if assembly.privacy is None else assembly.privacy.epsilon(ledger.global_step),
    }
    is_stopped = assembly.privacy is not None and assembly.privacy.is_spent(ledger.global_step)
    run_directory.update_status(
        "stopped" if is_stopped else "done", epoch=ledger.epoch, step=ledger.global_step, finished=now(), result=result
    )
    _write_card(run_directory)
    return result, Interrupted.exit_code if is_stopped else 0


def _refuse_other_data(manifest: Mapping[str, object], run_directory: RunDirectory) -> None:
    """A run goes on with the data it began with, or not at all."""
    before = run_directory.read_json("data_manifest.json").get("fingerprint")
    if before is not None and before != manifest.get("fingerprint"):
        raise UsageError(
            f"The data has changed since the run in {run_directory.path} began; choose another --run_dir, or train it "
            "anew with --resume never."
        )


def _judge(
    assembly: Assembly, config: RunConfig, run_directory: RunDirectory, ledger: Ledger
) -> Evaluation:
    """The test split's figures, predictions.csv and report.html."""
    from tfbig.evaluation.charts import confusion_matrix_png
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
    matrix = cast(list[list[int]] | None, evaluation.report.get("confusion_matrix"))
    if matrix:
        png = confusion_matrix_png(matrix, splits.spec.class_names)
        write_picture(run_directory.tensorboard, "confusion_matrix", png, step=ledger.global_step)
    return evaluation


def _write_card(run_directory: RunDirectory) -> None:
    from tfbig.evaluation.model_card import write_model_card

    write_model_card(run_directory.path)


def _run_name(task: Task, config: RunConfig) -> str:
    """Tells configurations apart, so that the same command finds its own run."""
    same = {name: value for name, value in flatten(config).items() if name not in ("run_dir", "resume", "export.dir")}
    digest = hashlib.blake2b(json.dumps(same, sort_keys=True).encode(), digest_size=4).hexdigest()
    source = "".join(c if c.isalnum() else "-" for c in config.data.source.rstrip("/").split(":")[-1].split("/")[-1])
    return f"{task.name}-{source[:40] or 'data'}-{digest}"


def _earlier_result(task: Task, config: RunConfig, run_directory: RunDirectory) -> Outcome | None:
    """What a finished run of this folder gave; None where there is something to do.

    Raises:
        UsageError: The folder's run has another configuration.
    """
    stored = run_directory.path / "config.yaml"
    if config.resume == "never" or not stored.exists():
        return None
    there = {name: str(value) for name, value in read_recipe(stored).items() if name != "job"}
    here = {name: str(value) for name, value in _dotted_config(task, config).items()}
    export_there, export_here = there.pop("export.dir", None), here.pop("export.dir", None)
    changed = [f"{name} ({there.get(name)} there, {here[name]} here)" for name in here if here[name] != there.get(name)]
    if changed:
        raise UsageError(
            f"{run_directory.path} holds a run with other settings: {', '.join(changed[:3])}; choose another "
            "--run_dir, or train it anew with --resume never."
        )
    status = run_directory.read_json("status.json")
    result = status.get("result")
    whole = isinstance(result, dict) and set(result) == {"run_dir", "export", "metrics", "epsilon"}
    exit_codes = {"done": 0, "stopped": Interrupted.exit_code}
    state = status.get("state")
    if state not in exit_codes or not isinstance(result, dict) or not whole or export_there != export_here:
        return None
    is_there = result["export"] is None or Path(str(result["export"])).exists()
    return (result, exit_codes[state]) if is_there else None


def _dotted_config(task: Task, config: RunConfig) -> dict[str, object]:
    import yaml

    from tfbig.recipes import dotted

    tree = yaml.safe_load(to_yaml(task, config))
    tree.pop("job")
    return dotted(tree)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(error: Exception, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if isinstance(error, Interrupted):
        print(error, file=sys.stderr)
    elif isinstance(error, TfbigError):
        print(f"error: {error}", file=sys.stderr)
    else:
        print(f"unexpected error: {type(error).__name__}: {error}. --debug shows where it came from.", file=sys.stderr)
    return exit_code
