"""Hugging Face Trainer on PyTorch: a ResNet-50 whose weights are frozen but for the classifier's."""

from __future__ import annotations

import time

import frozen
import torch
from hugging_face import Pictures, begin, settings
from PIL import Image
from scripts import arguments
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback


class AtEpochs(TrainerCallback):
    """CPU seconds of the process at the end of each epoch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_epoch_end(self, *_: object, **__: object) -> None:
        self.times.append(time.process_time())


def freeze(network: ResNetForImageClassification) -> None:
    """Freezes all but the classifier, its norms too: `train()` would have them gather a batch's statistics."""
    for name, weight in network.named_parameters():
        weight.requires_grad = name.startswith("classifier")
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.train = lambda mode=True, part=part: torch.nn.Module.train(part, False)  # type: ignore[method-assign]


def main() -> None:
    args = arguments(has_work=True)
    begin(args.seed)
    began = time.process_time()
    network = ResNetForImageClassification(ResNetConfig(num_labels=frozen.NUM_CLASSES, downsample_in_bottleneck=True))
    freeze(network)
    chosen = settings(
        args.work,
        seed=args.seed,
        per_device_train_batch_size=frozen.BATCH_SIZE,
        num_train_epochs=frozen.NUM_MEASURED,
        learning_rate=frozen.LEARNING_RATE,
        use_cpu=True,
    )
    pictures = Pictures(args.folder / "train", side=frozen.SIDE, resampling=Image.Resampling.BILINEAR)
    after = AtEpochs()
    Trainer(model=network, args=chosen, train_dataset=pictures, callbacks=[after]).train()
    first, second = after.times[0] - began, after.times[1] - after.times[0]
    frozen.answer(("torch", "transformers", "accelerate"), first_s=first, next_s=second)


if __name__ == "__main__":
    main()
