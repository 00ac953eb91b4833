"""Hugging Face Trainer on PyTorch: a ResNet-50 whose weights are frozen but for the classifier's."""

from __future__ import annotations

import time
from pathlib import Path

import frozen
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments


class Pictures(Dataset):
    """Files and the number of their sub-folder."""

    def __init__(self, folder: Path) -> None:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        self._examples = [(file, label) for label, path in enumerate(classes) for file in sorted(path.iterdir())]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, object]:
        file, label = self._examples[index]
        with Image.open(file) as picture:
            small = picture.convert("RGB").resize((frozen.SIDE, frozen.SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32) / 255
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1), "labels": label}


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
    args = frozen.arguments()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(args.seed)
    began = time.process_time()
    network = ResNetForImageClassification(ResNetConfig(num_labels=frozen.NUM_CLASSES, downsample_in_bottleneck=True))
    freeze(network)
    settings = TrainingArguments(
        output_dir=str(args.work),
        per_device_train_batch_size=frozen.BATCH_SIZE,
        num_train_epochs=frozen.NUM_MEASURED,
        learning_rate=frozen.LEARNING_RATE,
        use_cpu=True,
        bf16=True,
        seed=args.seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    after = AtEpochs()
    Trainer(model=network, args=settings, train_dataset=Pictures(args.folder / "train"), callbacks=[after]).train()
    first, second = after.times[0] - began, after.times[1] - after.times[0]
    frozen.answer(("torch", "transformers", "accelerate"), first_s=first, next_s=second)


if __name__ == "__main__":
    main()
