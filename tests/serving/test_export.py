"""An export is the network, complete, once, and never visible before it was checked."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.images import decode_and_resize, png_bytes
from tfbig.data.splits import DataSpec, Split, array_split
from tfbig.errors import DataError, EnvironmentFault, GateError
from tfbig.networks import backbones, heads
from tfbig.networks.hub import HubLayer
from tfbig.serving.export import Signature, class_assets, export, served_samples
from tfbig.serving.images import image_signatures

NAMES = ("猫", "狗 大", "bird")
SPEC = DataSpec(tf.TensorSpec([None], tf.string), 9, NAMES)
FILES = [png_bytes(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)) for i in range(6)]
SAMPLES = {"image_bytes": np.array(FILES, dtype=object)}


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    backbone = backbones.load("scratch:small_cnn", image_size=24)
    return heads.classifier(backbone, 3, inference_mode=False)


def numbers(network: keras.Model) -> dict[str, Signature]:
    """A signature of numbers, as cheap as can be."""
    return {
        "serving_default": Signature(
            lambda x: {"logits": network(x, training=False)},
            (tf.TensorSpec([None, *network.input_shape[1:]], tf.float32, name="x"),),
        )
    }


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def network() -> keras.Model:
    network = classifier()
    network.compile(optimizer="adam", loss="mse")
    network.optimizer.build(network.trainable_variables)
    return network


@pytest.fixture(scope="module")
def watched(network: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """Two exports into one folder, and what a server that polls it saw: versions that were incomplete."""
    directory = tmp_path_factory.mktemp("served") / "photos"
    incomplete: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for version in directory.glob("[0-9]*"):
                needed = ["saved_model.pb", "variables/variables.index", "assets/class_names.txt"]
                incomplete.extend(str(version / name) for name in needed if not (version / name).exists())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for version in ("1", "2"):
            written = export(network, image_signatures(network, SPEC), directory, samples=SAMPLES,
                             assets=class_assets(SPEC))
            assert written == directory / version
    finally:
        stop.set()
        watcher.join()
    yield directory, incomplete


def test_a_watching_server_never_sees_half_a_version(watched: tuple[Path, list[str]]) -> None:
    directory, incomplete = watched
    assert incomplete == []
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


def test_a_fresh_process_gives_the_networks_answers(watched: tuple[Path, list[str]], network: keras.Model,
                                                    tmp_path: Path) -> None:
    """Not by the gate but by the command, on other files than the gate's, from a copy of the export."""
    shutil.copytree(watched[0] / "2", tmp_path / "copy" / "1")
    files = [png_bytes(np.random.default_rng(100 + i).integers(0, 256, (24, 24), np.uint8)) for i in range(5)]
    for i, file in enumerate(files):
        (tmp_path / f"{i}.png").write_bytes(file)
    command = [sys.executable, "-m", "tfbig", "predict", "copy", *(f"{i}.png" for i in range(5)), "--format", "jsonl",
               "--batch_size", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    images = tf.stack([decode_and_resize(tf.constant(file), 24) for file in files])
    expected = tf.nn.softmax(network.predict(images, verbose=0)).numpy()
    np.testing.assert_allclose([answer["probabilities"] for answer in answers], expected, atol=1e-4)
    assert [answer["label"] for answer in answers] == [NAMES[i] for i in expected.argmax(-1)]
    assert [answer["file"] for answer in answers] == [f"{i}.png" for i in range(5)]


def test_weights_are_written_once_and_no_optimizer(watched: tuple[Path, list[str]], network: keras.Model) -> None:
    written = size_of(watched[0] / "1" / "variables")
    weights = sum(int(np.prod(v.shape)) * np.dtype(v.dtype).itemsize for v in network.weights)
    assert weights <= written < 1.02 * weights + 20_000


def test_class_names_are_an_asset_in_the_order_of_the_labels(watched: tuple[Path, list[str]]) -> None:
    text = (watched[0] / "1" / "assets" / "class_names.txt").read_text(encoding="utf-8")
    assert text.splitlines() == list(NAMES)


def test_inputs_have_their_served_names(watched: tuple[Path, list[str]]) -> None:
    loaded = tf.saved_model.load(str(watched[0] / "1"))
    inputs = {name: list(f.structured_input_signature[1]) for name, f in loaded.signatures.items()}
    assert inputs == {"serving_default": ["image_bytes"], "image": ["image"], "embed": ["image_bytes"]}
    assert set(loaded.signatures["serving_default"].structured_outputs) == {"label", "probability", "probabilities"}


def test_a_server_under_another_user_can_read_it(watched: tuple[Path, list[str]]) -> None:
    for path in [watched[0] / "1", *(watched[0] / "1").rglob("*")]:
        assert path.stat().st_mode & 0o004, path


def test_tables_and_assets_survive_the_original_module(tmp_path: Path) -> None:
    """A hub module with a vocabulary file and LoRA layers beside it, exported, moved, the module deleted."""
    (tmp_path / "words.txt").write_text("good\nbad\n")
    (tmp_path / "class_names.txt").write_text("of another task\n")
    module = tf.Module()
    module.names = tf.saved_model.Asset(str(tmp_path / "class_names.txt"))
    module.table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words.txt"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        1,
    )
    module.vectors = tf.Variable(tf.random.normal((3, 4)))
    module.__call__ = tf.function(
        lambda words: tf.gather(module.vectors, module.table.lookup(words)),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path / "module"))
    words = keras.Input((), dtype="string", name="words")
    dense = keras.layers.Dense(2)
    network = keras.Model(words, dense(HubLayer(tmp_path / "module")(words)))
    dense.enable_lora(1)
    dense.lora_kernel_b.assign([[0.5, -0.5]])
    spec = tf.TensorSpec([None], tf.string, name="words")
    signature = Signature(lambda w: {"logits": network(w, training=False)}, (spec,))
    batch = np.array([b"good", b"bad", b"ugly"], dtype=object)
    expected = network(tf.constant(batch)).numpy()

    assets = class_assets(SPEC)
    version = export(network, {"serving_default": signature}, tmp_path / "out", samples={"words": batch}, assets=assets)
    version.rename(tmp_path / "moved")
    for name in ("module", "out"):
        shutil.rmtree(tmp_path / name)
    for name in ("words.txt", "class_names.txt"):
        (tmp_path / name).unlink()

    loaded = tf.saved_model.load(str(tmp_path / "moved"))
    served = loaded.signatures["serving_default"](words=tf.constant(batch))["logits"]
    np.testing.assert_allclose(served, expected, atol=1e-6)
    # The module's own class_names.txt, which no signature uses, must not take the place of ours.
    files = {path.name: path.read_bytes() for path in (tmp_path / "moved" / "assets").iterdir()}
    assert files == {**assets, "words.txt": b"good\nbad\n"}


