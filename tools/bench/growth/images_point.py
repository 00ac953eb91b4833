"""One number of images: a folder is listed, read and hashed, split, and trained on for one step."""

from __future__ import annotations

import dataclasses
import os

import point

from tfbig.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig
from tfbig.data import sources
from tfbig.pipelines.image_finetune import TASK, ImageOptions
from tfbig.runtime import runtime


def main() -> None:
    args = point.arguments("images")
    stages = point.Stages()
    config = RunConfig(
        data=DataConfig(source=f"folder:{args.work}", batch_size=32, image_size=8),
        model=ModelConfig(backbone="scratch:small_cnn"),
        adapt=AdaptConfig(mode="full"),
        train=TrainConfig(epochs=1, learning_rate=1e-3, weight_decay=0.0, keep="last"),
        runtime=RuntimeConfig(seed=args.seed),
        options=ImageOptions(),
    )
    found = {}
    read_folder, readable = sources.read_folder, sources._readable

    def listed(path: str, **named: object) -> object:
        with stages.stage("list"):
            return read_folder(path, **named)  # type: ignore[arg-type]

    def checked(*values: object) -> object:
        with stages.stage("read"):
            result = readable(*values)  # type: ignore[arg-type]
        found["split"] = stages.stage("split")
        found["split"].__enter__()
        return result

    # Every point reads all its files, and leaves nothing in the user's cache.
    os.environ["TFBIG_CACHE_GB"] = "0"
    # A run has no flag that tells its parts apart.
    sources.read_folder, sources._readable = listed, checked  # type: ignore[assignment]
    with runtime(strategy="none", precision="float32", seed=args.seed):
        idle_mb = round(point.megabytes("VmRSS"), 1)
        splits = TASK.load(config)
        found["split"].__exit__(None, None, None)
        with stages.stage("step"):
            point.first_step(dataclasses.replace(TASK), config, splits)
    num_images = sum(len(split) for split in (splits.train, splits.validation, splits.test) if split is not None)
    if num_images != args.images:
        raise ValueError(f"expected {args.images} images in the splits, got {num_images}")
    point.answer(**stages.figures, idle_mb=idle_mb, images=args.images, classes=len(splits.spec.class_names))


if __name__ == "__main__":
    main()
