#!/usr/bin/env python3
"""What privacy costs: CPU time and memory of a private training step over one without, for tfbig and its peers.

    python tools/bench/private_step.py --json

Four rows (`private_step/rows.py`), the same network, batch, clipping and noise for all tools: `tfbig`;
`opacus_hooks` and `opacus_ghost`, Opacus 1.6 on PyTorch 2.13; `tf_privacy`, TensorFlow Privacy 0.9 on
TensorFlow 2.15. A step is all that training does with a batch: forward, backward, clipping, noise, SGD.
The last line of stdout is
{"tfbig": {"cnn": {"ms", "ratio", "memory_ratio"}, "vit": ..., "head": ..., "lora": ...}, ..., "versions": ...}.

- `ms`: median CPU milliseconds of a private step, on one thread.
- `ratio`: median of private / plain, the two alternating in one process, each in the tool's own framework.
- `memory_ratio`: the peak resident memory of a process that only runs private steps over that of one that only
  runs plain ones. Both hold the interpreter and the libraries, and nothing is taken off for that.

Each peer runs in an environment that this script makes (`--environments`). A row that cannot be measured is
null, and the table on stderr says why. The exit code is 1 where that happens to tfbig.

XLA: each peer has the setting that makes its row fastest. For TF Privacy that is on for `head` and off
elsewhere (on: 5 times as long for `cnn`, and `vit` does not compile in eight minutes). tfbig has it off, unless
`--jit` is given.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "private_step"))

from environments import OPACUS, TF_PRIVACY, Environment, Unavailable, clean_variables, interpreter
from flags import add_environments, parser_of
from processes import TIMEOUT_S, VARIABLES, child
from rows import ROWS

SCRIPTS = Path(__file__).resolve().parent / "private_step"
ROOT = SCRIPTS.parents[2]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tool:
    """One column of the bench.

    Args:
        script: In `private_step/`.
        environment: Where it runs; None for this interpreter.
        arguments: Of the script.
        compiled: Rows where it takes `--jit`.
        absent: Why it has no such row.
    """

    script: str
    environment: Environment | None = None
    arguments: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


TOOLS = {
    "tfbig": Tool("ours.py"),
    "opacus_hooks": Tool("opacus_peer.py", OPACUS, ("--mode", "hooks")),
    "opacus_ghost": Tool("opacus_peer.py", OPACUS, ("--mode", "ghost")),
    "tf_privacy": Tool(
        "tf_privacy_peer.py",
        TF_PRIVACY,
        compiled=("head",),
        absent={"lora": "Keras 2, which TF Privacy needs, has no LoRA."},
    ),
}


@dataclass(frozen=True)
class Cost:
    """What one tool's row was measured to cost.

    Args:
        ms: CPU milliseconds of a private step.
        plain_ms: Of one without privacy.
        ratio: Median of private / plain.
        peak_mb: Of a process that runs private steps.
        plain_peak_mb: Of one that runs plain steps.
    """

    ms: float
    plain_ms: float
    ratio: float
    peak_mb: float
    plain_peak_mb: float

    @property
    def memory_ratio(self) -> float:
        """Peak memory with privacy over that without."""
        return self.peak_mb / self.plain_peak_mb


Found = dict[tuple[str, str], Cost | str]
"""By tool and row: the cost, or why there is none."""


def main() -> int:
    """Measure, and print what was found."""
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found, versions = measure(args)
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary(found, versions)))
    return int(any(tool == "tfbig" and isinstance(cost, str) for (tool, _), cost in found.items()))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__, tools=TOOLS, rows=ROWS)
    parser.add_argument("--seconds", type=_seconds, default=20.0, help="CPU time a measurement (default %(default)s)")
    parser.add_argument("--jit", action="store_true", help="compile tfbig's steps with XLA, the plain one too")
    add_environments(parser)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < TIMEOUT_S / 2:
        limit = f"above 0 and below {TIMEOUT_S // 2}"
        raise argparse.ArgumentTypeError(f"expected {limit} seconds, got {text!r}; 20 is usual")
    return value


def measure(args: argparse.Namespace) -> tuple[Found, dict[str, dict[str, str]]]:
    """Costs, and the versions of the libraries of each tool that was measured."""
    pythons = {name: _python(TOOLS[name], args.rows, args.environments) for name in args.only}
    found: Found = {}
    versions: dict[str, dict[str, str]] = {}
    # A row's tools one after the other: what slows the machine for an hour should not decide between them.
    for row in args.rows:
        for name, python in pythons.items():
            tool = TOOLS[name]
            flags = ["--jit"] if row in tool.compiled or (args.jit and name == "tfbig") else []
            try:
                if row in tool.absent or isinstance(python, str):
                    raise Unavailable(tool.absent.get(row, python))
                found[name, row], versions[name] = cost(tool, python, [*flags, "--row", row], seconds=args.seconds)
            except Unavailable as why:
                found[name, row] = str(why)
            logger.info(_line(name, row, found[name, row]))
    return found, versions


def _python(tool: Tool, rows: Sequence[str], environments: Path) -> Path | str:
    """The interpreter of a tool, or why there is none; made only for a row that the tool has."""
    if tool.environment is None or set(rows) <= set(tool.absent):
        return Path(sys.executable)
    try:
        return interpreter(tool.environment, environments)
    except Unavailable as why:
        return str(why)


def cost(tool: Tool, python: Path, flags: list[str], *, seconds: float) -> tuple[Cost, dict[str, str]]:
    """One tool's cost on one row, and its libraries' versions.

    Raises:
        Unavailable: A process failed.
    """
    variables = {**clean_variables(), **VARIABLES}
    if tool.environment is None:
        variables["PYTHONPATH"] = str(ROOT)
    command = [str(python), str(SCRIPTS / tool.script), *tool.arguments, *flags]
    timed = child([*command, "--part", "pairs", "--seconds", str(seconds)], variables)
    peaks = {part: child([*command, "--part", part], variables)["peak_mb"] for part in ("private", "plain")}
    figures = Cost(timed["ms"], timed["plain_ms"], timed["ratio"], peaks["private"], peaks["plain"])
    return figures, timed["versions"]


def summary(found: Found, versions: Mapping[str, Mapping[str, str]]) -> dict[str, dict]:
    """The costs as the last line gives them: by tool and row, null where there is none."""
    tools: dict[str, dict] = {}
    for (tool, row), figures in found.items():
        known = isinstance(figures, Cost)
        tools.setdefault(tool, {})[row] = _rounded(figures) if known else None
    return {**tools, "versions": dict(versions)}


def _rounded(figures: Cost) -> dict[str, float]:
    return {
        "ms": round(figures.ms, 1),
        "ratio": round(figures.ratio, 3),
        "memory_ratio": round(figures.memory_ratio, 3),
    }


def table(found: Found) -> str:
    """The costs as lines of text; the lowest time of each row has a star."""
    heads = ("row", "tool", "ms", "plain ms", "ratio", "MB", "plain MB", "memory ratio")
    lines = ["{:<6}{:<14}{:>8} {:>10}{:>8}{:>8}{:>10}{:>14}".format(*heads)]
    for (tool, row), figures in found.items():
        times = [other.ms for (_, its), other in found.items() if its == row and isinstance(other, Cost)]
        lowest = isinstance(figures, Cost) and figures.ms == min(times)
        lines.append(_line(tool, row, figures, mark="*" if lowest else " "))
    return "\n".join(lines)


def _line(tool: str, row: str, figures: Cost | str, *, mark: str = " ") -> str:
    start = f"{row:<6}{tool:<14}"
    if isinstance(figures, str):
        return f"{start}{'-':>8}   {figures}"
    return (
        f"{start}{figures.ms:8.1f}{mark}{figures.plain_ms:10.1f}{figures.ratio:8.2f}"
        f"{figures.peak_mb:8.0f}{figures.plain_peak_mb:10.0f}{figures.memory_ratio:14.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
