"""Laws of group normalisation in place of BatchNorm: no BatchNorm at any depth, and no example sees another."""

import keras
import numpy as np
import pytest

from tfbig.errors import UsageError
from tfbig.networks import backbones
from tfbig.networks.norms import with_group_norm

CHANNELS = 12


def _block(kind: str) -> keras.Model:
    """BatchNorm in a model of its own."""
    if kind == "sequential":
        return keras.Sequential(
            [keras.Input((8, 8, CHANNELS)), keras.layers.BatchNormalization(), keras.layers.ReLU()], name="block"
        )
    inputs = keras.Input((8, 8, CHANNELS))
    return keras.Model(inputs, keras.layers.ReLU()(keras.layers.BatchNormalization()(inputs)), name="block")


def _network(kind: str = "functional") -> keras.Model:
    """BatchNorm at the top, in a model, in a model in a model, and in a layer that is called twice."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(CHANNELS, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization(epsilon=0.01, scale=False, name="top")(x)
    block, inner = _block(kind), keras.Input((8, 8, CHANNELS))
    x = block(block(x))
    return keras.Model(inputs, keras.Model(inner, _block(kind)(inner), name="outer")(x))


def _layers(network: keras.Model) -> list[keras.layers.Layer]:
    return list(network._flatten_layers(include_self=False, recursive=True))


def _names(network: keras.Model) -> list[str]:
    return [layer.name for layer in _layers(network) if not isinstance(layer, keras.layers.InputLayer)]


def _norms(network: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in _layers(network) if isinstance(layer, kind)]


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_no_batch_norm_is_left_and_the_rest_is_as_it_was(kind: str) -> None:
    before = _network(kind)
    after = with_group_norm(before)
    assert len(_norms(before, keras.layers.BatchNormalization)) == 3
    assert not _norms(after, keras.layers.BatchNormalization)
    assert len(_norms(after, keras.layers.GroupNormalization)) == 3
    # The same layers by name, with the same settings.
    assert _names(after) == _names(before)
    top = after.get_layer("top")
    assert (top.epsilon, top.scale, top.center) == (0.01, False, True)
    assert after.get_layer("conv").get_config() == before.get_layer("conv").get_config()
    assert after.output_shape == before.output_shape
    # A norm's offset and scale train, as BatchNorm's did; its averages are gone, and nothing else is.
    shapes = [tuple(v.shape) for v in before.trainable_variables]
    assert [tuple(v.shape) for v in after.trainable_variables] == shapes
    assert not after.non_trainable_variables
    # It is another network: training one leaves the other alone.
    assert not {id(v) for v in after.variables} & {id(v) for v in before.variables}


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_an_example_is_treated_alone_and_training_does_what_inference_does(kind: str) -> None:
    network = with_group_norm(_network(kind))
    x = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype("f4")
    together = np.asarray(network(x, training=True))
    np.testing.assert_allclose(together, np.asarray(network(x, training=False)), atol=1e-6)
    for index in range(4):
        np.testing.assert_allclose(np.asarray(network(x[index : index + 1], training=True))[0], together[index],
                                   atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 24), (24, 24), (12, 12), (720, 30), (37, 1), (1, 1)])
def test_the_groups_divide_the_channels(channels: int, groups: int) -> None:
    inputs = keras.Input((4, 4, channels))
    network = with_group_norm(keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(inputs)))
    assert network.get_layer("norm").groups == groups
    # Fresh, it has no offset and no scale yet: each group of an example has mean 0 and variance 1.
    y = np.asarray(network(np.random.default_rng(0).normal(3.0, 5.0, (2, 4, 4, channels)).astype("f4")))
    grouped = y.reshape(2, 16, groups, -1)
    np.testing.assert_allclose(grouped.mean((1, 3)), 0.0, atol=1e-4)
    np.testing.assert_allclose(grouped.std((1, 3)), 1.0, atol=1e-3)


@pytest.mark.parametrize(("shape", "groups"), [((48,), 24), ((1, 1, 64), 32), ((1, 1, 24), 12), ((None, 24), 24)])
def test_no_group_holds_a_single_number(shape: tuple[int | None, ...], groups: int) -> None:
    inputs = keras.Input(shape)
    network = with_group_norm(keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(inputs)))
    assert network.get_layer("norm").groups == groups
    x = np.random.default_rng(0).normal(size=(2, *(size or 8 for size in shape))).astype("f4")
    assert np.abs(network(x)).max() > 0.1


@pytest.mark.parametrize("inside", ["norm", "model"])
def test_a_batch_norm_inside_of_another_layer_is_refused(inside: str) -> None:
    inputs = keras.Input((2, 8, 8, CHANNELS))
    held = keras.layers.BatchNormalization(name="held") if inside == "norm" else _block("functional")
    network = keras.Model(inputs, keras.layers.TimeDistributed(held, name="wrapper")(inputs))
    with pytest.raises(UsageError, match=r"wrapper \(TimeDistributed\) holds the BatchNormalization"):
        with_group_norm(network)


def test_the_axis_of_the_channels_is_kept() -> None:
    inputs = keras.Input((CHANNELS, 4, 4))
    network = with_group_norm(keras.Model(inputs, keras.layers.BatchNormalization(axis=1, name="norm")(inputs)))
    norm = network.get_layer("norm")
    assert (norm.axis, norm.groups, tuple(norm.gamma.shape)) == (1, CHANNELS, (CHANNELS,))


def test_a_network_without_batch_norm_only_gets_new_weights() -> None:
    backbone = backbones.load("scratch:convnet", image_size=8, norm="group").network
    own = backbones.load("scratch:convnet", image_size=8).network
    assert [tuple(v.shape) for v in backbone.variables] == [tuple(v.shape) for v in own.variables]


@pytest.mark.parametrize(
    "arguments",
    [
        {"spec": "bundled:glyphs"},
        {"spec": "tfhub:nowhere"},
        {"spec": "keras:nowhere.keras"},
        {"spec": "kerashub:nowhere", "weights": "none"},
        {"spec": "apps:MobileNetV2"},
        {"spec": "apps:MobileNetV2", "weights": "nowhere.h5"},
    ],
)
def test_a_network_with_weights_is_not_built_anew(arguments: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"model\.norm group builds a network anew.*scratch:.*apps:"):
        backbones.load(**arguments, norm="group")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "ResNet50V2", "DenseNet121", "EfficientNetB0"])
def test_published_architectures_have_no_batch_norm_left(name: str) -> None:
    own = backbones.load(f"apps:{name}", weights="none", image_size=64).network
    network = backbones.load(f"apps:{name}", weights="none", image_size=64, norm="group").network
    assert not _norms(network, keras.layers.BatchNormalization)
    num_norms = len(_norms(own, keras.layers.BatchNormalization))
    assert len(_norms(network, keras.layers.GroupNormalization)) == num_norms > 10
    assert [tuple(v.shape) for v in network.trainable_variables] == [tuple(v.shape) for v in own.trainable_variables]
    x = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype("f4")
    np.testing.assert_allclose(network(x)[:1], network(x[:1]), rtol=1e-3, atol=1e-4)
