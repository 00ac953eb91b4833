"""Laws of the hub layer: it computes what the module computes, and behaves as a Keras layer does."""

import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.errors import EnvironmentFault, UsageError
from tfbig.networks.hub import HubLayer, unsafe_operations


def _network(layer: HubLayer, size: int = 8) -> keras.Model:
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, layer(inputs))


def _state(layer: HubLayer, *, trainable: bool) -> list[np.ndarray]:
    variables = layer.trainable_variables if trainable else layer.non_trainable_variables
    return [variable.numpy() for variable in variables]


def _any_changed(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    return any(not np.array_equal(b, a) for b, a in zip(before, after, strict=True))


@pytest.fixture(params=["tf_keras", "keras3", "plain"])
def module(request: pytest.FixtureRequest, tf_keras_module: Path, keras3_export: Path, plain_modules: dict) -> Path:
    return {"tf_keras": tf_keras_module, "keras3": keras3_export, "plain": plain_modules["tensor"]}[request.param]


def test_the_layer_computes_what_the_module_computes(module: Path, images: np.ndarray) -> None:
    loaded = tf.saved_model.load(str(module))
    expected = loaded.serve(images) if hasattr(loaded, "serve") else loaded(images)
    np.testing.assert_array_equal(_network(HubLayer(module))(images), expected)


def test_every_trainable_variable_gets_a_gradient(module: Path, images: np.ndarray) -> None:
    network = _network(HubLayer(module, trainable=True))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(images, training=True) ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in network.trainable_variables])
    assert gradients and all(gradient is not None for gradient in gradients)


def test_an_optimizer_step_changes_what_the_layer_computes(module: Path, images: np.ndarray) -> None:
    network = _network(HubLayer(module, trainable=True))
    before = network(images).numpy()
    network.compile("sgd", "mse")
    network.fit(images, np.ones((6, 4), np.float32), batch_size=6, verbose=0)
    assert np.abs(network(images).numpy() - before).max() > 1e-4


def test_toggling_trainable_changes_the_gradient_set(module: Path) -> None:
    layer = HubLayer(module, trainable=True)
    count = len(layer.trainable_variables)
    layer.trainable = False
    assert count and not layer.trainable_variables
    layer.trainable = True
    assert len(layer.trainable_variables) == count


def test_what_the_author_froze_stays_frozen(plain_modules: dict[str, Path]) -> None:
    layer = HubLayer(plain_modules["tensor"], trainable=True)
    assert [v.shape for v in layer.trainable_variables] == [(3, 4)]
    assert [v.shape for v in layer.non_trainable_variables] == [()]


def test_a_reloaded_keras_file_equals_the_trained_network(module: Path, images: np.ndarray, tmp_path: Path) -> None:
    network = _network(HubLayer(module, trainable=True))
    for variable in network.trainable_variables:
        variable.assign(variable + 0.5)
    network.save(tmp_path / "network.keras")
    reloaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(reloaded(images), network(images))
    assert len(reloaded.trainable_variables) == len(network.trainable_variables)


def test_a_clone_with_the_same_weights_is_equal(module: Path, images: np.ndarray) -> None:
    network = _network(HubLayer(module))
    clone = keras.models.clone_model(network)
    assert clone.layers[1] is not network.layers[1]
    network.layers[1].set_weights([weight + 0.5 for weight in network.layers[1].get_weights()])
    assert np.abs(clone(images).numpy() - network(images).numpy()).max() > 1e-3
    clone.set_weights(network.get_weights())
    np.testing.assert_array_equal(clone(images), network(images))


def test_an_export_needs_neither_the_module_nor_its_own_place(
    module: Path, images: np.ndarray, tmp_path: Path
) -> None:
    original = shutil.copytree(module, tmp_path / "original")
    network = _network(HubLayer(original, trainable=True))
    network.layers[1].set_weights([weight + 0.5 for weight in network.layers[1].get_weights()])
    expected = network(images).numpy()
    network.export(tmp_path / "export", verbose=False)
    shutil.move(tmp_path / "export", tmp_path / "moved")
    shutil.rmtree(original)
    export = tf.saved_model.load(str(tmp_path / "moved"))
    np.testing.assert_allclose(export.serve(images), expected, atol=1e-6)


