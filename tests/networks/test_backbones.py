"""Laws of backbones: whatever the hub, images in [0, 1] go in and one vector comes out, rightly scaled."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.networks import backbones, imagenet
from tfbig.networks.backbones import load


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Two images of 32 pixels in [0, 1]."""
    return np.random.default_rng(1).random((2, 32, 32, 3), np.float32)


# keras.applications


@pytest.mark.parametrize("family", sorted({imagenet.family(name) for name in imagenet.applications()}))
def test_the_preprocessing_inside_is_the_familys_own(family: str, pictures: np.ndarray) -> None:
    expected = getattr(keras.applications, family).preprocess_input(255.0 * pictures)
    inside = imagenet.ImagenetPreprocessing(family)
    np.testing.assert_allclose(inside(pictures), expected, atol=1e-4)
    again = imagenet.ImagenetPreprocessing.from_config(inside.get_config())
    np.testing.assert_array_equal(again(pictures), inside(pictures))


def test_the_three_ways_of_preprocessing_are_told_apart(pictures: np.ndarray) -> None:
    caffe, tf_style, torch, none = (
        imagenet.ImagenetPreprocessing(family)(pictures).numpy()
        for family in ("resnet", "mobilenet_v2", "densenet", "efficientnet")
    )
    np.testing.assert_allclose(caffe[..., 0], 255.0 * pictures[..., 2] - 103.939, atol=1e-3)
    np.testing.assert_allclose(tf_style, 2.0 * pictures - 1.0, atol=1e-5)
    np.testing.assert_allclose(torch[..., 0], (pictures[..., 0] - 0.485) / 0.229, atol=1e-5)
    np.testing.assert_allclose(none, 255.0 * pictures, atol=1e-4)


@pytest.mark.parametrize("name", imagenet.applications())
def test_the_image_size_is_that_of_the_published_weights(name: str) -> None:
    build = imagenet.applications()[name]
    if name.startswith("MobileNetV3"):
        # The one family that does not tie its classifier to a size; its weights are named by theirs.
        assert "224" in inspect.getsource(inspect.getmodule(build)) and imagenet.image_size(name) == 224
        return
    # With its classifier and published weights a model refuses other sizes, naming its own.
    size = imagenet.image_size(name)
    with pytest.raises(ValueError, match=rf"should be \({size}, {size}, 3\)"):
        build(include_top=True, weights="imagenet", input_shape=(33, 33, 3))


def test_an_application_is_its_preprocessing_and_its_body(pictures: np.ndarray) -> None:
    backbone = load("apps:MobileNetV2", weights="none", image_size=32)
    body = backbone.network.layers[-1]
    expected = body(keras.applications.mobilenet_v2.preprocess_input(255.0 * pictures))
    np.testing.assert_allclose(backbone.network(pictures), expected, atol=1e-5)
    assert not backbone.pretrained and backbone.image_size == 32


# Keras says so of every layer of another architecture before it refuses the file.
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_weights_file_is_loaded(pictures: np.ndarray, tmp_path: Path) -> None:
    first = load("apps:MobileNetV2", weights="none", image_size=32)
    first.network.layers[-1].save_weights(tmp_path / "body.weights.h5")
    second = load("apps:MobileNetV2", weights=str(tmp_path / "body.weights.h5"), image_size=32)
    np.testing.assert_array_equal(second.network(pictures), first.network(pictures))
    assert second.pretrained
    with pytest.raises(UsageError, match="does not hold weights"):
        load("apps:MobileNet", weights=str(tmp_path / "body.weights.h5"), image_size=32)
    with pytest.raises(UsageError, match="which is no file"):
        load("apps:MobileNet", weights="imagnet")


def test_weights_that_are_not_here_are_not_fetched_offline(tmp_path: Path) -> None:
    # A process of its own, because Keras looks for its cache only once.
    code = "from tfbig.networks.backbones import load; load('apps:MobileNet', offline=True)"
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert "EnvironmentFault" in last and "offline" in last and str(tmp_path / "models") in last
    assert "mobilenet_1_0_224_tf_no_top.h5" in last
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", imagenet.applications())
def test_every_application_gives_a_vector(name: str) -> None:
    backbone = load(f"apps:{name}", weights="none", image_size=96)
    assert len(backbone.network.output_shape) == 2
    assert np.isfinite(backbone.network(np.zeros((1, 96, 96, 3), np.float32))).all()


# TF Hub modules


def test_a_hub_module_is_a_backbone(tf_keras_module: Path, images: np.ndarray) -> None:
    backbone = load(f"tfhub:{tf_keras_module}")
    np.testing.assert_allclose(backbone.network(images), tf.saved_model.load(str(tf_keras_module))(images))
    assert backbone.image_size == 8 and backbone.pretrained and backbone.network.name == "backbone"
    assert backbone.network.trainable_variables


def test_a_module_of_any_size_is_built_for_the_size_asked_for(plain_modules: dict[str, Path]) -> None:
    assert load(f"tfhub:{plain_modules['tensor']}").image_size == 224
    backbone = load(f"tfhub:{plain_modules['tensor']}", image_size=16)
    assert backbone.network.input_shape == (None, 16, 16, 3)


def test_a_fixed_size_cannot_be_changed(tf_keras_module: Path) -> None:
    with pytest.raises(UsageError, match="must be 8 .* got 32"):
        load(f"tfhub:{tf_keras_module}", image_size=32)


def test_a_module_that_gives_no_vector_is_a_fault_naming_the_shape(plain_modules: dict[str, Path]) -> None:
    with pytest.raises(EnvironmentFault, match=r"\(None, 224, 224, 3\)"):
        load(f"tfhub:{plain_modules['map']}")


