"""Random parts of pictures at a network's size: what Inception was trained on (Szegedy et al. 2014, 1409.4842).

`parts.py` draws them. Here they are cut out, shrunk and mirrored, of an encoded picture while it is decoded: by
TensorFlow's operations, or of several JPEGs at once by `_jpeg.c`, where that was compiled when tfbig was installed.
Both give the same pixels, but for rounding. Above `images.py`, which decodes whole pictures; below `sized.py`. Letters
in shapes: B pictures, H height, W width, in pixels.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfbig.data.images import DCT, REDUCTIONS, decode_other, in_unit_range, is_jpeg, resize
from tfbig.data.memory import aligned
from tfbig.data.python_calls import python_call
from tfbig.threads import num_threads

try:
    from tfbig.data import _jpeg
except ImportError:  # No compiler or no libjpeg where tfbig was installed, or no libjpeg here.
    _jpeg = None  # type: ignore[assignment]

# A JPEG is decoded from a multiple of so many pixels on, whatever its colours' resolution. Of a part that begins
# elsewhere TensorFlow makes a copy without the pixels before it, which takes 7 % of the time of an example.
_BLOCK = 16
# A part that is so wide is widened to where a block begins, by less than a sixteenth.
_WIDE = 16 * _BLOCK
# A resizing that looks at two pixels in each direction passes over one in three here, and over more beyond.
_ANTIALIASED_FROM = 3
# What a thread takes at most at a time, so that none of them is long without work.
_FILES_AT_ONCE = 4


def decodes_together() -> bool:
    """Whether `decode_parts` is there: the compiled module."""
    return _jpeg is not None


def decode_part(encoded: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """A random part of a picture, at a network's size.

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

    Raises:
        tf.errors.InvalidArgumentError: The bytes are no picture, or cut short.
    """

    def of_other() -> tf.Tensor:
        image = decode_other(encoded)
        top, left, height, width = tf.unstack(_window(tf.shape(image), part))
        return resize(image[top : top + height, left : left + width], size)

    def of_jpeg() -> tf.Tensor:
        window, reduction = _jpeg_window(tf.image.extract_jpeg_shape(encoded), part, size)
        pixels = tf.switch_case(reduction, [
            functools.partial(
                tf.io.decode_and_crop_jpeg, encoded, window, channels=3, dct_method=DCT, ratio=by
            ) for by in REDUCTIONS
        ])  # fmt: skip
        return _resized(pixels, size, tf.constant(False))

    return _mirrored(tf.cond(is_jpeg(encoded), of_jpeg, of_other), part, size)


def decode_parts(fetch: Callable[[tf.Tensor], tf.Tensor], indices: tf.Tensor, parts: tf.Tensor, size: int) -> tf.Tensor:
    """`decode_part` of several pictures, JPEGs of them by one call outside of TensorFlow, in a fraction of the time.

    Args:
        fetch: Scalar int64 index -> scalar string, an encoded picture.
        indices: (B,) int64.
        parts: (B, 5) float32, rows of `parts.parts`.
        size: Height and width of the results in pixels, at least 1.

    Returns:
        (B, size, size, 3) float32 in [0, 1].

    Raises:
        tf.errors.InvalidArgumentError: The bytes are no picture, or cut short.
    """
    encoded, shapes = tf.map_fn(
        lambda index: _with_shape(fetch(index)), indices, parallel_iterations=num_threads(),
        fn_output_signature=(tf.TensorSpec([], tf.string), tf.TensorSpec([3], tf.int32)),
    )  # fmt: skip
    windows = _windows_of_jpegs(shapes, parts, size)
    together = functools.partial(_decoded_together, size=size, threads=num_threads())
    pixels, is_done = python_call(together, [encoded, windows], [tf.float32, tf.bool])
    pixels = tf.ensure_shape(pixels, [indices.shape[0], size, size, 3])
    is_done = tf.ensure_shape(is_done, indices.shape)

    def one(row: tuple[tf.Tensor, ...]) -> tf.Tensor:
        there, made, picture, part = row
        return tf.cond(there, lambda: made, lambda: decode_part(picture, part, size))

    def others_by_tensorflow() -> tf.Tensor:
        result = tf.TensorSpec([size, size, 3], tf.float32)
        rows = is_done, pixels, encoded, parts
        return tf.map_fn(one, rows, fn_output_signature=result, parallel_iterations=num_threads())

    return tf.cond(tf.reduce_all(is_done), lambda: pixels, others_by_tensorflow)


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
    is_large = tf.reduce_min(window[2:]) >= REDUCTIONS[1] * size
    return _mirrored(_resized(inside, size, is_large), part, size)


def _mirrored(values: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """(size, size, 3): from right to left where the part says so."""
    mirrored = tf.cond(_is_mirrored(part), lambda: tf.reverse(values, [1]), lambda: values)
    return tf.ensure_shape(mirrored, [size, size, 3])


def _is_mirrored(part: tf.Tensor) -> tf.Tensor:
    """(...) bool of (..., 5) parts."""
    return part[..., 4] > 0.5


def _window(shape: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """(..., 4) int32 top, left, height and width, inside pictures of (..., 3) shapes H, W and channels."""
    whole = tf.cast(shape[..., :2], tf.float32)
    sides = tf.clip_by_value(tf.sqrt(tf.reduce_prod(whole, -1, keepdims=True)) * part[..., :2], 1.0, whole)
    window = tf.cast(tf.concat([part[..., 2:4] * (whole - sides), sides], axis=-1), tf.int32)
    beyond = tf.where(window[..., 3:] >= _WIDE, window[..., 1:2] % _BLOCK, 0)
    return window + beyond * tf.constant([0, -1, 0, 1])


def _jpeg_window(shape: tf.Tensor, part: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """(..., 4) int32 windows in JPEGs shrunk in decoding, and (...) int32, which of REDUCTIONS shrinks them."""
    window = _window(shape, part)
    fits = tf.reduce_min(window[..., 2:], -1, keepdims=True) // size >= tf.constant(REDUCTIONS[1:])  # (..., 3)
    reduction = tf.math.count_nonzero(fits, axis=-1, dtype=tf.int32)
    by = tf.gather(tf.constant(REDUCTIONS), reduction)[..., None]
    # The whole becomes ceil(H / by) high: rounded down, the part stays inside.
    return tf.concat([window[..., :2] // by, tf.maximum(window[..., 2:] // by, 1)], axis=-1), reduction


def _with_shape(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The file, and (3,) int32 height, width and channels; zeros where it is no JPEG."""
    no_jpeg = tf.zeros([3], tf.int32)
    return encoded, tf.cond(is_jpeg(encoded), lambda: tf.image.extract_jpeg_shape(encoded), lambda: no_jpeg)