def test_averages_move_only_when_trainable_and_training(tf_keras_module: Path, images: np.ndarray) -> None:
    layer = HubLayer(tf_keras_module, trainable=True)
    network = _network(layer)

    def moves(*, trainable: bool, training: bool) -> bool:
        layer.trainable = True
        averages = layer.non_trainable_variables
        layer.trainable = trainable
        before = [variable.numpy() for variable in averages]
        network(images, training=training)
        return _any_changed(before, [variable.numpy() for variable in averages])

    assert moves(trainable=True, training=True)
    assert not moves(trainable=True, training=False)
    assert not moves(trainable=False, training=True)


def test_regularisers_add_their_loss_only_while_trainable(tf_keras_module: Path, images: np.ndarray) -> None:
    layer = HubLayer(tf_keras_module, trainable=True)
    network = _network(layer)
    network(images, training=True)
    kernel = next(v for v in layer.trainable_variables if len(v.shape) == 4)
    np.testing.assert_allclose(sum(network.losses), 0.1 * np.sum(kernel.numpy() ** 2), rtol=1e-5)
    layer.trainable = False
    network(images, training=True)
    assert not network.losses


def test_a_module_takes_any_image_size_that_it_was_traced_for(
    plain_modules: dict[str, Path], tf_keras_module: Path
) -> None:
    assert HubLayer(plain_modules["tensor"]).image_size is None
    assert HubLayer(tf_keras_module).image_size == 8


def test_dict_outputs(plain_modules: dict[str, Path], images: np.ndarray) -> None:
    first = HubLayer(plain_modules["ambiguous"], output="first")(images)
    np.testing.assert_allclose(HubLayer(plain_modules["ambiguous"], output="second")(images), 2 * first)
    np.testing.assert_array_equal(HubLayer(plain_modules["with_default"])(images), first)
    with pytest.raises(UsageError, match="first, second"):
        HubLayer(plain_modules["ambiguous"])
    with pytest.raises(UsageError, match=r"first, second.*'third'"):
        HubLayer(plain_modules["ambiguous"], output="third")


def test_an_unknown_signature_names_those_there_are(keras3_export: Path) -> None:
    with pytest.raises(UsageError, match=r"serve.*got 'nothing'"):
        HubLayer(keras3_export, signature="nothing")


class _Powers(tf.Module):
    """A module with an argument of its own, traced for two values."""

    @tf.function
    def __call__(self, x: tf.Tensor, exponent: int = 1) -> tf.Tensor:
        return tf.reduce_mean(x**exponent, (1, 2))


