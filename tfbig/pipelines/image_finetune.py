"""Fine-tune a pretrained network on your own images, judge it, and export it for TF Serving.

Run as `python -m tfbig.pipelines.image_finetune`; without flags it learns handwritten digits from the
bundled backbone. The functions below are the whole job; everything else is the frame's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from tfbig.config import RunConfig
from tfbig.pipelines.job import Task, main

if TYPE_CHECKING:
    import keras

    from tfbig.data.batches import Augment
    from tfbig.data.splits import DataSpec, Splits
    from tfbig.objectives.supervised import Objective
    from tfbig.serving.export import Signature


@dataclass(frozen=True)
class ImageOptions:
    """What only image fine-tuning has.

    Args:
        augment: Random changes to training pictures, such as flip,crop: resized_crop (a part of each, at any
            size), flip, vertical_flip, crop (shifts), rotate, brightness, contrast, randaugment, mixup, cutmix.
        loss: crossentropy, or focal, which turns to the examples that are still wrong.
        focal_gamma: focal: how strongly, 0 to 5.
        label_smoothing: Share of each label spread over all classes.
    """

    augment: str = ""
    loss: Literal["crossentropy", "focal"] = "crossentropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"options.label_smoothing must be at least 0 and below 1, got {self.label_smoothing}.")
        if not 0 <= self.focal_gamma <= 5:
            raise ValueError(f"options.focal_gamma must be between 0 and 5, got {self.focal_gamma}.")


def load(config: RunConfig) -> Splits:
    """Images, encoded or those to train on decoded, and their labels, from the source that the user names."""
    from tfbig.data.decoded import kept
    from tfbig.data.sources import load_images

    data = config.data
    splits = load_images(
        data.source,
        directory=data.dir,
        train_split=data.train_split,
        validation_split=data.validation_split,
        test_split=data.test_split,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        limit=data.limit,
        on_bad=data.on_bad,
        path_column=data.path_column,
        label_column=data.label_column,
        seed=config.runtime.seed,
        offline=config.runtime.offline,
    )
    return replace(splits, train=kept(splits.train, data.decoded_gb)) if data.decoded_gb else splits


def build(config: RunConfig, spec: DataSpec) -> keras.Model:
    """The backbone under a fresh head, with as much of it trainable as the user asked for."""
    from tfbig.networks import adapters, backbones, heads

    model, adapt = config.model, config.adapt
    backbone = backbones.load(
        model.backbone,
        weights=model.weights,
        image_size=config.data.image_size,
        norm=model.norm,
        signature=model.signature,
        output=model.output,
        trust=model.trust,
        offline=config.runtime.offline,
    )
    frozen_statistics = adapt.statistics == "frozen" or (adapt.statistics == "auto" and backbone.pretrained)
    network = heads.classifier(
        backbone,
        len(spec.class_names),
        hidden_units=model.hidden_units,
        dropout=model.dropout,
        inference_mode=frozen_statistics,
    )
    if adapt.mode == "head":
        adapters.freeze(network)
    elif adapt.mode == "lora":
        adapters.lora(network, adapt.lora_rank)
    elif adapt.unfreeze_last is not None:
        adapters.unfreeze_last(network, adapt.unfreeze_last)
    return network


def prepare(splits: Splits, network: keras.Model) -> Splits:
    """Images decoded to the size that the network takes."""
    from tfbig.data.sized import sized

    size = network.input_shape[1]
    validation = splits.validation and sized(splits.validation, size)
    return replace(splits, train=sized(splits.train, size), validation=validation, test=sized(splits.test, size))


def augment(config: RunConfig, spec: DataSpec) -> Augment | None:
    """The random changes that the user names."""
    from tfbig.data.augment import augmentation

    wanted = cast(ImageOptions, config.options).augment
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    return augmentation(names, num_classes=len(spec.class_names), multi_label=spec.multi_label) if names else None


def objective(config: RunConfig, splits: Splits) -> Objective:
    """Cross-entropy or focal loss, with the classes weighed where the user asked for it."""
    from tfbig.objectives.supervised import balanced_weights, classification

    options, spec = cast(ImageOptions, config.options), splits.spec
    balanced = config.data.class_weights == "balanced"
    return classification(
        len(spec.class_names),
        multi_label=spec.multi_label,
        label_smoothing=options.label_smoothing,
        focal_gamma=options.focal_gamma if options.loss == "focal" else 0.0,
        class_weights=balanced_weights(splits.train.labels, len(spec.class_names)) if balanced else None,
    )


def signatures(network: keras.Model, spec: DataSpec) -> Mapping[str, Signature]:
    """Encoded images in; label, probability and probabilities out."""
    from tfbig.serving.images import image_signatures

    return image_signatures(network, spec)


TASK = Task(
    name="image_finetune",
    options=ImageOptions,
    load=load,
    build=build,
    prepare=prepare,
    augment=augment,
    objective=objective,
    signatures=signatures,
    examples=(
        "python -m tfbig.pipelines.image_finetune",
        "python -m tfbig.pipelines.image_finetune --data.source folder:./photos --adapt.mode head "
        "--export.dir saved_models/photos",
        "python -m tfbig.pipelines.image_finetune --config cifar10_hub --data.dir ~/tensorflow_datasets "
        "--train.epochs 5",
    ),
)

if __name__ == "__main__":
    sys.exit(main(TASK))
