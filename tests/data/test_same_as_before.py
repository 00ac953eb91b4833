"""Which example is in which split, and every digest of a manifest, is what it was when names and digests were objects.

Runs go on, feature caches are found and ledgers know their data by these values, so that no release may change them.
"""

import csv
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tfbig.data.splits import Split, Splits

# Of all splits with names and labels, and the manifest; its fingerprint; its content.
GOLDEN: dict[str, tuple[str, str, str]] = {
    "digits": (
        "71d3d32479eb76f44ceae4ab7f11290a",
        "8f0d4906a538d6c44b688b8db011dfaa",
        "46b4fa0a5cd16ecedf074d2603b0dd15",
    ),
    "folder": (
        "1e3d237e8687345080d29d24ea96c099",
        "7f09e318b5642a1e0631e78f92b4c2ba",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "folder, limited": (
        "da666631fc11c6b496cfd579621b53fc",
        "7bc1546d58db23ee6b29a5ef70a31eca",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "folder, other fractions": (
        "968bbe4ea756b0378a3111a48e693803",
        "9c674732540da9329d598a14a4de2df3",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "folder with broken files": (
        "184aaac5a10ef3a418047dfcedc4e206",
        "96533b8f26402b1c03eea3f73b36f332",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "rows": (
        "5af1abc6335f97e9a95e89cf8412c48a",
        "12ee17dee9139e64d61e43593fb385e9",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "rows, limited": (
        "c22bccde85a215504b4a07226903afb3",
        "ce255c67751470392bff57978fdc9263",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "rows with a split": (
        "68369707a3f906cac0e7c7568d4a88ad",
        "bb1bdf01052285f2d4e8271aae703c3a",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "rows of several labels": (
        "cc2691299efd7bb8957ee217ce1e2378",
        "78bc8eba4597220742167b60ee9f9a36",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
    "rows of several labels, limited": (
        "3fb9b81cc58ba588e82924814f2350bd",
        "76a0936cb4737f7dd844518a52925f6d",
        "1b8225abe60fea1817a2ba913b7def9d",
    ),
}


def _bmp(shade: int) -> bytes:
    """A picture of 2 by 2 pixels, whose bytes no library's version decides."""
    pixels = struct.pack("<BBB", shade % 256, shade // 256, 7) * 2 + b"\0\0"
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + 16, 0, 0, 54, 40, 2, 2, 1, 24, 0, 16, 1, 1, 0, 0)
    return header + pixels * 2


def _files(root: Path) -> list[str]:
    """300 files in classes whose names are numbers: names out of order, beyond ASCII and no UTF-8; equal contents."""
    names = []
    for i in range(300):
        folder = ("2", "10", "9", "10/a", "10/a b", "9/ä")[i * i % 6]
        names.append(f"{folder}/{('x', 'a b', 'é', chr(0xDCFF), chr(0xFFEE), chr(0x1F600))[i % 6]}{i % 100}-{i}.bmp")
        path = root / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bmp(i * i % 257))
    return names


def _table(root: Path, rows: list[list[str]], header: list[str]) -> str:
    with (root / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return f"csv:{root / 'rows.csv'}"


def _source(kind: str, root: Path) -> str:
    if kind == "digits":
        return kind
    names = _files(root)
    if kind == "folder":
        (root / "2" / "notes.txt").write_text("no picture")
        return f"folder:{root}"
    if kind == "broken":
        for i in (5, 17, 44):
            (root / names[i]).write_bytes(b"BM" + bytes([i]))
        return f"folder:{root}"
    # CSV is UTF-8; some rows come twice.
    rows = [name for name in (*names, *names[40:60]) if chr(0xDCFF) not in name]
    if kind == "rows":
        return _table(root, [[name, f" {i % 7} ", "rest"] for i, name in enumerate(rows)], ["path", "label", "more"])
    if kind == "split rows":
        parts = ("train", "train", "val", "test", "train")
        cells = [[parts[i % 5], name, "ab"[i % 2]] for i, name in enumerate(rows)]
        return _table(root, cells, ["split", "path", "label"])
    labels = ("a|b", "b", "", "c | a", "d", "b|c|", "a", "b")
    return _table(root, [[name, labels[i * i % 11 % 8]] for i, name in enumerate(rows)], ["path", "label"])


CASES: dict[str, tuple[str, dict[str, object]]] = {
    "digits": ("digits", {}),
    "folder": ("folder", {}),
    "folder, limited": ("folder", {"limit": 40, "seed": 3}),
    "folder, other fractions": ("folder", {"test_fraction": 0.35, "validation_fraction": 0.3, "seed": 1}),
    "folder with broken files": ("broken", {"on_bad": "skip"}),
    "rows": ("rows", {}),
    "rows, limited": ("rows", {"limit": 30}),
    "rows with a split": ("split rows", {}),
    "rows of several labels": ("several labels", {}),
    "rows of several labels, limited": ("several labels", {"limit": 50, "seed": 2}),
}


def _read(part: Split) -> list[str]:
    # Those of the digits are PNG, which depends on the version of zlib.
    files = [part.payload(i) for i in range(len(part)) if not part.names[0].startswith("digit-")]
    return [hashlib.md5(content).hexdigest() for content in files]


def _found(splits: Splits) -> tuple[str, str, str]:
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    rows = {role: [[*part.names], part.labels.tolist(), _read(part)] for role, part in parts.items()}
    rest = {key: value for key, value in splits.manifest.items() if key != "source"}
    whole = json.dumps([rows, rest], sort_keys=True).encode()
    return hashlib.md5(whole).hexdigest(), str(splits.manifest["fingerprint"]), str(splits.manifest["content"])


@pytest.mark.parametrize("case", CASES)
def test_splits_and_digests_are_those_of_before(case: str, tmp_path: Path, load: Callable[..., Splits]) -> None:
    kind, changes = CASES[case]
    assert _found(load(_source(kind, tmp_path), **changes)) == GOLDEN[case]
