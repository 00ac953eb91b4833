"""Where images come from: digits, tfds:NAME, folder:PATH and csv:PATH, as three splits of encoded images.

The reader of each source (tfrecords.py, files.py) lists what is there. Here broken files are refused or
left out, missing splits are drawn from train, the limit is applied and the manifest is written: one order
of steps for every source.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import PurePath

import numpy as np
import tensorflow as tf

from tfbig import cache_folder
from tfbig.data.contents import DIGEST, Contents, digest, numbered
from tfbig.data.files import read_csv, read_folder
from tfbig.data.images import png_bytes
from tfbig.data.known_files import KnownFiles
from tfbig.data.listing import Listing, class_order
from tfbig.data.manifest import inspect, manifest
from tfbig.data.roles import Members, limited, with_drawn
from tfbig.data.splits import DataSpec, Split, Splits
from tfbig.data.tfrecords import read_tfds
from tfbig.errors import DataError, UsageError
from tfbig.suggest import nearest

_logger = logging.getLogger(__name__)
_SOURCES = ("digits", "tfds:NAME", "folder:PATH", "csv:PATH")
_KINDS_OF_PATHS = ("folder", "csv")


def resolved(source: str) -> str:
    """The source by the one name that all spellings of its path share; other kinds than folder: and csv: as it is."""
    kind, _, where = source.partition(":")
    if kind not in _KINDS_OF_PATHS or not where:
        return source
    return f"{kind}:{os.path.realpath(os.path.expanduser(where))}"


def _meant(source: str) -> str:
    """The hint for a source that is none: a folder without its kind, or a kind that is misspelt."""
    if os.path.isdir(os.path.expanduser(source)):
        return f" Did you mean 'folder:{source}'?"
    kind, kinds = source.partition(":")[0], [known.partition(":")[0] for known in _SOURCES]
    return "" if kind in kinds else nearest(kind, kinds)


def load_images(
    source: str,
    *,
    directory: str | None,
    train_split: str,
    validation_split: str,
    test_split: str,
    validation_fraction: float,
    test_fraction: float,
    limit: int | None,
    on_bad: str,
    path_column: str,
    label_column: str,
    seed: int,
    offline: bool,
) -> Splits:
    """Splits of encoded images: `fetch` gives a scalar string, `payload` bytes.

    Guarantees: no example is in two splits; where splits are drawn, files of equal content are on the same
    side, and neither the order of files nor that of rows matters; every class of validation and test is
    in train.

    Args:
        source: digits, tfds:NAME[/CONFIG][:VERSION], folder:PATH or csv:PATH.
        directory: TFDS's data_dir; for csv, the folder where the paths start.
        train_split: Name of the split; for TFDS also slices.
        validation_split: As train_split; drawn from train where it does not exist.
        test_split: As train_split; drawn from train where it does not exist.
        validation_fraction: Share of train drawn for validation, at least 0 and below 1; 0 for none. No more
            than 2,500 are drawn: that tells epochs one per cent apart, and the rest teaches more in train.
        test_fraction: Share of train drawn for test, at least 0 and below 1.
        limit: At most this many examples of each split, stratified; None for all.
        on_bad: "fail" or "skip" a file that cannot be read.
        path_column: csv: column of the paths.
        label_column: csv: column of the labels.
        seed: Of the draws.
        offline: Never download.

    Returns:
        Three splits, validation None where the fraction is 0 and none exists, and their manifest.

    Raises:
        UsageError: An unknown kind of source.
        DataError: The data is missing, broken, or not what classification needs.
    """
    split_names = {"train": train_split, "validation": validation_split, "test": test_split}
    kind, _, where = source.partition(":")
    if source == "digits":
        listing = _digits()
    elif kind == "tfds" and where:
        listing = read_tfds(where, directory=directory, split_names=split_names, offline=offline)
    elif kind == "folder" and where:
        listing = read_folder(where, split_names=split_names)
    elif kind == "csv" and where:
        listing = read_csv(
            where, directory=directory, path_column=path_column, label_column=label_column, split_names=split_names
        )
    else:
        raise UsageError(f"data.source must be one of {', '.join(_SOURCES)}, got {source!r}.{_meant(source)}")
    splits, contents, unreadable = _readable(source, listing, on_bad)
    _check_classes(source, splits["train"], listing)
    fractions = {"test": test_fraction, "validation": validation_fraction}
    members = {role: Members(split, contents.numbers[role]) for role, split in splits.items()}
    members = with_drawn(source, listing, members, fractions, seed)
    if limit is not None:
        members = limited(members, listing, limit, seed)
    splits = {role: of_role.split() for role, of_role in members.items()}
    settings = {
        "source": source,
        "content": contents.fingerprint(),
        "seed": seed,
        "limit": limit,
        "fractions": {role: fraction for role, fraction in fractions.items() if role not in listing.splits},
    }
    found = manifest(
        splits,
        Contents(contents.digests, {role: of_role.contents for role, of_role in members.items()}),
        class_names=listing.class_names,
        origins={role: "given" if role in listing.splits else "drawn from train" for role in splits},
        settings=settings,
        unreadable=unreadable,
        ignored=listing.ignored,
    )
    spec = DataSpec(
        tf.TensorSpec([None], tf.string), len(splits["train"]), listing.class_names, listing.multi_label
    )
    return Splits(splits["train"], splits.get("validation"), splits["test"], spec, found)


def _digits() -> Listing:
    """scikit-learn's 1,797 handwritten digits of 8x8 grey pixels, as PNG in memory."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    grey = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    pngs = [png_bytes(picture) for picture in grey]
    table = tf.constant(pngs)
    split = Split(
        fetch=lambda i: tf.gather(table, i),
        labels=labels.astype(np.int32),
        names=[f"digit-{i:04d}" for i in range(len(pngs))],
        payload=pngs.__getitem__,
    )
    # Of the pixels: the PNG's bytes depend on the version of zlib.
    digests = np.array([digest(picture.tobytes()) for picture in grey], DIGEST)
    return Listing({"train": split}, class_order(map(str, range(10))), digests={"train": digests}, files=False)


