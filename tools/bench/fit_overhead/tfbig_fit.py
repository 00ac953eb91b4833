"""tfbig: its `fit` with all its callbacks in a run directory, on the job's network."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import keras
import same
import tensorflow as tf
from same import arguments
from turns import Turns

import tfbig
from tfbig.config import RunConfig
from tfbig.data.splits import DataSpec, Split, Splits
from tfbig.pipelines.image_finetune import TASK
from tfbig.runtime import runtime
from tfbig.training import callbacks
from tfbig.training.assembly import assemble
from tfbig.training.fit import fit
from tfbig.training.run_directory import open_run


def splits() -> Splits:
    """Labels under as many indices as steps could ask for; the images come when the network says their size."""
    labels = same.labels()
    empty = Split(fetch=tf.identity, labels=labels, names=range(len(labels)))
    spec = DataSpec(
        features=tf.TensorSpec((None, None, None, 3), tf.float32),
        num_train=len(labels),
        class_names=tuple(str(label) for label in range(same.NUM_CLASSES)),
    )
    return Splits(train=empty, validation=None, test=empty, spec=spec)


def in_memory(empty: Splits, network: keras.Model, seed: int) -> Splits:
    """The same with the images of a batch gathered at once."""
    gather = same.gather(network, seed)
    split = dataclasses.replace(empty.train, fetch=gather, gather=gather)
    return dataclasses.replace(empty, train=split, test=split)


def told(turns: Turns) -> type[callbacks.DivergenceGuard]:
    """`fit`'s first callback, which tells `turns` of each step."""

    class Told(callbacks.DivergenceGuard):
        def on_train_batch_begin(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
            # Of the step before, whose other callbacks have had their turn too.
            if batch:
                turns.step_done()

    return Told


def main() -> None:
    args = arguments()
    config: RunConfig = same.configuration(args)
    task = dataclasses.replace(TASK, prepare=lambda empty, network: in_memory(empty, network, args.seed))
    facts: dict[str, object] = {"versions": {"tfbig": tfbig.__version__}}
    callbacks.DivergenceGuard = told(Turns(warm_up_steps=same.WARM_UP_STEPS, facts=facts))
    with contextlib.ExitStack() as stack:
        strategy = stack.enter_context(runtime(strategy="none", precision="float32", seed=args.seed))
        run = stack.enter_context(open_run(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"))
        fit(assemble(task, config, splits(), strategy), config, run)


if __name__ == "__main__":
    main()
