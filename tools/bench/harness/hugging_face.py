"""What the scripts of Hugging Face Trainer share: one thread, pictures from files, settings without logs.

Imports torch and transformers, which the peer's environment alone has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scripts import versions
from torch.utils.data import Dataset
from transformers import TrainingArguments


def begin(seed: int) -> dict[str, str]:
    """Sets one thread and the seed; gives the versions of what takes part."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    torch.manual_seed(seed)
    return versions("torch", "transformers", "accelerate")


class Pictures(Dataset):
    """Files and the number of their sub-folder.

    Args:
        folder: One sub-folder a class.
        side: Height and width that they are resized to.
        resampling: How.
    """

    def __init__(self, folder: Path, *, side: int, resampling: Image.Resampling) -> None:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        self._examples = [(file, label) for label, path in enumerate(classes) for file in sorted(path.iterdir())]
        self._side, self._resampling = side, resampling

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, object]:
        file, label = self._examples[index]
        with Image.open(file) as picture:
            small = picture.convert("RGB").resize((self._side, self._side), self._resampling)
        pixels = np.asarray(small, np.float32) / 255
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1), "labels": label}


def settings(folder: Path | str, *, seed: int, **chosen: object) -> TrainingArguments:
    """bfloat16, without logs and checkpoints.

    Args:
        folder: Where Trainer may write.
        seed: Of weights and batches.
        **chosen: What the bench chooses.
    """
    return TrainingArguments(
        output_dir=str(folder),
        bf16=True,
        seed=seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **chosen,
    )
