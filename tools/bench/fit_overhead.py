#!/usr/bin/env python3
"""What tfbig's `fit` costs over a bare `keras.Model.fit` of the same network: CPU time of a step.

    python tools/bench/fit_overhead.py --json

Both train the very network that image_finetune builds, with tfbig's faster forms of layers, by its AdamW, under its
runtime (seed, heap), on the same images in memory, without validation. What differs is `fit`: `tfbig` is the whole of
ours, with its learner, the plan of its batches, weights of examples, and all its callbacks in a run directory; `keras`
is `compile` and `fit`, with batches shuffled by tf.data and no callbacks.
A process each, on one thread, which take turns of some steps in one call; new ones each round, since how the memory of
a process happens to lie is worth more than what is measured. The last line of stdout is
{"small_cnn": {"ratio", "ratios", "ms": {"tfbig", "keras"}}, ..., "versions", "cores", "seed"}.

- `ratios`: of each round, median CPU time of tfbig's step over that of Keras's; at 1.02 ours costs 2 % more, below 1
  less. `ratio` is their median.

What cannot be measured is null, and the table says why; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))

from environments import Unavailable
from flags import parser_of, whole
from measured import Timed
from processes import Worker
from tool import Tool
from tool import started as started_by

SCRIPTS = Path(__file__).resolve().parent / "fit_overhead"
_COUNT = whole(1, 1000, usual="9 to 50")
SIDES = {"tfbig": "tfbig_fit.py", "keras": "keras_fit.py"}


@dataclass(frozen=True)
class Row:
    """One network, and the batch that it is trained with."""

    backbone: str
    batch_size: int


ROWS = {
    "small_cnn": Row("scratch:small_cnn", 32),
    "convnet": Row("scratch:convnet", 64),
    "mobilenet": Row("apps:MobileNetV2", 8),
}

logger = logging.getLogger(__name__)


@dataclass
class Found(Timed):
    """What was measured of one row, by side; `seconds` of all rounds.

    Args:
        ratios: One a round, see `ratio_of`.
    """

    ratios: list[float] = field(default_factory=list)

    def add(self, its_round: Timed) -> None:
        """Takes in what a round has found."""
        self.facts |= its_round.facts
        self.absent |= its_round.absent
        for side, seconds in its_round.seconds.items():
            self.seconds.setdefault(side, []).extend(seconds)
        ratio = ratio_of(its_round)
        if ratio is not None:
            self.ratios.append(ratio)

    def ratio(self) -> float | None:
        """The median of the rounds; None where one failed."""
        return statistics.median(self.ratios) if self.ratios and not self.absent else None


def ratio_of(one: Timed) -> float | None:
    """Median time of tfbig's steps over that of Keras's, of processes that ran side by side."""
    ours, theirs = one.median("tfbig"), one.median("keras")
    return None if ours is None or theirs is None else ours / theirs


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found = {row: measure(row, args) for row in args.rows}
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(summary(found, seed=args.seed)))
    return int(any(row.ratio() is None for row in found.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(__doc__, rows=ROWS)
    made.add_argument("--rounds", type=_COUNT, default=3, help="of new processes (default %(default)s)")
    made.add_argument("--turns", type=_COUNT, default=5, help="of each side in a round (default %(default)s)")
    made.add_argument("--steps", type=_COUNT, default=20, help="in a turn (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of weights, images and batches (default %(default)s)")
    return made


def measure(row: str, args: argparse.Namespace) -> Found:
    """All rounds of one row."""
    found = Found()
    for number in range(args.rounds):
        # Neither is always the first to take memory.
        found.add(one_round(row, args, sides=list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]))
        if found.absent:
            break
    logger.info("%s", table({row: found}))
    return found


def one_round(row: str, args: argparse.Namespace, *, sides: list[str]) -> Timed:
    """Both sides of one row in new processes, in turns; every other turn goes the other way round."""
    found = Timed()
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side in sides:
            try:
                workers[side] = worker = Worker(*started(side, ROWS[row], args.seed))
            except Unavailable as why:
                found.absent[side] = str(why)
                continue
            stack.callback(worker.close)
            found.facts[side] = worker.facts
        found.take_turns(workers, num_turns=args.turns, num_steps=dict.fromkeys(workers, args.steps))
    return found


def started(side: str, row: Row, seed: int) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a side's process."""
    flags = ["--backbone", row.backbone, "--batch_size", str(row.batch_size), "--seed", str(seed)]
    return started_by(Tool(SIDES[side]), SCRIPTS, flags, python=Path(sys.executable), sees_tfbig=True)


def summary(found: Mapping[str, Found], *, seed: int) -> dict[str, object]:
    """The ratios as the last line gives them; null where there is none."""
    result: dict[str, object] = {}
    versions: dict[str, dict[str, str]] = {}
    for row, its in found.items():
        ratio = its.ratio()
        rounded = None if ratio is None else round(ratio, 3)
        ms = {side: round(1e3 * seconds, 2) for side in SIDES if (seconds := its.median(side)) is not None}
        result[row] = {"ratio": rounded, "ratios": [round(each, 3) for each in its.ratios], "ms": ms}
        versions |= {side: facts["versions"] for side, facts in its.facts.items()}
    return {**result, "versions": versions, "cores": os.cpu_count(), "seed": seed}


def table(found: Mapping[str, Found]) -> str:
    """Lines of text, one a side and row: the median, the range of the turns, the ratio and the range of the rounds'."""
    lines = ["{:<12}{:<8}{:>9}{:>9}{:>9}{:>8}".format("row", "side", "ms", "lowest", "highest", "ratio")]
    for row, its in found.items():
        for side in SIDES:
            median, ratio = its.median(side), its.ratio()
            if median is None:
                lines.append(f"{row:<12}{side:<8}{'-':>9}   {its.absent.get(side, 'no turn')}")
                continue
            times = [1e3 * seconds for seconds in its.seconds[side]]
            shown = ""
            if side == "tfbig" and ratio is not None:
                shown = f"{ratio:8.3f} ({min(its.ratios):.3f} to {max(its.ratios):.3f})"
            lines.append(f"{row:<12}{side:<8}{1e3 * median:9.2f}{min(times):9.2f}{max(times):9.2f}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
