"""Folders of many tiny pictures that all differ, as cheap to make as files are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

_DIFFERENT = 16
"""Pictures; the files differ by a number behind the end of the JPEG, which decoders do not read."""


def write_folder(folder: Path, *, num_images: int, num_classes: int, seed: int) -> None:
    """Writes FOLDER/class_CCCC/PPP/NNNNNNN.jpg with up to 1,000 files a folder.

    Args:
        folder: An empty one.
        num_images: At least `num_classes`.
        num_classes: At least 2.
        seed: Of the pixels.
    """
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(_DIFFERENT):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(8, 8, 3)).astype(np.uint8)).save(stream, "JPEG", quality=75)
        pictures.append(stream.getvalue())
    for label in range(num_classes):
        for place, index in enumerate(range(label, num_images, num_classes)):
            part = folder / f"class_{label:04d}" / f"{place // 1000:03d}"
            if place % 1000 == 0:
                part.mkdir(parents=True)
            with open(f"{part}/{index:07d}.jpg", "wb", buffering=0) as file:
                file.write(pictures[index % _DIFFERENT] + b"%d" % index)
