#!/usr/bin/env python3
"""What work costs as it grows: with the number of images, of classes, and with the size of the network.

    python tools/bench/growth.py --json --charts docs

Each point is a process of its own on one thread; seconds are CPU seconds of the process, memory the highest resident
memory of each stage in megabytes (Linux only), imports included; `idle_mb` is what is resident before.

- `images`: a folder of JPEG files of 8 by 8 pixels with different contents, 1,000 classes at most; `list` is the
  listing, `read` reads, hashes and decodes each file as each start of a run does, `split` draws test and validation
  and writes the manifest, `step` is everything from there to the end of the first step of a small network.
- `names`: as many made-up files, which are named and never there, in class folders, and `rows`: the same in a CSV file.
  `list` and the first `check` as above without reading a file, `draw` the splits and the manifest. Memory is bytes a
  file above the start: the peak, what `stays`, and in a process of its own what Python and numpy allocated (`traced`).
- `classes`: `step` is the same with as many outputs; `metrics` judges a test split of two examples a class (2,000 at
  least) with 1,000 bootstrap resamples, `report` writes evaluation.json, predictions.csv and report.html; and the
  size of each file.
- `models`: vision transformers of 12 blocks by width, 224 pixels, batch 4, float32: the first step with all before it,
  a step after it, seconds a GFLOP, a checkpoint of network and optimizer, which is written and flushed to the disk.

The last line of stdout is {"images": {"points", "growth", "per_unit", "absent"}, ..., "versions", "cores", "seed"};
`growth` is by figure the slope between the last two points, both axes logarithmic: 1 is in proportion,
2 is the square, and 0 is no growth; `per_unit` is what each further image, class or parameter costs. What cannot be
measured is under `absent`, and the exit code is then 1. `--charts FOLDER` draws growth_images.png and so on there.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "harness"))

from environments import Unavailable, clean_variables
from flags import names
from processes import HARNESS, VARIABLES, child

SCRIPTS = Path(__file__).resolve().parent / "growth"
ROOT = SCRIPTS.parents[2]
NAMES = (10_000, 100_000, 1_000_000)
IMAGES = (1_000, 10_000, 100_000, 1_000_000)
CLASSES = (10, 100, 1_000, 10_000)
WIDTHS = (64, 192, 384, 768)
UNITS = {"images": "images", "names": "names", "rows": "rows", "classes": "classes", "models": "parameters"}
"""By axis: the figure of a point that grows."""

logger = logging.getLogger(__name__)


@dataclass
class Grown:
    """The points of one axis, in the order of their size.

    Args:
        points: What each process said.
        absent: Of a point that could not be measured: its size, and why.
    """

    points: list[dict] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    found = {axis: measure(axis, args) for axis in args.only}
    for axis, grown in found.items():
        print(table(axis, grown), file=sys.stderr if args.json else sys.stdout)
        if args.charts is not None and any(name.endswith("_mb") for point in grown.points for name in point):
            sys.path.insert(0, str(SCRIPTS))
            from drawn import draw

            draw(args.charts / f"growth_{axis}.png", grown.points, axis=axis, unit=UNITS[axis])
    if args.json:
        result: dict[str, object] = {axis: summary(axis, grown) for axis, grown in found.items()}
        versions = next((point["versions"] for grown in found.values() for point in grown.points), None)
        print(json.dumps({**result, "versions": versions, "cores": os.cpu_count(), "seed": args.seed}))
    return int(any(grown.absent for grown in found.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="end with one line of JSON; the tables go to stderr")
    made.add_argument("--only", type=names(UNITS), default=[*UNITS], help=f"axes, of {','.join(UNITS)}")
    made.add_argument("--most_images", type=int, default=IMAGES[-1], help="the largest folder (default %(default)s)")
    made.add_argument("--most_names", type=int, default=NAMES[-1], help="made-up files (default %(default)s)")
    made.add_argument("--most_classes", type=int, default=CLASSES[-1], help="(default %(default)s)")
    made.add_argument("--most_width", type=int, default=WIDTHS[-1], help="of the transformers (default %(default)s)")
    made.add_argument("--charts", type=Path, help="folder to draw the charts in")
    made.add_argument("--work", type=Path, help="where the folders of images are made; by default a temporary place")
    made.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    return made


def measure(axis: str, args: argparse.Namespace) -> Grown:
    """All points of an axis, the smallest first; after one that fails the larger ones are not tried."""
    grown = Grown()
    all_sizes, most = {
        "images": (IMAGES, args.most_images),
        "names": (NAMES, args.most_names),
        "rows": (NAMES, args.most_names),
        "classes": (CLASSES, args.most_classes),
        "models": (WIDTHS, args.most_width),
    }[axis]
    sizes = [size for size in all_sizes if size <= most]
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            try:
                grown.points.append(_point(axis, size, Path(folder), args.seed))
            except Unavailable as why:
                grown.absent[str(size)] = str(why)
                break
        logger.info("%s %s: measured", axis, f"{size:,}")
    return grown


def _point(axis: str, size: int, folder: Path, seed: int) -> dict:
    if axis == "images":
        refuse_full_disk(folder, size)
        sys.path.insert(0, str(SCRIPTS))
        from folders import write_folder

        write_folder(folder, num_images=size, num_classes=min(1000, max(10, size // 100)), seed=seed)
    if axis in ("names", "rows"):
        flags = ["--names", str(size), "--rows", str(int(axis == "rows")), "--traced"]
        traced = _child("names", [*flags, "1"], folder / "traced", seed)
        return {**traced, **_child("names", [*flags, "0"], folder / "resident", seed)}
    flags = {
        "images": ["--images", str(size)],
        "classes": ["--classes", str(size), "--examples", str(max(2000, 2 * size))],
        "models": ["--width", str(size)],
    }[axis]
    return _child(axis, flags, folder, seed)


def _child(script: str, flags: Sequence[str], folder: Path, seed: int) -> dict:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPTS / f"{script}_point.py"), "--work", str(folder), "--seed", str(seed), *flags]
    paths = os.pathsep.join(map(str, (HARNESS, SCRIPTS.parent / "training_step", ROOT)))
    return child(command, {**clean_variables(), **VARIABLES, "PYTHONPATH": paths})


def refuse_full_disk(folder: Path, num_images: int) -> None:
    """Raises where the files would take more than half of the free inodes or bytes.

    Raises:
        Unavailable: They would.
    """
    free = os.statvfs(folder)
    # Some file systems count no inodes.
    num_inodes = free.f_favail if free.f_files else math.inf
    if not fits(num_images, block_bytes=free.f_frsize, num_inodes=num_inodes, num_bytes=shutil.disk_usage(folder).free):
        raise Unavailable(
            f"{num_images:,} files need more than half of what is free in {folder}: {free.f_favail:,} inodes and "
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB; name another place with --work, or give --most_images."
        )


def fits(num_images: int, *, block_bytes: int, num_inodes: float, num_bytes: int) -> bool:
    """Whether files of a block each take no more than half of the free inodes and bytes."""
    return num_images <= num_inodes / 2 and num_images * max(block_bytes, 1024) <= num_bytes / 2


def summary(axis: str, grown: Grown) -> dict[str, object]:
    """Points, and how each figure grows."""
    points = [{name: value for name, value in point.items() if name != "versions"} for point in grown.points]
    return {
        "points": points,
        "growth": growth(points, UNITS[axis]),
        "per_unit": per_unit(points, UNITS[axis]),
        "absent": grown.absent,
    }


def growth(points: Sequence[Mapping[str, float]], unit: str) -> dict[str, float]:
    """By figure: its slope between the last two points on logarithmic axes; empty with fewer than two."""
    return {
        name: round(math.log(after / before) / math.log(points[-1][unit] / points[-2][unit]), 3)
        for name, before, after in _last_two(points, unit)
        if before > 0 and after > 0
    }


def per_unit(points: Sequence[Mapping[str, float]], unit: str) -> dict[str, float]:
    """By figure: what one more unit costs, between the last two points."""
    more = points[-1][unit] - points[-2][unit] if len(points) > 1 else 1
    return {name: float(f"{(after - before) / more:.4g}") for name, before, after in _last_two(points, unit)}


def _last_two(points: Sequence[Mapping[str, float]], unit: str) -> Iterator[tuple[str, float, float]]:
    if len(points) < 2:
        return
    for name in points[-1]:
        if name != unit and name.endswith(("_s", "_mb", "_kb")) and name in points[-2]:
            yield name, points[-2][name], points[-1][name]


def table(axis: str, grown: Grown) -> str:
    """Lines of text, one a figure, a column each point."""
    lines = [f"{UNITS[axis]:<22}" + "".join(f"{point[UNITS[axis]]:>14,}" for point in grown.points)]
    for name in grown.points[-1] if grown.points else ():
        if name not in (UNITS[axis], "versions"):
            lines.append(f"{name:<22}" + "".join(f"{point.get(name, float('nan')):>14,}" for point in grown.points))
    lines += [f"{size}: {why}" for size, why in grown.absent.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
