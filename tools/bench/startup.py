#!/usr/bin/env python3
"""How long a user waits for the first training step: tfbig against Hugging Face Trainer and plain Keras.

    python tools/bench/startup.py --json

From the start of the process to the end of its first step: ResNet-50 from random weights, 224 pixels, batch 16,
bfloat16, on a folder of 320 made-up JPEG files in 10 classes. `tfbig` is the command line of image_finetune, which
reads and checks every file and opens its run directory; `hf` and `keras` are the short scripts that a user would
write (`startup/`). A process each, one after the other, on one thread; every other round goes the other way
round. The last line of stdout is
{"vs_hf", "vs_keras", "wall_vs_hf", "wall_vs_keras", "cpu_s", "wall_s", "versions", "cores", "seed"}.

- `vs_hf`, `vs_keras`: median CPU time of tfbig's process over that of the peer's; below 1 tfbig is earlier.
- `wall_vs_hf`, `wall_vs_keras`: the same of the time on the clock, in which other work on the machine counts too.

The first round is left out: it finds files that are not yet in the system's cache. What cannot be measured is
null, and the table says why. The exit code is 1 where that happens to tfbig.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "startup"))

from environments import HF_TRAINER, Unavailable
from first_step import IMAGES_A_CLASS, NUM_CLASSES, SIDE
from flags import add_environments, parser_of, whole
from processes import Worker
from tool import Tool, started

SCRIPTS = Path(__file__).resolve().parent / "startup"
TOOLS = {"tfbig": Tool("tfbig_start.py"), "hf": Tool("hf_start.py", HF_TRAINER), "keras": Tool("keras_start.py")}

logger = logging.getLogger(__name__)


@dataclass
class Found:
    """What was measured.

    Args:
        cpu_s: By tool: CPU seconds of each process until its first step was done.
        wall_s: By tool: likewise on the clock.
        versions: By tool.
        absent: By tool: why there is nothing.
    """

    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    wall_s: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found = measure(args)
    result = summary(found, seed=args.seed)
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result))
    return int("tfbig" in args.only and "tfbig" in found.absent)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(__doc__, tools=TOOLS)
    count = whole(1, 100, usual="5")
    made.add_argument("--rounds", type=count, default=5, help="after the one that is left out (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of weights, pictures and batches (default %(default)s)")
    add_environments(made)
    return made


def measure(args: argparse.Namespace) -> Found:
    """All tools in turn, a fresh process each time."""
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), args.seed)
        for number in range(args.rounds + 1):
            for name in args.only if number % 2 == 0 else args.only[::-1]:
                if name in found.absent:
                    continue
                try:
                    wall_s, cpu_s, versions = first_step(name, Path(folder), args)
                except Unavailable as why:
                    found.absent[name] = str(why)
                    continue
                logger.info("%s: %.1f s of CPU time, %.1f s on the clock", name, cpu_s, wall_s)
                if number:
                    found.cpu_s.setdefault(name, []).append(cpu_s)
                    found.wall_s.setdefault(name, []).append(wall_s)
                found.versions[name] = versions
    return found


def write_pictures(folder: Path, seed: int) -> None:
    """JPEG files of noise that compresses as pictures do, a sub-folder a class."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    for label in range(NUM_CLASSES):
        (folder / str(label)).mkdir()
        for number in range(IMAGES_A_CLASS):
            coarse = Image.fromarray(rng.integers(256, size=(SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / str(label) / f"{number}.jpg")


def first_step(name: str, folder: Path, args: argparse.Namespace) -> tuple[float, float, dict[str, str]]:
    """Seconds on the clock, CPU seconds, and versions, of a process up to its first step.

    Raises:
        Unavailable: It cannot be started, or ended before.
    """
    tool = TOOLS[name]
    python = tool.python(args.environments)
    with tempfile.TemporaryDirectory() as work:
        flags = ["--folder", str(folder), "--work", work, "--seed", str(args.seed)]
        command, variables = started(tool, SCRIPTS, flags, python=python, sees_tfbig=name == "tfbig")
        began = time.monotonic()
        worker = Worker(command, variables)
        wall_s = time.monotonic() - began
        worker.close()
    return wall_s, worker.facts["cpu_s"], worker.facts["versions"]


def summary(found: Found, *, seed: int) -> dict[str, object]:
    """Medians and ratios as the last line gives them; null where there is none."""
    result: dict[str, object] = {}
    for prefix, times in (("", found.cpu_s), ("wall_", found.wall_s)):
        for peer in ("hf", "keras"):
            ours, theirs = _median(times, "tfbig", found), _median(times, peer, found)
            result[f"{prefix}vs_{peer}"] = None if ours is None or theirs is None else round(ours / theirs, 3)
    for key, times in (("cpu_s", found.cpu_s), ("wall_s", found.wall_s)):
        medians = {name: _median(times, name, found) for name in TOOLS}
        result[key] = {name: round(value, 2) for name, value in medians.items() if value is not None}
    return {**result, "versions": found.versions, "cores": os.cpu_count(), "seed": seed}


def _median(times: Mapping[str, list[float]], name: str, found: Found) -> float | None:
    return None if name in found.absent or name not in times else statistics.median(times[name])


def table(found: Found) -> str:
    """Lines of text, one a tool: medians and ranges in seconds."""
    lines = ["{:<8}{:>8}{:>18}{:>10}{:>18}".format("tool", "cpu s", "lowest, highest", "clock s", "lowest, highest")]
    for name in [*found.cpu_s, *(name for name in found.absent if name not in found.cpu_s)]:
        if name in found.absent:
            lines.append(f"{name:<8}{'-':>8}   {found.absent[name]}")
            continue
        cells = [(statistics.median(times[name]), min(times[name]), max(times[name]))
                 for times in (found.cpu_s, found.wall_s)]  # fmt: skip
        (cpu, *cpu_range), (wall, *wall_range) = cells
        lines.append(
            f"{name:<8}{cpu:8.2f}{cpu_range[0]:9.2f}{cpu_range[1]:9.2f}{wall:10.2f}{wall_range[0]:9.2f}{wall_range[1]:9.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
