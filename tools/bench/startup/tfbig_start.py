"""tfbig: `python -m tfbig.pipelines.image_finetune` with a callback that ends it after its first step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import first_step
from scripts import arguments
from turns import Turns

import tfbig
from tfbig.config import RunConfig
from tfbig.pipelines.image_finetune import TASK
from tfbig.pipelines.job import main

if TYPE_CHECKING:
    from tfbig.data.splits import Splits
    from tfbig.objectives.supervised import Objective


def objective(config: RunConfig, splits: Splits) -> Objective:
    """The job's own; on the way, `fit`'s first callback is made to tell of each step."""
    from tfbig.training import callbacks

    turns = Turns(warm_up_steps=1, facts={"versions": {"tfbig": tfbig.__version__}})

    class Told(callbacks.DivergenceGuard):
        def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
            super().on_train_batch_end(batch, logs)
            turns.step_done()

    # A command line has no flag for it, and the bench must not change what a run does.
    callbacks.DivergenceGuard = Told
    return TASK.objective(config, splits)


if __name__ == "__main__":
    args = arguments(has_work=True)
    flags = {
        "data.source": f"folder:{args.folder}",
        "data.batch_size": first_step.BATCH_SIZE,
        "data.image_size": first_step.SIDE,
        "model.backbone": "apps:ResNet50",
        "model.weights": "none",
        "adapt.mode": "full",
        "train.epochs": first_step.NUM_EPOCHS,
        "train.learning_rate": first_step.LEARNING_RATE,
        "train.weight_decay": first_step.WEIGHT_DECAY,
        "runtime.precision": "bfloat16",
        "runtime.seed": args.seed,
        "run_dir": args.work / "run",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    sys.exit(main(replace(TASK, objective=objective), words))
