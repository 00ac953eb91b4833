"""tfbig: `image_finetune --adapt.mode head`: pictures read and checked, features computed once, 20 epochs of the head.

The training of a real run, with its checkpoints, TensorBoard and records, which the peers' scripts do without; only
the judging on the test split and the export are left out. The feature cache begins empty and is written.
"""

from __future__ import annotations

import os
import time

import frozen
from scripts import arguments

args = arguments(has_work=True)
os.environ["TFBIG_CACHE"] = str(args.work / "cache")

from tfbig.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig  # noqa: E402
from tfbig.pipelines.image_finetune import TASK, ImageOptions  # noqa: E402
from tfbig.runtime import runtime  # noqa: E402
from tfbig.training import assembly, features  # noqa: E402
from tfbig.training.fit import fit  # noqa: E402
from tfbig.training.run_directory import open_run  # noqa: E402


def main() -> None:
    config = RunConfig(
        data=DataConfig(source=f"folder:{args.folder}", batch_size=frozen.BATCH_SIZE, validation_fraction=0.0),
        model=ModelConfig(backbone="apps:ResNet50", weights="none"),
        adapt=AdaptConfig(mode="head", statistics="frozen"),
        train=TrainConfig(epochs=frozen.NUM_EPOCHS, learning_rate=frozen.LEARNING_RATE, keep="last"),
        runtime=RuntimeConfig(precision="bfloat16", seed=args.seed),
        options=ImageOptions(),
    )
    spent = {}
    extract = features.extract

    def timed(*values: object, **named: object) -> object:
        began = time.process_time()
        split = extract(*values, **named)  # type: ignore[arg-type]
        spent["features"] = time.process_time() - began
        return split

    features.extract = timed  # type: ignore[assignment]
    run = open_run(args.work / "run")
    with runtime(strategy="none", precision="bfloat16", seed=args.seed) as strategy, run as run_directory:
        began = time.process_time()
        splits = TASK.load(config)
        built = assembly.assemble(TASK, config, splits, strategy)
        num_examples = len(splits.train)
        fit(built, config, run_directory)
        total = time.process_time() - began
    if "features" not in spent:
        raise ValueError("the features were not cached")
    frozen.answer(("tensorflow", "keras"), total_s=total, features_s=spent["features"], num_examples=num_examples)


if __name__ == "__main__":
    main()
