"""Encoded pictures to RGB in [0, 1], and to the size a network takes.

One decoder for the manifest's check, for training and for the served model, so that a file is readable
in all three or in none. Everything is plain TensorFlow and survives export. It sits between the
sources, which give encoded bytes, and the networks, which take float images. Letters in shapes:
H height, W width, C channels, all in pixels.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import tensorflow as tf
from PIL import Image

from tfbig.data.splits import Split

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp")


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """One picture from its file's bytes.

    JPEG (grey, colour, CMYK), PNG (grey, colour, palette, with alpha, 1 to 16 bits), GIF (its first frame)
    and BMP (8, 24 and 32 bits). Transparent pixels show white behind them. The orientation that a camera
    writes beside the pixels (EXIF) is not applied.

    Args:
        encoded: Scalar string.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        tf.errors.InvalidArgumentError: The bytes are no picture, or cut short.
    """
    # decode_image takes libjpeg's fast transform, which is off by up to 4/255 where this one is exact.
    pixels = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
        lambda: tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, expand_animations=False),
    )
    pixels = tf.ensure_shape(pixels, [None, None, None])  # (H, W, C) uint8
    is_bitmap = tf.strings.substr(encoded, 0, 2) == b"BM"
    is_indexed = tf.logical_and(is_bitmap, tf.shape(pixels)[-1] == 1)
    pixels = tf.cond(is_indexed, lambda: _look_up(encoded, pixels), lambda: pixels)
    values = tf.cast(pixels, tf.float32) / 255.0
    channels = tf.shape(values)[-1]
    # 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha.
    colour = tf.cond(channels >= 3, lambda: values[..., :3], lambda: tf.tile(values[..., :1], [1, 1, 3]))
    # The fourth byte of a 32-bit BMP pixel is padding, mostly 0: as alpha it would blank the picture.
    has_alpha = tf.logical_and(channels % 2 == 0, tf.logical_not(is_bitmap))

    def on_white() -> tf.Tensor:
        alpha = values[..., -1:]
        return colour * alpha + (1.0 - alpha)

    return tf.ensure_shape(tf.cond(has_alpha, on_white, lambda: colour), [None, None, 3])


def _look_up(encoded: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """The colours of an 8-bit BMP, whose palette TensorFlow's decoder passes over.

    Args:
        encoded: Scalar string. Little-endian: at byte 10 where the pixels start, at 14 the size of the second
            header, behind which the palette lies as blue, green, red, 0.
        indices: (H, W, 1) uint8.

    Returns:
        (H, W, 3) uint8.
    """

    def number(at: int) -> tf.Tensor:
        return tf.io.decode_raw(tf.strings.substr(encoded, at, 4), tf.int32)[0]

    start = 14 + number(14)
    stored = tf.strings.substr(encoded, start, number(10) - start)
    palette = tf.reshape(tf.io.decode_raw(stored, tf.uint8), [-1, 4])[:, 2::-1]  # (colours, 3)
    return tf.gather(palette, tf.cast(indices[..., 0], tf.int32))


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Bilinear with antialiasing to a square; the aspect ratio is not kept.

    Args:
        image: (H, W, C) or (B, H, W, C), in any range.
        size: Height and width of the result in pixels, at least 1.

    Returns:
        float32 of the same rank, unchanged where the image already has that size.
    """

    def scaled() -> tf.Tensor:
        return tf.image.resize(image, [size, size], method="bilinear", antialias=True)

    fits = tf.reduce_all(tf.shape(image)[-3:-1] == size)
    resized = tf.cond(fits, lambda: tf.cast(image, tf.float32), scaled)
    return tf.ensure_shape(resized, [*image.shape[:-3], size, size, image.shape[-1]])


def decode_and_resize(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """`decode`, then `resize`: (size, size, 3) float32 in [0, 1]."""
    return resize(decode(encoded), size)


def decoded(split: Split, size: int) -> Split:
    """The split with its encoded pictures decoded to one size.

    Args:
        split: Its `fetch` gives a scalar string.
        size: Height and width in pixels.

    Returns:
        A split whose `fetch` gives (size, size, 3) float32; labels, names and payload are the same.
    """
    fetch = split.fetch
    return dataclasses.replace(split, fetch=lambda index: decode_and_resize(fetch(index), size), gather=None)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of grey (H, W), (H, W, 1) or colour (H, W, 3) uint8 pixels."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"png_bytes takes uint8 pixels, got {pixels.dtype}.")
    grey = pixels.ndim == 3 and pixels.shape[-1] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "PNG")
    return buffer.getvalue()
