#!/usr/bin/env python3
"""What pretraining buys: test accuracy on handwritten digits with 5, 20 and all labels a class.

    python tools/bench/label_efficiency.py --json

Two arms on the same network, data and frame: `finetuned` starts from `bundled:glyphs`, `scratch` from fresh
weights. Both are measured on the test split of the default run (seed 0); the seeds draw the labelled
examples, the head, the fresh weights and the batches. The last line of stdout is
{"5": {"finetuned": mean, "scratch": mean}, "20": ..., "all": ...}.

Each arm has its own settings for each number of labels, `SETTINGS`, found by `--search` without the test
split: on draws of the training split, judged by those of its examples that were not shown. Searched for the
scratch arm, in two rounds of one after the other with the best of the others so far: augmentation, learning
rate, number of steps (`GRID`). The fine-tuned arm has the default learning rate and was not searched.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
import time
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from tfbig.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import Split, Splits
from tfbig.pipelines.image_finetune import TASK, ImageOptions
from tfbig.training.assembly import assemble

ARMS = {"finetuned": "bundled:glyphs", "scratch": "scratch:convnet"}
LABELS: dict[str, int | None] = {"5": 5, "20": 20, "all": None}
DATA_SEED = 0


@dataclass(frozen=True)
class Settings:
    """How one arm is trained.

    Args:
        learning_rate: Peak of AdamW's, which falls to 0 along a cosine.
        num_steps: Batches.
        augment: As `--options.augment`.
        batch_size: Examples a step.
    """

    learning_rate: float
    num_steps: int
    augment: str = ""
    batch_size: int = 32


SETTINGS = {
    ("finetuned", "5"): Settings(1e-3, 100, "crop,rotate"),
    ("finetuned", "20"): Settings(1e-3, 200, "crop,rotate"),
    ("finetuned", "all"): Settings(1e-3, 800, "crop,rotate"),
    ("scratch", "5"): Settings(1e-3, 800, "crop,rotate"),
    ("scratch", "20"): Settings(1e-3, 800, "crop,rotate"),
    ("scratch", "all"): Settings(1e-3, 1600, "crop,rotate"),
}

GRID: dict[str, tuple] = {
    "augment": ("", "crop,rotate", "crop,rotate,mixup"),
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "num_steps": (200, 400, 800, 1600),
}
SEARCH_START = Settings(learning_rate=1e-3, num_steps=400)


def main() -> None:
    """Measure, or search for settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON instead of a table")
    parser.add_argument("--seeds", type=int, default=5, help="draws of each figure (default %(default)s)")
    searches = [":".join(pair) for pair in SETTINGS]
    parser.add_argument("--search", choices=searches, help="try GRID for one arm and number of labels")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    splits = TASK.load(RunConfig(runtime=dataclasses.replace(RunConfig().runtime, seed=DATA_SEED)))
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    if args.search:
        search(splits, *args.search.split(":"), num_seeds=args.seeds)
        return
    means = measure(splits, num_seeds=args.seeds)
    print(json.dumps(means) if args.json else table(means))


def measure(splits: Splits, *, num_seeds: int) -> dict[str, dict[str, float]]:
    """Mean test accuracy of each arm, by labels a class."""
    means: dict[str, dict[str, float]] = {labels: {} for labels in LABELS}
    for labels, arm in itertools.product(LABELS, ARMS):
        started = time.monotonic()
        found = []
        for seed in range(num_seeds):
            shown, _ = drawn(splits.train.labels, LABELS[labels], seed)
            found.append(accuracy(arm, SETTINGS[arm, labels], splits.train.subset(shown), splits.test, splits, seed))
        means[labels][arm] = round(float(np.mean(found)), 4)
        logging.info("%s labels a class, %s: %.4f, each seed %s, %.0f s",
                     labels, arm, np.mean(found), np.round(found, 4).tolist(), time.monotonic() - started)
    return means


def search(splits: Splits, arm: str, labels: str, *, num_seeds: int) -> None:
    """Vary one setting of GRID after the other and print each accuracy: two rounds, on the training split alone."""
    found: dict[Settings, float] = {}
    best = SEARCH_START
    for name, values in 2 * tuple(GRID.items()):
        for settings in (dataclasses.replace(best, **{name: value}) for value in values):
            if settings not in found:
                found[settings] = _tried(splits, arm, labels, settings, num_seeds)
                print(f"{found[settings]:.4f}  {arm}:{labels}  {settings}", flush=True)
        best = max(found, key=lambda settings: (found[settings], settings.num_steps))
    print(f"best: {best}")


def _tried(splits: Splits, arm: str, labels: str, settings: Settings, num_seeds: int) -> float:
    """Mean accuracy on the training examples that were not shown."""
    accuracies = []
    for seed in range(num_seeds):
        shown, rest = drawn(splits.train.labels, LABELS[labels], seed)
        if not len(rest):
            shown, rest = shown[len(shown) // 4:], shown[:len(shown) // 4]
        train, judged = splits.train.subset(shown), splits.train.subset(rest)
        accuracies.append(accuracy(arm, settings, train, judged, splits, seed))
    return float(np.mean(accuracies))


def drawn(labels: np.ndarray, per_class: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `per_class` examples of each class, or of all, and those of the others."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if per_class is None:
        return order, order[:0]
    shown = np.concatenate([order[labels[order] == c][:per_class] for c in np.unique(labels)])
    return shown, np.setdiff1d(order, shown)


def accuracy(arm: str, settings: Settings, train: Split, test: Split, splits: Splits, seed: int) -> float:
    """Accuracy on `test` of the arm's network after training on `train`."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    # One long epoch that passes over the examples again and again, each time in another order.
    num_examples, rng = settings.num_steps * settings.batch_size, np.random.default_rng(seed)
    passes = [rng.permutation(len(train)) for _ in range(-(-num_examples // len(train)))]
    long = train.subset(np.concatenate(passes)[:num_examples])
    spec = dataclasses.replace(splits.spec, num_train=len(train))
    config = RunConfig(
        data=DataConfig(batch_size=settings.batch_size),
        model=ModelConfig(backbone=ARMS[arm]),
        train=TrainConfig(epochs=1, learning_rate=settings.learning_rate),
        options=ImageOptions(augment=settings.augment),
    )
    assembly = assemble(TASK, config, Splits(long, None, test, spec), tf.distribute.get_strategy())
    in_order = IndexPlan(num_examples, settings.batch_size, seed=seed, shuffle=False)
    assembly.learner.fit(batches(assembly.train, in_order, augment=assembly.augment), shuffle=False, verbose=0)
    whole = IndexPlan(len(test), 256, shuffle=False)
    return assembly.learner.evaluate(batches(assembly.splits.test, whole), verbose=0, return_dict=True)["accuracy"]


def table(means: dict[str, dict[str, float]]) -> str:
    """The means as lines of text."""
    lines = [f"{'labels a class':>15}" + "".join(f"{arm:>12}" for arm in ARMS)]
    lines += [f"{labels:>15}" + "".join(f"{means[labels][arm]:12.4f}" for arm in ARMS) for labels in LABELS]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
