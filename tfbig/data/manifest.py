"""What the data really was: counts, duplicates by content, unreadable files, and a fingerprint.

`inspect` reads every example of a split once; `manifest` turns what was found into the plain dictionary
that a run keeps as data_manifest.json. Contents are compared by BLAKE2b (RFC 7693), 128 bits.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfbig.data import images
from tfbig.data.file_names import name_order
from tfbig.data.known_files import KnownFiles
from tfbig.data.splits import Split

_logger = logging.getLogger(__name__)
_NAMED = 20
_CHUNK = 64
_HASHED_AT_ONCE = 2**14
_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP"}


@dataclass(frozen=True)
class Inspection:
    """What reading every example of a split found.

    Args:
        digests: (N,) content digests; empty for a file that could not be opened.
        faults: Index -> why that example cannot be read.
    """

    digests: np.ndarray
    faults: Mapping[int, str]


def digest(content: bytes) -> bytes:
    """32 hexadecimal characters that equal contents share."""
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def content(digests: Mapping[str, np.ndarray]) -> str:
    """A hash of the different contents of all splits, whichever split they are in and whatever they are called.

    Args:
        digests: Role -> (N,) content digests, before any split is drawn or limited.
    """
    found = np.concatenate(list(digests.values()))
    found.sort()
    hashed, is_first = hashlib.blake2b(digest_size=16), np.append(True, found[1:] != found[:-1])
    # As if all were joined by line ends, a few at a time.
    for first in range(0, len(found), _HASHED_AT_ONCE):
        several = slice(first, first + _HASHED_AT_ONCE)
        hashed.update(b"".join(b"\n" + one for one in found[several][is_first[several]].tolist())[not first :])
    return hashed.hexdigest()


def inspect(split: Split, known: KnownFiles | None = None) -> Inspection:
    """Reads, digests and decodes every example, as training will.

    Args:
        split: Of encoded images.
        known: Digests of files that have not changed since a start that could read them: these are not read. What is
            read now is added to it.
    """
    if known is None:
        return _inspect(split)
    states, read_ns = known.states(split.names), time.time_ns()
    digests = known.digests(split.names, states)
    is_known = digests != b""
    unknown = np.flatnonzero(~is_known)
    if is_known.any():
        _logger.info("%d of %d files are as they were and not read again", len(split) - len(unknown), len(split))
    found = _inspect(split.subset(unknown)) if len(unknown) else Inspection(digests[:0], {})
    digests[unknown] = found.digests
    faults = {int(unknown[i]): fault for i, fault in found.faults.items()}
    readable = digests.copy()
    readable[list(faults)] = b""
    known.add(split.names, states, readable, known=is_known, read_ns=read_ns)
    return Inspection(digests, faults)


def _inspect(split: Split) -> Inspection:

    def examine(index: int) -> tuple[bytes, str | None]:
        try:
            content = split.payload(index)  # type: ignore[misc]
        except (OSError, ValueError) as error:
            # ValueError: a path with a NUL byte.
            return b"", (getattr(error, "strerror", None) or str(error)).lower()
        return digest(content), _fault(content)

    chunks = [range(i, min(i + _CHUNK, len(split))) for i in range(0, len(split), _CHUNK)]
    digests = np.empty(len(split), "S32")
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 2) as pool:
        examined = pool.map(lambda chunk: [examine(i) for i in chunk], chunks)
        for chunk, rows in zip(chunks, examined, strict=True):
            digests[chunk.start : chunk.stop] = [content for content, _ in rows]
            faults.update({i: fault for i, (_, fault) in zip(chunk, rows, strict=True) if fault})
    return Inspection(digests, faults)


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
    digests: Mapping[str, np.ndarray],
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
        digests: Role -> (N,) their content digests.
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
        "fingerprint": _fingerprint(splits, digests),
        "class_names": list(class_names),
        "splits": {
            role: {
                "origin": origins[role],
                "examples": len(split),
                "per_class": dict(zip(class_names, _class_counts(split.labels, len(class_names)), strict=True)),
            }
            for role, split in splits.items()
        },
        "duplicates": _duplicates(splits, digests),
        "unreadable": {"count": len(unreadable), "reasons": dict(sorted(unreadable.items()))},
        "ignored": {"count": len(ignored), "names": list(ignored[:_NAMED])},
    }


def _class_counts(labels: np.ndarray, num_classes: int) -> list[int]:
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)
    return [int(count) for count in counts]


def _fingerprint(splits: Mapping[str, Split], digests: Mapping[str, np.ndarray]) -> str:
    """A hash over every example's split, name, content and label, in an order of its own."""
    found = hashlib.blake2b(digest_size=16)
    for role in sorted(splits):
        names, labels, of_role = splits[role].names, splits[role].labels, digests[role]
        # By name, and the lines of one name by the rest of them: all lines in order, and never many in memory.
        for name, same in itertools.groupby(name_order(names).tolist(), key=names.__getitem__):
            for line in sorted(f"{role}\0{name}\0{of_role[i].decode()}\0{labels[i].tolist()}\n" for i in same):
                found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _duplicates(splits: Mapping[str, Split], digests: Mapping[str, np.ndarray]) -> dict[str, object]:
    """Examples whose content was there before: within each split, and in a split on this side of train."""
    roles = list(splits)
    within = {role: len(digests[role]) - len(np.unique(digests[role])) for role in roles}
    across = {}
    named: list[list[str]] = []
    for i, role in enumerate(roles):
        for other in roles[i + 1 :]:
            shared = np.isin(digests[other], digests[role])
            across[f"{role}/{other}"] = int(shared.sum())
            for index in np.flatnonzero(shared)[: _NAMED - len(named)]:
                twin = int(np.flatnonzero(digests[role] == digests[other][index])[0])
                named.append([f"{role}: {splits[role].names[twin]}", f"{other}: {splits[other].names[index]}"])
    if named:
        pairs = ", ".join(f"{count} in {pair}" for pair, count in across.items() if count)
        _logger.warning(
            "identical files in two splits (%s), such as %s: figures on the later split are too good; "
            "data_manifest.json names them", pairs, " = ".join(named[0])
        )
    return {"within": within, "across": across, "names_across": named}
