"""Random parts of pictures, drawn in numpy for many examples at once.

A draw is a hash of the example's key (splitmix64: Steele, Lea and Flood 2014, doi 10.1145/2714064.2660195), so that it
depends on nothing else. TensorFlow could draw in the graph, but there each of some twenty small operations costs an
example more than all of them cost here. Below `batches`, which makes the keys; `image_parts.py` uses the parts.
"""

from __future__ import annotations

import numpy as np

# A random part of a picture: its share of the area, and its width over its height.
_LEAST_AREA, _MOST_STRETCHED = 0.08, 4 / 3
_NUM_DRAWS = 5
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def keys(seed: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(n, 2) int64: one for each example of a step.

    Args:
        seed: (2,) int32 of the step.
        indices: (n,) int64 of the examples.
    """
    step = np.ascontiguousarray(seed, np.int32).view(np.int64)
    return np.stack([np.broadcast_to(step, indices.shape), indices], axis=-1)


def draws(keys: np.ndarray) -> np.ndarray:
    """(n, 5) float32 in [0, 1), each row a function of its (2,) integers alone.

    Args:
        keys: (n, 2) integers.
    """
    number = np.ascontiguousarray(keys).astype(np.int64).view(np.uint64)
    mixed = _mixed(_mixed(number[:, 0]) + number[:, 1])
    streams = mixed[:, None] + np.arange(_NUM_DRAWS, dtype=np.uint64) * _STEP  # (n, 5)
    # The upper 24 bits, which float32 holds exactly.
    return (_mixed(streams) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def parts(draws: np.ndarray, *, flips: bool = True) -> np.ndarray:
    """Parts of 8 to 100 per cent of the area, all shares alike, 3/4 to 4/3 as wide as high in pixels.

    Args:
        draws: (n, 5) in [0, 1]: the area, the shape, top and left; the last mirrors below a half.
        flips: Whether any is mirrored.

    Returns:
        (n, 5) float32: height and width over the root of the picture's area, so above 1 at times; top and left as
        shares of what is free beside the part; 1 where it is mirrored, otherwise 0.
    """
    side = np.sqrt(_LEAST_AREA + (1 - _LEAST_AREA) * draws[:, 0])
    stretch = _MOST_STRETCHED ** (draws[:, 1] - 0.5)
    mirrored = (draws[:, 4] < 0.5) & flips
    return np.stack([side / stretch, side * stretch, draws[:, 2], draws[:, 3], mirrored], axis=1).astype(np.float32)


def _mixed(number: np.ndarray) -> np.ndarray:
    """Each uint64 to another one that shows nothing of it."""
    number = number + _STEP
    for shift, factor in _MIXERS:
        number = (number ^ (number >> np.uint64(shift))) * np.uint64(factor)
    return number ^ (number >> np.uint64(31))
