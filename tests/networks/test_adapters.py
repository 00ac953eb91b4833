"""Laws of adapters: exactly the named weights train, and LoRA starts from the base."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.errors import UsageError
from tfbig.networks.adapters import freeze, lora, split_frozen, unfreeze_last
from tfbig.networks.backbones import Backbone
from tfbig.networks.heads import classifier
from tfbig.networks.hub import HubLayer


def _classifier(*, inference_mode: bool = True, dropout: float = 0.0) -> keras.Model:
    """On a small transformer: patches, attention (EinsumDense), BatchNorm, a nested model, dropout."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 4, strides=4, name="patches")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Reshape((4, 16))(x)
    x = x + keras.layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    inner = keras.Input((4, 16))
    mlp = keras.Sequential([inner, keras.layers.Dense(32, "relu", name="wide"), keras.layers.Dense(16, name="narrow")])
    x = keras.layers.Dropout(dropout)(mlp(x))
    body = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x), name="backbone")
    return classifier(Backbone("test", body, 8, pretrained=True), 3, inference_mode=inference_mode)


def _names(network: keras.Model) -> set[str]:
    return {"/".join(v.path.split("/")[-2:]) for v in network.trainable_variables}


def _train(network: keras.Model, images: np.ndarray, *, epochs: int = 3) -> None:
    network.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(images, np.arange(6) % 3, batch_size=6, epochs=epochs, verbose=0)


_HEAD = {"logits/kernel", "logits/bias"}


def test_freeze_trains_the_head_and_changes_nothing_else(images: np.ndarray) -> None:
    network = freeze(_classifier())
    assert _names(network) == _HEAD
    body = network.get_layer("backbone")
    before = [v.numpy() for v in body.variables]
    _train(network, images)
    for value, variable in zip(before, body.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_unfreeze_last_counts_layers_with_weights_from_the_end() -> None:
    assert _names(unfreeze_last(_classifier(), 1)) == _HEAD | {"narrow/kernel", "narrow/bias"}
    two = _HEAD | {"narrow/kernel", "narrow/bias", "wide/kernel", "wide/bias"}
    assert _names(unfreeze_last(_classifier(), 2)) == two
    everything = unfreeze_last(_classifier(), 5)
    assert len(everything.trainable_variables) == len(_classifier().trainable_variables)


def test_unfreeze_last_says_how_many_layers_there_are(tf_keras_module: Path) -> None:
    with pytest.raises(UsageError, match="between 1 and 5.*got 6"):
        unfreeze_last(_classifier(), 6)
    inputs = keras.Input((8, 8, 3))
    body = keras.Model(inputs, HubLayer(tf_keras_module)(inputs), name="backbone")
    network = classifier(Backbone("test", body, 8, pretrained=True), 3, inference_mode=True)
    with pytest.raises(UsageError, match="a single layer"):
        unfreeze_last(network, 1)


def test_lora_starts_from_the_base(images: np.ndarray) -> None:
    network = _classifier()
    before = network(images).numpy()
    np.testing.assert_array_equal(lora(network, 2)(images), before)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_lora_trains_only_its_updates_and_the_head(images: np.ndarray, inference_mode: bool) -> None:
    network = lora(_classifier(inference_mode=inference_mode), 2)
    in_backbone = _names(network) - _HEAD
    # Four kernels of the attention and two of the nested model, two factors each.
    assert len(network.trainable_variables) == 2 + 6 * 2
    assert all("lora_kernel" in name for name in in_backbone)
    body = network.get_layer("backbone")
    before = {v.path: v.numpy() for v in body.variables}
    _train(network, images)
    for variable in body.variables:
        changed = not np.array_equal(before[variable.path], variable.numpy())
        assert changed == ("lora_kernel" in variable.path), variable.path


def test_a_trained_lora_network_survives_a_keras_file_and_an_export(images: np.ndarray, tmp_path: Path) -> None:
    network = lora(_classifier(), 2)
    base = network(images).numpy()
    _train(network, images)
    expected = network(images).numpy()
    assert np.abs(expected - base).max() > 1e-2
    network.save(tmp_path / "network.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "network.keras")(images), expected, atol=1e-5)
    network.export(tmp_path / "export", verbose=False)
    export = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(export.serve(images), expected, atol=1e-5)


def test_lora_is_refused_where_it_cannot_be() -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    body = keras.Model(inputs, x, name="backbone")
    with pytest.raises(UsageError, match="Dense or EinsumDense"):
        lora(classifier(Backbone("test", body, 8, pretrained=True), 3, inference_mode=True), 2)
    with pytest.raises(UsageError, match="between 1 and 8.*got 9"):
        lora(_classifier(), 9)


def test_trunk_and_rest_are_the_network_cut_in_two(images: np.ndarray) -> None:
    network = freeze(_classifier())
    trunk, rest = split_frozen(network)
    assert trunk is not None
    _train(rest, trunk.predict(images, verbose=0))
    np.testing.assert_allclose(rest(trunk(images)), network(images), atol=1e-6)
    assert rest.trainable_variables == network.trainable_variables
    assert network.get_layer("logits").output.shape == (None, 3)


def test_a_backbone_that_trains_or_draws_is_not_split() -> None:
    for network in (_classifier(), lora(_classifier(), 2), unfreeze_last(_classifier(), 1)):
        trunk, rest = split_frozen(network)
        assert trunk is None and rest is network
    assert split_frozen(freeze(_classifier(inference_mode=False, dropout=0.5)))[0] is None
    assert split_frozen(freeze(_classifier(inference_mode=True, dropout=0.5)))[0] is not None
    assert split_frozen(freeze(_classifier(inference_mode=False, dropout=0.0)))[0] is not None
