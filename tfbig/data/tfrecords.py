"""A TFDS dataset as addressable examples: any record of its TFRecord shards, without reading the others.

The shards' record headers are walked once for (file, offset, length); after that an example is one read
at a position. Only labels, digests and positions stay in memory. The record format:
https://www.tensorflow.org/tutorials/load_data/tfrecord (length, its checksum, data, its checksum).
Gives a `Listing` to sources.py; already-prepared folders need neither builder code nor a connection.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfbig.data.contents import DIGEST, digest
from tfbig.data.file_names import Paths
from tfbig.data.listing import Listing, find_split, multi_hot, quoted
from tfbig.data.python_calls import python_call
from tfbig.data.record_positions import record_positions
from tfbig.data.splits import Split
from tfbig.errors import DataError
from tfbig.paths import expanded
from tfbig.suggest import nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_SPEC = re.compile(r"(?P<name>\w+)(/(?P<config>[^:/]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def read_tfds(spec: str, *, directory: str | None, split_names: Mapping[str, str], offline: bool) -> Listing:
    """A dataset of images with one class, or a list of classes, each.

    Args:
        spec: NAME, NAME/CONFIG, either with :VERSION; by default the newest prepared version.
        directory: TFDS's data_dir; by default TFDS's own.
        split_names: Role -> split or slices of splits, such as train[:90%].
        offline: Never download: what is not prepared is an error.

    Returns:
        Names are SPLIT#RECORD, counted from 0 over the split's shards.

    Raises:
        DataError: No such folder, dataset, version or split, splits that share records, a file format
            other than TFRecord, features other than one image and one class or list of classes.
    """
    import tensorflow_datasets as tfds

    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DataError(f"tfds:{spec} is no dataset name; expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0.")
    root = expanded(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = _prepared(spec, match.groupdict(), root, offline=offline)
    builder = tfds.builder_from_directory(folder) if folder else _download(spec, root)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise DataError(
            f"tfds:{spec} is prepared as {builder.info.file_format.value}, which tfbig does not address; prepare "
            "it with file_format='tfrecord'."
        )
    return _Reader(spec, builder).listing(split_names)


@dataclass(frozen=True)
class _Records:
    """Positions of records: (N,) numbers into `files`, byte offsets of the data, and lengths in bytes."""

    files: Sequence[str]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def read(self, index: int) -> bytes:
        handle = os.open(self.files[self.file[index]], os.O_RDONLY)
        try:
            return os.pread(handle, int(self.length[index]), int(self.offset[index]))
        finally:
            os.close(handle)


class _Reader:
    """Reads the splits of one prepared dataset; each shard is walked once."""

    def __init__(self, spec: str, builder: tfds.core.DatasetBuilder):
        self._spec = spec
        self._splits = builder.info.splits
        self._image, self._label = _keys(spec, builder.info)
        label = builder.info.features[self._label]
        self._multi_label = hasattr(label, "feature")
        classes = label.feature if self._multi_label else label
        self._class_names = tuple(classes.names or map(str, range(classes.num_classes)))
        self._shards: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        # By shard: the role that has records of it, and from which to before which.
        self._used: dict[str, list[tuple[str, int, int]]] = {}
        self._starts = {
            str(path): (name, start)
            for name, info in self._splits.items()
            for path, start in zip(info.filepaths, np.cumsum([0, *info.shard_lengths]), strict=False)
        }

    def listing(self, split_names: Mapping[str, str]) -> Listing:
        splits, digests = {}, {}
        for role, wanted in split_names.items():
            instructions = self._instructions(role, wanted)
            if instructions is None:
                continue
            if not sum(instruction.take for instruction in instructions):
                raise DataError(f"tfds:{self._spec} has no examples in {wanted!r}; widen --data.{role}_split.")
            for instruction in instructions:
                self._refuse_shared(role, wanted, instruction)
            splits[role], digests[role] = self._split(instructions)
        return Listing(splits, self._class_names, self._multi_label, digests=digests, files=False)

    def _refuse_shared(self, role: str, wanted: str, more: tfds.core.utils.shard_utils.FileInstruction) -> None:
        """Raises where records of a shard are those of another role."""
        path, first, end = str(more.filename), more.skip, more.skip + more.take
        for other, other_first, other_end in self._used.setdefault(path, []):
            shared = max(first, other_first)
            if other != role and shared < min(end, other_end):
                split, start = self._starts[path]
                raise DataError(
                    f"tfds:{self._spec}: --data.{role}_split {wanted!r} shares record {split}#{start + shared} with "
                    f"{other}; slice them apart, such as train[:90%] and train[90%:]."
                )
        self._used[path].append((role, first, end))

    def _instructions(self, role: str, wanted: str) -> list[tfds.core.utils.shard_utils.FileInstruction] | None:
        """What to read from each shard, or None where the split is to be drawn from train."""
        if re.fullmatch(r"\w+", wanted):
            name = find_split(role, wanted, self._splits, where=f"tfds:{self._spec}")
            return None if name is None else self._splits[name].file_instructions
        try:
            return self._splits[wanted].file_instructions
        except (ValueError, KeyError, AssertionError) as error:
            sizes = ", ".join(f"{name} ({info.num_examples})" for name, info in self._splits.items())
            raise DataError(
                f"tfds:{self._spec} cannot give --data.{role}_split {wanted!r}; it has {sizes}, and slices such as "
                "train[:90%]."
            ) from error

    def _split(
        self, instructions: Sequence[tfds.core.utils.shard_utils.FileInstruction]
    ) -> tuple[Split, np.ndarray]:
        files = [str(instruction.filename) for instruction in instructions]
        chosen = [slice(i.skip, i.skip + i.take) for i in instructions]
        positions = [self._walk(i) for i in instructions]
        records = _Records(
            files,
            np.repeat(np.arange(len(files)), [i.take for i in instructions]),
            np.concatenate([offset[part] for (offset, _), part in zip(positions, chosen, strict=True)]),
            np.concatenate([length[part] for (_, length), part in zip(positions, chosen, strict=True)]),
        )
        names = Paths(
            f"{split}#{start + i}"
            for instruction in instructions
            for split, start in (self._starts[str(instruction.filename)],)
            for i in range(instruction.skip, instruction.skip + instruction.take)
        )
        labels, digests = self._contents(records)
        image = self._image

        def payload(index: int) -> bytes:
            example = tf.train.Example.FromString(records.read(index))
            return example.features.feature[image].bytes_list.value[0]

        def fetch(index: tf.Tensor) -> tf.Tensor:
            encoded = python_call(payload, [index], tf.string)
            return tf.ensure_shape(encoded, [])

        return Split(fetch, labels, names, payload), digests

    def _walk(self, instruction: tfds.core.utils.shard_utils.FileInstruction) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths in bytes of a shard's records."""
        path = str(instruction.filename)
        if path not in self._shards:
            try:
                self._shards[path] = record_positions(path)
            except (OSError, ValueError) as error:
                raise DataError(f"tfds:{self._spec} cannot be read: {error}; prepare it again.") from error
        found = len(self._shards[path][0])
        if found != instruction.examples_in_shard:
            raise DataError(
                f"tfds:{self._spec}: expected {instruction.examples_in_shard} records in {path}, found {found}; "
                "prepare the dataset again."
            )
        return self._shards[path]

    def _contents(self, records: _Records) -> tuple[np.ndarray, np.ndarray]:
        """Labels and digests of the images, each record read once."""
        num_examples = len(records.offset)
        digests, counts, classes = np.empty(num_examples, DIGEST), np.empty(num_examples, np.int32), array("q")
        for index in range(num_examples):
            features = tf.train.Example.FromString(records.read(index)).features.feature
            before = len(classes)
            classes.extend(features[self._label].int64_list.value)
            counts[index] = len(classes) - before
            digests[index] = digest(features[self._image].bytes_list.value[0])
        numbers = np.array(classes, np.int32)
        if (numbers < 0).any():
            raise DataError(f"tfds:{self._spec} has examples without a label (-1); choose splits that are labelled.")
        if self._multi_label:
            return multi_hot(numbers, counts, len(self._class_names)), digests
        if (counts != 1).any():
            raise DataError(f"tfds:{self._spec} has examples with no label or several, not one; prepare it anew.")
        return numbers, digests


