"""From a source to three splits: disjoint, complete, blind to file order, and refused in one sentence."""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfbig.data import images
from tfbig.data.sources import resolved
from tfbig.data.splits import Split, Splits
from tfbig.errors import DataError, UsageError

Load = Callable[..., Splits]
ClassFolder = Callable[..., Path]
Picture = Callable[..., Path]


def _parts(splits: Splits) -> dict[str, Split]:
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {role: part for role, part in parts.items() if part is not None}


def _names(splits: Splits) -> dict[str, list[str]]:
    return {role: list(part.names) for role, part in _parts(splits).items()}


def _counts(splits: Splits) -> Mapping[str, Mapping[str, int]]:
    return {role: facts["per_class"] for role, facts in splits.manifest["splits"].items()}


def _one_sentence(error: pytest.ExceptionInfo[DataError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message and message.endswith((".", "?"))
    for part in parts:
        assert part in message, message


def test_digits_are_the_real_ones(load: Load) -> None:
    from sklearn.datasets import load_digits

    splits = load("digits")
    pixels, labels = load_digits(return_X_y=True)
    assert splits.spec.class_names == tuple("0123456789")
    assert splits.spec.num_train == len(splits.train)
    assert splits.spec.features == tf.TensorSpec([None], tf.string)
    assert sorted(sum(_names(splits).values(), [])) == [f"digit-{i:04d}" for i in range(1797)]
    assert [len(names) for names in _names(splits).values()] == [1295, 143, 359]
    for part in _parts(splits).values():
        for i in (0, len(part) - 1):
            row = int(part.names[i].removeprefix("digit-"))
            assert part.labels[i] == labels[row]
            image = images.decode(part.fetch(tf.constant(i, tf.int64)))
            np.testing.assert_allclose(image[..., 0] * 16, pixels[row].reshape(8, 8), atol=0.04)
            assert part.fetch(tf.constant(i, tf.int64)).numpy() == part.payload(i)


def test_a_folder_becomes_disjoint_complete_stratified_splits(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"cat": 30, "dog": 20, "Übergröße 猫": 10})
    splits = load(f"folder:{root}")
    names = _names(splits)
    assert sorted(sum(names.values(), [])) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    assert splits.spec.class_names == ("cat", "dog", "Übergröße 猫")
    assert _counts(splits) == {
        "train": {"cat": 22, "dog": 14, "Übergröße 猫": 7},
        "validation": {"cat": 2, "dog": 2, "Übergröße 猫": 1},
        "test": {"cat": 6, "dog": 4, "Übergröße 猫": 2},
    }
    for part in _parts(splits).values():
        for i, name in enumerate(part.names):
            assert splits.spec.class_names[part.labels[i]] == name.split("/")[0]
            assert part.payload(i) == part.fetch(tf.constant(i, tf.int64)).numpy() == (root / name).read_bytes()
    assert _names(load(f"folder:{root}", seed=1))["test"] != names["test"]


def test_neither_place_nor_order_of_files_matters(
    load: Load, class_folder: ClassFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folder({"a": 12, "b": 12})
    first = load(f"folder:{root}", limit=5)
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(sorted(listed(self))))
    second = load(f"folder:{moved}", limit=5)
    assert _names(first) == _names(second)
    assert first.manifest["fingerprint"] == second.manifest["fingerprint"]
    assert all(len(names) <= 5 for names in _names(first).values())


def test_a_source_is_known_by_its_place_and_its_content(
    load: Load, class_folder: ClassFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folder({"a": 12, "b": 12})
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    content = load(f"folder:{root}").manifest["content"]
    assert load(f"folder:{moved}", limit=5, seed=3).manifest["content"] == content
    (moved / "a" / "000.png").unlink()
    assert load(f"folder:{moved}").manifest["content"] != content
    monkeypatch.chdir(root)
    (tmp_path / "link").symlink_to(root)
    for spelling in (root, "../pictures", ".", f"{root}/", tmp_path / "link", f"{root}/a/.."):
        assert resolved(f"folder:{spelling}") == f"folder:{root.resolve()}"
    assert resolved("csv:~/t.csv") == f"csv:{Path.home().resolve()}/t.csv"
    assert [resolved(name) for name in ("digits", "tfds:cifar10", "folder:")] == ["digits", "tfds:cifar10", "folder:"]


@pytest.mark.parametrize("train, validation, test", [("train", "val", "test"), ("Training", "dev", "testing")])
def test_given_split_folders_are_used(
    load: Load, class_folder: ClassFolder, train: str, validation: str, test: str
) -> None:
    root = class_folder({f"{split}/{label}": 3 for split in (train, validation, test) for label in "ab"})
    for role, names in _names(load(f"folder:{root}")).items():
        folder = {"train": train, "validation": validation, "test": test}[role]
        assert names == [f"{folder}/{label}/{i:03d}.png" for label in "ab" for i in range(3)]


def test_splits_of_other_names_and_missing_ones(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({f"{split}/{label}": 6 for split in ("train", "holdout") for label in "ab"})
    splits = load(f"folder:{root}", test_split="holdout")
    assert all(name.startswith("holdout/") for name in splits.test.names) and len(splits.test) == 12
    assert [len(splits.train), len(splits.validation)] == [10, 2]
    assert splits.manifest["splits"]["validation"]["origin"] == "drawn from train"
    assert splits.manifest["splits"]["test"]["origin"] == "given"
    assert load(f"folder:{root}", test_split="holdout", validation_fraction=0.0).validation is None
    with pytest.raises(DataError) as error:
        load(f"folder:{root}", test_split="holdoff")
    _one_sentence(error, "no split 'holdoff'", "'holdout', 'train'", "--data.test_split")


def test_a_class_may_be_called_train(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"train": 10, "bus": 10})
    assert load(f"folder:{root}").spec.class_names == ("bus", "train")


def test_numbers_are_ordered_by_value(load: Load, class_folder: ClassFolder) -> None:
    assert load(f"folder:{class_folder({'10': 3, '9': 3, '1': 3})}").spec.class_names == ("1", "9", "10")


def test_what_is_no_image_is_left_out_and_counted(load: Load, class_folder: ClassFolder, picture: Picture) -> None:
    root = class_folder({"a": 6, "b": 6})
    for name in ("README.md", "a/.DS_Store", "a/notes.txt", "b/Thumbs.db", "b/._000.png"):
        (root / name).write_text("no picture")
    (root / ".git").mkdir()
    picture(root / ".git" / "x.png", 1)
    picture(root / "a" / "deeper" / "DEEP.PNG", 2)
    splits = load(f"folder:{root}")
    names = sum(_names(splits).values(), [])
    assert len(names) == 13 and "a/deeper/DEEP.PNG" in names
    assert splits.manifest["ignored"] == {
        "count": 5, "names": ["README.md", "a/.DS_Store", "a/notes.txt", "b/._000.png", "b/Thumbs.db"]
    }


def test_links_are_followed_but_not_in_circles(
    load: Load, class_folder: ClassFolder, tmp_path: Path, picture: Picture
) -> None:
    root = class_folder({"a": 4})
    for i in range(4):
        picture(tmp_path / "outside" / f"{i}.png", i)
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "knot").symlink_to(root / "a" / "knot")
    names = sum(_names(load(f"folder:{root}")).values(), [])
    assert sorted(names) == sorted([f"a/{i:03d}.png" for i in range(4)] + [f"b/{i}.png" for i in range(4)])


def test_equal_files_stay_on_one_side(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"a": 30, "b": 30})
    for i in range(20):
        shutil.copy(root / "a" / f"{i:03d}.png", root / "a" / f"copy-{i}.png")
    for seed in range(3):
        splits = load(f"folder:{root}", seed=seed)
        sides = {}
        for role, part in _parts(splits).items():
            for i in range(len(part)):
                assert sides.setdefault(hashlib.sha256(part.payload(i)).digest(), role) == role
        duplicates = splits.manifest["duplicates"]
        assert sum(duplicates["within"].values()) == 20
        assert set(duplicates["across"].values()) == {0}


