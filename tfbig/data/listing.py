"""What a source of examples holds, before anything is drawn, dropped or limited.

The readers of folders, CSV files and TFDS datasets (files.py, tfrecords.py) give a `Listing`; sources.py
makes the three splits of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfbig.data.splits import Split
from tfbig.errors import DataError

# A split's role, and the names that datasets usually give it.
SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Listing:
    """The examples that a source gives, by role.

    Args:
        splits: "train", and where the source has them "validation" and "test", to splits of encoded images.
        class_names: Names in the order of the labels.
        multi_label: True where labels are (N, C) zeros and ones.
        digests: Role -> (N,) content digests, where the reader had to read every example anyway.
        files: True for a person's own files, any of which may be broken.
        ignored: Files that are no examples: hidden ones, notes, other formats.
        directory: Where the names start, if each example is a file of that name.
    """

    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    multi_label: bool = False
    digests: Mapping[str, np.ndarray] | None = None
    files: bool = True
    ignored: tuple[str, ...] = ()
    directory: str | None = None


def find_split(role: str, wanted: str, available: Iterable[str], *, where: str) -> str | None:
    """The available name that plays a role.

    Args:
        role: A key of SYNONYMS.
        wanted: The name asked for; one of the usual names stands for all of them.
        available: Names to choose from.
        where: The source, for the error.

    Returns:
        One of `available`, or None where there is none and it may be drawn from train.

    Raises:
        DataError: An unusual name was asked for and does not exist, or there is no training split.
    """
    by_lower = {name.lower(): name for name in available}
    usual = SYNONYMS[role]
    candidates = (wanted.lower(), *usual) if wanted.lower() in usual else (wanted.lower(),)
    for candidate in candidates:
        if candidate in by_lower:
            return by_lower[candidate]
    if wanted.lower() in usual and role != "train":
        return None
    raise DataError(
        f"{where} has no split {wanted!r}; it has {quoted(by_lower.values())}: "
        f"name one of them with --data.{role}_split."
    )


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names, sorted; numbers by their value, so that 10 comes after 9."""
    distinct = set(names)
    if all(name.isdecimal() for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))


def multi_hot(indices: Sequence[int] | np.ndarray, counts: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Class indices of N examples, one example after the other, as (N, C) float32 zeros and ones.

    Args:
        indices: Of all examples.
        counts: N, how many of them are of each example.
        num_classes: C.
    """
    labels = np.zeros((len(counts), num_classes), np.float32)
    labels[np.repeat(np.arange(len(counts)), counts), np.asarray(indices, np.int32)] = 1.0
    return labels


def quoted(names: Iterable[str], *, limit: int = 10) -> str:
    """Names for an error message, the first few of them."""
    names = list(names)
    shown = ", ".join(map(repr, names[:limit])) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
