"""A person's own pictures: a folder with a sub-folder a class, or a CSV file of paths and labels.

Both give a `Listing` of encoded images that are read from their files one by one; sources.py draws the
splits that are missing.
"""

from __future__ import annotations

import csv
import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfbig.data.file_names import NAMES_IN_BLOCK, Paths
from tfbig.data.images import EXTENSIONS
from tfbig.data.listing import SYNONYMS, Listing, class_order, find_split, multi_hot, quoted
from tfbig.data.splits import Split
from tfbig.errors import DataError
from tfbig.paths import expanded
from tfbig.suggest import nearest

# What operating systems leave in folders that people zip and share.
_CLUTTER = ("__macosx", "thumbs.db", "desktop.ini")


def read_folder(path: str, *, split_names: Mapping[str, str]) -> Listing:
    """A folder with a sub-folder a class, or with train, validation and test sub-folders that have them.

    Hidden files and files of other formats are left out and listed. Links to folders are followed, but
    not back to a folder that holds them.

    Args:
        path: The folder.
        split_names: Role -> name of its sub-folder; the usual names are found too.

    Returns:
        Paths relative to the folder as names, in sorted order.

    Raises:
        DataError: No such folder, no images, no class folders, a class folder without images.
    """
    root = expanded(path)
    if not root.is_dir():
        raise DataError(f"folder: expected a folder of images, but {path} {_what(root)}; give folder:PATH.")
    roles = _split_folders(root, split_names)
    found: dict[str, dict[str, Paths]] = {}
    start = len(os.path.join(root, ""))
    ignored: list[str] = []
    try:
        for role, folder in roles.items():
            found[role] = {}
            for child in _children(folder):
                is_folder = _is_dir(child)
                if is_folder and not _is_clutter(child.name):
                    above = (_identity(root), _identity(folder))
                    found[role][child.name] = Paths(path[start:] for path in _walk(child.path, above, ignored))
                elif not is_folder:
                    ignored.append(child.path)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}; mend its permissions.") from error
    class_names = _class_names(path, found)
    unreadable = [name.encode(errors="backslashreplace").decode() for name in class_names if not name.isprintable()]
    if unreadable:
        raise DataError(
            f"folder:{path} has class folders whose names are not one line of plain UTF-8 text: {quoted(unreadable)}; "
            "rename them."
        )
    splits = {}
    for role, classes in found.items():
        of_class = [classes.get(name, ()) for name in class_names]
        sizes = [len(names) for names in of_class]
        labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        splits[role] = file_split(root, Paths(chain.from_iterable(of_class)), labels)
    left_out = tuple(sorted(path[start:] for path in ignored))
    return Listing(splits, class_names, ignored=left_out, directory=str(root))


def read_csv(
    path: str, *, directory: str | None, path_column: str, label_column: str, split_names: Mapping[str, str]
) -> Listing:
    """A CSV file (UTF-8) with a row an image: its path, its label or labels, and perhaps its split.

    Labels separated by | in any cell make the data multi-label; an empty cell is then no label at all. A
    column named split gives each row's split.

    Args:
        path: The CSV file.
        directory: Where the paths start; by default the folder of the CSV file.
        path_column: Name of the column of paths.
        label_column: Name of the column of labels.
        split_names: Role -> its name in the column split; the usual names are found too.

    Returns:
        Paths as the rows give them as names, in the order of the rows.

    Raises:
        DataError: No such file, a missing column, an empty path or label, an unknown split.
    """
    rows = _rows(path, (path_column, label_column))
    base = expanded(directory) if directory else expanded(path).parent
    if not base.is_dir():
        raise DataError(f"--data.dir is where the CSV's paths start, but {base} {_what(base)}.")
    cells = [row[label_column] for row in rows]
    multi_label = any("|" in cell for cell in cells)
    for column in (path_column,) if multi_label else (path_column, label_column):
        empty = [i for i, row in enumerate(rows, 1) if not row[column]]
        if empty:
            raise DataError(
                f"csv:{path} has {len(empty)} empty cells in column {column!r}, the first in row {empty[0]} below the "
                "header; fill them or remove the rows. Only where labels are separated by | may one be empty."
            )
    texts = [[t.strip() for t in cell.split("|") if t.strip()] for cell in cells]
    class_names = class_order(text for row in texts for text in row)
    if not class_names:
        raise DataError(f"csv:{path} has no label in its column {label_column!r}; fill it.")
    number = {name: i for i, name in enumerate(class_names)}
    indices = [[number[text] for text in row] for row in texts]
    labels = multi_hot(indices, len(class_names)) if multi_label else np.array(indices, np.int32)[:, 0]
    splits = {}
    for role, members in _row_splits(path, rows, split_names).items():
        names = [rows[i][path_column] for i in members]
        splits[role] = file_split(base, names, labels[members])
    return Listing(splits, class_names, multi_label, directory=str(base))


def file_split(directory: Path, names: Sequence[str], labels: np.ndarray) -> Split:
    """A split over one file an example.

    Of a million files there are a million names and no objects beside them: paths are joined when they are needed.

    Args:
        directory: Where the names start.
        names: N paths, relative to it or absolute.
        labels: As in `Split`.
    """
    paths = names if isinstance(names, Paths) else Paths(names)
    name, start = _names_in_graph(paths), os.fsencode(os.path.join(directory, ""))

    def fetch(index: tf.Tensor) -> tf.Tensor:
        found = name(index)
        # As os.path.join has it: an absolute path stands for itself.
        return tf.io.read_file(tf.where(tf.strings.substr(found, 0, 1) == os.sep, found, start + found))

    def payload(index: int) -> bytes:
        file = Path(directory, paths[index])
        # A pipe would be waited for, and a device may never end.
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, and no file")
        return file.read_bytes()

    return Split(fetch, labels, paths, payload)