def test_equal_files_in_given_splits_are_named(
    load: Load, class_folder: ClassFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = class_folder({f"{split}/{label}": 5 for split in ("train", "val", "test") for label in "ab"})
    shutil.copy(root / "train" / "a" / "001.png", root / "test" / "a" / "leak.png")
    duplicates = load(f"folder:{root}").manifest["duplicates"]
    assert duplicates["across"] == {"train/validation": 0, "train/test": 1, "validation/test": 0}
    assert duplicates["names_across"] == [["train: train/a/001.png", "test: test/a/leak.png"]]
    assert "1 in train/test" in caplog.text


def _spoil(root: Path, picture: Picture) -> list[str]:
    """Five files that cannot be read, in class a; their names."""
    whole = picture(root / "a" / "whole.jpg", 5).read_bytes()
    (root / "a" / "whole.jpg").unlink()
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "a" / "text.jpg").write_text("I am no picture")
    (root / "a" / "zero.png").write_bytes(b"")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "a" / "cut.png").write_bytes((root / "a" / "000.png").read_bytes()[:-9])
    return [f"a/{name}" for name in ("cut.jpg", "cut.png", "gone.png", "text.jpg", "zero.png")]


def test_unreadable_files_fail_or_are_counted(load: Load, class_folder: ClassFolder, picture: Picture) -> None:
    root = class_folder({"a": 6, "b": 6})
    before = load(f"folder:{root}")
    bad = _spoil(root, picture)
    with pytest.raises(DataError) as error:
        load(f"folder:{root}")
    _one_sentence(error, "a/cut.jpg", "cut short", "and 4 more", "--data.on_bad skip")
    splits = load(f"folder:{root}", on_bad="skip")
    assert _names(splits) == _names(before)
    unreadable = splits.manifest["unreadable"]
    assert unreadable["count"] == 5 and sorted(unreadable["reasons"]) == bad
    assert unreadable["reasons"]["a/text.jpg"] == "it is no JPEG, PNG, GIF or BMP"
    assert unreadable["reasons"]["a/zero.png"] == "it is empty"
    assert unreadable["reasons"]["a/gone.png"] == "no such file or directory"


