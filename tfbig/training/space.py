"""The space of a search: which settings are drawn, and from what. Imports no TensorFlow.

In the tree: below tune.py, which draws from it; pipelines/_search_space.py reads it from the configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
