#!/usr/bin/env python3
"""What training pictures cost before the step: files to batches of random resized crops, images a second and core.

    python tools/bench/input.py --json

JPEG files of 500 by 375 pixels, made up by `input/pictures.py`, become batches of 16 of 224 pixels, float32 in [0, 1]:
read, decode, crop, resize, mirror half of them, stack. `tfbig` is what image_finetune trains on with
`--options.augment resized_crop,flip`; `hf` Hugging Face datasets with `set_transform`; `torch` torchvision's
ImageFolder, both with torchvision's transforms on Pillow images under a DataLoader without workers; `keras_crop` and
`keras_zoom` image_dataset_from_directory with augmentation layers, for Keras has no random resized crop.
`tfbig_plain` is tfbig as it is installed without a compiler or libjpeg's header. `tfbig_kept` is tfbig with
`--data.decoded_gb`: it has decoded all before the first turn, so it does less work than the others. No ratio counts
these two.
A process each, on one thread; they take turns of some batches in one call, so what slows the machine for a while slows
all. The last line of stdout is
{"vs_hf", "vs_torch", "vs_keras", "images_per_s", "bytes_per_image", "quality", "versions", "cores", "seed"}.

- `images_per_s`: by tool, images a CPU second of the whole process, from the median over the turns.
- `vs_hf`, `vs_torch`, `vs_keras`: tfbig's over the peer's; above 1 tfbig is faster. Of keras_crop and keras_zoom the
  faster counts.

What all tools have in common is the Huffman code of the files, so the larger they are (`--quality`), the nearer the
ratios come to 1. Resizing differs: Pillow and so hf and torch filter against aliasing, the others do not; tfbig shrinks
parts of twice the size and more by 2, 4 or 8 while decoding, which filters.

The peers of PyTorch run in an environment that this script makes (`--environments`). What cannot be measured is null,
and the table says why. The exit code is 1 where that happens to tfbig.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "input"))

from environments import TORCH_INPUT, Unavailable
from flags import add_environments, parser_of, whole
from measured import Measured
from processes import Worker
from read import BATCH_SIZE
from tool import Tool, started

SCRIPTS = Path(__file__).resolve().parent / "input"

logger = logging.getLogger(__name__)

TOOLS = {
    "tfbig": Tool("tfbig_input.py", arguments=("--decoded_gb", "0", "--compiled", "yes")),
    "tfbig_plain": Tool("tfbig_input.py", arguments=("--decoded_gb", "0", "--compiled", "no")),
    "tfbig_kept": Tool("tfbig_input.py", arguments=("--decoded_gb", "1", "--compiled", "yes")),
    "hf": Tool("hf_input.py", TORCH_INPUT),
    "torch": Tool("torch_input.py", TORCH_INPUT),
    "keras_crop": Tool("keras_input.py", arguments=("--by", "crop")),
    "keras_zoom": Tool("keras_input.py", arguments=("--by", "zoom")),
}


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    from pictures import write_pictures

    with tempfile.TemporaryDirectory() as folder:
        size = write_pictures(Path(folder), num_pictures=args.pictures, quality=args.quality, seed=args.seed)
        found = measure(Path(folder), args)
    print(table(found), file=sys.stderr if args.json else sys.stdout)
    result = summary(found) | {"bytes_per_image": round(size), "quality": args.quality}
    if args.json:
        versions = {name: facts["versions"] for name, facts in found.facts.items()}
        print(json.dumps({**result, "versions": versions, "cores": os.cpu_count(), "seed": args.seed}))
    return int("tfbig" in args.only and found.median("tfbig") is None)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(__doc__, tools=TOOLS)
    made.add_argument("--turns", type=whole(1, 1000), default=7, help="of each tool (default %(default)s)")
    # Long turns: what a pipeline has ready from the turn before is a few batches.
    made.add_argument("--steps", type=whole(1, 1000), default=40, help="batches in a turn (default %(default)s)")
    made.add_argument("--pictures", type=whole(100, 100_000), default=400, help="files (default %(default)s)")
    made.add_argument("--quality", type=whole(1, 95), default=75, help="of the JPEGs (default %(default)s)")
    made.add_argument("--seed", type=int, default=0, help="of pictures, order and draws (default %(default)s)")
    add_environments(made)
    return made


def measure(folder: Path, args: argparse.Namespace) -> Measured:
    """All tools on the pictures of a folder, in turns."""
    found = Measured()
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in args.only:
            try:
                workers[name] = worker = Worker(*process(name, folder, args))
                stack.callback(worker.close)
                found.facts[name] = worker.facts
                logger.info("%s is warm", name)
            except Unavailable as why:
                found.absent[name] = str(why)
        found.take_turns(workers, num_turns=args.turns, num_steps=dict.fromkeys(workers, args.steps))
    return found


def process(name: str, folder: Path, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a tool's process.

    Raises:
        Unavailable: The tool's environment cannot be made.
    """
    tool, flags = TOOLS[name], ["--folder", str(folder), "--seed", str(args.seed)]
    return started(tool, SCRIPTS, flags, python=tool.python(args.environments), sees_tfbig=name.startswith("tfbig"))


def summary(found: Measured) -> dict[str, object]:
    """Ratios and rates as the last line gives them; null where there is none."""
    ratios = {
        "vs_hf": found.ratio("hf"),
        "vs_torch": found.ratio("torch"),
        "vs_keras": found.ratio("keras_crop", "keras_zoom"),
    }
    rates = {name: round(BATCH_SIZE / median, 1) for name in TOOLS if (median := found.median(name)) is not None}
    rounded = {name: None if ratio is None else round(ratio, 3) for name, ratio in ratios.items()}
    return {**rounded, "images_per_s": rates}


def table(found: Measured) -> str:
    """Lines of text, one a tool: images a CPU second by the median turn, the range of turns, and tfbig's over it."""
    lines = ["{:<11}{:>11}{:>9}{:>9}{:>13}".format("tool", "images/s", "lowest", "highest", "tfbig over")]
    for name in [*found.seconds, *(name for name in found.absent if name not in found.seconds)]:
        median = found.median(name)
        if median is None:
            lines.append(f"{name:<11}{'-':>11}   {found.absent[name]}")
            continue
        low, high = BATCH_SIZE / max(found.seconds[name]), BATCH_SIZE / min(found.seconds[name])
        ratio = found.ratio(name)
        lines.append(
            f"{name:<11}{BATCH_SIZE / median:11.0f}{low:9.0f}{high:9.0f}" + (f"{ratio:13.2f}" if ratio else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
