"""A finished run as `python -m tfbig audit` finds it: its job, what it claims, and whether its data is the same.

Everything is read from the run's own folder. Used by _audit.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

from tfbig.errors import DataError, EnvironmentFault, GateError, UsageError
from tfbig.gradients.private.accounting import epsilon
from tfbig.gradients.private.mechanism import Accountant, Mechanism, Noise, Sampling
from tfbig.recipes import read_recipe
from tfbig.training import private_state
from tfbig.training.private_state import PrivateState
from tfbig.training.run_directory import RunDirectory
from tfbig.training.task import Task

_ENDED = ("done", "stopped")
# Between a claim and the same figure computed again, which another version of dp-accounting may round otherwise.
_CLAIM_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Claim:
    """What dp.json says that the run keeps to.

    Args:
        mechanism: The run.
        epsilon: After all steps; inf where nothing is promised.
        delta: Of the promise.
        steps: Steps taken.
        accountant: Whose epsilon it is.
    """

    mechanism: Mechanism
    epsilon: float
    delta: float
    steps: int
    accountant: Accountant


def refuse_unfinished(run_dir: Path) -> None:
    """Raises UsageError for a folder that is no run's, or whose run has not ended."""
    config = run_dir / "config.yaml"
    if not run_dir.is_dir() or not config.is_file() or not config.read_bytes().startswith(b"job: "):
        raise UsageError(
            f"{run_dir} is not the folder of a run, which holds a config.yaml; give the one that the run's last line "
            "names as run_dir."
        )
    best = RunDirectory(run_dir).read_json("search.json").get("best")
    if best is not None:
        raise UsageError(
            f"{run_dir} is a search, whose network was trained by one of its trials; audit that one: "
            f"{run_dir / 'trials' / f'{best:04d}'}."
        )
    state = RunDirectory(run_dir).state()
    if state not in _ENDED:
        raise UsageError(
            f"The run in {run_dir} has not ended (it is {state or 'of unknown state'}), so there is no network to "
            f"audit yet; go on with its command and --resume {run_dir}."
        )


def task_of(run: RunDirectory) -> Task:
    """The run's job, from the module that it was run by.

    Raises:
        UsageError: It cannot be imported.
    """
    job = str(read_recipe(run.path / "config.yaml").get("job"))
    module = str(run.read_json("environment.json").get("module") or f"tfbig.pipelines.{job}")
    # A job of one's own lies where `python -m` found it: in the folder that one is in.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, "")
    try:
        task = getattr(importlib.import_module(module), "TASK", None)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(
            f"The run's job {job} is in the module {module}, which cannot be imported ({error}); run the audit in the "
            "folder that the run was started in."
        ) from error
    if not isinstance(task, Task):
        raise UsageError(f"The module {module} of the run's job {job} must define TASK, a Task, but does not.")
    return task


def read_claim(run: RunDirectory) -> Claim:
    """What dp.json says, checked against itself.

    Raises:
        DataError: It is missing or damaged.
        GateError: It claims less than its own figures give.
    """
    path = run.path / "dp.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        accountant = content["accountant"]
        if accountant not in get_args(Accountant):
            raise ValueError(f"the accountant is {accountant!r}")
        mechanism = Mechanism(
            float(content["noise_multiplier"]), int(content["num_examples"]), int(content["batch_size"]),
            cast(Sampling, content["sampling"]), cast(Noise, content["noise"]),
        )  # fmt: skip
        claim = Claim(mechanism, float(content["epsilon"]), float(content["delta"]), int(content["steps"]), accountant)
        if claim.steps < 1 or math.isnan(claim.epsilon):
            raise ValueError(f"steps is {claim.steps}, epsilon {claim.epsilon}")
        again = epsilon(mechanism, claim.steps, delta=claim.delta, accountant=accountant)
    except FileNotFoundError:
        raise DataError(f"{path} is missing, so nobody knows what this private run claims; put it back.") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, UsageError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())}), so nobody knows what this "
            "private run claims; put a copy back."
        ) from error
    if claim.epsilon < again * (1 - _CLAIM_TOLERANCE):
        raise GateError(
            f"{path} claims epsilon {claim.epsilon:.4g}, but its own noise, sampling and steps give {again:.4g}; the "
            "claim is wrong whatever the run did."
        )
    return claim


def refuse_other_promise(
    run: RunDirectory, *, promised: Mapping[str, object], trained: Mapping[str, object]
) -> None:
    """Compares dp.json with the run itself.

    Args:
        run: Its folder.
        promised: What dp.json says, by name.
        trained: The same of the run's settings, data and checkpoint.

    Raises:
        GateError: They do not speak of the same training.
    """
    differing = [name for name in promised if not _same(promised[name], trained[name])]
    other = [f"{name} {promised[name]} there, {trained[name]} in the run" for name in differing]
    if other:
        raise GateError(
            f"{run.path / 'dp.json'} is not of this run's training: {', '.join(other)}; its claim is about another one."
        )


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def state_for_audit(run: RunDirectory, seed: int) -> PrivateState:
    """The run's mechanism with a secret of its own: the run's may be erased, and is nobody's business.

    Raises:
        EnvironmentFault: The run's state is missing or damaged.
    """
    state = private_state.read(run.checkpoints)
    if state is None:
        raise EnvironmentFault(f"{run.checkpoints} does not hold the run's state and weights; put them back.")
    secret = int.from_bytes(hashlib.blake2b(f"audit {seed}".encode(), digest_size=16).digest(), "little")
    return PrivateState("audit", secret, state.mechanism)


def refuse_other_data(run: RunDirectory, fingerprint: object) -> None:
    """Raises DataError where the data is not what the run was trained on."""
    before = run.read_json("data_manifest.json").get("fingerprint")
    if before is not None and before != fingerprint:
        raise DataError(
            f"The data has changed since the run in {run.path} was trained, so nobody knows which examples it saw; "
            "put the data back as it was."
        )
