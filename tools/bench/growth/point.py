"""What each script of the growth bench does alike: a clock and a memory gauge over stages, a first step, the answer."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import versions

import tfbig

if TYPE_CHECKING:
    from tfbig.config import RunConfig
    from tfbig.data.splits import Splits
    from tfbig.training.assembly import Assembly
    from tfbig.training.task import Task


@dataclass
class Stages:
    """CPU seconds and the peak of memory of the stages of this process.

    Args:
        figures: NAME_s and NAME_mb of each stage: seconds of all threads, and the highest resident megabytes in it.
    """

    figures: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what is inside; stages do not overlap, for each begins the gauge anew."""
        # Linux: sets the mark of the highest resident memory back to what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        began = time.process_time()
        yield
        self.figures[f"{name}_s"] = round(time.process_time() - began, 4)
        self.figures[f"{name}_mb"] = round(megabytes("VmHWM"), 1)


def megabytes(name: str) -> float:
    """A line of /proc/self/status: VmRSS is what is resident, VmHWM the highest since the gauge was set back."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(f"{name}:")).split()[1]) / 1024


def arguments(*names: str) -> argparse.Namespace:
    """The flags of a script: its own, all whole numbers, and what all have."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def first_step(task: Task, config: RunConfig, splits: Splits) -> Assembly:
    """Everything from the data to the end of one step, as a run does it."""
    import tensorflow as tf

    from tfbig.data.batches import batches
    from tfbig.training.assembly import assemble

    built = assemble(task, config, splits, tf.distribute.get_strategy())
    data = batches(built.train, built.plan, augment=built.augment).take(1)
    built.learner.fit(data, epochs=1, shuffle=False, verbose=0)
    return built


def answer(**facts: object) -> None:
    """Prints what the bench reads: one object in the last line."""
    found = {"tfbig": tfbig.__version__} | versions("tensorflow", "keras", "numpy")
    print(json.dumps({**facts, "versions": found}))
