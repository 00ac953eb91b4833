"""Made-up photographs as JPEG files, for the benches that read pictures.

Discs of all sizes that hide each other, the model of natural images of Lee, Mumford and Huang (2001, Occlusion Models
for Natural Images), under uneven light and with the grain of a sensor: smooth parts, edges and noise, as photographs
have them, at 500 by 375 pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 500, 375
NUM_CLASSES = 10
_NUM_DISCS = 1500
_SMALLEST, _LARGEST = 4, 200
_GRAIN = 3.0


def picture(rng: np.random.Generator) -> Image.Image:
    """One picture."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT), (127, 127, 127))
    draw = ImageDraw.Draw(canvas)
    # The density of radii falls with their cube, so that the picture looks alike at every scale.
    share = rng.random(_NUM_DISCS)
    radii = (share * _LARGEST**-2 + (1 - share) * _SMALLEST**-2) ** -0.5
    centres, colours = rng.random((_NUM_DISCS, 2)) * (WIDTH, HEIGHT), rng.normal(127, 50, (_NUM_DISCS, 3))
    for (x, y), radius, colour in zip(centres, radii, np.clip(colours, 0, 255).astype(int).tolist(), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour))
    coarse = Image.fromarray(rng.integers(256, size=(4, 5), dtype=np.uint8))
    light = 0.6 + np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)[..., None] / 400
    pixels = np.asarray(canvas, np.float32) * light + rng.normal(0, _GRAIN, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_pictures(folder: Path, *, num_pictures: int, quality: int, seed: int) -> float:
    """Writes JPEG files, a sub-folder a class, and gives their mean size in bytes.

    Args:
        folder: Exists.
        num_pictures: At least NUM_CLASSES.
        quality: Of the JPEGs, 1 to 95; Pillow's own choice is 75.
        seed: Of the pictures.
    """
    rng = np.random.default_rng(seed)
    sizes = []
    for number in range(num_pictures):
        place = folder / f"class{number % NUM_CLASSES}"
        place.mkdir(exist_ok=True)
        file = place / f"{number:05d}.jpg"
        picture(rng).save(file, quality=quality)
        sizes.append(file.stat().st_size)
    return float(np.mean(sizes))
