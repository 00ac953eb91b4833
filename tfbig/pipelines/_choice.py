"""What `--runtime.precision auto` and `--runtime.jit_compile auto` stand for in a run: its first session times steps.

Each candidate is built as the run would be, on the first examples, and thrown away again; training/choice.py decides.
Its steps are of the whole network, for where the run keeps the features of a frozen backbone, computing these is nearly
all that it does. A run that goes on keeps its choice, which environment.json holds.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from tfbig.config import RunConfig
from tfbig.pipelines._dry_run import two_batches
from tfbig.pipelines._runtime import runtime_of
from tfbig.pipelines._workers import refuse_xla_over_workers
from tfbig.team import Team
from tfbig.training.choice import (
    TIMED_STEPS,
    WARM_UP_STEPS,
    Choice,
    Precision,
    Timing,
    choose,
    has_enough,
    is_open,
    recorded,
    timed_steps,
    unmeasured,
)
from tfbig.training.run_directory import RunDirectory
from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.data.splits import Splits

NAME = "choice"
"""In environment.json."""

log = logging.getLogger(__name__)


def settled(
    task: Task, config: RunConfig, run: RunDirectory | None, *, team: Team | None = None
) -> tuple[RunConfig, Choice | None, Splits | None]:
    """The configuration to run with, the choice where there was one to make, and the data where it was read for that.

    Args:
        task: The job.
        config: Free of conflicts.
        run: The run's folder; None where there is none.
        team: The workers, all of which call this and take the chief's choice; by default this process alone.

    Raises:
        UsageError: The run chose on one device what several workers cannot do.
        WorkerLost: Another worker is gone.
    """
    if not is_open(config):
        return config, None, None
    team, choice, splits = team or Team(), None, None
    if run is not None and config.resume != "never":
        choice = recorded(run.read_json("environment.json").get(NAME), config)
    if choice is None:
        choice, splits = _made(task, config, team)
        jit = "with" if choice.jit_compile else "without"
        log.info("runtime: %s, %s XLA: %s", choice.precision, jit, choice.reason)
    # The others see no file of the chief's.
    told = team.decide({NAME: choice.record()})[NAME]
    choice = choice if team.is_chief else recorded(told, config) or choice
    if team.num_workers > 1:
        refuse_xla_over_workers(choice.applied(config))
    return choice.applied(config), choice, splits


def settled_before(config: RunConfig, run: RunDirectory) -> RunConfig:
    """The configuration that a run was trained with.

    Args:
        config: As config.yaml has it.
        run: The run's folder.
    """
    if not is_open(config):
        return config
    choice = recorded(run.read_json("environment.json").get(NAME), config)
    return (choice or unmeasured(config, "environment.json names no choice")).applied(config)


def _made(task: Task, config: RunConfig, team: Team) -> tuple[Choice, Splits | None]:
    from tfbig.hardware import computes_bfloat16
    from tfbig.runtime import runtime

    if config.dp.is_private:
        # Its steps would be on private examples, and no budget counts them.
        return unmeasured(config, "private training is not timed and keeps to the defaults"), None
    if team.num_workers > 1:
        return unmeasured(config, "workers that each timed for themselves might choose differently"), None
    with runtime(strategy=config.runtime.strategy, precision="float32", seed=config.runtime.seed) as strategy:
        has_xla = strategy.num_replicas_in_sync == 1
        splits = task.load(config)
        # XLA compiles the step. Where features are kept that is the head's alone, which takes no time to speak of.
        steps_are_of_head = config.adapt.mode == "head" and (
            config.adapt.cached_views > 0 or task.augment(config, splits.spec) is None
        )

    def timed(precision: Precision, jit_compile: bool) -> Timing:
        found = _timed(task, config, splits, precision, jit_compile)
        told = found.failure or (
            f"{found.step_ms:.3g} ms a step, first one after {found.first_step_s:.0f} s"
        )
        log.info("timing %s, XLA %s: %s", precision, "on" if jit_compile else "off", told)
        return found

    return choose(config, timed, has_bfloat16=computes_bfloat16(), has_xla=has_xla and not steps_are_of_head), splits


def _timed(task: Task, config: RunConfig, splits: Splits, precision: Precision, jit_compile: bool) -> Timing:
    """A few steps on one of the first batches, again and again, so that reading data is no part of it."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfbig.data.batches import batches
    from tfbig.training.assembly import assemble

    ends, losses = [time.perf_counter()], []

    def after_step(step: int, logs: dict[str, float]) -> None:
        # Waits for the device, where that computes by itself.
        losses.append(float(logs["loss"]))
        ends.append(time.perf_counter())
        assembly.learner.stop_training = has_enough(ends)

    candidate = Choice(precision, jit_compile, "").applied(config)
    try:
        with runtime_of(candidate) as strategy:
            few = two_batches(splits, config.data.batch_size)
            assembly = assemble(task, candidate, few, strategy, keeps_features=False)
            batch = batches(assembly.train, assembly.plan, augment=assembly.augment).take(1).cache()
            callback = keras.callbacks.LambdaCallback(on_train_batch_end=after_step)
            steps = batch.repeat(WARM_UP_STEPS + TIMED_STEPS)
            assembly.learner.fit(steps, callbacks=[callback], shuffle=False, verbose=0)
    except (tf.errors.OpError, NotImplementedError) as error:
        # A candidate that cannot be computed here is none; the run itself would show what is wrong with the default.
        return Timing(precision, jit_compile, None, failure=str(error).splitlines()[0][:200])
    finally:
        # Names of layers count on, and the run's are to be those it would have without any timing.
        keras.utils.clear_session()
    steps_s = timed_steps(ends)
    return Timing(
        precision,
        jit_compile,
        1e3 * min(steps_s),
        ends[1] - ends[0],
        bool(np.isfinite(losses).all()),
        num_steps=len(steps_s),
    )
