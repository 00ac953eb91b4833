"""Encoded pictures to RGB in [0, 1], and to the size a network takes.

One decoder for the manifest's check, for training and for the served model, so that a file is readable
in all three or in none. Everything is plain TensorFlow and survives export. It sits between the
sources, which give encoded bytes, and the networks, which take float images. Letters in shapes:
H height, W width, C channels, all in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import cast

import numpy as np
import tensorflow as tf
from PIL import Image

from tfbig.data.splits import Split

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp")

_JPEG = b"\xff\xd8\xff"
# libjpeg's other transform, which decode_image takes, is off by up to 4/255 where this one is exact, and no faster.
_DCT = "INTEGER_ACCURATE"
# What libjpeg can shrink by while it decodes.
_REDUCTIONS = (1, 2, 4, 8)
# TensorFlow decodes no picture of 2**29 pixels and more.
_MANY_PIXELS = 2**28
# A JPEG is decoded from a multiple of so many pixels on, whatever its colours' resolution. Of a part that begins
# elsewhere TensorFlow makes a copy without the pixels before it, which takes 7 % of the time of an example.
_BLOCK = 16
# A part that is so wide is widened to where a block begins, by less than a sixteenth.
_WIDE = 16 * _BLOCK
# A resizing that looks at two pixels in each direction passes over one in three here, and over more beyond.
_ANTIALIASED_FROM = 3


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
    return tf.cond(_is_jpeg(encoded), lambda: _values(_decode_jpeg(encoded)), lambda: _decode_other(encoded))


def decode_pixels(encoded: tf.Tensor) -> tf.Tensor:
    """`decode`, as (H, W, 3) uint8; what lies between two numbers under a half-transparent pixel is rounded."""
    return tf.cond(
        _is_jpeg(encoded),
        lambda: _decode_jpeg(encoded),
        lambda: tf.cast(tf.round(_decode_other(encoded) * 255), tf.uint8),
    )


def check(content: bytes) -> None:
    """Fails where `decode` does.

    A JPEG is shrunk by 8 while it is decoded: all of its code is read then, but few of its pixels are computed.

    Args:
        content: Of a file, not empty.

    Raises:
        tf.errors.OpError: The bytes are no picture, cut short, damaged or of a kind that TensorFlow does not decode.
    """
    by = _REDUCTIONS[-1]
    with tf.device("CPU"):
        if content.startswith(_JPEG):
            # By eager operations: a graph that is called once a picture takes twice as long.
            height, width, _ = tf.io.decode_jpeg(content, channels=3, dct_method=_DCT, ratio=by).shape
            if height * width * by**2 < _MANY_PIXELS:
                return
        _decode_in_graph(tf.constant(content))


def height_and_width(encoded: tf.Tensor) -> tf.Tensor:
    """(2,) int32 of a picture in pixels; of a JPEG without decoding it."""
    return tf.cond(
        _is_jpeg(encoded),
        lambda: tf.image.extract_jpeg_shape(encoded)[:2],
        lambda: tf.shape(_decode_other(encoded))[:2],
    )


def _is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, 3) == _JPEG


# Traced once a process; eager, one picture would cost a dozen calls.
_decode_in_graph = tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) uint8."""
    return tf.ensure_shape(tf.io.decode_jpeg(encoded, channels=3, dct_method=_DCT), [None, None, 3])


def _values(pixels: tf.Tensor) -> tf.Tensor:
    """Numbers from 0 to 255 as float32 in [0, 1]."""
    return tf.cast(pixels, tf.float32) * (1 / 255)


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    """PNG, GIF and BMP: (H, W, 3) float32 in [0, 1]."""
    pixels = tf.io.decode_image(encoded, expand_animations=False)
    pixels = tf.ensure_shape(pixels, [None, None, None])  # (H, W, C) uint8
    is_bitmap = tf.strings.substr(encoded, 0, 2) == b"BM"
    is_indexed = tf.logical_and(is_bitmap, tf.shape(pixels)[-1] == 1)
    pixels = tf.cond(is_indexed, lambda: _look_up(encoded, pixels), lambda: pixels)
    values = _values(pixels)
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
        _is_jpeg(encoded),
        # Numbers are divided last, when there are fewer of them.
        lambda: _values(resize(_decode_jpeg(encoded), size)),
        lambda: resize(_decode_other(encoded), size),
    )


