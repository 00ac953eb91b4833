"""What the data really was: counts, duplicates by content, unreadable files, and a fingerprint.

`inspect` reads every example of a split once; `manifest` turns what was found into the plain dictionary
that a run keeps as data_manifest.json. Contents are compared by their digests (contents.py).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import tensorflow as tf

from tfbig.data import images
from tfbig.data.contents import DIGEST, Contents, digest, hexadecimal
from tfbig.data.file_names import blocks, name_order
from tfbig.data.known_files import KnownFiles
from tfbig.data.splits import Split
from tfbig.hardware import num_cores

_logger = logging.getLogger(__name__)
_NAMED = 20
_CHUNK = 64
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP"}


@dataclass(frozen=True)
class Inspection:
    """What reading every example of a split found.

    Args:
        digests: (N,) of the contents; empty for a file that could not be opened.
        faults: Index -> why that example cannot be read.
    """

    digests: np.ndarray
    faults: Mapping[int, str]


def inspect(split: Split, known: KnownFiles | None = None) -> Inspection:
    """Reads, digests and decodes every example, as training will.

    Args:
        split: Of encoded images.
        known: Digests of files that have not changed since a start that could read them: these are not read. What is
            read now is added to it.
    """
    digests, faults, num_known = np.zeros(len(split), DIGEST), {}, 0
    for indices, names in blocks(split.names):
        is_known = np.zeros(len(indices), bool)
        if known is not None:
            states, read_ns = known.states(names), time.time_ns()
            digests[indices] = known.digests(names, states)
            is_known = digests[indices] != b""
            num_known += int(is_known.sum())
        found, wrong = _read(split, indices[~is_known])
        digests[indices[~is_known]] = found
        faults.update(wrong)
        if known is not None:
            readable = digests[indices]
            readable[[index - indices[0] for index in wrong]] = b""
            known.add(names, states, readable, known=is_known, read_ns=read_ns)
    if num_known:
        _logger.info("%d of %d files are as they were and were not read again", num_known, len(split))
    return Inspection(digests, faults)


def _read(split: Split, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Digests of some of the examples, and index -> fault of those of them that have one."""

    def examine(index: int) -> tuple[bytes, str | None]:
        try:
            content = split.payload(index)  # type: ignore[misc]
        except (OSError, ValueError) as error:
            # ValueError: a path with a NUL byte.
            return b"", (getattr(error, "strerror", None) or str(error)).lower()
        return digest(content), _fault(content)

    chunks = [indices[i : i + _CHUNK].tolist() for i in range(0, len(indices), _CHUNK)]
    with ThreadPoolExecutor(max_workers=num_cores() + 2) as pool:
        rows = [row for rows in pool.map(lambda chunk: [examine(i) for i in chunk], chunks) for row in rows]
    faults = {index: fault for index, (_, fault) in zip(indices.tolist(), rows, strict=True) if fault}
    return np.array([content for content, _ in rows], DIGEST), faults


def _fault(content: bytes) -> str | None:
    if not content:
        return "it is empty"
    kind = next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), None)
    if kind is None:
        return "it is no JPEG, PNG, GIF or BMP"
    try:
        images.check(content)
    except tf.errors.OpError:
        return f"its {kind} data is cut short, damaged or of a kind that TensorFlow does not decode"
    return None


def manifest(
    splits: Mapping[str, Split],
    contents: Contents,
    *,
    class_names: Sequence[str],
    origins: Mapping[str, str],
    settings: Mapping[str, object],
    unreadable: Mapping[str, str],
    ignored: Sequence[str],
) -> dict[str, object]:
    """The manifest of three splits; warns where examples of one split are in another.

    Args:
        splits: Role -> the examples in use.
        contents: Of these examples.
        class_names: Names in the order of the labels.
        origins: Role -> "given" or "drawn from train".
        settings: The source, fractions, limit and seed, as they were asked for, and the `content` of the whole.
        unreadable: Name -> reason of the files that were left out.
        ignored: Files that are no examples.

    Returns:
        A dictionary of what JSON can hold.
    """
    return {
        **settings,
        "fingerprint": _fingerprint(splits, contents),
        "class_names": list(class_names),
        "splits": {
            role: {
                "origin": origins[role],
                "examples": len(split),
                "per_class": dict(zip(class_names, _class_counts(split.labels, len(class_names)), strict=True)),
            }
            for role, split in splits.items()
        },
        "duplicates": _duplicates(splits, contents),
        "unreadable": {"count": len(unreadable), "reasons": dict(sorted(unreadable.items()))},
        "ignored": {"count": len(ignored), "names": list(ignored[:_NAMED])},
    }


def _class_counts(labels: np.ndarray, num_classes: int) -> list[int]:
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    return [int(count) for count in counts]


def _fingerprint(splits: Mapping[str, Split], contents: Contents) -> str:
    """A hash over every example's split, name, content and label, in an order of its own."""
    found = hashlib.blake2b(digest_size=16)
    for role in sorted(splits):
        # By name, and the lines of one name by the rest of them: all lines in order, and never many in memory.
        for _, same in itertools.groupby(_lines(role, splits[role], contents), key=itemgetter(0)):
            for line in sorted(line for _, line in same):
                found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _lines(role: str, split: Split, contents: Contents) -> Iterator[tuple[str, str]]:
    """The name and the line of each example, in the order of the names."""
    numbers = contents.numbers[role]
    for indices, names in blocks(split.names, name_order(split.names)):
        digests, labels = hexadecimal(contents.digests[numbers[indices]]), split.labels[indices].tolist()
        for name, one, label in zip(names, digests, labels, strict=True):
            yield name, f"{role}\0{name}\0{one}\0{label}\n"


def _duplicates(splits: Mapping[str, Split], contents: Contents) -> dict[str, object]:
    """Examples whose content was there before: within each split, and in a split on this side of train."""
    roles, numbers = list(splits), contents.numbers
    is_in = {role: np.zeros(len(contents.digests), bool) for role in roles}
    for role in roles:
        is_in[role][numbers[role]] = True
    within = {role: len(numbers[role]) - int(is_in[role].sum()) for role in roles}
    across = {}
    named: list[list[str]] = []
    for i, role in enumerate(roles):
        for other in roles[i + 1 :]:
            shared = is_in[role][numbers[other]]
            across[f"{role}/{other}"] = int(shared.sum())
            for index in np.flatnonzero(shared)[: _NAMED - len(named)]:
                twin = int(np.flatnonzero(numbers[role] == numbers[other][index])[0])
                named.append([f"{role}: {splits[role].names[twin]}", f"{other}: {splits[other].names[index]}"])
    if named:
        pairs = ", ".join(f"{count} in {pair}" for pair, count in across.items() if count)
        _logger.warning(
            "identical files in two splits (%s), such as %s: figures on the later split are too good; "
            "data_manifest.json names them", pairs, " = ".join(named[0])
        )
    return {"within": within, "across": across, "names_across": named}
