"""Hugging Face datasets: `imagefolder` with `set_transform`, under the DataLoader and collate function of their
example `run_image_classification.py`.
"""

from __future__ import annotations

import tempfile

import datasets
import read
import torch
from scripts import arguments
from torch.utils.data import DataLoader
from torchvision_transforms import one_thread, transforms


def main() -> None:
    args = arguments()
    one_thread(args.seed)
    changed = transforms()

    def train_transforms(examples: dict[str, list]) -> dict[str, list]:
        examples["pixel_values"] = [changed(image.convert("RGB")) for image in examples["image"]]
        return examples

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}

    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("imagefolder", data_dir=str(args.folder), split="train", cache_dir=cache)
        data.set_transform(train_transforms)
        loader = DataLoader(data, read.BATCH_SIZE, shuffle=True, collate_fn=collate, drop_last=True)
        turns = read.turns("datasets", "torch", "torchvision", "pillow")
        while True:
            for batch in loader:
                if batch["pixel_values"].shape != (read.BATCH_SIZE, 3, read.SIDE, read.SIDE):
                    raise ValueError(f"got a batch of {tuple(batch['pixel_values'].shape)}")
                turns.step_done()


if __name__ == "__main__":
    main()
