"""Encoded pictures to RGB in [0, 1], and to the size a network takes.

One decoder for the manifest's check, for training and for the served model, so that a file is readable
in all three or in none. Everything is plain TensorFlow and survives export. It sits between the
sources, which give encoded bytes, and the networks, which take float images; parts of pictures are made in
`image_parts.py`. Letters in shapes: H height, W width, C channels, all in pixels.
"""

from __future__ import annotations

import io

import numpy as np
import tensorflow as tf
from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp")

_JPEG = b"\xff\xd8\xff"
# libjpeg's other transform, which decode_image takes, is off by up to 4/255 where this one is exact, and no faster.
DCT = "INTEGER_ACCURATE"
# What libjpeg can shrink by while it decodes.
REDUCTIONS = (1, 2, 4, 8)
# TensorFlow decodes no picture of 2**29 numbers and more, up to three a pixel.
_MANY_PIXELS = 2**29 // 3


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
    return tf.cond(is_jpeg(encoded), lambda: in_unit_range(_decode_jpeg(encoded)), lambda: decode_other(encoded))


def decode_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """`decode`, as (H, W, 3) uint8; what lies between two numbers under a half-transparent pixel is rounded."""
    return tf.cond(
        is_jpeg(encoded),
        lambda: _decode_jpeg(encoded),
        lambda: tf.cast(tf.round(decode_other(encoded) * 255), tf.uint8),
    )


def check(content: bytes) -> None:
    """Fails where `decode` does.

    A JPEG is shrunk by 8 while it is decoded: all of its code is read then, but few of its pixels are computed.

    Args:
        content: Of a file, not empty.

    Raises:
        tf.errors.OpError: The bytes are no picture, cut short, damaged or of a kind that TensorFlow does not decode.
    """
    by = REDUCTIONS[-1]
    with tf.device("CPU"):
        if content.startswith(_JPEG):
            # By eager operations: a graph that is called once a picture takes twice as long.
            height, width, _ = tf.io.decode_jpeg(content, channels=3, dct_method=DCT, ratio=by).shape
            if height * width * by**2 < _MANY_PIXELS:
                return
        _decode_in_graph(tf.constant(content))


def height_and_width(encoded: tf.Tensor) -> tf.Tensor:
    """(2,) int32 of a picture in pixels; of a JPEG without decoding it."""
    return tf.cond(
        is_jpeg(encoded),
        lambda: tf.image.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(decode_other(encoded))[:2],
    )


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Scalar bool: whether a file begins as a JPEG does."""
    return tf.strings.substr(encoded, 0, 3) == _JPEG


# Traced once a process; eager, one picture would cost a dozen calls.
_decode_in_graph = tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) uint8."""
    return tf.ensure_shape(tf.io.decode_jpeg(encoded, channels=3, dct_method=DCT), [None, None, 3])


def in_unit_range(pixels: tf.Tensor) -> tf.Tensor:
    """Numbers from 0 to 255 as float32 in [0, 1]."""
    return tf.cast(pixels, tf.float32) * (1 / 255)


def decode_other(encoded: tf.Tensor) -> tf.Tensor:
    """PNG, GIF and BMP: (H, W, 3) float32 in [0, 1]."""
    pixels = tf.io.decode_image(encoded, expand_animations=False)
    pixels = tf.ensure_shape(pixels, [None, None, None])  # (H, W, C) uint8
    is_bitmap = tf.strings.substr(encoded, 0, 2) == b"BM"
    is_indexed = tf.logical_and(is_bitmap, tf.shape(pixels)[-1] == 1)
    pixels = tf.cond(is_indexed, lambda: _look_up(encoded, pixels), lambda: pixels)
    values = in_unit_range(pixels)
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
    return tf.cond(
        is_jpeg(encoded),
        # Numbers are divided last, when there are fewer of them.
        lambda: in_unit_range(resize(_decode_jpeg(encoded), size)),
        lambda: resize(decode_other(encoded), size),
    )


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of grey (H, W), (H, W, 1) or colour (H, W, 3) uint8 pixels."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"png_bytes takes uint8 pixels, got {pixels.dtype}.")
    grey = pixels.ndim == 3 and pixels.shape[-1] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "PNG")
    return buffer.getvalue()
