"""Pictures made on the spot, and `load_images` with the defaults of the configuration."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfbig.config import DataConfig
from tfbig.data.sources import load_images
from tfbig.data.splits import Splits


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Writes a small picture that its number alone decides."""

    def write(path: Path, number: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def class_folder(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """A folder of sub-folders: name (also nested, train/cat) -> number of pictures."""

    def make(counts: dict[str, int], root: Path = tmp_path / "pictures") -> Path:
        first = 1000
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                picture(root / name / f"{i:03d}.png", first + i)
            first += 1000
        return root

    return make


@pytest.fixture
def load() -> Callable[..., Splits]:
    """`load_images` with the defaults of DataConfig, offline."""
    data = DataConfig()
    defaults = {
        "directory": data.dir,
        "train_split": data.train_split,
        "validation_split": data.validation_split,
        "test_split": data.test_split,
        "validation_fraction": data.validation_fraction,
        "test_fraction": data.test_fraction,
        "limit": data.limit,
        "on_bad": data.on_bad,
        "path_column": data.path_column,
        "label_column": data.label_column,
        "seed": 0,
        "offline": True,
    }

    def call(source: str, **changes: object) -> Splits:
        return load_images(source, **{**defaults, **changes})

    return call
