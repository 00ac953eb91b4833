"""What a job's command does where several processes run it together: meet, agree, and say who was lost."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import tfbig
from tfbig import cluster
from tfbig.config import RunConfig, flatten
from tfbig.errors import UsageError
from tfbig.team import Team
from tfbig.training.environment import package_version
from tfbig.training.run_directory import UnwrittenRun
from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.training.assembly import Assembly
    from tfbig.training.private_state import PrivateState

# Where a host has its data and a user wants the results; `resume` is the chief's to act on.
_OF_THE_HOST = ("run_dir", "resume", "export.dir", "data.dir", "data.source", "runtime.start_timeout_s")

# What TensorFlow raises where a collective ends because another worker did; by name, for TensorFlow may not be loaded.
_ERRORS_OF_A_LOSS = ("UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError")
# Also where this machine's own device, compiler or disk fails.
_ERRORS_OF_MANY_CAUSES = ("InternalError",)


def workers_of(config: RunConfig) -> cluster.Cluster | None:
    """The processes that TF_CONFIG names, where they are to train together.

    Raises:
        UsageError: TF_CONFIG is wrong, or missing where it is needed.
    """
    strategy = config.runtime.strategy
    found = cluster.from_environment() if strategy in ("auto", "multiworker") else None
    if strategy == "multiworker" and found is None and not config.dry_run:
        raise UsageError(
            "--runtime.strategy multiworker needs TF_CONFIG to name at least two workers; set it for each process, or "
            "take `python -m tfbig launch --workers 2 JOB` to try it on this machine."
        )
    if config.dry_run or found is None:
        return None
    refuse_xla_over_workers(config)
    return found


def refuse_xla_over_workers(config: RunConfig) -> None:
    """XLA has no sums over workers on CPUs (b/194942685, as its message says), and nobody has tried it on GPUs.

    Args:
        config: Of a run of several workers.

    Raises:
        UsageError: XLA is to compile the step.
    """
    if config.runtime.jit_compile is True:
        raise UsageError(
            "--runtime.jit_compile (here, or as auto chose it when the run began) does not work over the workers of "
            "TF_CONFIG: XLA does not compile their sums. Leave it out, train in one process, or train anew with "
            "--resume never."
        )


def common_settings(config: RunConfig) -> dict[str, object]:
    """What all workers must be started with alike."""
    return {name: value for name, value in flatten(config).items() if name not in _OF_THE_HOST}


def common_versions() -> dict[str, object]:
    """The software that must be the same for all workers: what each computes is added up."""
    return {"tfbig": tfbig.__version__, **{name: package_version(name) for name in ("tensorflow", "keras")}}


@contextlib.contextmanager
def telling_losses(team: Team) -> Iterator[None]:
    """An error that came from another worker's end says so, and not where TensorFlow noticed it."""
    try:
        yield
    except Exception as error:
        name = type(error).__name__
        has_other_causes = name in _ERRORS_OF_MANY_CAUSES
        lost = team.loss(has_other_causes=has_other_causes) if name in _ERRORS_OF_A_LOSS or has_other_causes else None
        if lost is None:
            raise
        raise lost from error


def refuse_other_data_than_chiefs(manifest: Mapping[str, object], team: Team) -> None:
    """Each worker feeds its part of the same data, or none of them does.

    Raises:
        UsageError: This worker's data are others than the chief's.
    """
    fingerprint = manifest.get("fingerprint")
    chiefs = team.decide({"fingerprint": fingerprint})["fingerprint"]
    if chiefs != fingerprint:
        raise UsageError(
            "The data on this worker's host differ from the chief's; give all workers the same files, or one folder "
            "that all of them see."
        )


def refuse_other_network_than_chiefs(assembly: Assembly, team: Team) -> None:
    """Each worker begins with the same weights: only gradients are added up, so a difference would stay.

    Args:
        assembly: Fresh, on all workers.
        team: The workers.

    Raises:
        UsageError: This worker's network has other weights than the chief's.
    """
    if team.num_workers == 1:
        return
    from tfbig.training.distribution import of_this_process

    found = hashlib.blake2b(digest_size=16)
    for variable in assembly.network.variables:
        array = of_this_process(assembly.learner.distribute_strategy, variable)
        found.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    if team.decide({"network": found.hexdigest()})["network"] != found.hexdigest():
        raise UsageError(
            "The network on this worker's host begins with other weights than the chief's; give all workers the same "
            "file or folder as --model.backbone."
        )


def chiefs_private_state(config: RunConfig, state: PrivateState | None, team: Team) -> PrivateState | None:
    """The private state of the chief, on all workers: they draw the same examples, and each its share of the noise.

    Args:
        config: Says whether training is private.
        state: What the chief goes on with; None where it begins.
        team: The workers' connection, which carries the secret in the clear.
    """
    if not config.dp.is_private:
        return None
    from tfbig.gradients.private.mechanism import Mechanism
    from tfbig.training.private_state import PrivateState, fresh

    state = state or fresh()
    told = cast(dict, team.decide({"private": dataclasses.asdict(state)})["private"])
    if team.is_chief:
        return state
    mechanism = None if told["mechanism"] is None else Mechanism(**told["mechanism"])
    return PrivateState(told["run_id"], told["secret"], mechanism)


def run_as_worker(task: Task, config: RunConfig, team: Team) -> tuple[dict[str, object], int]:
    """Trains with the others; evaluation, export and all files are the chief's.

    Returns:
        What the chief's command prints last, and its exit code.
    """
    from tfbig.pipelines._stages import trained

    if not team.decide({})["is_finished"]:
        with telling_losses(team), trained(task, config, UnwrittenRun(Path(config.run_dir or "runs")), team=team):
            pass
        # The rest is the chief's; whether another worker than that is still there matters no more.
        team.release()
    ended = team.decide({})
    return cast(dict[str, object], ended["result"]), cast(int, ended["exit_code"])
