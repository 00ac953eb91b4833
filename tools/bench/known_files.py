#!/usr/bin/env python3
"""What the check of a person's files costs: without a cache, at the first start with one, and at a later start.

    python tools/bench/known_files.py --json

Made-up JPEG files of 32 by 32 pixels in ten class folders are loaded as a run loads them: listed, read, hashed and
decoded, splits drawn, and the manifest made. A process each, which take turns; the cache is a folder of the bench's
own and emptied before each first start. The last line of stdout is {"off_s", "first_s", "later_s", "later_over_off",
"images", "turns", "bytes", "cores", "seed"}: medians of process CPU seconds, TensorFlow's import left out, and the
size of what is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES = 10
KINDS = ("off", "first", "later")
# Files changed less than two seconds before they are read are not kept.
SETTLED_S = 3

LOAD = """
import sys, time
from tfbig.data.sources import load_images
start = time.process_time()
splits = load_images(
    f"folder:{sys.argv[1]}", directory=None, train_split="train", validation_split="validation", test_split="test",
    validation_fraction=0.1, test_fraction=0.2, limit=None, on_bad="fail", path_column="path", label_column="label",
    seed=0, offline=True,
)
print(time.process_time() - start, splits.manifest["fingerprint"])
"""


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="files (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each kind of start (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line is one object")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    fingerprints = set()
    with tempfile.TemporaryDirectory() as folder:
        pictures, cache = Path(folder, "pictures"), Path(folder, "cache")
        write_pictures(pictures, args.images, seed=args.seed)
        time.sleep(SETTLED_S)
        for _ in range(args.turns):
            shutil.rmtree(cache, ignore_errors=True)
            for kind in KINDS:
                took, fingerprint = load(pictures, cache, is_off=kind == "off")
                seconds[kind].append(took)
                fingerprints.add(fingerprint)
        num_bytes = sum(path.stat().st_size for path in cache.iterdir())
    if len(fingerprints) != 1:
        raise ValueError(f"expected one fingerprint of unchanged data, got {sorted(fingerprints)}")
    medians = {f"{kind}_s": round(statistics.median(values), 3) for kind, values in seconds.items()}
    print(*(f"{kind:6} {min(values):8.2f} to {max(values):8.2f} s" for kind, values in seconds.items()), sep="\n")
    if args.json:
        ratio = round(medians["later_s"] / medians["off_s"], 4)
        facts = {"images": args.images, "turns": args.turns, "bytes": num_bytes}
        print(json.dumps({**medians, "later_over_off": ratio, **facts, "cores": os.cpu_count(), "seed": args.seed}))
    return 0


def write_pictures(folder: Path, num_images: int, *, seed: int) -> None:
    """Noise as JPEG files, a sub-folder a class."""
    rng = np.random.default_rng(seed)
    for i in range(num_images):
        file = folder / f"class{i % NUM_CLASSES}" / f"{i:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file)


def load(pictures: Path, cache: Path, *, is_off: bool) -> tuple[float, str]:
    """CPU seconds of a start in a process of its own, and the data's fingerprint."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TFBIG_CACHE": str(cache), "TFBIG_CACHE_GB": "0" if is_off else "20"}
    command = [sys.executable, "-c", LOAD, str(pictures)]
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": paths}, check=True, stdout=subprocess.PIPE, text=True
    )
    took, fingerprint = done.stdout.split()[-2:]
    return float(took), fingerprint


if __name__ == "__main__":
    sys.exit(main())