def _keys(spec: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The features that hold the image and its class."""
    import tensorflow_datasets as tfds

    def is_label(feature: tfds.features.FeatureConnector) -> bool:
        return isinstance(getattr(feature, "feature", feature), tfds.features.ClassLabel)

    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    pictures = [k for k, f in features.items() if isinstance(f, tfds.features.Image) and f.np_dtype.kind == "u"]
    labels = [k for k, f in features.items() if is_label(f)]
    usual: tuple[str, ...] = info.supervised_keys or ()
    if len(usual) == 2 and usual[0] in pictures and usual[1] in labels:
        return usual[0], usual[1]
    if len(pictures) != 1 or len(labels) != 1:
        kinds = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise DataError(
            f"tfds:{spec} has features {kinds or 'of its own kind'}; expected one Image of whole numbers and one "
            "ClassLabel or Sequence(ClassLabel): choose a classification dataset."
        )
    return pictures[0], labels[0]


def _prepared(spec: str, parts: Mapping[str, str | None], root: Path, *, offline: bool) -> Path | None:
    """The folder of the newest prepared version that fits, or None where it may be downloaded."""
    if not root.is_dir() and offline:
        raise DataError(f"TFDS folder {root} does not exist; name the folder that holds the datasets with --data.dir.")
    home = root / str(parts["name"])
    below = _versions(home / parts["config"] if parts["config"] else home)
    if not parts["config"] and not below:
        configs = [child for child in sorted(home.iterdir()) if _versions(child)] if home.is_dir() else []
        if len(configs) > 1:
            raise DataError(f"tfds:{spec} has configs {quoted(c.name for c in configs)}; choose one as NAME/CONFIG.")
        below = _versions(configs[0]) if configs else []
    fitting = [path for path in below if parts["version"] in (None, path.name)]
    if fitting:
        return fitting[-1]
    if not offline:
        return None
    if below:
        raise DataError(f"tfds:{spec} is not prepared in {root}; versions {quoted(p.name for p in below)} are.")
    have = sorted(c.name for c in root.iterdir() if c.is_dir() and any(c.glob("**/dataset_info.json")))
    raise DataError(
        f"tfds:{spec} is not prepared in {root}, which has {quoted(have)}; set --data.dir to the folder that holds "
        f"it, or --runtime.offline false to download it.{nearest(str(parts['name']), have)}"
    )


def _versions(folder: Path) -> list[Path]:
    """Prepared versions in a dataset's or config's folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [c for c in folder.iterdir() if _VERSION.fullmatch(c.name) and (c / "dataset_info.json").is_file()]
    return sorted(found, key=lambda child: tuple(map(int, child.name.split("."))))


def _download(spec: str, root: Path) -> tfds.core.DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(spec, data_dir=root)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise DataError(
            f"tfds:{spec} is neither prepared in {root} nor known to TFDS; `tfds.list_builders()` gives the names."
            f"{nearest(spec, tfds.list_builders())}"
        ) from error
    try:
        builder.download_and_prepare(file_format="tfrecord")
    except Exception as error:  # a download fails in as many ways as there are protocols
        reason = str(error).strip().splitlines()[:1]
        raise DataError(
            f"tfds:{spec} could not be downloaded ({type(error).__name__}: {''.join(reason)}); check the "
            "connection, or set --data.dir to a folder where it is prepared."
        ) from error
    return builder
