"""Hugging Face Trainer on PyTorch: a folder of pictures read by Pillow, a network from its configuration."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import first_step
import numpy as np
import torch
from first_step import arguments
from PIL import Image
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments
from turns import Turns


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
            pixels = np.asarray(picture.convert("RGB").resize((first_step.SIDE, first_step.SIDE)), np.float32) / 255
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1), "labels": label}


class AfterStep(TrainerCallback):
    """Tells `turns` of each step."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_end(self, *_: object, **__: object) -> None:
        self._turns.step_done()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(args.seed)
    config = ResNetConfig(num_labels=first_step.NUM_CLASSES, downsample_in_bottleneck=True)
    settings = TrainingArguments(
        output_dir=str(args.work),
        per_device_train_batch_size=first_step.BATCH_SIZE,
        num_train_epochs=first_step.NUM_EPOCHS,
        learning_rate=first_step.LEARNING_RATE,
        weight_decay=first_step.WEIGHT_DECAY,
        use_cpu=True,
        bf16=True,
        seed=args.seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    after = AfterStep(Turns(warm_up_steps=1, facts={"versions": versions}))
    trainer = Trainer(
        model=ResNetForImageClassification(config),
        args=settings,
        train_dataset=Pictures(args.folder),
        callbacks=[after],
    )
    trainer.train()


if __name__ == "__main__":
    main()
