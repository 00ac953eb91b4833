"""Decoding: equal to Pillow for every format, refused where the bytes are broken, the same when exported."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.data import images

_RNG = np.random.default_rng(0)
# Noise: the hardest case for a JPEG decoder.
_COLOUR = Image.fromarray(_RNG.integers(0, 256, (33, 41, 3), np.uint8))
_GREY = _COLOUR.convert("L")
_PALETTE = _COLOUR.convert("P")
_ALPHA = _COLOUR.convert("RGBA")
_ALPHA.putalpha(Image.fromarray(_RNG.integers(0, 256, (33, 41), np.uint8)))


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


_FILES = {
    "jpeg": _file(_COLOUR, "JPEG"),
    "jpeg progressive": _file(_COLOUR, "JPEG", progressive=True),
    "jpeg grey": _file(_GREY, "JPEG"),
    "jpeg cmyk": _file(_COLOUR.convert("CMYK"), "JPEG"),
    "png": _file(_COLOUR, "PNG"),
    "png grey": _file(_GREY, "PNG"),
    "png 1 bit": _file(_COLOUR.convert("1"), "PNG"),
    "png palette": _file(_PALETTE, "PNG"),
    "png palette with a transparent colour": _file(_PALETTE, "PNG", transparency=3),
    "png grey with alpha": _file(_ALPHA.convert("LA"), "PNG"),
    "png with alpha": _file(_ALPHA, "PNG"),
    "gif": _file(_PALETTE, "GIF"),
    "gif animated": _file(_PALETTE, "GIF", save_all=True, append_images=[_PALETTE.rotate(180)] * 2),
    "bmp": _file(_COLOUR, "BMP"),
    "bmp grey": _file(_GREY, "BMP"),
    "bmp palette": _file(_PALETTE, "BMP"),
    "bmp 32 bits": _file(_ALPHA, "BMP"),
}


def _by_pillow(encoded: bytes) -> np.ndarray:
    """(H, W, 3) in [0, 1], transparent pixels on white."""
    image = Image.open(io.BytesIO(encoded))
    if image.format == "PNG" and ("A" in image.mode or "transparency" in image.info):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), np.float32) / 255


@pytest.mark.parametrize("kind", _FILES)
def test_every_format_decodes_as_pillow_does(kind: str) -> None:
    decoded = images.decode(tf.constant(_FILES[kind])).numpy()
    assert decoded.dtype == np.float32
    assert decoded.shape == (33, 41, 3)
    assert 0 <= decoded.min() and decoded.max() <= 1
    np.testing.assert_allclose(decoded, _by_pillow(_FILES[kind]), atol=2 / 255)


def test_sixteen_bits_become_a_fraction_of_white() -> None:
    levels = _RNG.integers(0, 65536, (9, 9), np.uint16)
    decoded = images.decode(tf.constant(_file(Image.fromarray(levels), "PNG"))).numpy()
    np.testing.assert_allclose(decoded, np.repeat(levels[..., None] / 65535, 3, axis=-1), atol=2 / 255)


@pytest.mark.parametrize("kind", ["jpeg", "jpeg progressive", "png", "gif", "bmp"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    for share in (0.5, 0.97):
        with pytest.raises(tf.errors.InvalidArgumentError):
            images.decode(tf.constant(_FILES[kind][: int(len(_FILES[kind]) * share)]))


@pytest.mark.parametrize("encoded", [b"", b"not a picture", b"\xff\xd8\xff", b"BM", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(encoded: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(encoded))


def test_an_exported_graph_decodes_the_same(tmp_path: Path) -> None:
    module = tf.Module()
    module.serve = tf.function(
        lambda encoded: images.decode_and_resize(encoded, 16), input_signature=[tf.TensorSpec([], tf.string)]
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for encoded in _FILES.values():
        here = images.decode_and_resize(tf.constant(encoded), 16)
        np.testing.assert_allclose(loaded.serve(tf.constant(encoded)), here, atol=1e-6)


def _is_refused(by: Callable[[bytes], object], content: bytes) -> bool:
    try:
        by(content)
    except tf.errors.OpError:
        return True
    return False


@pytest.mark.parametrize("kind", _FILES)
def test_the_check_refuses_what_decoding_refuses_and_nothing_else(kind: str) -> None:
    decode = tf.function(images.decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    rng, refused = np.random.default_rng(4), 0
    for number in range(60):
        content = bytearray(_FILES[kind])
        if number % 3:
            content[int(rng.integers(4, len(content)))] = int(rng.integers(256))
        elif number:
            content = content[: int(rng.integers(4, len(content)))]
        expected = _is_refused(lambda content: decode(tf.constant(content)), bytes(content))
        assert _is_refused(images.check, bytes(content)) == expected
        refused += expected
    assert refused >= 5


def test_pictures_of_many_pixels_are_checked_by_decoding_them_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(images, "_decode_in_graph", lambda encoded: decoded.append(encoded))
    images.check(_FILES["jpeg"])
    assert not decoded
    monkeypatch.setattr(images, "_MANY_PIXELS", 33 * 41)
    images.check(_FILES["jpeg"])
    assert len(decoded) == 1


def test_a_picture_that_tensorflow_takes_for_too_large_is_refused() -> None:
    # Above 2**29 numbers, and under 2**28 pixels.
    encoded = _file(Image.new("RGB", (13400, 13400)), "JPEG")
    assert _is_refused(images.check, encoded)
    assert _is_refused(lambda content: images.decode(tf.constant(content)), encoded)


def test_resizing_keeps_a_fitting_image_and_averages_a_large_one() -> None:
    image = tf.constant(_RNG.random((24, 24, 3), np.float32))
    np.testing.assert_array_equal(images.resize(image, 24), image)
    # One white pixel in 64 is 1/64 of the light when the picture shrinks to a point; sampling would lose it.
    dot = np.zeros((64, 64, 1), np.float32)
    dot[::8, ::8] = 1
    shrunk = images.resize(tf.constant(dot), 4)
    assert shrunk.shape == (4, 4, 1)
    np.testing.assert_allclose(shrunk, 1 / 64, atol=5e-3)
    assert images.resize(tf.zeros((2, 5, 9, 3)), 7).shape == (2, 7, 7, 3)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_png_bytes_come_back(shape: tuple[int, ...]) -> None:
    pixels = _RNG.integers(0, 256, shape, np.uint8)
    back = images.decode(tf.constant(images.png_bytes(pixels))).numpy() * 255
    np.testing.assert_allclose(back, np.broadcast_to(pixels.reshape(5, 7, -1), (5, 7, 3)), atol=1e-3)
    with pytest.raises(ValueError, match="uint8"):
        images.png_bytes(pixels.astype(np.float32))