def test_a_module_that_takes_no_images_is_a_fault(text_module: Path) -> None:
    with pytest.raises(EnvironmentFault, match="must take images"):
        load(f"tfhub:{text_module}")


class _GreyLevels(tf.Module):
    """A module that takes what a JPEG holds."""

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.uint8)])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.cast(x, tf.float32), (1, 2))


def test_a_module_of_integers_gets_grey_levels(tmp_path: Path) -> None:
    tf.saved_model.save(_GreyLevels(), str(tmp_path))
    levels = np.arange(6 * 8 * 8 * 3, dtype=np.uint32).reshape(6, 8, 8, 3) % 256
    features = load(f"tfhub:{tmp_path}").network(levels.astype(np.float32) / 255)
    np.testing.assert_allclose(features, levels.mean((1, 2)), atol=1e-3)


def test_the_real_backbone(shared_backbone: Path) -> None:
    backbone = load(f"tfhub:{shared_backbone}", offline=True)
    assert (backbone.image_size, backbone.network.output_shape) == (224, (None, 256))


# Keras files


def test_a_keras_file_that_ends_in_a_map_is_averaged(pictures: np.ndarray, tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    model.save(tmp_path / "map.keras")
    backbone = load(f"keras:{tmp_path / 'map.keras'}")
    np.testing.assert_allclose(backbone.network(pictures), model(pictures).numpy().mean((1, 2)), atol=1e-5)
    assert backbone.image_size == 32


def test_a_keras_file_that_runs_python_needs_trust(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x[:, 0, 0])(inputs)).save(tmp_path / "python.keras")
    with pytest.raises(EnvironmentFault, match="cannot be loaded"):
        load(f"keras:{tmp_path / 'python.keras'}")


def test_what_is_no_keras_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "bad.keras").write_text("no zip")
    for name in ("bad.keras", "missing.keras"):
        with pytest.raises(EnvironmentFault):
            load(f"keras:{tmp_path / name}")


# KerasHub presets


def test_a_preset_brings_its_own_scaling(pictures: np.ndarray, tmp_path: Path) -> None:
    keras_hub = pytest.importorskip("keras_hub")
    body = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    )
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(32, 32), scale=[0.01, 0.02, 0.03], offset=[-1.0, 0.5, 0.25]
    )
    body.save_to_preset(tmp_path)
    converter.save_to_preset(tmp_path)
    backbone = load(f"kerashub:{tmp_path}", offline=True)
    expected = body(converter(255.0 * pictures)).numpy().mean((1, 2))
    np.testing.assert_allclose(backbone.network(pictures), expected, rtol=1e-3, atol=1e-3)
    assert backbone.image_size == 32 and backbone.pretrained
    untrained = load(f"kerashub:{tmp_path}", weights="none")
    assert not untrained.pretrained
    assert np.abs(untrained.network(pictures).numpy() - expected).max() > 1e-3


def test_a_vision_transformer_is_read_at_its_class_token(pictures: np.ndarray, tmp_path: Path) -> None:
    keras_hub = pytest.importorskip("keras_hub")
    body = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    body.save_to_preset(tmp_path / "preset")
    backbone = load(f"kerashub:{tmp_path / 'preset'}")
    np.testing.assert_allclose(backbone.network(pictures), body(255.0 * pictures)[:, 0], atol=1e-4)
    backbone.network.save(tmp_path / "network.keras")
    reloaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(reloaded(pictures), backbone.network(pictures))
    with pytest.raises(UsageError, match="must be 32 .* got 64"):
        load(f"kerashub:{tmp_path / 'preset'}", image_size=64)


def test_a_preset_that_is_not_here_is_a_fault_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras_hub")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    for preset in ("resnet_18_imagenet", "no_such_preset"):
        with pytest.raises(EnvironmentFault, match="offline"):
            load(f"kerashub:{preset}", offline=True)


def test_a_preset_is_found_in_kagglehubs_cache(
    pictures: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_hub = pytest.importorskip("keras_hub")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    body = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    variation = tmp_path / "models" / "owner" / "vit" / "keras" / "small"
    body.save_to_preset(variation / "2")
    (variation / ".complete" / "2").mkdir(parents=True)
    (variation / ".complete" / "2" / "config.json.complete").touch()
    backbone = load("kerashub:kaggle://owner/vit/keras/small", offline=True)
    np.testing.assert_allclose(backbone.network(pictures), body(255.0 * pictures)[:, 0], atol=1e-4)


# Names


def test_every_scratch_network_is_a_backbone() -> None:
    for spec in backbones.names()["scratch"]:
        backbone = load(spec)
        assert not backbone.pretrained and len(backbone.network.output_shape) == 2


def test_every_bundled_module_is_a_backbone() -> None:
    for spec in backbones.names()["bundled"]:
        assert load(spec, offline=True).pretrained


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("tfhubb:x", "Did you mean 'tfhub'"),
        ("tfhub", "KIND:NAME"),
        ("apps:", "KIND:NAME"),
        ("apps:resnet50v2", r"Did you mean 'ResNet50V2'\?"),
        ("scratch:convnt", r"small_cnn.*Did you mean 'convnet'\?"),
        ("bundled:nothing", "not known"),
    ],
)
def test_a_misspelt_backbone_names_the_nearest(spec: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(spec)


def test_an_option_that_would_do_nothing_is_refused(tf_keras_module: Path) -> None:
    with pytest.raises(UsageError, match="model.weights"):
        load(f"tfhub:{tf_keras_module}", weights="none")
    with pytest.raises(UsageError, match="model.output"):
        load("scratch:convnet", output="default")
