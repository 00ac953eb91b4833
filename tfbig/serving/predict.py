"""`python -m tfbig predict`: an export's answers for files, with nothing but the export.

Works for every job's export. A signature whose one input is a string named `..._bytes` gets each file
as one example; any other gets the rows of CSV files, columns by input name, or in order where the
signature has one vector as input. An example that cannot be read or is refused by the graph is reported by
name, and the others are still answered.
"""

from __future__ import annotations

import csv
import glob
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfbig.data.images import EXTENSIONS
from tfbig.errors import DataError, EnvironmentFault, UsageError
from tfbig.serving.answers import Answer, writer
from tfbig.serving.export import SERVING_DEFAULT
from tfbig.serving.staging import versions

_logger = logging.getLogger(__name__)

Specs = Mapping[str, tf.TensorSpec]


@dataclass(frozen=True)
class Example:
    """One example to predict: its name and its input tensors, or why it could not be read."""

    name: str
    feed: Mapping[str, object] = field(default_factory=dict)
    fault: str | None = None


def predict(
    export: Path, files: Sequence[str], *, signature: str | None, batch_size: int, output_format: str | None
) -> None:
    """Print an export's answers for files on stdout, and what could not be answered on stderr.

    Args:
        export: A version's folder, or its parent for the newest version.
        files: Paths; a folder stands for the pictures in it, and patterns such as *.png are expanded.
        signature: Name of the function; by default serving_default.
        batch_size: Examples at once, at least 1.
        output_format: table, csv or jsonl; by default a table on a terminal and CSV otherwise.

    Raises:
        EnvironmentFault: The export is none, or has no such function.
        DataError: Some files could not be answered; the others were.
    """
    if not 1 <= batch_size <= 65536:
        raise UsageError(f"--batch_size must be between 1 and 65536, got {batch_size}.")
    loaded = _load(newest_version(export))
    function = _function(loaded, export, signature)
    specs = function.structured_input_signature[1]
    faults: list[str] = []
    num_examples = 0
    with writer(output_format or ("table" if sys.stdout.isatty() else "csv")) as write:
        for batch in _batches(_examples(specs, files), batch_size):
            num_examples += len(batch)
            for answer in _answers(function, specs, batch):
                if isinstance(answer, Answer):
                    write(answer)
                else:
                    faults.append(answer.name)
                    print(f"{answer.name}: {answer.fault}", file=sys.stderr)
    if faults:
        named = ", ".join(faults[:5]) + (", ..." if len(faults) > 5 else "")
        raise DataError(f"{len(faults)} of {num_examples} examples could not be predicted: {named}.")


def newest_version(export: Path) -> Path:
    """The folder itself where it is a SavedModel, else its highest numbered sub-folder that is one.

    Raises:
        EnvironmentFault: There is none.
    """
    candidates = [export, *(export / str(number) for number in reversed(versions(export)))]
    for folder in candidates:
        if (folder / "saved_model.pb").is_file():
            return folder
    raise EnvironmentFault(
        f"EXPORT must be a folder that a job wrote with --export.dir, with saved_model.pb in it or in a version "
        f"1, 2, ... below it, but {export} " + ("has none." if export.is_dir() else "is no folder.")
    )


# What TensorFlow's loader returns has no public type; `.signatures` maps names to concrete functions.
def _load(folder: Path) -> tf.types.experimental.Trackable:
    try:
        return tf.saved_model.load(str(folder))
    except (OSError, tf.errors.OpError, ValueError, KeyError) as error:
        _logger.debug("Loading %s failed.", folder, exc_info=True)
        raise EnvironmentFault(
            f"{folder} must be a complete SavedModel, but TensorFlow cannot load it: {_first_line(error)}; "
            f"export it again."
        ) from error


def _function(
    loaded: tf.types.experimental.Trackable, export: Path, signature: str | None
) -> tf.types.experimental.ConcreteFunction:
    names = sorted(loaded.signatures)
    if signature is not None and signature not in names:
        raise UsageError(f"--signature must be one of {', '.join(names) or '(none)'}, got {signature}.")
    if signature is None and SERVING_DEFAULT not in names:
        raise EnvironmentFault(
            f"The export in {export} must have a function named {SERVING_DEFAULT}, but it has "
            f"{', '.join(names) or 'none'}; choose one with --signature or export it with tfbig."
        )
    return loaded.signatures[signature or SERVING_DEFAULT]


