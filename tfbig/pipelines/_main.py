"""What every job's `python -m` does: configuration in, run directory and one JSON line out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfbig.config import RunConfig, TuneConfig, flatten
from tfbig.errors import DataError, EnvironmentFault, Interrupted, TfbigError, UsageError, report, shortage, unreadable
from tfbig.meeting import meet
from tfbig.paths import expanded
from tfbig.pipelines._choice import settled
from tfbig.pipelines._command_line import parse, print_help, to_yaml
from tfbig.pipelines._dry_run import dry_run
from tfbig.pipelines._interrupts import Interrupts
from tfbig.pipelines._search import search, work
from tfbig.pipelines._search_space import check_search
from tfbig.pipelines._search_workers import end_with_launcher, worker_number
from tfbig.pipelines._stages import Outcome, conclude, trained
from tfbig.pipelines._workers import common_settings, common_versions, run_as_worker, telling_losses, workers_of
from tfbig.recipes import read_recipe
from tfbig.startup import import_tensorflow, open_streams, roomy
from tfbig.team import Team
from tfbig.training.conflicts import check_conflicts
from tfbig.training.run_directory import RunDirectory, now, open_run
from tfbig.training.task import Task

# Of all settings the one that has no influence on a run's result.
_WAITING = "runtime.start_timeout_s"
_TRIALS = "tune.max_trials"

log = logging.getLogger(__name__)


@roomy
def main(task: Task, arguments: Sequence[str] | None = None) -> int:
    """Runs a job from its command line.

    Args:
        task: The job.
        arguments: The command line's, by default this process's, which then ends with the command: signals that come
            later change nothing.

    Returns:
        The exit code: 0 done, otherwise that of the TfbigError, 75 when interrupted.
    """
    open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words or "--help_all" in words:
        print_help(task, everything="--help_all" in words)
        return 0
    with Interrupts(until_exit=arguments is None) as interrupts:
        debug = "--debug" in words
        try:
            return _ended(task, [word for word in words if word != "--debug"], interrupts, debug=debug)
        except KeyboardInterrupt:
            interrupts.ignore()
            stopped = Interrupted("Interrupted; the same command begins where the last checkpoint is.")
            return report(stopped, debug=debug)


def _ended(task: Task, words: Sequence[str], interrupts: Interrupts, *, debug: bool) -> int:
    """The exit code of a command that has ended, how it did being said; only a signal's exception leaves it."""
    print_config = "--print_config" in words
    try:
        config = parse(task, [word for word in words if word != "--print_config"])
        check_conflicts(config)
        check_search(task, config)
        if print_config:
            print(to_yaml(task, config), end="")
            return 0
        result, exit_code = run(task, config)
        interrupts.ignore()
        _print_last(result)
        return exit_code
    except Exception as error:
        # From any library, and a bug may be anywhere. What its frames hold is freed only after the report.
        interrupts.ignore()
        return report(_told(error), debug=debug)


def run(task: Task, config: RunConfig) -> Outcome:
    """Trains, judges and exports.

    Args:
        task: The job.
        config: Everything about it, free of conflicts.

    Raises:
        UsageError: A search is asked for where TF_CONFIG names workers.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("tfbig").setLevel(logging.INFO)
    # Before TensorFlow is loaded, so that a mistake in TF_CONFIG or a missing worker is said without it.
    workers = workers_of(config)
    if workers is not None and config.tune.is_search:
        raise UsageError(
            "--tune searches with processes that train apart, and TF_CONFIG names workers that train together; unset "
            "it, and take `python -m tfbig launch --tune --workers 2 JOB` for several processes."
        )
    timeout_s = config.runtime.start_timeout_s
    team = meet(workers, common_settings(config), timeout_s=timeout_s, versions=common_versions())
    if team.num_workers > 1:
        # What TensorFlow says of a lost worker, in many lines; ours is one, and names it.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import_tensorflow()
        outcome = _run(task, config, team) if team.is_chief else run_as_worker(task, config, team)
    except BaseException as error:
        team.leave(error)
        raise
    team.leave(None)
    return outcome


def _run(task: Task, config: RunConfig, team: Team) -> Outcome:
    """The run of one process, or the chief's part of it."""
    if config.export.dir:
        from tfbig.serving.staging import check_writable

        # Before the hours of work that would go into it.
        check_writable(expanded(config.export.dir))
    if config.dry_run:
        return dry_run(task, settled(task, dataclasses.replace(config, tune=TuneConfig()), None)[0]), 0
    worker = worker_number() if config.tune.is_search else None
    if worker is not None:
        end_with_launcher()
        return work(task, config, RunDirectory(_path_of(task, config)), worker)
    with held(task, config) as (run_directory, finished):
        team.decide({"is_finished": finished is not None})
        if config.tune.is_search and finished is None:
            return search(task, config, run_directory)
        with telling_losses(team):
            result, exit_code = finished or _run_in(task, config, run_directory, team)
        team.decide({"result": result, "exit_code": exit_code})
        return result, exit_code


