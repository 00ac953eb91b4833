"""The rows of a CSV file of pictures, read one by one into columns, without objects that last.

Used by files.py. Letters: N rows, C classes.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfbig.data.file_names import Paths
from tfbig.data.listing import class_order, find_split, multi_hot, quoted
from tfbig.errors import DataError
from tfbig.suggest import nearest

_SPLIT = "split"


class Texts:
    """A column of texts of which most come often: each different one once, and its number in each row."""

    def __init__(self) -> None:
        self._numbers = array("i")
        self._known: dict[str, int] = {}

    def add(self, text: str) -> None:
        """The text of the next row."""
        self._numbers.append(self._known.setdefault(text, len(self._known)))

    @property
    def different(self) -> list[str]:
        """Each text, in the order in which they came."""
        return [*self._known]

    @property
    def numbers(self) -> np.ndarray:
        """(N,) int32 indices into them."""
        return np.frombuffer(self._numbers, np.int32)

    def rows_of(self, text: str) -> np.ndarray:
        """Ascending row numbers, from 0."""
        return np.flatnonzero(self.numbers == self._known.get(text, -1))


@dataclass(frozen=True)
class Rows:
    """What the rows say.

    Args:
        path: Of the CSV file.
        names: N paths.
        unnamed: Numbers of the rows, from 0, whose path is empty.
        labels: N cells of labels.
        splits: N names of splits; None where the file has no such column.
    """

    path: str
    names: Paths
    unnamed: Sequence[int]
    labels: Texts
    splits: Texts | None

    def classes(self, label_column: str, path_column: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Class names, and labels as in `Split`.

        Raises:
            DataError: An empty path or label, or no label at all.
        """
        is_several = any("|" in cell for cell in self.labels.different)
        empty: dict[str, Sequence[int] | np.ndarray] = {path_column: self.unnamed}
        if not is_several:
            empty[label_column] = self.labels.rows_of("")
        for column, rows in empty.items():
            if len(rows):
                raise DataError(
                    f"csv:{self.path} has {len(rows)} empty cells in column {column!r}, the first in row {rows[0] + 1} "
                    "below the header; fill them or remove the rows. Only where labels are separated by | may one be "
                    "empty."
                )
        texts = [[t.strip() for t in cell.split("|") if t.strip()] for cell in self.labels.different]
        class_names = class_order(text for several in texts for text in several)
        if not class_names:
            raise DataError(f"csv:{self.path} has no label in its column {label_column!r}; fill it.")
        number = {name: i for i, name in enumerate(class_names)}
        indices = np.array([number[text] for several in texts for text in several], np.int32)
        # A cell of one label each is not empty, by what was refused above.
        of_cell = multi_hot(indices, [*map(len, texts)], len(class_names)) if is_several else indices
        return class_names, of_cell[self.labels.numbers]

    def roles(self, split_names: Mapping[str, str]) -> dict[str, np.ndarray | None]:
        """Role -> row numbers, from the column split; None for all of them, where there is no such column.

        Raises:
            DataError: A split that is none of the three, or no training split.
        """
        if self.splits is None:
            return {"train": None}
        roles: dict[str, np.ndarray | None] = {}
        used = set()
        for role, wanted in split_names.items():
            name = find_split(role, wanted, self.splits.different, where=f"csv:{self.path}, column split,")
            if name is not None:
                roles[role] = self.splits.rows_of(name)
                used.add(name)
        unused = set(self.splits.different) - used
        if unused:
            raise DataError(
                f"csv:{self.path} has rows with split {quoted(sorted(unused))}; expected "
                f"{quoted(split_names.values())}: mend the rows or name the splits with --data.train_split, "
                "--data.validation_split and --data.test_split."
            )
        return roles


def read_rows(path: str, file: Path, *, path_column: str, label_column: str) -> Rows:
    """Reads a CSV file; cells are stripped, and those that are missing at the end of a row are empty.

    Args:
        path: As the user gives it.
        file: Where it is.
        path_column: Name of the column of paths.
        label_column: Name of the column of labels.

    Raises:
        DataError: It cannot be read, has two columns of one name, none of a name that is needed, or no rows.
    """
    labels, splits, unnamed = Texts(), Texts(), array("i")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns, (path_column, label_column))
            reader.fieldnames = columns

            def read() -> Iterator[str]:
                for number, row in enumerate(reader):
                    labels.add(row[label_column].strip())
                    if _SPLIT in columns:
                        splits.add(row[_SPLIT].strip())
                    name = row[path_column].strip()
                    if not name:
                        unnamed.append(number)
                    yield name

            names = Paths(read())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"csv:{path} cannot be read as UTF-8 CSV: {error}; save it as CSV in UTF-8.") from error
    if not len(names):
        raise DataError(f"csv:{path} has no rows below its header; expected a row an image.")
    return Rows(path, names, unnamed, labels, splits if _SPLIT in columns else None)


def _check_columns(path: str, columns: list[str], needed: tuple[str, ...]) -> None:
    if len(set(columns)) < len(columns):
        raise DataError(f"csv:{path} has two columns of one name among {quoted(columns)}; rename one.")
    for name in needed:
        if name not in columns:
            raise DataError(
                f"csv:{path} has no column {name!r}; it has {quoted(columns)}: name the column of paths with "
                f"--data.path_column and that of labels with --data.label_column.{nearest(name, columns)}"
            )
