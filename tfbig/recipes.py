"""Recipes: YAML files that say only what differs from the defaults. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from tfbig.errors import UsageError
from tfbig.paths import expanded
from tfbig.resources import recipe_paths
from tfbig.suggest import nearest


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"a key must be a flag's name, got {key!r}"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text; a number is what everyone who writes it means.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe's name, or of a path.

    Raises:
        UsageError: There is neither.
    """
    shipped = recipe_paths()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = expanded(name_or_path)
    with contextlib.suppress(OSError):
        if path.is_file():
            return path
    raise UsageError(
        f"--config must be a YAML file or one of the recipes {', '.join(shipped)}, got {name_or_path!r}."
        f"{nearest(name_or_path, shipped)}"
    )


def read_recipe(path: Path) -> dict[str, object]:
    """A recipe as dotted flag -> value, in the file's order.

    Raises:
        UsageError: Not readable, not YAML, a tab, a key given twice, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe {path} cannot be read: {error}.") from error
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = error.problem or "it is not YAML"
        if "'\\t'" in problem:
            problem = "it has a tab; indent with spaces"
        raise UsageError(f"The recipe {path}{where}: {problem}.") from error
    except RecursionError as error:
        raise UsageError(f"The recipe {path} is nested too deeply.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"The recipe {path} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"The recipe {path} must hold settings such as `train: {{epochs: 10}}`, but holds none.")
    try:
        flat = dotted(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The recipe {path}: {error}.") from error
    for name, value in flat.items():
        if not isinstance(value, str | int | float | list | None):
            raise UsageError(f"The recipe {path}: {name} must be a number or text, got {value}; put it in quotes.")
    return flat


def read_value(text: str, name: str) -> object:
    """What a text means where a recipe would hold it, such as a list.

    Args:
        text: YAML.
        name: Of the flag that it was given to.

    Raises:
        UsageError: It is not YAML.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--{name} must be written as in a recipe, got {text!r} ({reason}).") from error


def dotted(tree: dict, prefix: str = "") -> dict[str, object]:
    """A nested mapping as dotted key -> value."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        found = dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        for name in found.keys() & flat.keys():
            raise ValueError(f"{name} stands twice")
        flat |= found
    return flat