def _readable(
    source: str, listing: Listing, on_bad: str
) -> tuple[dict[str, Split], Contents, dict[str, str]]:
    """Splits without the files that cannot be read, the contents of the rest, and name -> reason."""
    if listing.ignored:
        endings = Counter(PurePath(name).suffix or PurePath(name).name for name in listing.ignored)
        counts = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(5))
        _logger.info("%s: %d files are no images and left out (%s)", source, len(listing.ignored), counts)
    if listing.digests is not None:
        return dict(listing.splits), numbered(listing.digests), {}
    splits, digests, unreadable = {}, {}, {}
    known = _known_files(source, listing)
    for role, split in listing.splits.items():
        found = inspect(split, known)
        unreadable.update({split.names[i]: reason for i, reason in found.faults.items()})
        splits[role], digests[role] = split, found.digests
        if found.faults:
            good = np.setdiff1d(np.arange(len(split)), list(found.faults))
            splits[role], digests[role] = split.subset(good), found.digests[good]
    if known is not None:
        known.keep()
    if unreadable and on_bad == "fail":
        name, reason = next(iter(sorted(unreadable.items())))
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise DataError(
            f"{source} has files that cannot be read: {name} ({reason}){more}; mend or remove them, or leave "
            "them out with --data.on_bad skip."
        )
    if unreadable:
        _logger.warning("%s: left out %d files that cannot be read", source, len(unreadable))
    for role, split in splits.items():
        if not len(split):
            raise DataError(f"{source} has no readable image in its {role} split; check the files.")
    return splits, numbered(digests), unreadable


def _known_files(source: str, listing: Listing) -> KnownFiles | None:
    """What earlier starts kept of the source; None where the examples are no files, or the user wants no cache."""
    limit_bytes = cache_folder.limit_bytes()
    if listing.directory is None or not limit_bytes:
        return None
    return KnownFiles(
        resolved(source), directory=listing.directory, folder=cache_folder.folder(), limit_bytes=limit_bytes
    )


def _check_classes(source: str, train: Split, listing: Listing) -> None:
    if listing.multi_label:
        return
    present = np.unique(train.labels)
    if len(present) < 2:
        raise DataError(
            f"{source} has one class only in train, {listing.class_names[present[0]]!r}; expected two or more: add "
            "a sub-folder, or rows, of another class."
        )
