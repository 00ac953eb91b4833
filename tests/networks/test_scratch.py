"""Laws of the networks without weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.networks import scratch


@pytest.fixture(params=sorted(scratch.NAMES))
def network(request: pytest.FixtureRequest) -> keras.Model:
    keras.utils.set_random_seed(0)
    return scratch.build(request.param, scratch.NAMES[request.param])


def images_for(network: keras.Model, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((count, *network.input_shape[1:]), np.float32)


def test_an_image_has_the_same_features_alone_in_a_batch_and_while_training(network):
    images = images_for(network)
    together = network(images, training=False)
    alone = tf.concat([network(images[i:i + 1], training=False) for i in range(len(images))], 0)
    assert together.shape == (len(images), network.output_shape[-1])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, network(images, training=True), atol=1e-5)


def test_every_weight_is_float32_and_gets_a_gradient(network):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(network(images_for(network))))
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    assert {v.dtype for v in network.variables} == {"float32"}
    assert all(g is not None and tf.reduce_any(g != 0) for g in gradients)


def test_a_reloaded_file_equals_the_network(network, tmp_path):
    network.save(tmp_path / "network.keras")
    reloaded = keras.models.load_model(tmp_path / "network.keras")
    images = images_for(network)
    np.testing.assert_allclose(network(images), reloaded(images), atol=1e-6)


@pytest.mark.parametrize("name", sorted(scratch.NAMES))
@pytest.mark.parametrize("image_size", [8, 17, 40])
def test_any_size_from_8_pixels_can_be_built(name, image_size):
    network = scratch.build(name, image_size)
    assert network.input_shape == (None, image_size, image_size, 3)
    assert np.isfinite(network(images_for(network))).all()


def test_convnet_has_the_same_weights_and_features_at_every_size():
    small, large = (scratch.build("convnet", size) for size in (8, 32))
    assert [v.shape for v in small.variables] == [v.shape for v in large.variables]
    assert small.output_shape == large.output_shape


def test_small_cnn_is_conv_pool_conv_pool_dense():
    kinds = [type(layer).__name__ for layer in scratch.build("small_cnn", 32).layers]
    assert kinds == ["InputLayer", "Rescaling", "Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Flatten", "Dense"]
    units = [v.shape[-1] for v in scratch.build("small_cnn", 32).trainable_variables if len(v.shape) > 1]
    assert units == [64, 128, 256]


def test_an_unknown_name_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="must be one of small_cnn, convnet, got 'resnet'"):
        scratch.build("resnet", 32)


def test_an_image_too_small_to_pool_is_refused():
    with pytest.raises(ValueError, match="at least 8 pixels, got 4"):
        scratch.build("convnet", 4)