def test_a_table_of_the_same_file_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "class_names.txt").write_text("good\nbad\n")
    words = keras.Input((), dtype="string")
    network = keras.Model(words, keras.layers.StringLookup(vocabulary=["good", "bad"])(words))
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(str(tmp_path / "class_names.txt"), tf.string, 0, tf.int64, -1), -1
    )
    spec = tf.TensorSpec([None], tf.string, name="words")
    signature = Signature(lambda w: {"a": network(w), "b": table.lookup(w)}, (spec,), resources=(table,))
    with pytest.raises(GateError, match="class_names.txt"):
        export(network, {"serving_default": signature}, tmp_path / "out", samples={"words": np.array([b"bad"], "O")},
               assets=class_assets(SPEC))
    assert not (tmp_path / "out").exists()


def test_bfloat16_and_lora_pass_the_gate(tmp_path: Path) -> None:
    """With such averages a graph's roundings differ from single operations' by more than the gate allows."""
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        x = image = keras.Input((32, 32, 3))
        for filters in (32, 64, 64):
            x = keras.layers.Conv2D(filters, 3, use_bias=False)(x)
            x = keras.layers.BatchNormalization(moving_variance_initializer=keras.initializers.Constant(0.1))(x)
            x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(x))
        hidden = keras.layers.Dense(64, activation="gelu")
        x = hidden(keras.layers.Flatten()(x))
        network = keras.Model(image, keras.layers.Dense(10, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy(before)
    hidden.enable_lora(2)
    images = np.random.default_rng(0).random((16, 32, 32, 3), np.float32)
    assert export(network, numbers(network), tmp_path, samples={"x": images}).name == "1"


class FrozenByTracing(keras.layers.Layer):
    """The planted fault: it computes something else inside a graph."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs if tf.executing_eagerly() else inputs + 0.01


def test_a_planted_mismatch_is_caught_and_leaves_nothing(tmp_path: Path) -> None:
    image = keras.Input((4,))
    network = keras.Model(image, keras.layers.Dense(2)(FrozenByTracing()(image)))
    network.layers[-1].kernel.assign(tf.ones((4, 2)))
    with pytest.raises(GateError, match=r"logits off by 0\.04") as caught:
        export(network, numbers(network), tmp_path / "out", samples={"x": np.zeros((3, 4), np.float32)})
    assert caught.value.exit_code == 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [100, 10_000, 300_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    """A limit on the size of a file stands for the disk: writes fail half-way, in Python or in TensorFlow."""
    network = keras.Sequential([keras.Input((300,)), keras.layers.Dense(400)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(EnvironmentFault, match="nothing was exported") as caught:
            export(network, numbers(network), tmp_path / "out", samples={"x": np.zeros((3, 300), np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"in {tmp_path / 'out'} the system answered: File too large; nothing" in str(caught.value)
    assert not list(tmp_path.iterdir())


KILLED = """
import sys; from pathlib import Path
import keras, numpy as np, tensorflow as tf
from tfbig.serving.export import Signature, export
network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
signature = Signature(lambda x: {"y": network(x)}, (tf.TensorSpec([None, 4], tf.float32, name="x"),))
export(network, {"serving_default": signature}, Path(sys.argv[1]), samples={"x": np.ones((1, 4), np.float32)})
"""


def test_kill_during_an_export_leaves_no_version(tmp_path: Path) -> None:
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        # Written, and now in the gate, which takes seconds.
        while not list(tmp_path.glob(".export-*/scratch/request.json")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_samples_must_cover_the_default_signature(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for samples in ({}, {"y": np.zeros((3, 4))}, {"x": np.zeros((0, 4))}):
        with pytest.raises(ValueError, match="at least one sample of x"):
            export(network, numbers(network), tmp_path, samples=samples)
    with pytest.raises(ValueError, match="serving_default"):
        export(network, {"other": numbers(network)["serving_default"]}, tmp_path, samples={"x": np.zeros((3, 4))})


def test_samples_are_the_users_files_or_the_features() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = array_split(rows, np.zeros(4))
    signature = Signature(lambda x: {"y": x}, (tf.TensorSpec([None, 3], tf.float32, name="features"),))
    np.testing.assert_array_equal(served_samples(signature, table, np.array([2, 0]))["features"], rows[[2, 0]])
    files = Split(table.fetch, table.labels, table.names, payload=lambda i: FILES[i])
    signature = Signature(lambda x: {"y": x}, (tf.TensorSpec([None], tf.string, name="image_bytes"),))
    assert list(served_samples(signature, files, np.array([2, 0]))["image_bytes"]) == [FILES[2], FILES[0]]


def test_a_class_name_of_two_lines_is_refused() -> None:
    with pytest.raises(DataError, match="one line"):
        class_assets(DataSpec(tf.TensorSpec([None], tf.string), 9, ("a\nb", "c")))
