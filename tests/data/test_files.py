"""CSV files: one or several labels a row, a column of splits, and what is wrong named with its row."""

import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tfbig.data.files import read_folder
from tfbig.data.splits import Splits
from tfbig.errors import DataError

Load = Callable[..., Splits]
_LABELS = ["cat", "dog"] * 8


@pytest.fixture
def table(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """A CSV file of rows whose first cell is a path; the pictures are made beside it."""

    def make(rows: Sequence[Sequence[str]], header: str = "path,label", *, encoding: str = "utf-8") -> Path:
        for i, row in enumerate(rows):
            if row[0]:
                picture(tmp_path / row[0], i)
        path = tmp_path / "labels.csv"
        path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding=encoding)
        return path

    return make


def _everything(splits: Splits) -> dict[str, tuple[str, ...]]:
    """Name -> its class names, over all splits."""
    found = {}
    for part in (splits.train, splits.validation, splits.test):
        if part is None:
            continue
        for name, label in zip(part.names, part.labels, strict=True):
            numbers = np.flatnonzero(label) if splits.spec.multi_label else [label]
            found[name] = tuple(splits.spec.class_names[i] for i in numbers)
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_rows_keep_their_labels(load: Load, table: Callable[..., Path], encoding: str) -> None:
    rows = [(f"图/{i}.png", label) for i, label in enumerate(["猫", "狗"] * 8)]
    splits = load(f"csv:{table(rows, encoding=encoding)}")
    assert _everything(splits) == {name: (label,) for name, label in rows}
    assert splits.spec.class_names == ("狗", "猫") and not splits.spec.multi_label
    assert splits.train.labels.dtype.kind == "i"


def test_the_order_of_the_rows_changes_nothing(load: Load, table: Callable[..., Path]) -> None:
    rows = [(f"{i}.png", label) for i, label in enumerate(_LABELS)]
    path = table(rows)
    first = load(f"csv:{path}")
    path.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in reversed(rows)))
    second = load(f"csv:{path}")
    assert set(first.test.names) == set(second.test.names)
    assert first.manifest["fingerprint"] == second.manifest["fingerprint"]


def test_several_labels_become_zeros_and_ones(load: Load, table: Callable[..., Path]) -> None:
    cells = ["red|round", "red", "", "round | soft", "soft|soft"] * 6
    rows = [(f"{i}.png", cell) for i, cell in enumerate(cells)]
    splits = load(f"csv:{table(rows)}")
    assert splits.spec.multi_label and splits.spec.class_names == ("red", "round", "soft")
    assert splits.train.labels.dtype == np.float32 and splits.train.labels.shape[1] == 3
    expected = {name: tuple(sorted({t.strip() for t in cell.split("|") if t.strip()})) for name, cell in rows}
    assert _everything(splits) == expected
    per_class = [facts["per_class"] for facts in splits.manifest["splits"].values()]
    assert sum(counts["red"] for counts in per_class) == 12


def test_a_column_of_splits_and_other_columns(load: Load, table: Callable[..., Path], tmp_path: Path) -> None:
    where = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    rows = [(f"{i}.png", label, split) for i, (label, split) in enumerate(zip(_LABELS, where, strict=True))]
    path = table(rows, "file,animal,split")
    splits = load(f"csv:{path}", path_column="file", label_column="animal")
    assert [list(part.names) for part in (splits.train, splits.validation, splits.test)] == [
        [f"{i}.png" for i in part] for part in (range(8), range(8, 12), range(12, 16))
    ]
    path.write_text(path.read_text().replace(",val\n", ",vla\n"))
    with pytest.raises(DataError, match="rows with split 'vla'"):
        load(f"csv:{path}", path_column="file", label_column="animal")


def test_paths_may_start_elsewhere(load: Load, table: Callable[..., Path], tmp_path: Path) -> None:
    path = table([(f"pictures/{i}.png", label) for i, label in enumerate(_LABELS)])
    moved = tmp_path / "tables" / "labels.csv"
    moved.parent.mkdir()
    moved.write_text(path.read_text())
    assert len(load(f"csv:{moved}", directory=str(tmp_path)).train) == 10
    with pytest.raises(DataError, match="no such file"):
        load(f"csv:{moved}")
    with pytest.raises(DataError, match="--data.dir"):
        load(f"csv:{moved}", directory=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("file,label\n0.png,a\n", "no column 'path'; it has 'file', 'label'"),
        ("path,labels\n0.png,a\n", "Did you mean 'labels'"),
        ("path,label\n", "no rows"),
        ("", "no column 'path'; it has none"),
        ("path,label\n0.png,a\n1.png,\n", "empty cells in column 'label', the first in row 2"),
        ("path,label\n,a\n", "empty cells in column 'path', the first in row 1"),
        ("path,label\n,a|b\n", "empty cells in column 'path'"),
        ("path,label\n0.png,a\n0.png,a\n", "one class only"),
    ],
)
def test_tables_that_cannot_be_used(
    load: Load, tmp_path: Path, picture: Callable[..., Path], text: str, message: str
) -> None:
    picture(tmp_path / "0.png", 0)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError) as error:
        load(f"csv:{tmp_path / 'labels.csv'}")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_another_encoding_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\n0.png,狗\n".encode("gbk"))
    with pytest.raises(DataError, match="UTF-8"):
        load(f"csv:{tmp_path / 'labels.csv'}")


def test_a_listing_holds_little_more_than_the_names(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(500):
            (tmp_path / label / f"{i:06d}.jpg").touch()
    tracemalloc.start()
    listing = read_folder(str(tmp_path), split_names={"train": "train", "validation": "validation", "test": "test"})
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    names = listing.splits["train"].names
    assert len(names) == 1000 and names[0] == "a/000000.jpg"
    assert kept < sum(map(sys.getsizeof, names)) + 40 * len(names)
