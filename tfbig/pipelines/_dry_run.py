"""The dry run: everything once and small, leaving nothing, so that a long run does not fail at its end."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tfbig.config import RunConfig
from tfbig.errors import DivergedError
from tfbig.pipelines._export import export_version
from tfbig.pipelines._runtime import runtime_of
from tfbig.training.task import Task

if TYPE_CHECKING:
    from tfbig.data.splits import Splits


def dry_run(task: Task, config: RunConfig) -> dict[str, object]:
    """Reads two batches, takes one step, exports and reloads in a temporary folder.

    Args:
        task: The job.
        config: Everything about it, free of conflicts.

    Returns:
        The command line's last line, with what was found under "dry_run"; also told on stderr.
    """
    import numpy as np

    from tfbig.data.batches import batches
    from tfbig.data.index_plan import IndexPlan
    from tfbig.training.assembly import assemble

    with runtime_of(config) as strategy:
        splits = task.load(config)
        assembly = assemble(task, config, two_batches(splits, config.data.batch_size), strategy)
        learner = assembly.learner
        one_step = batches(assembly.train, assembly.plan, augment=assembly.augment).take(1)
        history = learner.fit(one_step, shuffle=False, verbose=0).history
        if not np.isfinite(history["loss"][0]):
            raise DivergedError("The loss of the first step is not finite; try a lower --train.learning_rate.")
        with tempfile.TemporaryDirectory() as folder:
            export_version(task, assembly, Path(folder))
    counted = cast(dict[str, dict[str, object]], splits.manifest.get("splits", {}))
    facts = {
        "examples_per_class": {role: split["per_class"] for role, split in counted.items()},
        "steps": config.train.epochs * IndexPlan(len(splits.train), config.data.batch_size).steps_per_epoch,
        "parameters": int(assembly.network.count_params()),
        "trainable_parameters": int(sum(np.prod(v.shape) for v in learner.network.trainable_variables)),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "loss_of_first_step": history["loss"][0],
    }
    epsilon = None
    if assembly.privacy is not None:
        epsilon = assembly.privacy.epsilon(assembly.privacy.affordable_steps)
        facts |= {"planned_epsilon": epsilon, "noise_multiplier": assembly.privacy.mechanism.noise_multiplier}
    for name, value in facts.items():
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}", file=sys.stderr)
    return {"run_dir": None, "export": None, "metrics": {}, "epsilon": epsilon, "dry_run": facts}


def two_batches(splits: Splits, batch_size: int) -> Splits:
    """The first examples of each split, so that nothing is computed for all of them.

    Args:
        splits: The data.
        batch_size: Examples of a batch.
    """
    import numpy as np

    few = {
        role: split.subset(np.arange(min(2 * batch_size, len(split))))
        for role in ("train", "validation", "test")
        if (split := getattr(splits, role)) is not None
    }
    return dataclasses.replace(splits, **few)
