"""A person's own pictures: a folder with a sub-folder a class, or a CSV file of paths and labels.

Both give a `Listing` of encoded images that are read from their files one by one; roles.py draws the
splits that are missing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfbig.data.csv_rows import read_rows
from tfbig.data.file_names import Paths
from tfbig.data.images import EXTENSIONS
from tfbig.data.listing import SYNONYMS, Listing, class_order, find_split, quoted
from tfbig.data.splits import Split
from tfbig.errors import DataError
from tfbig.paths import expanded

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
    start = len(os.path.join(root, ""))
    ignored: list[str] = []
    sizes: dict[str, dict[str, int]] = {}
    try:
        classes = {role: _class_folders(folder, ignored) for role, folder in roles.items()}
        order = class_order(chain.from_iterable(classes.values()))
        names = {}
        for role, folder in roles.items():
            above, sizes[role] = (_identity(root), _identity(folder)), {}
            names[role] = Paths(path[start:] for path in _in_classes(classes[role], order, above, ignored, sizes[role]))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}; mend its permissions.") from error
    class_names = _class_names(path, sizes)
    unreadable = [name.encode(errors="backslashreplace").decode() for name in class_names if not name.isprintable()]
    if unreadable:
        raise DataError(
            f"folder:{path} has class folders whose names are not one line of plain UTF-8 text: {quoted(unreadable)}; "
            "rename them."
        )
    numbers = np.arange(len(class_names), dtype=np.int32)
    splits = {
        role: file_split(root, names[role], np.repeat(numbers, [of_role.get(name, 0) for name in class_names]))
        for role, of_role in sizes.items()
    }
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
    file = expanded(path)
    if not file.is_file():
        kind = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"csv: expected a CSV file, but {path} {kind}; give csv:PATH.")
    rows = read_rows(path, file, path_column=path_column, label_column=label_column)
    base = expanded(directory) if directory else file.parent
    if not base.is_dir():
        raise DataError(f"--data.dir is where the CSV's paths start, but {base} {_what(base)}.")
    class_names, labels = rows.classes(label_column, path_column)
    roles = rows.roles(split_names)
    whole = file_split(base, rows.names, labels)
    splits = {role: whole if members is None else whole.subset(members) for role, members in roles.items()}
    return Listing(splits, class_names, labels.ndim == 2, directory=str(base))


def file_split(directory: Path, names: Sequence[str], labels: np.ndarray) -> Split:
    """A split over one file an example.

    Of a million files there are a million names and no objects beside them: paths are joined when they are needed.

    Args:
        directory: Where the names start.
        names: N paths, relative to it or absolute.
        labels: As in `Split`.
    """
    paths = names if isinstance(names, Paths) else Paths(names)
    name, start = paths.in_graph(), os.fsencode(os.path.join(directory, ""))

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


def _walk(folder: str, above: tuple[tuple[int, int], ...], ignored: list[str]) -> Iterator[str]:
    """Paths of images under a folder, in sorted order; `above` are the folders that hold it, to stop at loops."""
    above = (*above, _identity(folder))
    names, folders = [], set()
    with os.scandir(folder) as entries:
        # Names alone: of a million files in one folder the entries would be the most that a start keeps.
        for child in entries:
            names.append(child.name)
            if _is_dir(child):
                folders.add(child.name)
    names.sort()
    for name in names:
        path = os.path.join(folder, name)
        if name not in folders:
            if _is_image(name):
                yield path
            else:
                ignored.append(path)
        elif not _is_clutter(name):
            if _identity(path) in above:
                ignored.append(path)
            else:
                yield from _walk(path, above, ignored)


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
    has_folder = False
    with os.scandir(folder) as entries:
        for child in entries:
            is_folder = not _is_clutter(child.name) and _is_dir(child)
            if not is_folder and _is_image(child.name):
                return False
            has_folder |= is_folder
    return has_folder


def _class_folders(folder: Path, ignored: list[str]) -> dict[str, str]:
    """Class -> its folder; files beside them are added to the ignored ones."""
    children = _children(folder)
    is_dir = [_is_dir(child) for child in children]
    ignored += [child.path for child, is_folder in zip(children, is_dir, strict=True) if not is_folder]
    folders = [child for child, is_folder in zip(children, is_dir, strict=True) if is_folder]
    return {child.name: child.path for child in folders if not _is_clutter(child.name)}


def _in_classes(
    folders: Mapping[str, str],
    order: Sequence[str],
    above: tuple[tuple[int, int], ...],
    ignored: list[str],
    sizes: dict[str, int],
) -> Iterator[str]:
    """Paths of the images of each class, in the classes' order; their numbers are added to `sizes`."""
    for name in filter(folders.__contains__, order):
        sizes[name] = 0
        for path in _walk(folders[name], above, ignored):
            sizes[name] += 1
            yield path


def _class_names(path: str, sizes: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    names = {name for classes in sizes.values() for name in classes}
    filled = {name for classes in sizes.values() for name, size in classes.items() if size}
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
