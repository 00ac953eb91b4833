"""Features kept on the disk: the same values, found again by content alone, and never the reason that a run fails."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.config import AdaptConfig, RunConfig, RuntimeConfig
from tfbig.data import file_names
from tfbig.data.batches import batches
from tfbig.data.file_names import Paths
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import DataSpec, Split, Splits, array_split
from tfbig.training import assembly, feature_cache, features
from tfbig.training import feature_key as feature_key_module
from tfbig.training.feature_cache import FeatureCache
from tfbig.training.feature_key import Origin, feature_key

KEY = "0123456789abcdef" * 2
ORIGIN = Origin("a fingerprint", "train", "a test")
ROWS = np.random.default_rng(0).normal(size=(300, 8)).astype("f4")


def _cache(folder: Path, limit_bytes: int = 10**9) -> FeatureCache:
    return FeatureCache(folder / "cache", limit_bytes)


def _chunks(rows: np.ndarray = ROWS) -> Iterator[np.ndarray]:
    yield from (rows[i : i + 128] for i in range(0, len(rows), 128))


def _keep(cache: FeatureCache, key: str = KEY, rows: np.ndarray = ROWS) -> np.ndarray | None:
    return cache.keep(key, lambda: _chunks(rows), shape=rows.shape, about="rows")


def _trunk(units: int = 8, *, seed: int = 0, activation: str = "relu", dtype: str = "float32") -> keras.Model:
    image = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(image)
    kernel = keras.initializers.GlorotUniform(seed)
    x = keras.layers.Dense(units, activation=activation, kernel_initializer=kernel, dtype=dtype)(x) + 0.0
    return keras.Model(image, keras.layers.Activation("linear", dtype="float32")(x))


def _split(size: int = 37, *, seed: int = 1) -> Split:
    x = np.random.default_rng(seed).uniform(size=(size, 4, 4, 3)).astype("f4")
    return array_split(x, np.arange(size))


def _values(split: Split) -> np.ndarray:
    plan = IndexPlan(len(split), 10, shuffle=False)
    return np.concatenate([np.asarray(x) for x, _, _ in batches(split, plan)])[: len(split)]


def test_what_is_read_is_what_was_computed(tmp_path: Path) -> None:
    trunk, split = _trunk(), _split()
    plain = _values(features.extract(trunk, split, batch_size=10))
    np.testing.assert_allclose(plain, trunk.predict(_values(split), verbose=0), atol=1e-6)
    for _ in range(2):
        kept = features.extract(trunk, split, batch_size=10, cache=_cache(tmp_path), origin=ORIGIN)
        np.testing.assert_array_equal(_values(kept), plain)
        np.testing.assert_array_equal(kept.labels, split.labels)
    assert len(_cache(tmp_path).entries()) == 1


def test_a_second_run_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, split = _trunk(), _split()
    features.extract(trunk, split, batch_size=10, cache=_cache(tmp_path), origin=ORIGIN)
    monkeypatch.setattr(features, "_computed", None)
    features.extract(trunk, split, batch_size=10, cache=_cache(tmp_path), origin=ORIGIN)


def test_what_was_computed_in_another_way_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, split = _trunk(), _split()
    key = feature_key(trunk, split, ORIGIN, 10)
    monkeypatch.setattr(feature_key_module, "_COMPUTATION", "in another way")
    assert feature_key(trunk, split, ORIGIN, 10) not in (key, None)


def test_norms_are_folded_where_features_are_computed() -> None:
    image = keras.Input((4, 4, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3, name="convolution")(image))
    trunk = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    expected = trunk.predict(_values(_split()), verbose=0)
    called: list[object] = []
    # Folded, a convolution is not called itself.
    trunk.get_layer("convolution").call = called.append
    np.testing.assert_allclose(_values(features.extract(trunk, _split(), batch_size=10)), expected, atol=1e-5)
    assert not called


def test_views_lie_behind_one_another(tmp_path: Path) -> None:
    trunk, views = _trunk(), [_split(seed=1), _split(seed=2)]
    origins = [replace(ORIGIN, augmentation=f"view {number}") for number in range(2)]
    alone = [_values(features.extract(trunk, view, batch_size=10)) for view in views]
    for _ in range(2):
        kept = features.extract_views(trunk, views, batch_size=10, cache=_cache(tmp_path), origins=origins)
        np.testing.assert_array_equal(_values(kept), np.concatenate(alone))
        np.testing.assert_array_equal(kept.labels, np.concatenate([view.labels for view in views]))
    mixed = kept.gather(tf.constant([40, 3, 38], tf.int64))
    np.testing.assert_array_equal(mixed, [alone[1][3], alone[0][3], alone[1][1]])


def test_the_key_is_of_the_content_and_of_nothing_else() -> None:
    keras.utils.clear_session()
    split = _split()
    key = feature_key(_trunk(), split, ORIGIN, 10)
    # A network built later in this process has other names, and the same content.
    assert feature_key(_trunk(), _split(), ORIGIN, 10) == key
    trained = _trunk()
    trained.weights[1].assign_add(np.full(8, 1e-6, "f4"))
    others = [
        feature_key(trained, split, ORIGIN, 10),
        feature_key(_trunk(seed=1), split, ORIGIN, 10),
        feature_key(_trunk(activation="tanh"), split, ORIGIN, 10),
        feature_key(_trunk(dtype="bfloat16"), split, ORIGIN, 10),
        feature_key(_trunk(), _split(seed=2), ORIGIN, 10),
        feature_key(_trunk(), split.subset(np.arange(36)), ORIGIN, 10),
        feature_key(_trunk(), array_split(_values(split), split.labels, names=["x"] * 37), ORIGIN, 10),
        feature_key(_trunk(), split, Origin("another fingerprint", "train", ""), 10),
        feature_key(_trunk(), split, Origin("a fingerprint", "validation", ""), 10),
        feature_key(_trunk(), split, Origin("a fingerprint", "train", "", "view 1"), 10),
        feature_key(_trunk(), split, ORIGIN, 20),
    ]
    assert len({key, *others}) == 1 + len(others)
    # Nobody can tell such data from other data.
    assert feature_key(_trunk(), split, Origin("", "train", ""), 10) is None


def test_the_key_with_many_names_is_that_of_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache holds already is found again, and no list of all names is made."""
    monkeypatch.setattr(file_names, "_AT_ONCE", 3)
    names = ["a.png", 'of "quotes" and \\.png', "ä/é.png", "a\udcff.jpg", "\U0001f600", "", ", ", "\0names"]
    parts = {"a": "before", "data": ["fingerprint", "train", [feature_key_module._NAMES]], "z": 10}
    text = json.dumps(parts, sort_keys=True)
    for number in range(len(names) + 1):
        whole = {**parts, "data": ["fingerprint", "train", names[:number]]}
        expected = feature_key_module._hash(json.dumps(whole, sort_keys=True).encode())
        for several in (names[:number], Paths(names[:number])):
            assert feature_key_module._hash_with_names(text, several) == expected


