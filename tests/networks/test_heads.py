"""Laws of heads: what is frozen stays, what is shared is shared, what is saved comes back."""

from pathlib import Path

import keras
import numpy as np
import pytest

from tfbig.networks.backbones import Backbone
from tfbig.networks.heads import classifier, embedding
from tfbig.networks.hub import HubLayer


def _normalised_backbone() -> Backbone:
    """A backbone with BatchNorm and dropout."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization(momentum=0.5)(keras.layers.Conv2D(4, 3)(inputs))
    x = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(x))
    return Backbone("test", keras.Model(inputs, x, name="backbone"), 8, pretrained=True)


def _module_backbone(module: Path) -> Backbone:
    inputs = keras.Input((8, 8, 3))
    return Backbone("test", keras.Model(inputs, HubLayer(module, trainable=True)(inputs), name="backbone"), 8, True)


@pytest.fixture(params=["layers", "module"])
def backbone(request: pytest.FixtureRequest, tf_keras_module: Path) -> Backbone:
    return _normalised_backbone() if request.param == "layers" else _module_backbone(tf_keras_module)


def _train(network: keras.Model, images: np.ndarray) -> None:
    network.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(images, np.arange(6) % 3, batch_size=3, epochs=2, verbose=0)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_training_moves_averages_only_outside_of_inference_mode(
    backbone: Backbone, images: np.ndarray, inference_mode: bool
) -> None:
    network = classifier(backbone, 3, inference_mode=inference_mode)
    averages = [variable.numpy() for variable in backbone.network.non_trainable_variables]
    weights = [variable.numpy() for variable in backbone.network.trainable_variables]
    _train(network, images)
    pairs = zip(averages, backbone.network.non_trainable_variables, strict=True)
    moved = [not np.array_equal(before, after.numpy()) for before, after in pairs if "seed" not in after.path]
    assert any(moved) != inference_mode
    trained = zip(weights, backbone.network.trainable_variables, strict=True)
    assert any(not np.array_equal(before, after.numpy()) for before, after in trained)


def test_inference_mode_survives_a_keras_file(backbone: Backbone, images: np.ndarray, tmp_path: Path) -> None:
    network = classifier(backbone, 3, hidden_units=5, dropout=0.1, inference_mode=True)
    network.save(tmp_path / "network.keras")
    reloaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(reloaded(images), network(images))
    features = embedding(reloaded)
    # With dropout in the backbone, training=True would give other features.
    np.testing.assert_array_equal(features(images, training=True), features(images, training=False))


def test_the_parts_have_their_names(backbone: Backbone) -> None:
    network = classifier(backbone, 3, hidden_units=5, inference_mode=False)
    names = [layer.name for layer in network.layers]
    assert names == ["image", "backbone", "features", "hidden", "dropout", "logits"]
    assert network.get_layer("backbone") is backbone.network
    linear = classifier(backbone, 3, inference_mode=True)
    assert "hidden" not in [layer.name for layer in linear.layers]
    assert linear.get_layer("backbone").variables == backbone.network.variables


def test_embedding_is_the_backbone(backbone: Backbone, images: np.ndarray) -> None:
    network = classifier(backbone, 3, inference_mode=True)
    np.testing.assert_array_equal(embedding(network)(images), backbone.network(images))


def test_logits_are_float32_in_mixed_precision(images: np.ndarray) -> None:
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        network = classifier(_normalised_backbone(), 3, hidden_units=5, inference_mode=True)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert network(images).dtype == "float32" and embedding(network)(images).dtype == "float32"
    assert network.get_layer("hidden").compute_dtype == "bfloat16"


def test_a_module_sees_images_in_full_precision(tf_keras_module: Path, images: np.ndarray) -> None:
    expected = _module_backbone(tf_keras_module).network(images)
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        network = classifier(_module_backbone(tf_keras_module), 3, inference_mode=True)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    np.testing.assert_array_equal(embedding(network)(images), expected)
