"""TFDS datasets: the same examples as tfds.load gives, by index and by slice; refusals that name what exists."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfbig.data.record_positions import record_positions
from tfbig.data.sized import sized
from tfbig.data.splits import Splits
from tfbig.errors import DataError

Load = Callable[..., Splits]


def _pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)


def _prepare(root: Path, name: str, features: dict[str, object], splits: dict[str, Iterable[dict]]) -> None:
    keyed = {split: list(enumerate(examples)) for split, examples in splits.items()}
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version="1.0.0", data_dir=root, features=tfds.features.FeaturesDict(features), split_datasets=keyed
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir of small datasets."""
    root = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(shape=(6, 6, 3), dtype=np.uint8)
    names = ["apple", "pear", "plum"]
    _prepare(
        root,
        "fruit",
        {"image": image, "label": tfds.features.ClassLabel(names=names)},
        {"train": [{"image": _pixels(i), "label": i % 3} for i in range(60)]},
    )
    _prepare(
        root,
        "basket",
        {"image": image, "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=names))},
        {
            split: [{"image": _pixels(i), "labels": [c for c in range(3) if i >> c & 1]} for i in numbers]
            for split, numbers in (("train", range(32)), ("val", range(32, 64)), ("test", range(64, 96)))
        },
    )
    _prepare(root, "weights", {"grams": tfds.features.Scalar(np.float32)}, {"train": [{"grams": 1.0}]})
    return root


@pytest.fixture(scope="module")
def cifar(shared_data: Path) -> str:
    return str(shared_data / "tfds")


def test_fifty_records_of_cifar_are_those_of_tfds(load: Load, cifar: str) -> None:
    splits = load("tfds:cifar10_jpeg", directory=cifar)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [47500, 2500, 10000]
    assert splits.manifest["splits"]["validation"]["per_class"] == dict.fromkeys(splits.spec.class_names, 250)
    wanted = {}
    for part in (splits.train, splits.validation, splits.test):
        for i in np.random.default_rng(0).integers(0, len(part), 50):
            wanted[part.names[i]] = (part, int(i))
    for split in ("train", "test"):
        numbers = tf.constant([int(name.split("#")[1]) for name in wanted if name.startswith(split)], tf.int64)
        rows = tfds.load("cifar10_jpeg", data_dir=cifar, split=split, decoders={"image": tfds.decode.SkipDecoding()})
        rows = rows.enumerate().filter(lambda number, row, numbers=numbers: tf.reduce_any(number == numbers))
        for number, row in rows.as_numpy_iterator():
            part, i = wanted.pop(f"{split}#{number}")
            assert part.payload(i) == part.fetch(tf.constant(i, tf.int64)).numpy() == row["image"]
            assert part.labels[i] == row["label"]
    assert not wanted


def test_slices_are_those_of_tfds(load: Load, cifar: str) -> None:
    named = {"train_split": "train[:2%]+test[10:30]", "validation_split": "train[99%:]", "test_split": "test[-100:]"}
    splits = load("tfds:cifar10_jpeg", directory=cifar, **named)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)  # else tfds takes turns between shards
    for part, slices in zip((splits.train, splits.validation, splits.test), named.values(), strict=True):
        rows = tfds.load("cifar10_jpeg", data_dir=cifar, split=slices, as_supervised=True, read_config=in_order)
        rows = list(rows.map(lambda image, label: label).as_numpy_iterator())
        assert part.labels.tolist() == rows
    assert list(splits.train.names[999:1001]) == ["train#999", "test#10"]


def test_records_are_fetched_inside_tf_data(load: Load, prepared: Path) -> None:
    splits = load("tfds:fruit", directory=str(prepared))
    rows = list(tfds.load("fruit", data_dir=prepared, split="train").as_numpy_iterator())
    seen = set()
    for part in (splits.train, splits.validation, splits.test):
        fetched = tf.data.Dataset.range(len(part)).map(sized(part, 6).fetch, num_parallel_calls=2)
        for name, label, image in zip(part.names, part.labels, fetched, strict=True):
            row = rows[int(name.removeprefix("train#"))]
            np.testing.assert_allclose(image * 255, row["image"], atol=1e-3)
            assert label == row["label"]
            seen.add(name)
    assert len(seen) == 60 and splits.spec.class_names == ("apple", "pear", "plum")