def test_pictures_of_another_shape_are_others() -> None:
    image = keras.Input((None, None, 3))
    trunk = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    keys = {
        feature_key(trunk, array_split(np.zeros((5, *shape, 3), "f4"), np.arange(5)), ORIGIN, 10)
        for shape in ((4, 4), (2, 8), (8, 8))
    }
    assert len(keys) == 3


def test_views_are_known_by_their_augmentation_seed_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, for a few examples whose pixels are part of the key may have been left as they are."""
    seen: list[set[str]] = []

    def note(*arguments: object, origins: list[Origin], **others: object) -> None:
        seen.append({origin.augmentation for origin in origins})

    monkeypatch.setattr(features, "extract_views", note)
    spec = DataSpec(tf.TensorSpec((None, 4, 4, 3)), 37, ("a", "b"))
    splits = Splits(_split(), None, _split(), spec, {"fingerprint": "a fingerprint"})
    for options, seed in (("flip", 0), ("rotate", 0), ("flip", 1)):
        adapt, runtime = AdaptConfig(mode="head", cached_views=2), RuntimeConfig(seed=seed)
        config = RunConfig(options=options, adapt=adapt, runtime=runtime)
        assembly._train_features(_trunk(), config, splits, lambda x, y, seed: (x, y), 10, None)
    assert len(seen) == 3 and len(set.union(*seen)) == 3 * 2


def test_half_precision_only_where_it_loses_nothing(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    halves = ROWS.astype(np.float16).astype("f4")
    for key, rows, dtype in ((KEY, halves, np.float16), (KEY[::-1], ROWS, np.float32)):
        kept = _keep(cache, key, rows)
        assert kept.dtype == dtype
        np.testing.assert_array_equal(kept.astype("f4"), rows)
        np.testing.assert_array_equal(cache.read(key).astype("f4"), rows)
    large = np.full((3, 2), 1e6, "f4")
    np.testing.assert_array_equal(_keep(cache, "f" * 32, large), large)


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    old = os.umask(0)
    try:
        _keep(cache)
    finally:
        os.umask(old)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert cache.entries()[0].path.stat().st_mode & 0o777 == 0o600


def _cut(raw: bytes) -> bytes:
    return raw[:-1]


def _flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def _no_header(raw: bytes) -> bytes:
    return bytes(4096) + raw[4096:]


def _half_a_header(raw: bytes) -> bytes:
    return raw[:40].ljust(4096, b"\0") + raw[4096:]


def _no_shape(raw: bytes) -> bytes:
    return raw.replace(b'"shape"', b'"sharp"')


@pytest.mark.parametrize("damage", [_cut, _flipped, _no_header, _half_a_header, _no_shape, lambda raw: b""])
def test_a_damaged_entry_is_removed(damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = _cache(tmp_path)
    _keep(cache)
    path = cache.entries()[0].path
    path.write_bytes(damage(path.read_bytes()))
    assert len(cache.entries()) == 1
    assert cache.read(KEY) is None and not path.exists()
    assert "computed again" in caplog.text
    np.testing.assert_array_equal(_keep(cache), ROWS)


def test_an_entry_under_anothers_name_is_not_believed(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    _keep(cache)
    cache.entries()[0].path.rename(cache.folder / f"{KEY[::-1]}.features")
    assert cache.read(KEY[::-1]) is None


_WRITER = """
import sys, time
import numpy as np
from pathlib import Path
from tfbig.training.feature_cache import FeatureCache

