"""How a step is measured: CPU time in pairs, and the peak memory of a process.

Standard library only: it is imported in the environment of every tool. CPU time is that of the whole
process (all its threads), so other work on the machine does not count. A private step and a plain one
alternate in one process and each pair gives one ratio, so what slows the machine for a while slows both.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rows import ROWS, Row

Step = Callable[[], object]

WARM_UP = 3
MIN_PAIRS = 5
MEMORY_STEPS = 5


@dataclass(frozen=True)
class Contender:
    """A tool, ready to be measured on one row.

    Args:
        private: Builds what a private step needs and returns the step.
        plain: The same without privacy.
        versions: Of the libraries that did it.
    """

    private: Callable[[], Step]
    plain: Callable[[], Step]
    versions: dict[str, str]


Build = Callable[[Row, argparse.Namespace], Contender]


def pairs(private: Step, plain: Step, *, seconds: float) -> dict[str, float]:
    """Medians over alternating steps.

    Args:
        private: Returns when its work is done.
        plain: Likewise.
        seconds: CPU time to spend after the warm-up; at least `MIN_PAIRS` pairs are run.

    Returns:
        `ms` and `plain_ms`, CPU milliseconds a step; `ratio`, the median of private / plain; `num_pairs`.
    """
    for step in (private, plain):
        for _ in range(WARM_UP):
            step()
    started, times = time.process_time(), []
    while len(times) < MIN_PAIRS or time.process_time() - started < seconds:
        # Every other pair runs the other way round: each step finds the caches as the other left them.
        if len(times) % 2:
            plain_time, private_time = _cpu_time(plain), _cpu_time(private)
        else:
            private_time, plain_time = _cpu_time(private), _cpu_time(plain)
        times.append((private_time, plain_time))
    return {
        "ms": 1e3 * statistics.median(time_ for time_, _ in times),
        "plain_ms": 1e3 * statistics.median(time_ for _, time_ in times),
        "ratio": statistics.median(private_time / plain_time for private_time, plain_time in times),
        "num_pairs": len(times),
    }


def _cpu_time(step: Step) -> float:
    before = time.process_time()
    step()
    return time.process_time() - before


def peak_megabytes() -> float:
    """The most memory that this process had resident, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss, which a child starts with at its parent's peak.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024


def answer(build: Build, parser: argparse.ArgumentParser) -> None:
    """Runs a tool's script: measures what the command line asks and prints it as one last line of JSON.

    Args:
        build: Makes the contender of a row; gets all flags.
        parser: With the tool's own flags.
    """
    parser.add_argument("--row", choices=tuple(ROWS), required=True)
    parser.add_argument("--part", choices=("pairs", "private", "plain"), required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    contender = build(ROWS[args.row], args)
    if args.part == "pairs":
        measured = pairs(contender.private(), contender.plain(), seconds=args.seconds)
    else:
        step = getattr(contender, args.part)()
        for _ in range(MEMORY_STEPS):
            step()
        measured = {"peak_mb": peak_megabytes()}
    print(json.dumps({**measured, "versions": contender.versions}), flush=True)
