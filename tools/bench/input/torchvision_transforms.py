"""torchvision's random resized crop and flip, as the image classification examples of PyTorch and of Hugging Face
have them. torchvision is imported here, also where its build is for another one of torch.
"""

from __future__ import annotations

import read
import torch


def transforms() -> object:
    """Pillow image -> (3, S, S) float32 in [0, 1]; not normalised, which no tool does here."""
    try:
        import torchvision
    except RuntimeError:
        # Its compiled operators are for a torch with CUDA and cannot be loaded; pictures need none of them, but the
        # names of these two are asked for.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

    return torchvision.transforms.Compose(
        [
            torchvision.transforms.RandomResizedCrop(read.SIDE),
            torchvision.transforms.RandomHorizontalFlip(),
            torchvision.transforms.ToTensor(),
        ]
    )


def one_thread(seed: int) -> None:
    """Torch on one thread, with its draws begun at `seed`."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(seed)