def chunks():
    yield np.ones((100, 8), "f4")
    print("half", flush=True)
    time.sleep(60)

FeatureCache(Path(sys.argv[1]), 10**9).keep(sys.argv[2], chunks, shape=(200, 8), about="")
"""


def test_a_kill_half_way_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = _cache(tmp_path)
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(cache.folder), KEY], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"half\n"
    monkeypatch.setattr(feature_cache, "_STALE_S", 0.0)
    # What a living process writes is left alone.
    np.testing.assert_array_equal(_keep(cache), ROWS)
    assert len(list(cache.folder.glob(".*.partial"))) == 1
    cache.clear()
    assert len(list(cache.folder.glob(".*.partial"))) == 1
    writer.kill()
    writer.communicate()
    assert cache.read(KEY) is None and not cache.entries()
    np.testing.assert_array_equal(_keep(cache), ROWS)
    assert [path.name for path in cache.folder.iterdir()] == [f"{KEY}.features"]


def test_a_clock_that_was_set_back_keeps_nothing_for_ever(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    _keep(cache)
    left = cache.folder / f".{KEY}.1a.partial"
    for remove in (cache.clear, lambda: _keep(cache, KEY[::-1])):
        left.touch()
        os.utime(left, (time.time() + 1e6,) * 2)
        remove()
        assert not left.exists()


def test_two_writers_at_once_give_one_whole_entry(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    kept = []

    def chunks() -> Iterator[np.ndarray]:
        for rows in _chunks():
            both.wait(timeout=20)
            yield rows

    def write() -> None:
        kept.append(_cache(tmp_path).keep(KEY, chunks, shape=ROWS.shape, about=""))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=30)
    assert len(kept) == 2 and all(np.array_equal(rows, ROWS) for rows in kept)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{KEY}.features"]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    keys = ["a" * 32, "b" * 32, "c" * 32]
    cache = _cache(tmp_path, limit_bytes=2 * (ROWS.nbytes + 4096))
    for age, key in zip((50, 100), keys[:2], strict=True):
        _keep(cache, key)
        os.utime(cache.folder / f"{key}.features", (time.time() - age,) * 2)
    mapped = cache.read(keys[1])
    _keep(cache, keys[2])
    assert {entry.path.stem for entry in cache.entries()} == {keys[1], keys[2]}
    # Removed under a run that reads it: the run goes on.
    cache.clear()
    np.testing.assert_array_equal(mapped, ROWS)


def test_what_is_above_the_limit_removes_nothing(tmp_path: Path) -> None:
    _keep(_cache(tmp_path))
    assert _keep(_cache(tmp_path, limit_bytes=ROWS.nbytes), "b" * 32) is None
    assert len(_cache(tmp_path).entries()) == 1


def _blocked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a file in its place")


def _no_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "write", refuse)


def _full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_SPARE_BYTES", 2**62)


@pytest.mark.parametrize("trouble", [_blocked, _no_space, _full])
def test_a_folder_that_cannot_be_used_costs_one_warning(
    trouble: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, split = _cache(tmp_path), _split()
    trouble(cache.folder, monkeypatch)
    monkeypatch.setattr(features, "_computed", lambda *arguments: _chunks(ROWS[:37]))
    for _ in range(2):
        kept = features.extract(_trunk(), split, batch_size=10, cache=cache, origin=ORIGIN)
        np.testing.assert_array_equal(_values(kept), ROWS[:37])
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and str(cache.folder) in warnings[0]


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    _keep(cache)
    (cache.folder / "thesis.features").write_text("mine")
    assert cache.clear() == ROWS.nbytes + 4096
    assert [path.name for path in cache.folder.iterdir()] == ["thesis.features"]
