#!/usr/bin/env python3
"""What a training step costs: CPU time of tfbig's over that of Hugging Face Trainer and of plain Keras.

    python tools/bench/training_step.py --json

Two rows (`training_step/work.py`), ResNet-50 and ViT-Tiny at 224 pixels, batch 16, bfloat16, all weights trained
by AdamW, the same made-up images for all tools: `tfbig`, the job image_finetune; `hf`, Trainer with `bf16=True` on
PyTorch 2.13; `keras`, `compile` and `fit` under mixed_bfloat16 in tfbig's own environment, without XLA; `keras_xla`,
the same with XLA, which is Keras's default. Each trains with its own loop, a process each, on one thread.
The processes take turns of a few steps in one call, so what slows the machine for a while slows all.
The last line of stdout is
{"resnet50": {"vs_hf", "vs_keras", "roof_share", "ms"}, "vit_tiny": ..., "versions", "cores", "seed"}.

- `ms`: median over the turns of CPU milliseconds a step, of the whole process, by tool.
- `vs_hf`, `vs_keras`: that median of the peer over tfbig's; above 1 tfbig is faster. Of keras and keras_xla the
  faster counts.
- `roof_share`: floating-point operations of a step, by tfbig's CPU time, over those a second of a bfloat16 product
  of 2048 by 2048 matrices, taking its turns in the same call. A step has 3 times the operations of a forward pass:
  2 for each multiply-add of convolutions, dense layers and attention; norms, activations and the optimizer count
  as nothing.

The peer of PyTorch runs in an environment that this script makes (`--environments`). What cannot be measured is
null, and the table says why. The exit code is 1 where that happens to tfbig.
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
sys.path.insert(0, str(Path(__file__).resolve().parent / "training_step"))

from environments import HF_TRAINER, Environment, Unavailable, clean_variables, interpreter
from flags import add_environments, names
from processes import HARNESS, VARIABLES, Worker
from work import BATCH_SIZE, ROOF_SIDE, ROWS

SCRIPTS = Path(__file__).resolve().parent / "training_step"
ROOT = SCRIPTS.parents[2]
ROOF = "roof"
NUM_PRODUCTS = 8
"""Of matrices, in a turn of the roof."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tool:
    """One column of the bench.

    Args:
        script: In `training_step/`.
        environment: Where it runs; None for this interpreter.
        arguments: Of the script.
    """

    script: str
    environment: Environment | None = None
    arguments: tuple[str, ...] = ()


TOOLS = {
    "tfbig": Tool("tfbig_step.py"),
    "hf": Tool("hf_step.py", HF_TRAINER),
    "keras": Tool("keras_step.py", arguments=("--jit", "off")),
    "keras_xla": Tool("keras_step.py", arguments=("--jit", "auto")),
}


