"""Decoding: equal to Pillow for every format, refused where the bytes are broken, the same when exported."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.data import images
from tfbig.data.augment import augmentation
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.parts import parts
from tfbig.data.splits import Split, array_split

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


def test_a_decoded_split_fetches_images_of_one_size() -> None:
    encoded = [_FILES["jpeg"], _FILES["png with alpha"]]
    table = tf.constant(encoded)
    split = Split(lambda i: tf.gather(table, i), np.array([0, 1]), ["a", "b"], encoded.__getitem__)
    small = images.decoded(split, 8)
    dataset = tf.data.Dataset.range(2).map(small.fetch)
    assert dataset.element_spec.shape == (8, 8, 3)
    np.testing.assert_allclose(next(iter(dataset)), images.decode_and_resize(table[0], 8), atol=1e-6)
    assert small.payload(1) == encoded[1]


def _ramps(height: int, width: int) -> bytes:
    """A smooth JPEG whose red says how far down a pixel is and whose green how far right."""
    down, right = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
    pixels = np.stack([down, right, np.full_like(down, 128)], -1).astype(np.uint8)
    return _file(Image.fromarray(pixels), "JPEG", quality=95)


@pytest.mark.parametrize(("height", "width", "size"), [(60, 80, 64), (300, 400, 32), (400, 300, 224)])
def test_a_part_of_a_jpeg_is_the_part_that_its_draws_say(height: int, width: int, size: int) -> None:
    encoded = tf.constant(_ramps(height, width))
    for draws in np.random.default_rng(1).random((8, 5), np.float32):
        part = images.decode_part(encoded, tf.constant(parts(draws[None])[0]), size).numpy()
        assert part.shape == (size, size, 3) and part.dtype == np.float32 and 0 <= part.min() and part.max() <= 1.001
        if draws[4] < 0.5:
            part = part[:, ::-1]
        top, left = part[0].mean(0)[0], part[:, 0].mean(0)[1]
        # Shares of the picture; between the middles of the outermost pixels a pixel is missing.
        tall, wide = np.array([part[-1].mean(0)[0] - top, part[:, -1].mean(0)[1] - left]) * size / (size - 1)
        assert tall * wide == pytest.approx(0.08 + 0.92 * draws[0], rel=0.08, abs=0.02) or max(tall, wide) > 0.97
        assert top == pytest.approx(draws[2] * (1 - tall), abs=0.05)
        assert left == pytest.approx(draws[3] * (1 - wide), abs=0.05)
        if max(tall, wide) < 0.97:
            stretch = (4 / 3) ** (2 * (draws[1] - 0.5))
            assert (wide * width) / (tall * height) == pytest.approx(stretch, rel=0.1)


def test_a_wide_part_begins_where_a_block_does_and_ends_where_its_draws_say() -> None:
    height, width = 375, 500
    encoded = tf.constant(_ramps(height, width))
    lefts = []
    for draws in np.random.default_rng(3).random((40, 5), np.float32):
        part = parts(draws[None], flips=False)[0]
        wide = min(part[1] * np.sqrt(height * width), width)
        end = part[3] * (width - wide) + wide
        row = images.decode_part(encoded, tf.constant(part), 224).numpy()[:, :, 1].mean(0) * width
        pixel = (row[-1] - row[0]) / 223  # pixels of the picture to one of the part
        left, right = row[0] - pixel / 2, row[-1] + pixel / 2
        assert right == pytest.approx(end, abs=4)
        lefts.append(left if wide >= 256 else np.nan)
        assert wide >= 256 or left == pytest.approx(end - wide, abs=4)
    lefts = np.array(lefts)[np.isfinite(lefts)]
    assert len(lefts) > 15 and np.ptp(lefts) > 80
    np.testing.assert_allclose(lefts, np.round(lefts / 16) * 16, atol=4)


@pytest.mark.parametrize(("height", "width"), [(640, 640), (96, 1600)], ids=["very large", "very wide"])
def test_no_pixel_of_a_much_shrunk_part_is_passed_over(height: int, width: int) -> None:
    # Blocks as large as what libjpeg makes one pixel of, so that all noise is left to the resizing.
    blocks = np.random.default_rng(2).integers(0, 256, (height // 8, width // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    encoded = tf.constant(_file(Image.fromarray(blocks), "JPEG", quality=95))
    whole = parts(np.array([[1, 0.5, 0, 0, 1]], np.float32))[0]
    part = images.decode_part(encoded, tf.constant(whole), 12).numpy()
    # Of noise a single pixel has a deviation of 0.29, and the mean of 16 of them a quarter of that.
    assert part.mean() == pytest.approx(0.5, abs=0.05) and part.std() < 0.12


@pytest.mark.parametrize("kind", _FILES)
def test_the_whole_as_a_part_is_the_picture(kind: str) -> None:
    encoded = tf.constant(_FILES[kind])
    whole = np.array([1, 0.5, 0, 0, 1], np.float32)  # all of the area; narrower than high and no wider than the picture
    part = images.decode_part(encoded, tf.constant(parts(whole[None])[0]), 24).numpy()
    assert np.abs(part.mean((0, 1)) - images.decode(encoded).numpy().mean((0, 1))).max() < 0.02
    mirrored = parts(np.array([[1, 0.5, 0, 0, 0]], np.float32))[0]
    again = images.decode_part(encoded, tf.constant(mirrored), 24).numpy()
    np.testing.assert_array_equal(again, part[:, ::-1])


def test_parts_depend_on_the_step_and_the_example_alone() -> None:
    encoded = [_ramps(40, 50)] * 5
    table = tf.constant(encoded)
    split = images.decoded(Split(lambda i: tf.gather(table, i), np.arange(5), list("abcde")), 16)
    augment = augmentation(["resized_crop", "flip"], num_classes=5, multi_label=False)

    def epoch(number: int, step: int = 0, batch_size: int = 3) -> dict[tuple[int, int], bytes]:
        plan = IndexPlan(5, batch_size, seed=7)
        rows = batches(split, plan, position=lambda: (number, step), augment=augment)
        numbered = [(at, *row) for at, (x, y, _) in enumerate(rows, step) for row in zip(x, y, strict=True)]
        return {(at, int(y)): x.numpy().tobytes() for at, x, y in numbered}

    whole = epoch(2)
    assert len(set(whole.values())) >= 5  # one picture, another part for each example
    assert epoch(2) == whole and epoch(2, step=1) == {key: x for key, x in whole.items() if key[0] == 1}
    assert not set(epoch(3).values()) & set(whole.values())


def test_examples_without_parts_refuse_them() -> None:
    augment = augmentation(["resized_crop"], num_classes=2, multi_label=False)
    with pytest.raises(ValueError, match="resized_crop"):
        batches(array_split(np.zeros((3, 4)), np.zeros(3, int)), IndexPlan(3, 2), augment=augment)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_png_bytes_come_back(shape: tuple[int, ...]) -> None:
    pixels = _RNG.integers(0, 256, shape, np.uint8)
    back = images.decode(tf.constant(images.png_bytes(pixels))).numpy() * 255
    np.testing.assert_allclose(back, np.broadcast_to(pixels.reshape(5, 7, -1), (5, 7, 3)), atol=1e-3)
    with pytest.raises(ValueError, match="uint8"):
        images.png_bytes(pixels.astype(np.float32))
