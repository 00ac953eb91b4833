"""Parts of pictures: those that their draws say, the same by TensorFlow and by the compiled decoder."""

import io
import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.data import image_parts, images
from tfbig.data import parts as drawing
from tfbig.data.parts import parts

# A file, its part and the size to (size, size, 3).
Way: TypeAlias = Callable[[bytes, np.ndarray, int], np.ndarray]

_RNG = np.random.default_rng(0)
_NOISE = Image.fromarray(_RNG.integers(0, 256, (33, 41, 3), np.uint8))


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


_FILES = {
    "jpeg": _file(_NOISE, "JPEG"),
    "jpeg grey": _file(_NOISE.convert("L"), "JPEG"),
    "jpeg cmyk": _file(_NOISE.convert("CMYK"), "JPEG"),
    "png": _file(_NOISE, "PNG"),
    "gif": _file(_NOISE.convert("P"), "GIF"),
    "bmp": _file(_NOISE, "BMP"),
}


def _needs_compiled() -> None:
    if not image_parts.decodes_together():
        pytest.skip("tfbig was installed without a compiler or without libjpeg-turbo's header (gcc, libjpeg-dev)")


def _all_parts(encoded: list[bytes], drawn: np.ndarray, size: int) -> np.ndarray:
    """(B, size, size, 3) by the compiled module, and by TensorFlow what that does not decode."""
    table, indices = tf.constant(encoded), tf.range(len(encoded))
    return image_parts.decode_parts(lambda i: table[i], indices, tf.constant(drawn), size).numpy()


def _window_of(encoded: bytes, part: np.ndarray, size: int) -> np.ndarray:
    """(1, 6) int32."""
    shape = tf.image.extract_jpeg_shape(encoded)
    return image_parts._windows_of_jpegs(shape[None], tf.constant(part[None]), size).numpy()