def _names_in_graph(paths: Paths) -> Callable[[tf.Tensor], tf.Tensor]:
    """What gives a name in a graph: scalar index -> scalar string."""
    blocks, begins = paths.blocks()
    # Eager constants of more than 128 elements are handed to each graph by reference, not copied into it.
    block_of, begin_of = tf.constant(blocks, tf.string, shape=[len(blocks)]), tf.constant(begins)

    def name(index: tf.Tensor) -> tf.Tensor:
        block = index // NAMES_IN_BLOCK
        begin = tf.gather(begin_of, index)
        within = begin - tf.gather(begin_of, block * NAMES_IN_BLOCK)
        return tf.strings.substr(tf.gather(block_of, block), within, tf.gather(begin_of, index + 1) - begin)

    return name


def _what(path: Path) -> str:
    return "is a file" if path.is_file() else "does not exist"


def _children(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; an entry knows whether it is a folder without asking the disk again."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda child: child.name)


def _is_dir(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError as error:
        # A link to itself is no folder.
        if error.errno != errno.ELOOP:
            raise
        return False


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not _is_clutter(name)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _walk(folder: str, above: tuple[tuple[int, int], ...], ignored: list[str]) -> list[str]:
    """Paths of images under a folder, in sorted order; `above` are the folders that hold it, to stop at loops."""
    images: list[str] = []
    above = (*above, _identity(folder))
    for child in _children(folder):
        if _is_dir(child):
            if _is_clutter(child.name):
                continue
            if _identity(child.path) in above:
                ignored.append(child.path)
            else:
                images += _walk(child.path, above, ignored)
        else:
            (images if _is_image(child.name) else ignored).append(child.path)
    return images


def _split_folders(root: Path, split_names: Mapping[str, str]) -> dict[str, Path]:
    """Role -> folder of class folders: the root itself is train where there are no split folders."""
    # A class may be called "train" too: a split's folder has class folders in it, and no images beside them.
    with_classes = {
        child.name: Path(child.path)
        for child in _children(root)
        if _is_dir(child) and not _is_clutter(child.name) and _holds_only_folders(child.path)
    }
    usual = {name for names in SYNONYMS.values() for name in names} | {n.lower() for n in split_names.values()}
    if not any(name.lower() in usual for name in with_classes):
        return {"train": root}
    roles = {}
    for role, wanted in split_names.items():
        name = find_split(role, wanted, with_classes, where=f"folder:{root}")
        if name is not None:
            roles[role] = with_classes[name]
    return roles


def _holds_only_folders(folder: str) -> bool:
    children = [child for child in _children(folder) if not _is_clutter(child.name)]
    return any(_is_dir(c) for c in children) and not any(not _is_dir(c) and _is_image(c.name) for c in children)


def _class_names(path: str, found: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[str, ...]:
    names = {name for classes in found.values() for name in classes}
    filled = {name for classes in found.values() for name, paths in classes.items() if paths}
    if not filled:
        raise DataError(
            f"folder:{path} has no images in class folders: expected PATH/CLASS/picture with one of "
            f"{', '.join(EXTENSIONS)}, found sub-folders {quoted(sorted(names))}."
        )
    if names - filled:
        raise DataError(
            f"folder:{path} has no images in class folder {quoted(sorted(names - filled))}: add some "
            f"({', '.join(EXTENSIONS)}) or remove the folder."
        )
    return class_order(filled)


def _rows(path: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, cells stripped and never None."""
    file = expanded(path)
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"csv: expected a CSV file, but {path} {kind}; give csv:PATH.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [{k: v.strip() for k, v in row.items() if isinstance(v, str)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"csv:{path} cannot be read as UTF-8 CSV: {error}; save it as CSV in UTF-8.") from error
    if len(set(columns)) < len(columns):
        raise DataError(f"csv:{path} has two columns of one name among {quoted(columns)}; rename one.")
    for name in needed:
        if name not in columns:
            raise DataError(
                f"csv:{path} has no column {name!r}; it has {quoted(columns)}: name the column of paths with "
                f"--data.path_column and that of labels with --data.label_column.{nearest(name, columns)}"
            )
    if not rows:
        raise DataError(f"csv:{path} has no rows below its header; expected a row an image.")
    return rows


def _row_splits(
    path: str, rows: Sequence[Mapping[str, str]], split_names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Role -> row numbers, from the column split where there is one."""
    if "split" not in rows[0]:
        return {"train": np.arange(len(rows))}
    column = np.array([row["split"] for row in rows])
    roles = {}
    for role, wanted in split_names.items():
        name = find_split(role, wanted, dict.fromkeys(column.tolist()), where=f"csv:{path}, column split,")
        if name is not None:
            roles[role] = np.flatnonzero(column == name)
    unused = set(column.tolist()) - {str(column[members[0]]) for members in roles.values()}
    if unused:
        raise DataError(
            f"csv:{path} has rows with split {quoted(sorted(unused))}; expected "
            f"{quoted(split_names.values())}: mend the rows or name the splits with --data.train_split, "
            "--data.validation_split and --data.test_split."
        )
    return roles