def _windows_of_jpegs(shapes: tf.Tensor, parts: tf.Tensor, size: int) -> tf.Tensor:
    """(B, 6) int32 for `_jpeg.decode_parts`; zeros for what has no shape, or needs antialiasing, which that lacks."""
    window, reduction = _jpeg_window(shapes, parts, size)
    by, is_mirrored = tf.gather(tf.constant(REDUCTIONS), reduction), tf.cast(_is_mirrored(parts), tf.int32)
    windows = tf.concat([window, by[:, None], is_mirrored[:, None]], axis=1)
    is_other = tf.logical_or(shapes[:, 0] == 0, _is_antialiased(window[:, 2:], size))
    return tf.where(is_other[:, None], 0, windows)


def _resized(pixels: tf.Tensor, size: int, is_large: tf.Tensor) -> tf.Tensor:
    """(size, size, 3) float32 in [0, 1] of (h, w, 3) uint8; antialiased where it is large, or else much longer."""
    return tf.cond(
        tf.logical_or(is_large, _is_antialiased(tf.shape(pixels)[:2], size)),
        lambda: in_unit_range(resize(pixels, size)),
        # As float32: bilinear resizing of bytes is slower than both.
        lambda: in_unit_range(tf.image.resize(tf.cast(pixels, tf.float32), [size, size])),
    )


def _is_antialiased(sides: tf.Tensor, size: int) -> tf.Tensor:
    """(...) bool: whether (..., 2) sides in pixels shrink so much that pixels would be passed over."""
    return tf.reduce_max(sides, -1) >= _ANTIALIASED_FROM * size


def _decoded_together(
    encoded: np.ndarray, windows: np.ndarray, *, size: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(B, size, size, 3) float32 parts and (B,) bool, whether each is there."""
    files, shape = encoded.tolist(), (len(encoded), size, size, 3)
    # Aligned, so that TensorFlow takes it without a copy.
    pixels = aligned(4 * math.prod(shape)).view(np.float32).reshape(shape)
    at_once = max(1, min(_FILES_AT_ONCE, len(files) // threads))
    starts = range(0, len(files), at_once)

    def decoded(start: int) -> bytes:
        some = slice(start, start + at_once)
        return _jpeg.decode_parts(files[some], windows[some], pixels[some], size)

    done = _decoders(threads).map(decoded, starts) if threads > 1 else map(decoded, starts)
    return pixels, np.frombuffer(b"".join(done), bool)


@functools.cache
def _decoders(number: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(number, "tfbig-jpeg")
