"""What a job's command does where several processes run it together: meet, agree, and say who was lost."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tfbig import cluster
from tfbig.config import RunConfig, flatten
from tfbig.errors import TfbigError, UsageError
from tfbig.team import Team

if TYPE_CHECKING:
    from tfbig.training.private_state import PrivateState

# Where a host has its data and a user wants the results; `resume` is the chief's to act on.
_OF_THE_HOST = ("run_dir", "resume", "export.dir", "data.dir", "data.source", "runtime.start_timeout_s")


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
    return None if config.dry_run else found


def common_settings(config: RunConfig) -> dict[str, object]:
    """What all workers must be started with alike."""
    return {name: value for name, value in flatten(config).items() if name not in _OF_THE_HOST}


@contextlib.contextmanager
def telling_losses(team: Team) -> Iterator[None]:
    """An error that came from another worker's end says so, and not where TensorFlow noticed it."""
    try:
        yield
    except TfbigError:
        raise
    except Exception as error:
        lost = team.loss()
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


def chiefs_private_state(state: PrivateState | None, team: Team) -> PrivateState | None:
    """The private state of the chief, on all workers: they draw the same examples, and each its share of the noise.

    Args:
        state: What the chief goes on with, or begins with; the others give None.
        team: Their connection, which carries the secret in the clear.
    """
    from tfbig.gradients.private.mechanism import Mechanism
    from tfbig.training.private_state import PrivateState

    told = team.decide({"private": None if state is None else dataclasses.asdict(state)})["private"]
    if team.is_chief or not isinstance(told, dict):
        return state
    mechanism = None if told["mechanism"] is None else Mechanism(**told["mechanism"])
    return PrivateState(told["run_id"], told["secret"], mechanism)


def unseen(run_dir: str | None) -> Path:
    """A worker's name for the run directory that only the chief has."""
    return Path(run_dir or "runs")
