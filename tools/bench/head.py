#!/usr/bin/env python3
"""What it costs to train the head of a frozen network for 20 epochs: tfbig, Hugging Face Trainer and plain Keras.

    python tools/bench/head.py --json

ResNet-50 with random weights, 224 pixels, batch 16, bfloat16, the same JPEG files for all tools, no augmentation.
`tfbig` is `image_finetune --adapt.mode head`, from reading and checking the files to the end of the 20th epoch, with
an empty feature cache, and with the checkpoints, TensorBoard and records of a run; `hf` and `keras` are the short
scripts that a user would write (`head/`), without any of these, with the backbone's weights and BatchNorms frozen.
CPU seconds of whole processes on one thread, after the imports, one process after the other.
Of a peer two epochs are measured; since all of its epochs but the first are alike, the 20 are taken to cost the first
and 19 times the second. The last line of stdout is
{"vs_hf", "vs_keras", "over_features", "seconds", "features_s", "images", "versions", "cores", "seed"}.

- `seconds`: by tool, CPU seconds of the 20 epochs, median over the rounds; a peer's extrapolated as above.
- `vs_hf`, `vs_keras`: the peer's seconds over tfbig's; above 1 tfbig is faster.
- `over_features`: tfbig's seconds over those of computing the features once, which they hold.

What cannot be measured is null, and the table says why. The exit code is 1 where that happens to tfbig.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "head"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "input"))

from environments import HF_TRAINER, Unavailable
from flags import add_environments, parser_of, whole
from frozen import NUM_CLASSES, NUM_EPOCHS
from processes import child
from tool import Tool, started

SCRIPTS = Path(__file__).resolve().parent / "head"
_COUNT = whole(1, 1_000_000)
TOOLS = {"tfbig": Tool("tfbig_head.py"), "hf": Tool("hf_head.py", HF_TRAINER), "keras": Tool("keras_head.py")}

logger = logging.getLogger(__name__)


@dataclass
class Found:
    """What was measured.

    Args:
        answers: By tool: what its process said, a round each.
        absent: By tool: why there is nothing.
    """

    answers: dict[str, list[dict]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def seconds(self, tool: str) -> float | None:
        """CPU seconds of all epochs, median over the rounds; None where there is nothing."""
        if tool in self.absent or tool not in self.answers:
            return None
        return statistics.median(all_epochs_s(answer) for answer in self.answers[tool])


def all_epochs_s(answer: dict) -> float:
    """CPU seconds of all epochs: measured, or the first and the others by the second."""
    return answer["total_s"] if "total_s" in answer else answer["first_s"] + (NUM_EPOCHS - 1) * answer["next_s"]


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found = measure(args)
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        versions = {name: answers[-1]["versions"] for name, answers in found.answers.items()}
        facts = {"images": args.images, "versions": versions, "cores": os.cpu_count(), "seed": args.seed}
        print(json.dumps({**summary(found), **facts}))
    return int("tfbig" in args.only and found.seconds("tfbig") is None)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(__doc__, tools=TOOLS)
    made.add_argument("--images", type=_COUNT, default=512, help="training pictures (default %(default)s)")
    made.add_argument("--rounds", type=_COUNT, default=1, help="processes of each tool (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of weights, pictures and batches (default %(default)s)")
    add_environments(made)
    return made


def measure(args: argparse.Namespace) -> Found:
    """All tools one after the other, as many times as there are rounds."""
    from pictures import write_pictures

    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        for role, count, seed in (("train", args.images, args.seed), ("test", 2 * NUM_CLASSES, args.seed + 1)):
            place = Path(folder) / role
            place.mkdir()
            write_pictures(place, num_pictures=count, quality=75, seed=seed)
        for number in range(args.rounds):
            for name in args.only if number % 2 == 0 else args.only[::-1]:
                if name in found.absent:
                    continue
                try:
                    found.answers.setdefault(name, []).append(answer := run(name, Path(folder), args))
                    logger.info("%s: %.1f s of CPU time for %d epochs", name, all_epochs_s(answer), NUM_EPOCHS)
                except Unavailable as why:
                    found.absent[name] = str(why)
    return found


def run(name: str, folder: Path, args: argparse.Namespace) -> dict:
    """What one process of a tool says.

    Raises:
        Unavailable: It cannot be started, or failed.
    """
    tool = TOOLS[name]
    python = tool.python(args.environments)
    with tempfile.TemporaryDirectory() as work:
        flags = ["--folder", str(folder), "--work", work, "--seed", str(args.seed)]
        return child(*started(tool, SCRIPTS, flags, python=python, sees_tfbig=name == "tfbig"))


def summary(found: Found) -> dict[str, object]:
    """Medians and ratios as the last line gives them; null where there is none."""
    ours = found.seconds("tfbig")
    result: dict[str, object] = {}
    for peer in ("hf", "keras"):
        theirs = found.seconds(peer)
        result[f"vs_{peer}"] = None if ours is None or theirs is None else round(theirs / ours, 2)
    features = None
    if ours is not None:
        features = statistics.median(answer["features_s"] for answer in found.answers["tfbig"])
    result["over_features"] = None if ours is None or features is None else round(ours / features, 3)
    seconds = {name: round(value, 1) for name in TOOLS if (value := found.seconds(name)) is not None}
    return {**result, "seconds": seconds, "features_s": None if features is None else round(features, 1)}


def table(found: Found) -> str:
    """Lines of text, one a tool: seconds of all epochs, how they were found, and tfbig's over it."""
    lines = ["{:<8}{:>10}{:>12}   {}".format("tool", "cpu s", "over tfbig", "how")]
    ours = found.seconds("tfbig")
    for name in [*found.answers, *(name for name in found.absent if name not in found.answers)]:
        seconds = found.seconds(name)
        if seconds is None:
            lines.append(f"{name:<8}{'-':>10}{'':>12}   {found.absent[name]}")
            continue
        last = found.answers[name][-1]
        how = f"measured, {last['features_s']:.1f} s of it features" if "total_s" in last else (
            f"extrapolated: {last['first_s']:.1f} s + {NUM_EPOCHS - 1} epochs of {last['next_s']:.1f} s"
        )  # fmt: skip
        lines.append(f"{name:<8}{seconds:10.1f}" + (f"{seconds / ours:12.2f}" if ours else f"{'-':>12}") + f"   {how}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