@pytest.fixture(params=["tensorflow", "compiled"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways to a part; the compiled one leaves to TensorFlow what it does not decode."""

    def alone(encoded: bytes, part: np.ndarray, size: int) -> np.ndarray:
        return image_parts.decode_part(tf.constant(encoded), tf.constant(part), size).numpy()

    def together(encoded: bytes, part: np.ndarray, size: int) -> np.ndarray:
        return _all_parts([encoded], part[None], size)[0]

    if request.param == "tensorflow":
        return alone
    _needs_compiled()
    return together


def _ramps(height: int, width: int) -> bytes:
    """A smooth JPEG whose red says how far down a pixel is and whose green how far right."""
    down, right = np.meshgrid(np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij")
    pixels = np.stack([down, right, np.full_like(down, 128)], -1).astype(np.uint8)
    return _file(Image.fromarray(pixels), "JPEG", quality=95)


@pytest.mark.parametrize(("height", "width", "size"), [(60, 80, 64), (300, 400, 32), (400, 300, 224)])
def test_a_part_of_a_jpeg_is_the_part_that_its_draws_say(height: int, width: int, size: int, way: Way) -> None:
    encoded = _ramps(height, width)
    for draws in np.random.default_rng(1).random((8, 5), np.float32):
        part = way(encoded, parts(draws[None])[0], size)
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


def test_a_wide_part_begins_where_a_block_does_and_ends_where_its_draws_say(way: Way) -> None:
    height, width = 375, 500
    encoded = _ramps(height, width)
    lefts = []
    for draws in np.random.default_rng(3).random((40, 5), np.float32):
        part = parts(draws[None], flips=False)[0]
        wide = min(part[1] * np.sqrt(height * width), width)
        end = part[3] * (width - wide) + wide
        row = way(encoded, part, 224)[:, :, 1].mean(0) * width
        pixel = (row[-1] - row[0]) / 223  # pixels of the picture to one of the part
        left, right = row[0] - pixel / 2, row[-1] + pixel / 2
        assert right == pytest.approx(end, abs=4)
        lefts.append(left if wide >= 256 else np.nan)
        assert wide >= 256 or left == pytest.approx(end - wide, abs=4)
    lefts = np.array(lefts)[np.isfinite(lefts)]
    assert len(lefts) > 15 and np.ptp(lefts) > 80
    np.testing.assert_allclose(lefts, np.round(lefts / 16) * 16, atol=4)


@pytest.mark.parametrize(("height", "width"), [(640, 640), (96, 1600)], ids=["very large", "very wide"])
def test_no_pixel_of_a_much_shrunk_part_is_passed_over(height: int, width: int, way: Way) -> None:
    # Blocks as large as what libjpeg makes one pixel of, so that all noise is left to the resizing.
    blocks = np.random.default_rng(2).integers(0, 256, (height // 8, width // 8), np.uint8).repeat(8, 0).repeat(8, 1)
    encoded = _file(Image.fromarray(blocks), "JPEG", quality=95)
    whole = parts(np.array([[1, 0.5, 0, 0, 1]], np.float32))[0]
    part = way(encoded, whole, 12)
    # Of noise a single pixel has a deviation of 0.29, and the mean of 16 of them a quarter of that.
    assert part.mean() == pytest.approx(0.5, abs=0.05) and part.std() < 0.12


@pytest.mark.parametrize("kind", _FILES)
def test_the_whole_as_a_part_is_the_picture(kind: str, way: Way) -> None:
    encoded = _FILES[kind]
    whole = np.array([1, 0.5, 0, 0, 1], np.float32)  # all of the area; narrower than high and no wider than the picture
    part = way(encoded, parts(whole[None])[0], 24)
    assert np.abs(part.mean((0, 1)) - images.decode(tf.constant(encoded)).numpy().mean((0, 1))).max() < 0.02
    mirrored = parts(np.array([[1, 0.5, 0, 0, 0]], np.float32))[0]
    again = way(encoded, mirrored, 24)
    np.testing.assert_array_equal(again, part[:, ::-1])


def _smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _drawn(count: int) -> np.ndarray:
    return parts(drawing.draws(np.stack([np.arange(count), np.arange(count)], axis=1)))


def _together(encoded: list[bytes], windows: np.ndarray, size: int) -> tuple[np.ndarray, list[bool]]:
    """By the compiled module alone."""
    pixels = np.full((len(encoded), size, size, 3), np.nan, np.float32)
    done = image_parts._jpeg.decode_parts(encoded, np.asarray(windows, np.int32), pixels, size)
    return pixels, [flag == 1 for flag in done]


@pytest.mark.parametrize("size", [1, 20, 224])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"restart_marker_rows": 1}, {}],
    ids=["4:4:4", "4:2:2", "4:2:0", "progressive", "restarts", "grey"],
)
def test_both_ways_give_the_same_pixels(options: dict[str, object], size: int) -> None:
    _needs_compiled()
    # The last is shrunk by 8, and smaller than its part then where libjpeg's rounding is forgotten.
    shapes = [(33, 41), (375, 500), (241, 130), (17, 16), (1793, 1799)]
    drawn = _drawn(6 * len(shapes))
    by_libjpeg = 0
    for number, part in enumerate(drawn):
        picture = _smooth(*shapes[number % len(shapes)], seed=number)
        encoded = _file(picture if options else picture.convert("L"), "JPEG", **options)
        window = _window_of(encoded, part, size)
        found, (is_done,) = _together([encoded], window, size)
        assert is_done == (window[0, 4] > 0)
        by_libjpeg += is_done
        if is_done:
            expected = image_parts.decode_part(tf.constant(encoded), tf.constant(part), size)
            np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)
    # What shrinks much is antialiased.
    assert by_libjpeg >= {1: 2, 20: 12, 224: 24}[size]


def test_a_block_of_all_kinds_is_what_each_alone_is() -> None:
    _needs_compiled()
    encoded = [*_FILES.values(), _file(_smooth(96, 1600), "JPEG")]
    drawn = _drawn(len(encoded))
    windows = np.array([[0, 0, 8, 8, 1, 0]] * len(encoded))
    assert _together(encoded, windows, 8)[1] == [True, True, False, False, False, False, True]
    found = _all_parts(encoded, drawn, 12)
    for image, file, part in zip(found, encoded, drawn, strict=True):
        expected = image_parts.decode_part(tf.constant(file), tf.constant(part), 12)
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6)


def test_a_file_cut_short_is_refused_by_both(way: Way) -> None:
    whole = _file(_smooth(300, 400), "JPEG")
    for file in (whole[: len(whole) // 2], whole[:30], b"\xff\xd8\xff", b"", b"no picture"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            way(file, np.array([1, 1, 0, 0, 0], np.float32), 24)


def test_damaged_files_are_left_to_tensorflow_or_decoded_as_it_does() -> None:
    _needs_compiled()
    rng = np.random.default_rng(5)
    whole = np.frombuffer(_file(_smooth(90, 120), "JPEG"), np.uint8)
    part, outcomes = np.array([0.5, 0.6, 0.5, 0.5, 0.0], np.float32), set()
    for _ in range(400):
        damaged = whole.copy()
        damaged[rng.integers(2, len(whole), 2)] = rng.integers(0, 256, 2)
        encoded = damaged.tobytes()
        try:
            window = _window_of(encoded, part, 24)
        except tf.errors.InvalidArgumentError:
            continue
        found, (is_done,) = _together([encoded], window, 24)
        outcomes.add(is_done)
        if is_done:
            expected = image_parts.decode_part(tf.constant(encoded), tf.constant(part), 24)
            np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-6)
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    "window",
    [
        (0, 0, 8, 8, 0, 0), (-1, 0, 8, 8, 1, 0), (0, -1, 8, 8, 1, 0), (26, 0, 8, 8, 1, 0), (0, 34, 8, 8, 1, 0),
        (0, 0, 0, 8, 1, 0), (0, 0, 8, 0, 1, 0), (0, 0, 33, 41, 2, 0), (0, 0, 8, 8, -1, 0), (0, 0, 8, 8, 3000, 0),
        (2**31 - 1, 0, 8, 8, 1, 0), (1, 0, 2**31 - 1, 8, 1, 0), (0, 1, 8, 2**31 - 1, 1, 0),
    ],
)  # fmt: skip
def test_a_window_outside_of_its_picture_is_left_out(window: tuple[int, ...]) -> None:
    _needs_compiled()
    assert _together([_FILES["jpeg"]], np.array([window]), 8)[1] == [False]


def test_what_does_not_fit_together_is_refused() -> None:
    _needs_compiled()
    decode = image_parts._jpeg.decode_parts
    windows, pixels = np.array([[0, 0, 8, 8, 1, 0]], np.int32), np.zeros((1, 8, 8, 3), np.float32)
    file = _FILES["jpeg"]
    assert decode([file], windows, pixels, 8) == b"\1"
    for arguments in (([file] * 2, windows, pixels, 8), ([file], windows, pixels, 9), ([file], windows, pixels, 0),
                      ([file] * 4, windows.repeat(4, 0), pixels[:0], 2**30),
                      ([], windows, pixels, 8), ([file], windows[:, :5].copy(), pixels, 8)):  # fmt: skip
        with pytest.raises(ValueError, match="expected a window"):
            decode(*arguments)
    for list_of in (["text"], [None], (file,)):
        with pytest.raises(TypeError):
            decode(list_of, windows, pixels, 8)
    pixels.flags.writeable = False
    with pytest.raises(TypeError, match="read-write"):
        decode([file], windows, pixels, 8)


def test_threads_do_not_disturb_each_other() -> None:
    _needs_compiled()
    files = [_file(_smooth(200, 300, seed), "JPEG") for seed in range(4)]
    windows = np.array([[10, 20, 150, 200, 1, seed % 2] for seed in range(4)])
    expected, _ = _together(files, windows, 64)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            found, done = _together(files, windows, 64)
            if not all(done) or not np.array_equal(found, expected):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(np.unique(expected.reshape(4, -1), axis=0)) == 4