def test_lists_of_classes_become_zeros_and_ones(load: Load, prepared: Path) -> None:
    splits = load("tfds:basket", directory=str(prepared))
    assert splits.spec.multi_label
    for part, split in ((splits.train, "train"), (splits.validation, "val"), (splits.test, "test")):
        rows = tfds.load("basket", data_dir=prepared, split=split).as_numpy_iterator()
        expected = [[float(c in row["labels"]) for c in range(3)] for row in rows]
        np.testing.assert_array_equal(part.labels, expected)


def test_only_positions_and_labels_are_held(load: Load, cifar: str) -> None:
    import tracemalloc

    tracemalloc.start()
    splits = load("tfds:cifar10_jpeg", directory=cifar, train_split="train[:20%]", validation_fraction=0.0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stored = sum(len(splits.train.payload(i)) for i in range(0, len(splits.train), 50)) * 50
    assert stored > 8e6 and held < 0.6 * stored


@pytest.mark.parametrize(
    "source, changes, parts",
    [
        ("tfds:friut", {}, ["not prepared", "'basket', 'fruit', 'weights'", "Did you mean 'fruit'", "--data.dir"]),
        ("tfds:fruit:3.0.0", {}, ["versions '1.0.0'"]),
        ("tfds:fruit pie", {}, ["no dataset name"]),
        ("tfds:fruit", {"directory": "/no/such/folder"}, ["/no/such/folder", "does not exist", "--data.dir"]),
        ("tfds:fruit", {"train_split": "trian"}, ["no split 'trian'", "'train'"]),
        ("tfds:fruit", {"test_split": "holdout"}, ["no split 'holdout'", "--data.test_split"]),
        ("tfds:fruit", {"train_split": "trian[:50%]"}, ["'trian[:50%]'", "train (60)"]),
        ("tfds:fruit", {"train_split": "train[:5x%]"}, ["'train[:5x%]'", "train (60)"]),
        ("tfds:fruit", {"test_split": "train[60:]"}, ["no examples"]),
        ("tfds:fruit", {"test_split": "train[50:]"}, ["shares record train#50", "train[:90%]"]),
        ("tfds:weights", {}, ["grams (Scalar)", "one Image", "ClassLabel"]),
    ],
)
def test_what_is_not_there_is_named(
    load: Load, prepared: Path, source: str, changes: dict[str, str], parts: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        load(source, **{"directory": str(prepared), **changes})
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_the_newest_version_is_taken_and_a_given_one_kept(load: Load, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "fruit" / "1.0.0", tmp_path / "fruit" / "9.0.0")
    shutil.copytree(prepared / "fruit" / "1.0.0", tmp_path / "fruit" / "10.0.0")
    for record in (tmp_path / "fruit" / "9.0.0").glob("*.tfrecord*"):
        record.unlink()
    assert len(load("tfds:fruit", directory=str(tmp_path)).train) == 42
    with pytest.raises(DataError, match="prepare it again"):
        load("tfds:fruit:9.0.0", directory=str(tmp_path))


@pytest.mark.parametrize("labels", [[], [0, 1]], ids=["none", "two"])
def test_an_example_without_its_one_label_is_refused(
    load: Load, prepared: Path, tmp_path: Path, labels: list[int]
) -> None:
    shutil.copytree(prepared / "fruit", tmp_path / "fruit")
    (shard,) = (tmp_path / "fruit").rglob("*.tfrecord-*")
    examples = list(map(tf.train.Example.FromString, tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()))
    # With one label too few elsewhere, or too many, so that there are as many labels as examples.
    examples[3].features.feature["label"].int64_list.value[:] = labels
    examples[9].features.feature["label"].int64_list.value[:] = [0] * (2 - len(labels))
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for example in examples:
            writer.write(example.SerializeToString())
    with pytest.raises(DataError, match="no label or several"):
        load("tfds:fruit", directory=str(tmp_path))


def test_a_shard_cut_short_is_refused(load: Load, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "fruit", tmp_path / "fruit")
    (shard,) = (tmp_path / "fruit").rglob("*.tfrecord-*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-20])
    with pytest.raises(DataError, match="ends within record 59"):
        load("tfds:fruit", directory=str(tmp_path))
    offsets, lengths = record_positions(str(prepared / shard.relative_to(tmp_path)))
    shard.write_bytes(content[: offsets[-1] - 12])
    with pytest.raises(DataError, match="expected 60 records in .*, found 59"):
        load("tfds:fruit", directory=str(tmp_path))
    written = list(tf.data.TFRecordDataset(str(prepared / shard.relative_to(tmp_path))).as_numpy_iterator())
    assert [content[o : o + n] for o, n in zip(offsets, lengths, strict=True)] == written