@contextlib.contextmanager
def held(task: Task, config: RunConfig) -> Iterator[tuple[RunDirectory, Outcome | None]]:
    """Holds a run's folder for this process, and notes there how the block ends where it fails.

    Args:
        task: The job.
        config: Everything about the run.

    Yields:
        The folder, and what its finished run gave; None where there is something to do.
    """
    path = _path_of(task, config)
    with open_run(path) as run_directory:
        finished = _earlier_result(task, config, run_directory)
        if finished is not None:
            how = "stopped at its privacy budget" if finished[1] else "is finished"
            log.warning("%s %s; --resume never trains it again", path, how)
        # With --resume never, what is there is the earlier run's until the folder is cleared.
        foreign = run_directory.read_json("status.json") if config.resume == "never" else None
        try:
            yield run_directory, finished
        except BaseException as error:
            if (path / "config.yaml").exists() and run_directory.read_json("status.json") != foreign:
                stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
                state, reason = "interrupted" if stopped else "failed", str(error) or "interrupted"
                run_directory.update_status(state, reason=reason, finished=now())
            raise


def _run_in(task: Task, config: RunConfig, run_directory: RunDirectory, team: Team) -> Outcome:
    with trained(task, config, run_directory, team=team) as (assembly, ledger):
        team.release()
        privacy, step = assembly.privacy, ledger.global_step
        is_stopped = privacy is not None and privacy.is_spent(step)
        epsilon = None if privacy is None else privacy.epsilon(step)
        result = conclude(
            task, config, run_directory, assembly, ledger=ledger, epsilon=epsilon, is_stopped=is_stopped
        )
    return result, Interrupted.exit_code if is_stopped else 0


def _path_of(task: Task, config: RunConfig) -> Path:
    return expanded(config.run_dir or f"runs/{_run_name(task, config)}")


def _run_name(task: Task, config: RunConfig) -> str:
    """Tells configurations apart, so that the same command finds its own run."""
    left_out = ["run_dir", "resume", "export.dir", _WAITING]
    if not config.tune.is_search:
        left_out.append("tune.")
    elif _may_grow(config):
        left_out.append(_TRIALS)
    same = {name: value for name, value in flatten(config).items() if not name.startswith(tuple(left_out))}
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
    here.pop(_WAITING)
    had = there.get(_TRIALS, "")
    grows = _may_grow(config) and had.isdecimal() and int(had) < int(here[_TRIALS])
    if grows:
        there[_TRIALS] = here[_TRIALS]
    # A plain run has no settings of a search, and a space those of its fields.
    names = [*here, *(name for name in there if name.startswith("tune.") and name not in here)]
    changed = [f"{name} ({there.get(name)} there, {here.get(name)} here)" for name in names
               if here.get(name) != there.get(name)]  # fmt: skip
    if changed:
        raise UsageError(
            f"{run_directory.path} holds a run with other settings: {', '.join(changed[:3])}; choose another "
            "--run_dir, or train it anew with --resume never."
        )
    if grows:
        return None
    status = run_directory.read_json("status.json")
    result = status.get("result")
    whole = isinstance(result, dict) and set(result) == {"run_dir", "export", "metrics", "epsilon"}
    exit_codes = {"done": 0, "stopped": Interrupted.exit_code}
    state = status.get("state")
    if state not in exit_codes or not isinstance(result, dict) or not whole or export_there != export_here:
        return None
    is_there = result["export"] is None or Path(str(result["export"])).exists()
    return (result, exit_codes[state]) if is_there else None


def _may_grow(config: RunConfig) -> bool:
    """Whether a search takes more trials once it has begun: what is tried next never depends on how many there are.

    A private one draws or charges for their number before the first.
    """
    return config.tune.is_search and not config.dp.is_private


def _dotted_config(task: Task, config: RunConfig) -> dict[str, object]:
    import yaml

    from tfbig.recipes import dotted

    tree = yaml.safe_load(to_yaml(task, config))
    tree.pop("job")
    return dotted(tree)


def _print_last(result: dict[str, object]) -> None:
    """The last line of stdout, whatever letters that takes; where nobody reads it the run is done all the same."""
    try:
        try:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        except UnicodeEncodeError:
            print(json.dumps(result), flush=True)
    except BrokenPipeError:
        # Or Python would fail on what is left to be written at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: Exception) -> Exception:
    """What to say of an error: what the user has to know, in place of how a library puts it."""
    if isinstance(error, TfbigError):
        return error
    short_of = shortage(error)
    if short_of == "disk":
        return EnvironmentFault("The disk is full; make room, and give the same command again to go on.")
    if short_of == "memory":
        return EnvironmentFault("The memory is too small; lower --data.batch_size, --data.image_size or the head.")
    if reason := unreadable(error):
        return DataError(
            f"An example cannot be read any more: {reason}. It was changed or removed while the run went on; the same "
            "command reads what has changed, and names what is no good."
        )
    return error
