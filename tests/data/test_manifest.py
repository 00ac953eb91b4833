"""The manifest: what JSON can hold, with counts that add up, and faults that training's decoder finds."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tfbig.data import images
from tfbig.data.contents import DIGEST, digest, numbered
from tfbig.data.files import file_split
from tfbig.data.manifest import inspect, manifest
from tfbig.data.splits import Splits


def test_a_manifest_survives_json_and_adds_up(load: Callable[..., Splits]) -> None:
    splits = load("digits", limit=100)
    found = json.loads(json.dumps(dict(splits.manifest)))
    assert found == splits.manifest
    assert found["source"] == "digits" and found["seed"] == 0 and found["limit"] == 100
    assert found["fractions"] == {"test": 0.2, "validation": 0.1}
    for facts in found["splits"].values():
        assert facts["examples"] == sum(facts["per_class"].values()) == 100
    assert {role: facts["origin"] for role, facts in found["splits"].items()} == {
        "train": "given", "validation": "drawn from train", "test": "drawn from train"
    }


def test_at_most_twenty_pairs_are_named(tmp_path: Path) -> None:
    parts = {}
    for role in ("train", "test"):
        paths = [tmp_path / role / f"{i}.png" for i in range(30)]
        (tmp_path / role).mkdir()
        for i, path in enumerate(paths):
            path.write_bytes(images.png_bytes(np.full((2, 2), i, np.uint8)))
        parts[role] = file_split(tmp_path / role, [path.name for path in paths], np.zeros(30, np.int32))
    digests = {role: inspect(part).digests for role, part in parts.items()}
    found = manifest(
        parts,
        numbered(digests),
        class_names=["a"],
        origins=dict.fromkeys(parts, "given"),
        settings={},
        unreadable={},
        ignored=[],
    )
    assert found["duplicates"]["across"] == {"train/test": 30}
    assert len(found["duplicates"]["names_across"]) == 20


def test_the_fingerprint_knows_names_contents_labels_and_splits() -> None:
    def fingerprint(role: str, name: str, content: bytes, label: int) -> object:
        part = file_split(Path(), [name, "b"], np.array([label, 1], np.int32))
        return manifest(
            {role: part},
            numbered({role: np.array([content, digest(b"b")], DIGEST)}),
            class_names=["x", "y"],
            origins={role: "given"},
            settings={},
            unreadable={},
            ignored=[],
        )["fingerprint"]

    first = fingerprint("train", "a", digest(b"a"), 0)
    assert first == fingerprint("train", "a", digest(b"a"), 0)
    others = [("test", "a", b"a", 0), ("train", "c", b"a", 0), ("train", "a", b"c", 0), ("train", "a", b"a", 1)]
    assert first not in [fingerprint(role, name, digest(content), label) for role, name, content, label in others]


def test_inspection_reads_every_file_once_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.bin" for i in range(200)]
    for i, path in enumerate(paths):
        path.write_bytes(images.png_bytes(np.full((2, 3), i, np.uint8)) if i % 50 else b"\xff\xd8\xff broken")
    found = inspect(file_split(tmp_path, [path.name for path in paths], np.zeros(200, np.int32)))
    np.testing.assert_array_equal(found.digests, np.array([digest(path.read_bytes()) for path in paths], DIGEST))
    assert sorted(found.faults) == [0, 50, 100, 150]
    assert all("JPEG" in reason for reason in found.faults.values())


def test_the_fingerprint_is_the_hash_of_all_lines_in_their_order() -> None:
    parts, digests, lines = {}, {}, []
    # The last name is no UTF-8: byte by byte it comes before the one in front of it.
    for role, names in (("train", ["b", "a b", "a"]), ("test", ["b", "\U0001f600", "c\udce9"])):
        parts[role] = file_split(Path(), names, np.array([2, 0, 1], np.int32))
        contents = [digest(name.encode("utf-8", "surrogateescape")) for name in names]
        digests[role] = np.array(contents, DIGEST)
        rows = zip(names, contents, [2, 0, 1], strict=True)
        lines += [f"{role}\0{name}\0{content.hex()}\0{label}\n" for name, content, label in rows]
    found = manifest(
        parts, numbered(digests), class_names=list("xyz"), origins=dict.fromkeys(parts, "given"), settings={},
        unreadable={}, ignored=[],
    )  # fmt: skip
    whole = "".join(sorted(lines)).encode("utf-8", "surrogateescape")
    # What runs and feature caches hold already must not change.
    assert found["fingerprint"] == hashlib.blake2b(whole, digest_size=16).hexdigest()
