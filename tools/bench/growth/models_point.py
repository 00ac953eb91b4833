"""One size of network: a vision transformer of 12 blocks, its step and its checkpoint, in float32."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import point
import tensorflow as tf
import work

from tfbig.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig
from tfbig.data.batches import batches
from tfbig.data.splits import DataSpec, Split, Splits
from tfbig.networks.backbones import Backbone
from tfbig.networks.heads import classifier
from tfbig.pipelines.image_finetune import TASK, ImageOptions
from tfbig.runtime import runtime
from tfbig.training import checkpoints
from tfbig.training.assembly import assemble

_STEPS = 3
_IMAGES = 4
"""In a batch."""


def main() -> None:
    args = point.arguments("width")
    work.WIDTH, work.HEADS = args.width, max(1, args.width // 64)
    from networks import multiply_adds, num_trained, vit_features

    facts = {}

    def build(config: RunConfig, spec: DataSpec) -> object:
        features = vit_features()
        import keras

        body = keras.Model(features.inputs[0], features.outputs[0], name="backbone")
        network = classifier(Backbone("vit", body, image_size=work.SIDE, pretrained=False), 10, inference_mode=False)
        facts.update(parameters=num_trained(network), multiply_adds=multiply_adds(network))
        return network

    config = RunConfig(
        data=DataConfig(batch_size=_IMAGES),
        model=ModelConfig(),
        adapt=AdaptConfig(mode="full"),
        train=TrainConfig(epochs=1, learning_rate=1e-4, weight_decay=0.03, keep="last"),
        runtime=RuntimeConfig(seed=args.seed),
        options=ImageOptions(),
    )
    x = np.random.default_rng(args.seed).random((_IMAGES, work.SIDE, work.SIDE, 3), np.float32)
    labels = np.zeros(_IMAGES * 1000, np.int32)
    split = Split(lambda i: tf.gather(x, i % _IMAGES), labels, range(len(labels)))
    spec = DataSpec(tf.TensorSpec((None, *x.shape[1:]), tf.float32), len(labels), tuple("0123456789"))
    task = dataclasses.replace(TASK, build=build, prepare=lambda splits, network: splits)  # type: ignore[arg-type]
    stages = point.Stages()
    with runtime(strategy="none", precision="float32", seed=args.seed) as strategy:
        idle_mb = round(point.megabytes("VmRSS"), 1)
        with stages.stage("first_step"):
            built = assemble(task, config, Splits(split, None, split, spec), strategy)
            data = batches(built.train, built.plan)
            built.learner.fit(data.take(1), epochs=1, shuffle=False, verbose=0)
        with stages.stage("steps"):
            built.learner.fit(data.take(_STEPS), epochs=1, shuffle=False, verbose=0)
        optimizer = built.learner.optimizer
        began = time.perf_counter()
        with stages.stage("checkpoint"):
            groups = {
                "network": [v.numpy() for v in built.learner.network.variables],
                "optimizer": [v.numpy() for v in optimizer.variables],
            }
            checkpoints.write(args.work / "step.npz", checkpoints.Checkpoint(groups, {}))
        wall_s = round(time.perf_counter() - began, 3)
    size_mb = round((args.work / "step.npz").stat().st_size / 1e6, 1)
    # Three forward passes of all multiply-adds, two operations each.
    gflop = 6 * facts["multiply_adds"] * _IMAGES / 1e9
    step_s = round(stages.figures["steps_s"] / _STEPS, 4)
    point.answer(
        **stages.figures, **facts, width=args.width, idle_mb=idle_mb, step_s=step_s, gflop=round(gflop, 2),
        s_per_gflop=round(step_s / gflop, 6), checkpoint_wall_s=wall_s, checkpoint_size_mb=size_mb,
    )  # fmt: skip


if __name__ == "__main__":
    main()