def test_arguments_reach_the_module_and_survive_a_keras_file(images: np.ndarray, tmp_path: Path) -> None:
    module = _Powers()
    for exponent in (1, 2):
        module.__call__.get_concrete_function(tf.TensorSpec((None, 8, 8, 3)), exponent=exponent)
    tf.saved_model.save(module, str(tmp_path / "module"))
    network = _network(HubLayer(tmp_path / "module", arguments={"exponent": 2}))
    np.testing.assert_allclose(network(images), (images**2).mean((1, 2)), rtol=1e-5)
    network.save(tmp_path / "network.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "network.keras")(images), network(images))


def test_words_and_their_vocabulary_survive_an_export(text_module: Path, tmp_path: Path) -> None:
    original = shutil.copytree(text_module, tmp_path / "original")
    words = tf.constant(["blue", "red", "never seen"])
    inputs = keras.Input((), dtype="string")
    network = keras.Model(inputs, HubLayer(original, trainable=True)(inputs))
    np.testing.assert_array_equal(network(words), [[4, 5], [0, 1], [6, 7]])
    network.export(tmp_path / "export", verbose=False)
    shutil.rmtree(original)
    shutil.move(tmp_path / "export", tmp_path / "moved")
    export = tf.saved_model.load(str(tmp_path / "moved"))
    np.testing.assert_array_equal(export.serve(words), network(words))


_TWO_REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
from tfbig.networks.heads import InferenceModel
from tfbig.networks.hub import HubLayer

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
images = np.random.default_rng(0).random((8, 8, 8, 3), np.float32)


def trained(path, strategy):
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        layer = HubLayer(path, trainable=True)
        network = InferenceModel(inputs, layer(inputs))
        # A worker that reads one waits for no other.
        assert all(v.value.synchronization != tf.VariableSynchronization.ON_READ for v in layer.variables)
        network.compile(keras.optimizers.SGD(0.1), "mse")
    before = network.predict(images, verbose=0)
    network.fit(images, np.ones((8, 4), np.float32), batch_size=4, epochs=2, shuffle=False, verbose=0)
    after = network.predict(images, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    return after


mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for path in sys.argv[1:]:
    np.testing.assert_allclose(trained(path, mirrored), trained(path, tf.distribute.get_strategy()), atol=1e-5)
"""


@pytest.mark.slow
def test_two_replicas_equal_one(tf_keras_module: Path, keras3_export: Path, plain_modules: dict[str, Path]) -> None:
    # In inference mode, because batch statistics depend on how a batch is divided. Its own process,
    # because TensorFlow divides the CPU in two only before its first use.
    modules = [str(tf_keras_module), str(keras3_export), str(plain_modules["tensor"])]
    done = subprocess.run([sys.executable, "-c", _TWO_REPLICAS, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_module_is_named(tf_keras_module: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tf_keras_module, tmp_path / "copy")
    _network(HubLayer(copy)).save(tmp_path / "network.keras")
    shutil.rmtree(copy)
    with pytest.raises(EnvironmentFault, match=str(copy)):
        keras.saving.load_model(tmp_path / "network.keras")


def test_a_module_without_its_weights_cannot_be_loaded(tf_keras_module: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tf_keras_module, tmp_path / "copy")
    shutil.rmtree(copy / "variables")
    with pytest.raises(EnvironmentFault, match="cannot be loaded"):
        HubLayer(copy)


class _Reads(tf.Module):
    """A module with a body that is not just computing."""

    def __init__(self, body: str, file: Path) -> None:
        super().__init__()
        self.scale = tf.Variable(1.0)
        self.body = body
        self.file = str(file)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32)])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # In a branch, so that the operation sits in a function of a function.
        extra = tf.cond(tf.reduce_sum(x) > 0, self._extra, lambda: 0.0)
        return extra + tf.reduce_mean(x, (1, 2)) * self.scale

    def _extra(self) -> tf.Tensor:
        if self.body == "ReadFile":
            return tf.cast(tf.strings.length(tf.io.read_file(self.file)), tf.float32)
        if self.body == "WriteFile":
            with tf.control_dependencies([tf.io.write_file(self.file, "written")]):
                return tf.constant(0.0)
        if self.body == "PrintV2":
            with tf.control_dependencies([tf.print("x", output_stream="file://" + self.file)]):
                return tf.constant(0.0)
        return tf.py_function(lambda: 0.0, [], tf.float32)


@pytest.mark.parametrize("body", ["ReadFile", "WriteFile", "PrintV2", "EagerPyFunc"])
def test_a_module_that_does_more_than_compute_needs_trust(body: str, tmp_path: Path) -> None:
    path = tmp_path / "module"
    tf.saved_model.save(_Reads(body, tmp_path / "file"), str(path))
    assert unsafe_operations(path) == [body]
    with pytest.raises(EnvironmentFault, match=body):
        HubLayer(path)
    assert HubLayer(path, trust=True).trust


def test_a_keras_file_cannot_grant_trust_to_its_module(tmp_path: Path) -> None:
    path = tmp_path / "module"
    tf.saved_model.save(_Reads("ReadFile", tmp_path / "file"), str(path))
    _network(HubLayer(path, trust=True)).save(tmp_path / "network.keras")
    with pytest.raises(EnvironmentFault, match="safe_mode"):
        keras.saving.load_model(tmp_path / "network.keras")
    assert keras.saving.load_model(tmp_path / "network.keras", safe_mode=False)


class _Table(tf.Module):
    """A table filled from a file that is no asset of the module, though it looks like one."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = str(file)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def __call__(self, words: tf.Tensor) -> tf.Tensor:
        table = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        fill = tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=table, filename=tf.constant(self.file), key_index=-2, value_index=-1
        )
        with tf.control_dependencies([fill]):
            return tf.raw_ops.LookupTableFindV2(table_handle=table, keys=words, default_value=tf.constant(-1, tf.int64))


def test_a_vocabulary_is_safe_only_where_it_is_the_modules_own(text_module: Path, tmp_path: Path) -> None:
    assert unsafe_operations(text_module) == []
    tf.saved_model.save(_Table(tmp_path / "secrets.txt"), str(tmp_path / "module"))
    assert unsafe_operations(tmp_path / "module") == ["InitializeTableFromTextFileV2"]


def test_ordinary_modules_need_no_trust(module: Path) -> None:
    assert unsafe_operations(module) == []


def test_a_real_backbone_gives_vectors(shared_backbone: Path) -> None:
    layer = HubLayer(shared_backbone, trainable=True)
    assert (layer.image_size, len(layer.trainable_variables), len(layer.variables)) == (224, 81, 135)
    assert _network(layer, 224).output_shape == (None, 256)
