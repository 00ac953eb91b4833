"""What an image classifier serves is what the network says about the decoded picture."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfbig.data.images import decode, decode_and_resize
from tfbig.data.splits import DataSpec
from tfbig.networks import backbones, heads
from tfbig.serving.images import image_signatures

NAMES = ("猫", "狗 大", "bird")


def picture(size: tuple[int, int], form: str, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, form)
    return file.getvalue()


FILES = [picture((40 + 9 * i, 33), form, i) for i, form in enumerate(["JPEG", "PNG", "GIF", "BMP"])]


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return heads.classifier(backbones.load("scratch:small_cnn", image_size=24), 3, inference_mode=False)


def spec(multi_label: bool = False) -> DataSpec:
    return DataSpec(tf.TensorSpec([None], tf.string), 9, NAMES, multi_label)


def decoded(files: list[bytes]) -> tf.Tensor:
    return tf.stack([decode_and_resize(tf.constant(file), 24) for file in files])


def test_files_of_every_format_get_the_networks_answer(network: keras.Model) -> None:
    served = image_signatures(network, spec())["serving_default"].function(tf.constant(FILES))
    expected = tf.nn.softmax(network(decoded(FILES), training=False)).numpy()
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(served["probability"], expected.max(-1), atol=1e-6)
    assert [label.decode() for label in served["label"].numpy()] == [NAMES[i] for i in expected.argmax(-1)]


def test_float_images_are_resized_as_files_are(network: keras.Model) -> None:
    signatures = image_signatures(network, spec())
    for file in FILES:
        by_file = signatures["serving_default"].function(tf.constant([file]))
        by_image = signatures["image"].function(decode(tf.constant(file))[None])
        np.testing.assert_allclose(by_file["probabilities"], by_image["probabilities"], atol=1e-6)


def test_embed_gives_the_features_below_the_head(network: keras.Model) -> None:
    served = image_signatures(network, spec())["embed"].function(tf.constant(FILES))["embedding"]
    head = network.get_layer("logits")
    np.testing.assert_allclose(head(served), network(decoded(FILES), training=False), atol=1e-5)


def test_several_labels_are_those_above_a_half() -> None:
    image = keras.Input((8, 8, 3))
    colours = keras.layers.GlobalAveragePooling2D()(image)
    logits = keras.layers.Rescaling(20.0, offset=-10.0)(keras.layers.Activation("linear", name="features")(colours))
    served = image_signatures(keras.Model(image, logits), spec(multi_label=True))["image"].function(
        tf.constant([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])[:, None, None]
    )
    assert [label.decode() for label in served["label"].numpy()] == ["猫|bird", "", "狗 大"]
    np.testing.assert_allclose(served["probability"], tf.sigmoid([10.0, -10.0, 10.0]), atol=1e-6)


def test_a_network_with_other_classes_is_refused(network: keras.Model) -> None:
    with pytest.raises(ValueError, match="2 logits"):
        image_signatures(network, DataSpec(tf.TensorSpec([None], tf.string), 9, NAMES[:2]))
