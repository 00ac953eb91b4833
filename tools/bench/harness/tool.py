"""Tools that a bench compares: the script of each, where it runs, and the command and variables of its process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from environments import Environment, clean_variables, interpreter
from processes import HARNESS, VARIABLES

ROOT = HARNESS.parents[2]


@dataclass(frozen=True)
class Tool:
    """One column of a bench.

    Args:
        script: In the bench's own folder.
        environment: Where it runs; None for this interpreter.
        arguments: Of the script.
    """

    script: str
    environment: Environment | None = None
    arguments: tuple[str, ...] = ()

    def python(self, environments: Path) -> Path:
        """Its interpreter.

        Args:
            environments: Folder of the peers' environments.

        Raises:
            Unavailable: The environment cannot be made.
        """
        return Path(sys.executable) if self.environment is None else interpreter(self.environment, environments)


def started(
    tool: Tool,
    scripts: Path,
    flags: Sequence[str],
    *,
    python: Path,
    sees_tfbig: bool,
    variables: Mapping[str, str] = VARIABLES,
) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a tool's process.

    Args:
        tool: Whose arguments come last.
        scripts: The bench's folder.
        flags: Of this process.
        python: The interpreter.
        sees_tfbig: A peer's environment holds nothing of tfbig; plain Keras shares tfbig's, and imports nothing of it.
        variables: Beside those that every process of a bench has.
    """
    paths = [str(HARNESS)] + ([str(ROOT)] if sees_tfbig else [])
    command = [str(python), str(scripts / tool.script), *flags, *tool.arguments]
    return command, {**clean_variables(), **variables, "PYTHONPATH": os.pathsep.join(paths)}
