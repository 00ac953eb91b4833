"""One number of made-up files, which are named, looked up and drawn but never there: what a start keeps of each.

The folders of the classes, or the CSV file, are there; what a walk, the file system and a reader would say of a file is
made up. All else is a run's own code, with an empty cache. Memory is in bytes a file above the start: what is resident,
or with --traced 1 what Python and numpy allocate (tracemalloc), when there are no seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import point
import tensorflow as tf

from tfbig.config import DataConfig
from tfbig.data import files, known_files, manifest, sources
from tfbig.data.contents import DIGEST
from tfbig.runtime import runtime

_NS = 10**9
_LARGE = 50_000_000


class Gauge:
    """Peaks of stages, and what stays.

    Args:
        num_files: What all is divided by.
        is_traced: Of tracemalloc, and not of the process.
    """

    def __init__(self, num_files: int, *, is_traced: bool) -> None:
        self._num_files, self._is_traced, self._stages = num_files, is_traced, point.Stages()
        if is_traced:
            tracemalloc.start()
        self.figures: dict[str, float] = {}
        self._base = self._now()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what is inside."""
        tracemalloc.reset_peak()
        with self._stages.stage(name):
            yield
        if self._is_traced:
            self.figures[f"{name}_traced_bytes"] = self._a_file(tracemalloc.get_traced_memory()[1])
        else:
            self.figures[f"{name}_s"] = self._stages.figures[f"{name}_s"]
            self.figures[f"{name}_bytes"] = self._a_file(self._stages.figures[f"{name}_mb"] * 2**20)

    def stays(self) -> None:
        """Measures what is there now."""
        name = "stays_traced_bytes" if self._is_traced else "stays_bytes"
        self.figures[name] = self._a_file(self._now())

    def _a_file(self, num_bytes: float) -> float:
        return round((num_bytes - self._base) / self._num_files, 1)

    def _now(self) -> float:
        gc.collect()
        # What is free does not count as kept.
        ctypes.CDLL(None).malloc_trim(0)
        return tracemalloc.get_traced_memory()[0] if self._is_traced else point.megabytes("VmRSS") * 2**20


def main() -> None:
    args = point.arguments("names", "rows", "traced")
    num_classes = min(1000, max(10, args.names // 100))
    source = f"csv:{args.work}/rows.csv" if args.rows else f"folder:{args.work}/pictures"
    if args.rows:
        _write_rows(args.work / "rows.csv", args.names, num_classes)
    else:
        for label in range(num_classes):
            (args.work / "pictures" / f"class_{label:04d}").mkdir(parents=True)
    _make_up(args.names, num_classes, args.seed)
    os.environ["TFBIG_CACHE"] = str(args.work / "cache")
    with runtime(strategy="none", precision="float32", seed=args.seed):
        # What the first start of a process makes beside, and no later one.
        small = args.work / "small.csv"
        _write_rows(small, 100, 2)
        _load(f"csv:{small}", args.seed)
        # With its first large tensor TensorFlow takes tens of megabytes for good, which are none of the files'.
        tf.constant(np.ones(_LARGE, np.uint8))
        gauge = Gauge(args.names, is_traced=bool(args.traced))
        with _staged(gauge):
            splits = _load(source, args.seed)
        gauge.stays()
    num_examples = sum(len(split) for split in (splits.train, splits.validation, splits.test) if split is not None)
    if num_examples != args.names:
        raise ValueError(f"expected {args.names} names in the splits, got {num_examples}")
    point.answer(**gauge.figures, **{"rows" if args.rows else "names": args.names})


def _load(source: str, seed: int) -> sources.Splits:
    data = DataConfig()
    return sources.load_images(
        source, directory=None, train_split=data.train_split, validation_split=data.validation_split,
        test_split=data.test_split, validation_fraction=data.validation_fraction, test_fraction=data.test_fraction,
        limit=None, on_bad="fail", path_column=data.path_column, label_column=data.label_column, seed=seed,
        offline=True,
    )  # fmt: skip


def _name(index: int, num_classes: int) -> str:
    place, label = divmod(index, num_classes)
    return f"class_{label:04d}/{place // 1000:03d}/{index:07d}.jpg"


def _write_rows(path: os.PathLike[str], num_files: int, num_classes: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write("path,label\n")
        for i in range(num_files):
            file.write(f"{_name(i, num_classes)},class {i % num_classes}\n")


def _make_up(num_files: int, num_classes: int, seed: int) -> None:
    """Puts made-up answers in place of whatever asks for a file."""
    def walk(folder: str, above: object, ignored: object) -> list[str]:
        label = int(folder[-4:])
        return [f"{folder[:-10]}{_name(i, num_classes)}" for i in range(label, num_files, num_classes)]

    def state(path: str) -> tuple[int, int, int, int]:
        return 40_000, zlib.crc32(path.encode()), _NS, _NS

    rng = np.random.default_rng(seed)

    def read(split: object, indices: np.ndarray) -> tuple[np.ndarray, dict]:
        # One in a hundred has a content of another.
        different = [rng.bytes(16) for _ in range(-(-len(indices) * 99 // 100))]
        return np.resize(np.array(different, DIGEST), len(indices)), {}

    files._walk, known_files._state, manifest._read = walk, state, read  # type: ignore[assignment]


@contextlib.contextmanager
def _staged(gauge: Gauge) -> Iterator[None]:
    """A run has no flag that tells its parts apart."""
    reader, readable = {name: getattr(sources, name) for name in ("read_folder", "read_csv")}, sources._readable
    with contextlib.ExitStack() as rest:

        def checked(*values: object) -> object:
            with gauge.stage("check"):
                result = readable(*values)  # type: ignore[arg-type]
            rest.enter_context(gauge.stage("draw"))
            return result

        for name, read in reader.items():
            setattr(sources, name, gauge.stage("list")(read))
        sources._readable = checked  # type: ignore[assignment]
        yield


if __name__ == "__main__":
    main()
