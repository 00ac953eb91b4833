"""The space of a search: which settings are drawn, and from what. Imports no TensorFlow.

In the tree: below trials.py, which draws from it; pipelines/_search_space.py reads it from the configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from tfbig.config import RunConfig, TuneConfig

Kind: TypeAlias = Literal["log", "linear", "choice"]
Value: TypeAlias = str | int | float | bool | None
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Parameter:
    """One setting that a search draws.

    Args:
        name: The dotted flag.
        kind: How: evenly over the logarithms of a range, evenly over a range, or one of some values.
        values: The lowest and the highest value, or the values to choose from.
        is_whole: Whether the range holds whole numbers only.
    """

    name: str
    kind: Kind
    values: tuple[Value, ...]
    is_whole: bool = False


def num_settings(space: Sequence[Parameter]) -> float:
    """How many different settings a space has; infinite where a range is not of whole numbers."""
    return math.prod(_num_values(parameter) for parameter in space)


def _num_values(parameter: Parameter) -> float:
    if parameter.kind == "choice":
        return len(parameter.values)
    low, high = cast(tuple[int, int], parameter.values)
    return high - low + 1 if parameter.is_whole else math.inf


def hyperband_bracket(max_epochs: int) -> tuple[int, ...]:
    """Trials in each round of the bracket that KerasTuner's Hyperband begins with.

    The first round is the shortest, and each later one three times as long; the last alone has `max_epochs` epochs.
    """
    epochs, num_rounds = float(max_epochs), 0
    while epochs >= 1:
        epochs, num_rounds = epochs / 3, num_rounds + 1
    end_size = math.ceil(1 + math.log(max_epochs, 3)) / num_rounds
    return tuple(math.ceil(end_size * 3**left) for left in reversed(range(num_rounds)))


def with_values(config: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    """A configuration with some settings exchanged, and itself no search.

    Args:
        config: Whose other settings are kept, as they were resolved.
        values: Dotted flag -> value.

    Raises:
        ValueError: A value is out of range.
    """
    groups: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        group, field = name.split(".")
        groups.setdefault(group, {})[field] = value
    changed = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in groups.items()}
    return dataclasses.replace(config, **{"tune": TuneConfig(), **cast(dict, changed)})
