#!/usr/bin/env python3
"""What tfbig's `fit` costs over a bare `keras.Model.fit` of the same network: CPU time of a step.

    python tools/bench/fit_overhead.py --json

Both train the very network that image_finetune builds, with tfbig's faster forms of layers, by its AdamW, under its
runtime (seed, heap), on the same images in memory, without validation. What differs is `fit`: `tfbig` is the whole of
ours, with its learner, the plan of its batches, weights of examples, and all its callbacks in a run directory; `keras`
is `compile` and `fit`, with batches shuffled by tf.data and no callbacks.
A process each, on one thread, which take turns of some steps in one call. The last line of stdout is
{"small_cnn": {"ratio", "ms": {"tfbig", "keras"}}, ..., "versions", "cores", "seed"}.

- `ratio`: median CPU time of tfbig's step over that of Keras's; at 1.02 ours costs 2 % more, below 1 less.

What cannot be measured is null, and the table says why; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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
    """What was measured of one row, by side."""

    def ratio(self) -> float | None:
        """Time of tfbig over that of Keras."""
        ours, theirs = self.median("tfbig"), self.median("keras")
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
    made.add_argument("--turns", type=_COUNT, default=9, help="of each side (default %(default)s)")
    made.add_argument("--steps", type=_COUNT, default=20, help="in a turn (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of weights, images and batches (default %(default)s)")
    return made


def measure(row: str, args: argparse.Namespace) -> Found:
    """Both sides of one row, in turns; every other round goes the other way round."""
    found = Found()
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for side in SIDES:
            try:
                workers[side] = worker = Worker(*started(side, ROWS[row], args.seed))
            except Unavailable as why:
                found.absent[side] = str(why)
                continue
            stack.callback(worker.close)
            found.facts[side] = worker.facts
        found.take_turns(workers, num_turns=args.turns, num_steps=dict.fromkeys(workers, args.steps))
    logger.info("%s", table({row: found}))
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
        ms = {side: round(1e3 * seconds, 2) for side in SIDES if (seconds := its.median(side)) is not None}
        result[row] = {"ratio": None if ratio is None else round(ratio, 3), "ms": ms}
        versions |= {side: facts["versions"] for side, facts in its.facts.items()}
    return {**result, "versions": versions, "cores": os.cpu_count(), "seed": seed}


def table(found: Mapping[str, Found]) -> str:
    """Lines of text, one a side and row: the median, the range of the turns, and the ratio."""
    lines = ["{:<12}{:<8}{:>9}{:>9}{:>9}{:>8}".format("row", "side", "ms", "lowest", "highest", "ratio")]
    for row, its in found.items():
        for side in SIDES:
            median, ratio = its.median(side), its.ratio()
            if median is None:
                lines.append(f"{row:<12}{side:<8}{'-':>9}   {its.absent.get(side, 'no turn')}")
                continue
            times = [1e3 * seconds for seconds in its.seconds[side]]
            shown = f"{ratio:8.3f}" if side == "tfbig" and ratio is not None else ""
            lines.append(f"{row:<12}{side:<8}{1e3 * median:9.2f}{min(times):9.2f}{max(times):9.2f}{shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
