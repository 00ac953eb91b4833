"""One number of classes: a first step of a network with as many outputs, then a test split is judged and described.

The pictures are noise and the probabilities made up, right for two examples in three: what is measured is the cost.
"""

from __future__ import annotations

import numpy as np
import point
import tensorflow as tf

from tfbig.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig
from tfbig.data import strata
from tfbig.data.images import png_bytes
from tfbig.data.splits import DataSpec, Split, Splits
from tfbig.evaluation.evaluate import Evaluation, write_predictions
from tfbig.evaluation.metrics import classification_metrics
from tfbig.evaluation.report import write_report
from tfbig.pipelines.image_finetune import TASK, ImageOptions
from tfbig.runtime import runtime
from tfbig.training.run_directory import RunDirectory


def main() -> None:
    args = point.arguments("classes", "examples")
    stages, names = point.Stages(), tuple(f"class {c:05d}" for c in range(args.classes))
    labels = np.resize(np.arange(args.classes, dtype=np.int32), args.examples)
    config = RunConfig(
        data=DataConfig(batch_size=32, image_size=8),
        model=ModelConfig(backbone="scratch:small_cnn"),
        adapt=AdaptConfig(mode="full"),
        train=TrainConfig(epochs=1, learning_rate=1e-3, weight_decay=0.0, keep="last"),
        runtime=RuntimeConfig(seed=args.seed),
        options=ImageOptions(),
    )
    examples = [f"{name}/{i:06d}.png" for i, name in enumerate(names[label] for label in labels)]
    with stages.stage("split"):
        strata.draw(labels, np.arange(len(examples)), examples, fraction=0.1, seed=(0,))
    idle_mb = round(point.megabytes("VmRSS"), 1)
    picture = png_bytes(np.random.default_rng(args.seed).integers(256, size=(8, 8, 3)).astype(np.uint8))
    split = Split(lambda i: tf.constant(picture), labels, examples, payload=lambda i: picture)
    spec = DataSpec(tf.TensorSpec([None], tf.string), len(labels), names)
    with runtime(strategy="none", precision="float32", seed=args.seed), stages.stage("step"):
        point.first_step(TASK, config, Splits(split, None, split, spec))
    _judge(stages, labels, names, examples, split, args)
    sizes = {f"{file.name}_kb": round(file.stat().st_size / 1000, 1) for file in sorted(args.work.iterdir())}
    point.answer(**stages.figures, idle_mb=idle_mb, classes=args.classes, examples=args.examples, **sizes)


def _judge(stages: point.Stages, labels: np.ndarray, names: tuple, examples: list, split: Split, args: object) -> None:
    probabilities = _probabilities(labels, len(names), args.seed)  # type: ignore[attr-defined]
    work = args.work  # type: ignore[attr-defined]
    with stages.stage("metrics"):
        report = classification_metrics(labels, probabilities, class_names=names)
    evaluation = Evaluation(labels, probabilities, examples, report)
    with stages.stage("report"):
        RunDirectory(work).write_json("evaluation.json", report)
        write_predictions(work / "predictions.csv", evaluation, names)
        write_report(work, evaluation=evaluation, pictures=split.payload, history=[])


def _probabilities(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((len(labels), num_classes), np.float32)  # (N, C)
    right = np.flatnonzero(np.arange(len(labels)) % 3)
    logits[right, labels[right]] += 8.0
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


if __name__ == "__main__":
    main()
