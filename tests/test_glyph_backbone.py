"""Laws of the bundled backbone: what it is, how it was drawn, and that its pretraining is worth something."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage
from sklearn.datasets import load_digits

from tfbig.networks import scratch
from tfbig.resources import bundled_backbones

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("make_glyph_backbone")


@pytest.fixture(scope="module")
def drawn(tool) -> ModuleType:
    return importlib.import_module("drawn_glyphs")


@pytest.fixture(scope="module")
def glyphs(drawn):
    return drawn.render([font for font in drawn.bundled_fonts() if font.name == "cmtt10.ttf"])


@pytest.fixture(scope="module")
def module():
    return tf.saved_model.load(str(bundled_backbones()["glyphs"]))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    grey = tf.image.resize(data.images[..., None] / 16, (16, 16), antialias=True)  # (N, 16, 16, 1)
    return np.repeat(grey.numpy(), 3, -1), data.target


def test_it_is_small_and_complete():
    folder = bundled_backbones()["glyphs"]
    assert {"saved_model.pb", "variables"} <= {p.name for p in folder.iterdir()}
    assert sum(p.stat().st_size for p in folder.rglob("*")) <= 3_000_000


def test_it_is_a_hub_feature_vector(module, digits):
    images = tf.constant(digits[0][:5])
    features = module(images, training=False)
    assert features.shape == (5, 192) and features.dtype == tf.float32
    np.testing.assert_allclose(module(images), features)
    np.testing.assert_allclose(module(images, training=True), features, atol=1e-5)
    assert list(module.regularization_losses) == []
    assert {v.ref() for v in module.trainable_variables} <= {v.ref() for v in module.variables}


def test_every_trainable_variable_gets_a_gradient(module, digits):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(module(tf.constant(digits[0][:8]), training=True)))
    gradients = tape.gradient(loss, list(module.trainable_variables))
    assert gradients and all(g is not None and tf.reduce_any(g != 0) for g in gradients)


def test_it_is_convnet_pretrained(module, digits):
    network = scratch.build("convnet", scratch.NAMES["convnet"])
    network.set_weights([v.numpy() for v in module.variables])
    np.testing.assert_allclose(network(digits[0][:8]), module(tf.constant(digits[0][:8])), atol=1e-5)


def nearest_mean_accuracy(features: np.ndarray, labels: np.ndarray, per_class: int) -> float:
    """Of the examples after the first `per_class` of each class, the share nearest to its class's mean."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    shown = np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)])
    means = np.stack([features[shown][labels[shown] == c].mean(0) for c in range(10)])
    rest = np.setdiff1d(np.arange(len(labels)), shown)
    nearest = (features[rest] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)
    return float((nearest == labels[rest]).mean())


def test_its_untuned_features_separate_digits_it_never_saw(module, digits):
    keras.utils.set_random_seed(0)
    untrained = scratch.build("convnet", scratch.NAMES["convnet"])(digits[0]).numpy()
    pretrained = module(tf.constant(digits[0])).numpy()
    assert nearest_mean_accuracy(pretrained, digits[1], 5) >= 0.85
    assert nearest_mean_accuracy(pretrained, digits[1], 5) > nearest_mean_accuracy(untrained, digits[1], 5) + 0.1


def test_thinning_keeps_the_pieces_and_leaves_thin_strokes(drawn, glyphs):
    ink = glyphs.outline < 0
    thin = drawn.thinned(ink)
    eight = np.ones((3, 3))
    assert [ndimage.label(g, eight)[1] for g in ink] == [ndimage.label(g, eight)[1] for g in thin]
    assert not (thin & ~ink).any()
    full_squares = thin[:, :-1, :-1] & thin[:, 1:, :-1] & thin[:, :-1, 1:] & thin[:, 1:, 1:]
    assert full_squares.sum() < 0.01 * thin.sum()


def test_thinning_leaves_the_middle_of_a_stroke(drawn):
    ink = np.zeros((1, 48, 48), bool)
    ink[0, 5:43, 20:29] = True
    rows, columns = np.nonzero(drawn.thinned(ink)[0, 10:38])
    assert len(set(rows)) == 28
    assert np.abs(columns - 24).max() <= 1


def test_a_scan_keeps_the_mean_ink(drawn):
    pages = np.random.default_rng(0).random((3, 32, 32), np.float32)
    for pixels in (8, 11, 16):
        np.testing.assert_allclose(drawn.box_average(pages, pixels).mean((1, 2)), pages.mean((1, 2)), atol=1e-5)


def test_a_bent_character_stays_whole_on_its_page(drawn, glyphs):
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(glyphs.labels), 64)
    field, pen, bend = glyphs.skeleton[chosen], np.full(64, 2.5, np.float32), drawn.bends(64, rng)
    low, high = drawn.ink_box(field, pen, bend)
    inside = (drawn.sampled(field, bend(drawn.grid(low, high, 64))) < 2.5).mean(1) * (high - low).prod(1)
    wider = drawn.sampled(field, bend(drawn.grid(low - 10, high + 10, 128))) < 2.5
    everything = wider.mean(1) * (high - low + 20).prod(1)
    np.testing.assert_allclose(inside, everything, rtol=0.15)


def test_drawings_repeat_with_their_seed_and_differ_without(drawn, glyphs):
    (images, labels), (again, _), (other, _) = (next(drawn.batches(glyphs, 32, seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(images, again)
    assert images.shape == (32, 16, 16, 3) and images.dtype == np.float32 and labels.max() < len(glyphs.classes)
    assert images.min() >= 0 and images.max() <= 1 and not np.array_equal(images, other)


@pytest.mark.parametrize(
    ("character", "name"),
    [("a", "a"), ("0", "o"), ("\N{MATHEMATICAL SCRIPT CAPITAL A}", "A"), ("\N{SUPERSCRIPT TWO}", "2"),
     ("\N{GREEK CAPITAL LETTER ALPHA}", "A"), ("\N{LATIN SMALL LETTER E WITH ACUTE}", None),
     ("\N{CIRCLED LATIN SMALL LETTER I}", None), ("\N{LATIN SMALL LIGATURE FI}", None), (" ", None)],
)
def test_styles_of_a_character_share_its_class(drawn, character, name):
    assert drawn.class_of(character, "STIXGeneral.ttf") == name


def test_an_export_equals_the_network_in_a_process_without_keras_or_tfbig(tool, tmp_path):
    keras.utils.set_random_seed(1)
    network = scratch.build("convnet", 16)
    tool.export(network, tmp_path / "net" / "1")
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy, tensorflow as tf\n"
        "module = tf.saved_model.load('net/1')\n"
        "images = tf.constant(numpy.load('images.npy'))\n"
        "numpy.save('features.npy', [module(images), module(images, training=True)])\n"
        "assert 'tfbig' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    inference, training = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(inference, network(images, training=False), atol=1e-5)
    np.testing.assert_allclose(training, network(images, training=True), atol=1e-5)
