"""Small hub modules of every make, written once a session: tf_keras, Keras 3, plain tf.Module, text."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

_IMAGES = tf.TensorSpec((None, 8, 8, 3), tf.float32)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Six images of 8 pixels."""
    return np.random.default_rng(0).random((6, 8, 8, 3), np.float32)


@pytest.fixture(scope="session")
def tf_keras_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As most published modules: a `training` argument, BatchNorm, dropout, a regulariser."""
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Conv2D(4, 3, kernel_regularizer=tf_keras.regularizers.L2(0.1), input_shape=(8, 8, 3)),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
        ]
    )
    path = tmp_path_factory.mktemp("tf_keras")
    model.save(path, save_format="tf", include_optimizer=False)
    return path


@pytest.fixture(scope="session")
def keras3_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `model.export` of Keras 3 writes: not callable, only signatures."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs))
    path = tmp_path_factory.mktemp("keras3")
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)).export(path, verbose=False)
    return path


class _Plain(tf.Module):
    """No Keras, no list of variables, any image size, and a counter that no one trains."""

    def __init__(self, outputs: str = "tensor") -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 4), (1, 2)))
        self.calls = tf.Variable(0.0, trainable=False)
        self.form = outputs

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    def __call__(self, x: tf.Tensor) -> tf.Tensor | dict[str, tf.Tensor]:
        y = tf.reduce_mean(x, (1, 2)) @ self.kernel + 0.0 * self.calls
        named = {"default": y, "other": 2.0 * y}, {"first": y, "second": 2.0 * y}
        return {"tensor": y, "with_default": named[0], "ambiguous": named[1], "map": x}[self.form]


def _saved(module: tf.Module, path: Path) -> Path:
    tf.saved_model.save(module, str(path))
    return path


@pytest.fixture(scope="session")
def plain_modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain tf.Modules by what they give: tensor, with_default, ambiguous (dicts) and map (not a vector)."""
    root = tmp_path_factory.mktemp("plain")
    return {form: _saved(_Plain(form), root / form) for form in ("tensor", "with_default", "ambiguous", "map")}


class _Lookup(tf.Module):
    """Words -> the row of an embedding, by a vocabulary that is an asset."""

    def __init__(self, vocabulary: Path) -> None:
        super().__init__()
        word, line = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        lines = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, word, tf.int64, line)
        self.table = tf.lookup.StaticVocabularyTable(lines, num_oov_buckets=1)
        self.rows = tf.Variable(tf.reshape(tf.range(8.0), (4, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, words: tf.Tensor) -> tf.Tensor:
        return tf.gather(self.rows, self.table.lookup(words))


@pytest.fixture(scope="session")
def text_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module that takes strings and holds a vocabulary."""
    root = tmp_path_factory.mktemp("text")
    vocabulary = root / "words.txt"
    vocabulary.write_text("red\ngreen\nblue\n")
    path = _saved(_Lookup(vocabulary), root / "module")
    os.remove(vocabulary)
    return path
