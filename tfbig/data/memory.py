"""Memory of numpy's that TensorFlow uses as it is."""

from __future__ import annotations

import numpy as np

# At a multiple of so many bytes TensorFlow's tensors begin; what begins elsewhere is copied.
ALIGNMENT = 64


def aligned(size: int) -> np.ndarray:
    """(size,) uint8, not filled, that begins at a multiple of the alignment."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    skipped = -memory.ctypes.data % ALIGNMENT
    return memory[skipped : skipped + size]
