"""How answers are written on stdout: a table for a person, CSV or JSON lines for a program."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FORMATS = ("table", "csv", "jsonl")
# What a person looks for first; other outputs follow by name.
_FIRST = ("label", "probability")


@dataclass(frozen=True)
class Answer:
    """The outputs for one example: name -> scalar or (D,) values, bytes for strings."""

    name: str
    outputs: Mapping[str, np.ndarray | np.generic | bytes]


Write = Callable[[Answer], None]


@contextlib.contextmanager
def writer(output_format: str) -> Iterator[Write]:
    """A function that writes one answer after the other.

    JSON lines hold every output. CSV and the table hold the scalar ones; CSV spreads vectors over columns
    NAME_0, NAME_1, ... where a signature gives nothing else.

    Args:
        output_format: One of FORMATS.
    """
    with {"table": _table, "csv": _csv, "jsonl": _jsonl}[output_format]() as write:
        yield write


@contextlib.contextmanager
def _jsonl() -> Iterator[Write]:
    def write(answer: Answer) -> None:
        outputs = {name: _plain(answer.outputs[name]) for name in _ordered(answer)}
        print(json.dumps({"file": answer.name, **outputs}, ensure_ascii=False), flush=True)

    yield write


@contextlib.contextmanager
def _csv() -> Iterator[Write]:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    header: list[str] = []

    def write(answer: Answer) -> None:
        cells = _scalars(answer) or _spread(answer)
        if not header:
            header.extend(cells)
            rows.writerow(["file", *header])
        rows.writerow([answer.name, *cells.values()])

    yield write


@contextlib.contextmanager
def _table() -> Iterator[Write]:
    from rich.console import Console
    from rich.table import Table

    answers: list[Answer] = []
    yield answers.append
    if not answers:
        return
    table = Table()
    columns = list(_scalars(answers[0])) or _ordered(answers[0])
    for column in ("file", *columns):
        table.add_column(column, overflow="fold", justify="right" if column == "probability" else "left")
    for answer in answers:
        table.add_row(_escaped(answer.name), *(_escaped(_shown(answer.outputs[column])) for column in columns))
    Console().print(table)


def _ordered(answer: Answer) -> list[str]:
    first = [name for name in _FIRST if name in answer.outputs]
    return first + sorted(set(answer.outputs) - set(first))


def _scalars(answer: Answer) -> dict[str, object]:
    return {name: _plain(answer.outputs[name]) for name in _ordered(answer) if np.ndim(answer.outputs[name]) == 0}


def _spread(answer: Answer) -> dict[str, object]:
    cells: dict[str, object] = {}
    for name in _ordered(answer):
        cells |= {f"{name}_{i}": _plain(value) for i, value in enumerate(np.ravel(answer.outputs[name]))}
    return cells


def _plain(value: np.ndarray | np.generic | bytes) -> object:
    """A value that json writes; float32 with the fewest digits that give it back."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.ndim:
        return [_plain(item) for item in value]
    if isinstance(value, np.floating):
        return float(str(value))
    return value.item()


def _shown(value: np.ndarray | np.generic | bytes) -> str:
    if np.ndim(value):
        return f"{np.size(value)} numbers"
    plain = _plain(value)
    return f"{plain:.4f}" if isinstance(plain, float) else str(plain)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