@dataclass
class Found:
    """What was measured of one row.

    Args:
        seconds: By tool, and of the roof: CPU seconds a step (a product) of each turn.
        facts: By tool: versions; of tfbig the multiply-adds of a forward pass of one image.
        absent: By tool: why there is nothing.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def median(self, tool: str) -> float | None:
        """CPU seconds a step; None where there is nothing."""
        times = [] if tool in self.absent else self.seconds.get(tool, [])
        return statistics.median(times) if times else None

    def ratio(self, *peers: str) -> float | None:
        """Time of the fastest of the peers over tfbig's."""
        theirs = [time for peer in peers if (time := self.median(peer)) is not None]
        ours = self.median("tfbig")
        return None if ours is None or not theirs else min(theirs) / ours

    def roof_share(self) -> float | None:
        """Operations a second of tfbig's step over those of the roof."""
        ours, product = self.median("tfbig"), self.median(ROOF)
        if ours is None or product is None:
            return None
        operations = 3 * 2 * BATCH_SIZE * self.facts["tfbig"]["multiply_adds"]
        return (operations / ours) / (2 * ROOF_SIDE**3 / product)


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found = {}
    for row in args.rows:
        found[row] = measure(row, args)
        logger.info("%s", table({row: found[row]}))
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    result = summary(found, seed=args.seed)
    logger.info("%s", json.dumps({name: result[name] for name in ("versions", "cores", "seed")}))
    if args.json:
        print(json.dumps(result))
    return int("tfbig" in args.only and any(row.median("tfbig") is None for row in found.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="end with one line of JSON; the table goes to stderr")
    made.add_argument("--only", type=names(TOOLS), default=[*TOOLS], help=f"tools, of {','.join(TOOLS)}")
    made.add_argument("--rows", type=names(ROWS), default=[*ROWS], help=f"rows, of {','.join(ROWS)}")
    made.add_argument("--turns", type=_count, default=7, help="of each tool (default %(default)s)")
    made.add_argument("--steps", type=_count, default=3, help="in a turn (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of weights, images and batches (default %(default)s)")
    made.add_argument("--transform", default="", help="MODULE:FUNCTION, Model -> Model, tried on tfbig's network")
    add_environments(made)
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1000, got {text!r}; 3 to 10 is usual")
    return int(text)


def measure(row: str, args: argparse.Namespace) -> Found:
    """All tools on one row, in turns."""
    found = Found()
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in [*args.only, ROOF]:
            try:
                workers[name] = worker = Worker(*started(name, row, args))
                stack.callback(worker.close)
                found.facts[name] = worker.facts
                logger.info("%s %s is warm", row, name)
            except Unavailable as why:
                found.absent[name] = str(why)
        take_turns(workers, found, num_turns=args.turns, num_steps=args.steps)
    return found


def started(name: str, row: str, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a tool's process, or of the roof's.

    Raises:
        Unavailable: The tool's environment cannot be made.
    """
    tool = Tool("roof.py") if name == ROOF else TOOLS[name]
    python = Path(sys.executable) if tool.environment is None else interpreter(tool.environment, args.environments)
    flags = [] if name == ROOF else ["--row", row, "--seed", str(args.seed), *tool.arguments]
    if name == "tfbig" and args.transform:
        flags += ["--transform", args.transform]
    # A peer's environment holds nothing of tfbig; plain Keras shares tfbig's, and imports nothing of it.
    paths = [str(HARNESS)] + ([str(ROOT)] if name == "tfbig" else [])
    variables = {**clean_variables(), **VARIABLES, "PYTHONPATH": os.pathsep.join(paths)}
    return [str(python), str(SCRIPTS / tool.script), *flags], variables


def take_turns(workers: Mapping[str, Worker], found: Found, *, num_turns: int, num_steps: int) -> None:
    """Fills `found.seconds`; every other round goes the other way round. A worker that fails is left out."""
    for turn in range(num_turns):
        for name in [*workers] if turn % 2 == 0 else [*workers][::-1]:
            if name in found.absent:
                continue
            try:
                seconds = workers[name].turn(NUM_PRODUCTS if name == ROOF else num_steps)
            except Unavailable as why:
                found.absent[name] = str(why)
            else:
                found.seconds.setdefault(name, []).append(seconds)


def summary(found: Mapping[str, Found], *, seed: int) -> dict[str, object]:
    """The ratios as the last line gives them; null where there is none."""
    result: dict[str, object] = {}
    versions: dict[str, dict[str, str]] = {}
    for row, its in found.items():
        tools = [name for name in TOOLS if its.median(name) is not None]
        result[row] = {
            "vs_hf": _rounded(its.ratio("hf"), 3),
            "vs_keras": _rounded(its.ratio("keras", "keras_xla"), 3),
            "roof_share": _rounded(its.roof_share(), 3),
            "ms": {name: _rounded(1e3 * (its.median(name) or 0.0), 1) for name in tools},
        }
        versions |= {name: its.facts[name]["versions"] for name in tools}
    return {**result, "versions": versions, "cores": os.cpu_count(), "seed": seed}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def table(found: Mapping[str, Found]) -> str:
    """Lines of text, one a tool and row: the median, the range of the turns, and how tfbig compares."""
    heads = ("row", "tool", "ms", "lowest", "highest", "over tfbig", "roof")
    lines = ["{:<10}{:<11}{:>9}{:>9}{:>9}{:>14}{:>8}".format(*heads)]
    for row, its in found.items():
        for tool in [*its.seconds, *(name for name in its.absent if name not in its.seconds)]:
            lines.append(f"{row:<10}{tool:<11}" + _cells(tool, its))
    return "\n".join(lines)


def _cells(tool: str, its: Found) -> str:
    median = its.median(tool)
    if median is None:
        return f"{'-':>9}   {its.absent[tool]}"
    times = [1e3 * seconds for seconds in its.seconds[tool]]
    cells = f"{1e3 * median:9.1f}{min(times):9.1f}{max(times):9.1f}"
    if tool == ROOF:
        return cells + f"   {2e-9 * ROOF_SIDE**3 / median:.0f} GFLOP/s"
    ratio, share = its.ratio(tool), its.roof_share() if tool == "tfbig" else None
    return cells + (f"{ratio:14.2f}" if ratio else f"{'-':>14}") + (f"{share:8.2f}" if share else "")


if __name__ == "__main__":
    sys.exit(main())
