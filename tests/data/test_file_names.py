"""Laws of names without objects: they read as the list they were made of, and so does their order."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfbig.data import byte_order, file_names, manifest
from tfbig.data.contents import digest, numbered
from tfbig.data.file_names import Paths, name_order
from tfbig.data.files import file_split
from tfbig.data.splits import Split

# Equal ones, an empty one, names beyond ASCII, and bytes that are no UTF-8, which in order of bytes come elsewhere.
NAMES = [f"b/{i % 40}.jpg" for i in range(70)]
NAMES += ["", "ä/é.png", "a\udcff.jpg", "a\uffee.jpg", "\uffee", "a b", "a", "a"]


@pytest.mark.parametrize("number", [0, 1, 31, 32, 33, 64, 77])
def test_names_read_as_the_list_they_were_made_of(number: int) -> None:
    wanted = NAMES[-number:] if number else []
    made = Paths(iter(wanted))
    assert len(made) == number and list(made) == wanted
    assert list(made[2:-1:3]) == wanted[2:-1:3]
    with pytest.raises(IndexError):
        made[number]
    indices = np.arange(number)[::-2]
    part = made.take(indices)
    assert list(part) == [wanted[i] for i in indices] and list(part.take(np.arange(len(part))[1:])) == list(part)[1:]


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_the_order_of_names_is_that_of_the_list(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_names, "_AT_ONCE", at_once)
    monkeypatch.setattr(byte_order, "_AT_ONCE", at_once)
    shuffled = np.random.default_rng(3).permutation(len(NAMES))
    made = Paths(NAMES).take(shuffled)
    np.testing.assert_array_equal(name_order(made), name_order(list(made)))
    np.testing.assert_array_equal(name_order(made.take(shuffled[:50])), name_order(list(made.take(shuffled[:50]))))


def test_the_digests_of_a_manifest_are_those_of_the_joined_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_names, "_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    # Texts of which some end with bytes of zero.
    digests = rng.choice([bytes([i, 7] * 8)[: 16 - i % 3].ljust(16, b"\0") for i in range(40)], len(NAMES))
    labels = rng.integers(3, size=len(NAMES))
    contents = numbered({"train": digests})
    rows = zip(NAMES, digests, labels, strict=True)
    lines = sorted(f"train\0{n}\0{bytes(d).ljust(16, bytes(1)).hex()}\0{i}\n" for n, d, i in rows)
    text = "".join(lines).encode("utf-8", "surrogateescape")
    for names in (NAMES, Paths(NAMES)):
        split = {"train": Split(lambda i: i, labels, names)}
        assert manifest._fingerprint(split, contents) == digest(text).hex()


def test_each_file_is_read_by_its_own_name_and_names_are_no_part_of_a_graph(tmp_path: Path) -> None:
    names = [f"{i:05d}" + "x" * (i % 7) for i in range(10_000)]
    names[77] = str(tmp_path / "elsewhere")
    read = [0, 1, 31, 32, 77, 4_567, 9_999]
    for i in read:
        (tmp_path / names[i]).write_bytes(b"%d" % i)
    split = file_split(tmp_path, names, np.zeros(len(names), np.int32)).subset(np.array(read))
    fetched = [content.numpy() for content in tf.data.Dataset.range(len(read)).map(split.fetch)]
    assert fetched == [split.payload(k) for k in range(len(read))] == [b"%d" % i for i in read]
    traced = tf.function(split.fetch, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
    assert traced.get_concrete_function().graph.as_graph_def().ByteSize() < 10_000
