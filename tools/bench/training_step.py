#!/usr/bin/env python3
"""What a training step costs: CPU time of tfbig's over that of Hugging Face Trainer and of plain Keras.

    python tools/bench/training_step.py --json

Two rows (`training_step/work.py`), ResNet-50 and ViT-Tiny at 224 pixels, batch 16, bfloat16, all weights trained
by AdamW, the same made-up images for all tools: `tfbig`, the job image_finetune; `tfbig_plain`, the same without the
operations that are compiled with it; `hf`, Trainer with `bf16=True` on PyTorch 2.13; `keras`, `compile` and `fit` under
mixed_bfloat16 in tfbig's own environment, without XLA; `keras_xla`, the same with XLA, which is Keras's default. Each
trains with its own loop, a process each, on one thread. The processes take turns of a few steps in one call, so what
slows the machine for a while slows all.
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
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "training_step"))

from environments import HF_TRAINER, Unavailable
from flags import add_environments, parser_of, whole
from measured import Measured
from processes import Worker
from tool import ROOT, Tool
from tool import started as started_by
from work import BATCH_SIZE, ROOF_SIDE, ROWS

SCRIPTS = ROOT / "tools" / "bench" / "training_step"
ROOF = "roof"
NUM_PRODUCTS = 8
"""Of matrices, in a turn of the roof."""
_COUNT = whole(1, 1000, usual="3 to 10")

logger = logging.getLogger(__name__)

TOOLS = {
    "tfbig": Tool("tfbig_step.py"),
    "tfbig_plain": Tool("tfbig_step.py", arguments=("--compiled", "no")),
    "hf": Tool("hf_step.py", HF_TRAINER),
    "keras": Tool("keras_step.py", arguments=("--jit", "off")),
    "keras_xla": Tool("keras_step.py", arguments=("--jit", "auto")),
}


@dataclass
class Found(Measured):
    """What was measured of one row, the roof among the tools, whose step is a product.

    Of tfbig `facts` has the multiply-adds of a forward pass of one image.
    """

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
    made = parser_of(__doc__, tools=TOOLS, rows=ROWS)
    made.add_argument("--turns", type=_COUNT, default=7, help="of each tool (default %(default)s)")
    made.add_argument("--steps", type=_COUNT, default=3, help="in a turn (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of weights, images and batches (default %(default)s)")
    made.add_argument("--transform", default="", help="MODULE:FUNCTION, Model -> Model, tried on tfbig's network")
    add_environments(made)
    return made


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
        num_steps = dict.fromkeys(workers, args.steps) | {ROOF: NUM_PRODUCTS}
        found.take_turns(workers, num_turns=args.turns, num_steps=num_steps)
    return found


def started(name: str, row: str, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a tool's process, or of the roof's.

    Raises:
        Unavailable: The tool's environment cannot be made.
    """
    if name == ROOF:
        return started_by(Tool("roof.py"), SCRIPTS, [], python=Path(sys.executable), sees_tfbig=False)
    flags = ["--row", row, "--seed", str(args.seed)]
    is_ours = name in ("tfbig", "tfbig_plain")
    if is_ours and args.transform:
        flags += ["--transform", args.transform]
    python = TOOLS[name].python(args.environments)
    return started_by(TOOLS[name], SCRIPTS, flags, python=python, sees_tfbig=is_ours)


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