def test_a_pipe_is_not_waited_for(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"a": 6, "b": 6})
    os.mkfifo(root / "a" / "pipe.png")

    def end_the_wait() -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(root / "a" / "pipe.png", os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(10, end_the_wait)
    timer.start()
    splits = load(f"folder:{root}", on_bad="skip")
    timer.cancel()
    assert splits.manifest["unreadable"]["reasons"] == {
        "a/pipe.png": "it is a folder, a pipe or a device, and no file"
    }


@pytest.mark.parametrize("name", ["two\nlines", "not utf-8 \udcff"])
def test_a_class_whose_name_cannot_be_shown_is_to_be_renamed(
    load: Load, class_folder: ClassFolder, name: str
) -> None:
    root = class_folder({"a": 6, name: 6})
    with pytest.raises(DataError) as error:
        load(f"folder:{root}")
    _one_sentence(error, "one line of plain UTF-8", "rename")


def test_a_label_that_train_has_not_is_refused(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2, "test/zebra": 2})
    with pytest.raises(DataError) as error:
        load(f"folder:{root}")
    _one_sentence(error, "'zebra'", "test", "'a', 'b'")


@pytest.mark.parametrize(
    "counts, parts",
    [
        ({}, ["no images"]),
        ({"a": 5}, ["one class only", "'a'"]),
        ({"a": 5, "b": 5, "c": 0}, ["class folder 'c'", ".png"]),
        ({"a": 5, "b": 5, "c": 1}, ["fewer than 2", "'c'"]),
        ({"test/a": 5, "test/b": 5}, ["no split 'train'", "'test'"]),
    ],
)
def test_folders_that_cannot_be_learned_from(
    load: Load, class_folder: ClassFolder, counts: dict[str, int], parts: list[str]
) -> None:
    root = class_folder(counts)
    root.mkdir(exist_ok=True)
    with pytest.raises(DataError) as error:
        load(f"folder:{root}")
    _one_sentence(error, *parts)


def test_two_equal_pictures_cannot_be_parted(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"a": 5, "b": 1})
    shutil.copy(root / "b" / "000.png", root / "b" / "001.png")
    with pytest.raises(DataError, match="fewer than 2 different images of 'b'"):
        load(f"folder:{root}")


def test_no_test_split_at_all_is_refused(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"a": 5, "b": 5})
    with pytest.raises(DataError) as error:
        load(f"folder:{root}", test_fraction=0.0)
    _one_sentence(error, "--data.test_fraction")


def test_paths_that_are_not_there(load: Load, tmp_path: Path) -> None:
    for source in (f"folder:{tmp_path}/none", f"csv:{tmp_path}/none.csv", f"csv:{tmp_path}"):
        with pytest.raises(DataError) as error:
            load(source)
        _one_sentence(error, str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_without_permission_is_named(load: Load, class_folder: ClassFolder) -> None:
    root = class_folder({"a": 3, "b": 3})
    (root / "b").chmod(0)
    try:
        with pytest.raises(DataError, match="permission"):
            load(f"folder:{root}")
    finally:
        (root / "b").chmod(0o755)


@pytest.mark.parametrize("source, hint", [("folders:x", "'folder'"), ("tfds:", "tfds:NAME"), ("digit", "'digits'")])
def test_an_unknown_source_is_refused(load: Load, source: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        load(source)


def test_a_folder_without_its_kind_is_understood_and_a_kind_without_a_path_not_offered_again(
    load: Load, class_folder: ClassFolder
) -> None:
    root = class_folder({"a": 3, "b": 3})
    with pytest.raises(UsageError) as error:
        load(str(root))
    assert str(error.value).endswith(f"Did you mean 'folder:{root}'?")
    with pytest.raises(UsageError, match="folder:PATH, csv:PATH, got 'folder'.$"):
        load("folder")


def test_the_real_x_rays_are_counted(load: Load, shared_data: Path) -> None:
    splits = load(f"folder:{shared_data / 'chest_xray'}")
    assert _counts(splits)["train"] == {"normal": 388, "pneumonia": 3494}
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [3882, 524, 624]
    assert splits.manifest["unreadable"]["count"] == 0