def _examples(specs: Specs, files: Sequence[str]) -> Iterator[Example]:
    takes_files = len(specs) == 1 and all(s.dtype == tf.string and n.endswith("_bytes") for n, s in specs.items())
    for path in itertools.chain.from_iterable(_expanded(file) for file in files):
        try:
            if takes_files:
                yield Example(str(path), {next(iter(specs)): path.read_bytes()})
            else:
                yield from _rows(path, specs)
        except IsADirectoryError:
            yield Example(str(path), fault="it is a folder without pictures")
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            yield Example(str(path), fault=f"it cannot be read: {reason}")


def _expanded(file: str) -> list[Path]:
    path = Path(file)
    if path.is_dir():
        return sorted(found for found in path.rglob("*") if found.suffix.lower() in EXTENSIONS) or [path]
    if path.exists():
        return [path]
    return [Path(found) for found in sorted(glob.glob(file))] or [path]


def _rows(path: Path, specs: Specs) -> Iterator[Example]:
    """The rows of a CSV file. A first row that is all text is its header."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.reader(lines)
        header: list[str] | None = None
        for cells in reader:
            name = f"{path}:{reader.line_num}"
            if reader.line_num == 1 and not any(_is_number(cell) for cell in cells):
                header = cells
            elif cells:
                try:
                    yield Example(name, _row(cells, header, specs))
                except ValueError as error:
                    yield Example(name, fault=str(error))


def _row(cells: list[str], header: list[str] | None, specs: Specs) -> dict[str, object]:
    """One row as input tensors without the batch dimension."""
    if len(specs) == 1 and (header is None or not set(specs) <= set(header)):
        [(name, spec)] = specs.items()
        return {name: _value(name, spec, cells)}
    if header is None or not set(specs) <= set(header) or len(cells) != len(header):
        raise ValueError(f"it needs a header row with the columns {', '.join(specs)}, and a cell for each")
    return {name: _value(name, spec, [cells[header.index(name)]]) for name, spec in specs.items()}


def _value(name: str, spec: tf.TensorSpec, cells: list[str]) -> object:
    """Cells as a tensor of a spec (batch first): a scalar or a vector."""
    shape = spec.shape[1:]
    if shape.rank > 1 or len(cells) != (shape.num_elements() or len(cells)):
        wanted = f"{shape.num_elements()} columns" if shape.rank <= 1 else f"tensors of shape {shape}, not CSV rows"
        raise ValueError(f"{name} takes {wanted}, got {len(cells)} columns")
    if spec.dtype == tf.string:
        values: list[object] = list(cells)
    else:
        if not all(_is_number(cell) for cell in cells):
            raise ValueError(f"{name} takes numbers, got {next(c for c in cells if not _is_number(c))!r}")
        values = [spec.dtype.as_numpy_dtype(float(cell)) for cell in cells]
    return values if shape.rank else values[0]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _batches(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while batch := list(itertools.islice(examples, size)):
        yield batch


def _answers(
    function: tf.types.experimental.ConcreteFunction, specs: Specs, batch: list[Example]
) -> list[Answer | Example]:
    """Answers in the order of the batch; where the graph refuses it, one example at a time."""
    readable = [example for example in batch if example.fault is None]
    if not readable:
        return list(batch)
    feed = {
        name: tf.constant(_stacked([example.feed[name] for example in readable]), spec.dtype)
        for name, spec in specs.items()
    }
    try:
        outputs = {name: tensor.numpy() for name, tensor in function(**feed).items()}
    except tf.errors.OpError as error:
        if len(batch) == 1:
            return [Example(batch[0].name, fault=f"the export refuses it: {_first_line(error)}")]
        return [answer for example in batch for answer in _answers(function, specs, [example])]
    rows = iter(range(len(readable)))
    return [
        example if example.fault is not None else Answer(example.name, _row_of(outputs, next(rows)))
        for example in batch
    ]


def _row_of(outputs: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: value[row] for name, value in outputs.items()}


def _stacked(values: list[object]) -> np.ndarray:
    """Bytes as objects: numpy's own byte strings lose trailing zeros."""
    return np.array(values, dtype=object if isinstance(values[0], bytes) else None)


def _first_line(error: BaseException) -> str:
    if not isinstance(error, tf.errors.OpError):
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
    # What TensorFlow says comes after the nodes it happened in, and before their names: "... [[{{node ...}}]]".
    told = error.message.split("[[{{")[0].split(" [Op:")[0].strip().splitlines()
    return (told[-1] if told else type(error).__name__).split("}} ")[-1].rstrip(". ")
