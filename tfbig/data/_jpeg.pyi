"""Parts of JPEG files by libjpeg, in C; the module is missing where it could not be compiled."""

import numpy as np

def decode_parts(encoded: list[bytes], windows: np.ndarray, pixels: np.ndarray, size: int) -> bytes:
    """Decodes, cuts, resizes and mirrors B pictures; other threads of Python go on meanwhile.

    Args:
        encoded: B files.
        windows: (B, 6) int32, contiguous: top, left, height and width in pixels after shrinking, what libjpeg shrinks
            by while it decodes (1, 2, 4 or 8; 0 to leave the picture out), and 1 where the part is mirrored.
        pixels: (B, size, size, 3) float32, contiguous; filled with the parts in [0, 1].
        size: Height and width of the results in pixels.

    Returns:
        B bytes: 1 where the part is in `pixels`, and 0 where anything may be there: of what is left out, no JPEG of 1
        or 3 components, not whole, not as large as its window, or damaged so that libjpeg warns of it.

    Raises:
        ValueError: The arrays are of another length.
        TypeError: Something is no bytes.
    """
