"""tfbig: the job `image_finetune` under `--adapt.mode full --runtime.precision bfloat16`, on made-up images.

The network, the data, the rule and the learner come from `assemble`, as in a run; only `load` is replaced, and
for the `vit_tiny`, which no backbone names, `build`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys

import keras
import numpy as np
import tensorflow as tf
import work
from keras_turns import AfterStep
from networks import multiply_adds, num_trained, vit_features
from scripts import versions
from turns import Turns
from work import ROWS, Row

import tfbig
from tfbig.config import AdaptConfig, DataConfig, ModelConfig, RunConfig, RuntimeConfig, TrainConfig
from tfbig.data.splits import DataSpec, Split, Splits
from tfbig.networks.backbones import Backbone
from tfbig.networks.heads import classifier
from tfbig.pipelines.image_finetune import TASK, ImageOptions
from tfbig.runtime import runtime
from tfbig.training.assembly import assemble
from tfbig.training.callback_list import StepCallbacks
from tfbig.training.distribution import fed


def transformed(network: keras.Model, transform: str) -> keras.Model:
    """The network as it is to be trained: here a transform (Model -> Model) can be tried.

    Args:
        network: From images to logits, as `image_finetune` builds it, before what `assemble` itself changes.
        transform: MODULE:FUNCTION, or nothing for none.
    """
    if not transform:
        return network
    module, _, function = transform.partition(":")
    return getattr(importlib.import_module(module), function)(network)


def configuration(row: Row, seed: int) -> RunConfig:
    """What the command line would give."""
    # image_finetune knows the one by name; of the other it only uses the frame around the backbone.
    backbone = ModelConfig(backbone="apps:ResNet50", weights="none") if row.name == "resnet50" else ModelConfig()
    return RunConfig(
        data=DataConfig(batch_size=work.BATCH_SIZE),
        model=backbone,
        adapt=AdaptConfig(mode="full"),
        train=TrainConfig(epochs=1, learning_rate=work.LEARNING_RATE, weight_decay=work.WEIGHT_DECAY, keep="last"),
        runtime=RuntimeConfig(precision="bfloat16", seed=seed),
        options=ImageOptions(),
    )


def network(row: Row, config: RunConfig, spec: DataSpec) -> keras.Model:
    """The row's network as the job builds it."""
    if row.name == "resnet50":
        built = TASK.build(config, spec)
    else:
        features = vit_features()
        body = keras.Model(features.inputs[0], features.outputs[0], name="backbone")
        backbone = Backbone(name=row.name, network=body, image_size=work.SIDE, pretrained=False)
        built = classifier(backbone, work.NUM_CLASSES, inference_mode=False)
    row.check(num_trained(built))
    return built


def images(seed: int) -> Splits:
    """Made-up images in memory, under as many indices as steps could ask for."""
    rng = np.random.default_rng(seed)
    x = rng.random((work.NUM_IMAGES, work.SIDE, work.SIDE, 3), np.float32)
    labels = np.resize(rng.integers(work.NUM_CLASSES, size=work.NUM_IMAGES), work.NUM_STEPS * work.BATCH_SIZE)

    def fetch(index: tf.Tensor) -> tf.Tensor:
        # As a decoder gives it: one image at a time, in tf.data's threads.
        image = tf.numpy_function(lambda i: x[i % len(x)], [index], tf.float32, stateful=False)
        return tf.ensure_shape(image, x.shape[1:])

    split = Split(fetch=fetch, labels=labels, names=range(len(labels)))
    spec = DataSpec(
        features=tf.TensorSpec((None, work.SIDE, work.SIDE, 3), tf.float32),
        num_train=len(labels),
        class_names=tuple(str(label) for label in range(work.NUM_CLASSES)),
    )
    return Splits(train=split, validation=None, test=split, spec=spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=tuple(ROWS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", choices=("yes", "no"), default="yes", help="with the compiled operations")
    parser.add_argument("--transform", default="", help="MODULE:FUNCTION, Model -> Model, applied to the network")
    args = parser.parse_args()
    row, facts = ROWS[args.row], {}
    if args.compiled == "no":
        # As it is where they were not compiled: none is found.
        sys.modules["tfbig.networks._batch_norm"] = None

    def build(config: RunConfig, spec: DataSpec) -> keras.Model:
        built = network(row, config, spec)
        # Before any transform: what it makes of the layers changes no result, so it does not change the work.
        facts["multiply_adds"] = multiply_adds(built)
        return transformed(built, args.transform)

    config = configuration(row, args.seed)
    task = dataclasses.replace(TASK, build=build, prepare=lambda splits, network: splits)
    with runtime(strategy="none", precision="bfloat16", seed=args.seed) as strategy:
        assembly = assemble(task, config, images(args.seed), strategy)
        facts["versions"] = {"tfbig": tfbig.__version__} | versions("keras", "tensorflow", "numpy")
        after = AfterStep(Turns(warm_up_steps=work.WARM_UP_STEPS, facts=facts))
        learner = assembly.learner
        data = fed(strategy, assembly.train, assembly.plan)
        learner.fit(data, callbacks=StepCallbacks([after], learner), shuffle=False, verbose=0)


if __name__ == "__main__":
    main()
