"""Hugging Face Trainer on PyTorch: a folder of pictures read by Pillow, a network from its configuration."""

from __future__ import annotations

import first_step
from hugging_face import Pictures, begin, settings
from PIL import Image
from scripts import arguments
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback
from turns import Turns


class AfterStep(TrainerCallback):
    """Tells `turns` of each step."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, *_: object, **__: object) -> None:
        self._turns.step_done()


def main() -> None:
    args = arguments(has_work=True)
    versions = begin(args.seed)
    config = ResNetConfig(num_labels=first_step.NUM_CLASSES, downsample_in_bottleneck=True)
    chosen = settings(
        args.work,
        seed=args.seed,
        per_device_train_batch_size=first_step.BATCH_SIZE,
        num_train_epochs=first_step.NUM_EPOCHS,
        learning_rate=first_step.LEARNING_RATE,
        weight_decay=first_step.WEIGHT_DECAY,
        use_cpu=True,
    )
    after = AfterStep(Turns(warm_up_steps=1, facts={"versions": versions}))
    trainer = Trainer(
        model=ResNetForImageClassification(config),
        args=chosen,
        train_dataset=Pictures(args.folder, side=first_step.SIDE, resampling=Image.Resampling.BICUBIC),
        callbacks=[after],
    )
    trainer.train()


if __name__ == "__main__":
    main()
