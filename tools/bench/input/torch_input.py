"""PyTorch: torchvision's ImageFolder, which opens files by Pillow, under a DataLoader in its own process."""

from __future__ import annotations

import read
from scripts import arguments
from torch.utils.data import DataLoader
from torchvision_transforms import one_thread, transforms


def main() -> None:
    args = arguments()
    one_thread(args.seed)
    changed = transforms()
    from torchvision.datasets import ImageFolder

    loader = DataLoader(ImageFolder(args.folder, changed), read.BATCH_SIZE, shuffle=True, drop_last=True)
    turns = read.turns("torch", "torchvision", "pillow")
    while True:
        for images, _ in loader:
            if images.shape != (read.BATCH_SIZE, 3, read.SIDE, read.SIDE):
                raise ValueError(f"got a batch of {tuple(images.shape)}")
            turns.step_done()


if __name__ == "__main__":
    main()