def decode_part(encoded: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """A random part of a picture, at a network's size: what Inception was trained on (Szegedy et al. 2014, 1409.4842).

    The part is cut to the picture where it would stand out. Where it is 256 wide or more it is widened leftwards by up
    to 15 pixels, which libjpeg decodes at any rate. Of a JPEG only the part is decoded, and shrunk by 2, 4 or 8 in
    decoding as long as it stays larger than the result. What remains, mostly a shrinking by less than 2 of the shorter
    side and less than 2.7 of the longer, is bilinear without antialiasing. Where a side is to shrink by 3 and more even
    so, as in pictures more than 16 times the network's size, it is bilinear with antialiasing.

    Args:
        encoded: Scalar string.
        part: (5,) float32, a row of `parts.parts`.
        size: Height and width of the result in pixels, at least 1.

    Returns:
        (size, size, 3) float32 in [0, 1].
    """

    def of_other() -> tf.Tensor:
        image = _decode_other(encoded)
        top, left, height, width = tf.unstack(_window(tf.shape(image), part))
        return resize(image[top : top + height, left : left + width], size)

    values = tf.cond(_is_jpeg(encoded), lambda: _decode_jpeg_part(encoded, part, size), of_other)
    return _mirrored(values, part, size)


def cut_part(pixels: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """`decode_part` of a picture that is decoded already.

    Not the same to the bit: libjpeg enlarges the colours of a part's last column without looking beside the part, and
    a part of twice the size is not shrunk by 2 first, but resized with antialiasing.

    Args:
        pixels: (H, W, 3) uint8.
        part: (5,) float32, a row of `parts.parts`.
        size: Height and width of the result in pixels, at least 1.

    Returns:
        (size, size, 3) float32 in [0, 1].
    """
    window = _window(tf.shape(pixels), part)
    inside = tf.slice(pixels, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [3]], 0))
    is_large = tf.reduce_min(window[2:]) >= _REDUCTIONS[1] * size
    return _mirrored(_resized_part(inside, size, is_large), part, size)


def _mirrored(values: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """(size, size, 3): from right to left where the part says so."""
    mirrored = tf.cond(part[4] > 0.5, lambda: tf.reverse(values, [1]), lambda: values)
    return tf.ensure_shape(mirrored, [size, size, 3])


def _window(shape: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """(4,) int32 top, left, height and width, inside a picture of shape (H, W, ...)."""
    whole = tf.cast(shape[:2], tf.float32)
    sides = tf.clip_by_value(tf.sqrt(tf.reduce_prod(whole)) * part[:2], 1.0, whole)
    window = tf.cast(tf.concat([part[2:4] * (whole - sides), sides], axis=0), tf.int32)
    beyond = tf.where(window[3] >= _WIDE, window[1] % _BLOCK, 0)
    return window + beyond * tf.constant([0, -1, 0, 1])


def _decode_jpeg_part(encoded: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """`decode_part` of a JPEG, not mirrored."""
    window = _window(tf.image.extract_jpeg_shape(encoded), part)

    def reduced(by: int) -> tf.Tensor:
        # The whole becomes ceil(H / by) high: rounded down, the part stays inside.
        inside = tf.concat([window[:2] // by, tf.maximum(window[2:] // by, 1)], axis=0)
        return tf.io.decode_and_crop_jpeg(encoded, inside, channels=3, dct_method=_DCT, ratio=by)

    fits = tf.reduce_min(window[2:]) // size >= tf.constant(_REDUCTIONS[1:])  # (3,)
    choices = [functools.partial(reduced, by) for by in _REDUCTIONS]
    pixels = tf.switch_case(tf.math.count_nonzero(fits, dtype=tf.int32), choices)
    return _resized_part(pixels, size, tf.constant(False))


def _resized_part(pixels: tf.Tensor, size: int, is_large: tf.Tensor) -> tf.Tensor:
    """(size, size, 3) float32 in [0, 1] of (h, w, 3) uint8; antialiased where it is large, or else much longer."""
    return tf.cond(
        tf.logical_or(is_large, tf.reduce_max(tf.shape(pixels)[:2]) >= _ANTIALIASED_FROM * size),
        lambda: resize(pixels, size),
        # As float32: bilinear resizing of bytes is slower than both.
        lambda: tf.image.resize(tf.cast(pixels, tf.float32), [size, size]),
    ) * (1 / 255)


def decoded(split: Split, size: int) -> Split:
    """The split with its pictures at one size.

    Args:
        split: Its `fetch` gives a scalar string, an encoded picture, or (H, W, 3) uint8 of one that is decoded.
        size: Height and width in pixels.

    Returns:
        A split whose `fetch` and `fetch_part` give (size, size, 3) float32; labels, names and payload are the same.
    """
    fetch = cast(Callable[[tf.Tensor], tf.Tensor], split.fetch)

    def whole(index: tf.Tensor) -> tf.Tensor:
        picture = fetch(index)
        return decode_and_resize(picture, size) if picture.dtype == tf.string else _values(resize(picture, size))

    def part_of(index: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
        picture = fetch(index)
        return (decode_part if picture.dtype == tf.string else cut_part)(picture, part, size)

    return dataclasses.replace(split, fetch=whole, fetch_part=part_of, gather=None)


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG file of grey (H, W), (H, W, 1) or colour (H, W, 3) uint8 pixels."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"png_bytes takes uint8 pixels, got {pixels.dtype}.")
    grey = pixels.ndim == 3 and pixels.shape[-1] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "PNG")
    return buffer.getvalue()
