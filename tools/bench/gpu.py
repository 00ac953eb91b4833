#!/usr/bin/env python3
"""What a training step costs on a GPU: wall time of tfbig's, Keras's and Hugging Face's, and the share of peak FLOP/s.

    python tools/bench/gpu.py --json
    python tools/bench/gpu.py --hf_python ~/torch_with_cuda/bin/python --rows resnet50 --batch_size 256

The rows and the tools of training_step.py, on one GPU and with larger batches. The tools run one after another, so
that each has the GPU's memory to itself; a turn ends when the GPU is done. Hugging Face Trainer takes part where
`--hf_python` names an interpreter that has torch with CUDA, transformers and accelerate.
The last line of stdout is {"resnet50": {"vs_hf", "vs_keras", "mfu", "roof_share", "ms"}, ..., "gpu", "peak_tflops",
"peak_source", "batch_size", "seed"}.

- `ms`: median over the turns of milliseconds a step, by tool.
- `vs_hf`, `vs_keras`: that median of the peer over tfbig's; above 1 tfbig is faster.
- `mfu`: of tfbig's step, multiply-adds of three forward passes, by its time, over the GPU's peak: that of its data
  sheet for dense bfloat16 products, or `--peak_tflops`; null where neither is known.
- `roof_share`: the same over what a large product of bfloat16 matrices reaches here.

Without a GPU it says so and ends with code 4. `--allow_cpu` goes through all of it on the processor, to see that it
works; its figures then say nothing about GPUs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_step import ROOF, ROOT, SCRIPTS, TOOLS, Found, Tool, Unavailable, Worker, parser_of, started_by
from work import ROWS

NO_GPU = 4
"""Exit code: the environment lacks something, as in tfbig/errors.py."""
NUM_PRODUCTS = 20
# Words of the name that the driver gives -> 10**12 FLOP/s of dense bfloat16 products, by the makers' data sheets.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
}

logger = logging.getLogger("gpu")


def main() -> int:
    """Measure, and print what was found."""
    args = parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    gpu = found_gpu()
    if gpu is None and not args.allow_cpu:
        print(
            "error: TensorFlow finds no GPU here, so there is nothing to measure; run it on a machine with one (and "
            "tensorflow[and-cuda] installed), or give --allow_cpu to try the script on the processor.",
            file=sys.stderr,
        )
        return NO_GPU
    args.batch_size = args.batch_size or (4 if gpu is None else 128)
    args.roof_side = 1024 if gpu is None else 8192
    peak, source = peak_of(gpu, args.peak_tflops)
    found = {row: measure(row, args) for row in args.rows}
    result = summary(found, batch_size=args.batch_size, roof_side=args.roof_side, peak_tflops=peak)
    result |= {"gpu": gpu, "peak_tflops": peak, "peak_source": source, "batch_size": args.batch_size, "seed": args.seed}
    print(table(result, found), file=sys.stderr if args.json else sys.stdout)
    if gpu is None:
        logger.info("no GPU was found: these are times of the processor and say nothing about GPUs")
    if args.json:
        print(json.dumps(result))
    return int("tfbig" in args.only and any(its.median("tfbig") is None for its in found.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of(__doc__, tools=TOOLS, rows=ROWS)
    made.add_argument("--turns", type=int, default=5, help="of each tool (default %(default)s)")
    made.add_argument("--steps", type=int, default=20, help="in a turn (default %(default)s)")
    made.add_argument("--batch_size", type=int, default=None, help="images a step (default 128)")
    made.add_argument("--peak_tflops", type=float, default=None, help="of the GPU, dense bfloat16 products")
    made.add_argument("--hf_python", type=Path, default=None, help="interpreter with torch for CUDA and transformers")
    made.add_argument("--allow_cpu", action="store_true", help="without a GPU, go through it on the processor")
    made.add_argument("--seed", type=int, default=0, help="of weights, images and batches (default %(default)s)")
    return made


def found_gpu() -> str | None:
    """The first GPU's name; None where there is none."""
    sys.path.insert(0, str(ROOT))
    from tfbig.startup import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")) if gpus else None


def peak_of(gpu: str | None, given: float | None) -> tuple[float | None, str]:
    """10**12 FLOP/s of a GPU, and where the number is from."""
    if given is not None:
        return given, "--peak_tflops"
    # A100-SXM4-80GB is an A100, but an L40 no L4.
    words = set() if gpu is None else set(gpu.replace("-", " ").split())
    known = next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)
    return known, "data sheet" if known is not None else "unknown; give --peak_tflops"


def measure(row: str, args: argparse.Namespace) -> Found:
    """All tools on one row, one after another."""
    found = Found()
    for name in [*args.only, ROOF]:
        if name == "hf" and args.hf_python is None:
            found.absent[name] = "give --hf_python, an interpreter with torch for CUDA, transformers and accelerate"
            continue
        command, variables = started(name, row, args)
        try:
            worker = Worker(command, variables, clock="wall_s")
        except Unavailable as why:
            found.absent[name] = str(why)
            continue
        try:
            found.facts[name] = worker.facts
            steps = NUM_PRODUCTS if name == ROOF else args.steps
            found.seconds[name] = [worker.turn(steps) for _ in range(args.turns)]
            logger.info("%s %s: %.1f ms", row, name, 1e3 * statistics.median(found.seconds[name]))
        except Unavailable as why:
            found.absent[name] = str(why)
        finally:
            worker.close()
    return found


def started(name: str, row: str, args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a tool's process, or of the roof's."""
    tool = Tool("roof.py") if name == ROOF else TOOLS[name]
    flags = [] if name == ROOF else ["--row", row, "--seed", str(args.seed)]
    variables = {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # One GPU, the same for all; a tool takes the memory that it needs.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "PYTHONWARNINGS": "ignore",
        "TFBIG_BENCH_BATCH_SIZE": str(args.batch_size),
        "TFBIG_BENCH_ROOF_SIDE": str(args.roof_side),
    }
    python = args.hf_python if name == "hf" else Path(sys.executable)
    return started_by(tool, SCRIPTS, flags, python=python, sees_tfbig=name == "tfbig", variables=variables)


def flops_a_second(multiply_adds: int, *, batch_size: int, step_s: float) -> float:
    """Operations a second of a step: three forward passes, two for each multiply-add.

    Args:
        multiply_adds: Of the forward pass of one image.
        batch_size: Images a step.
        step_s: Seconds it takes.
    """
    return 3 * 2 * batch_size * multiply_adds / step_s


def summary(
    found: Mapping[str, Found], *, batch_size: int, roof_side: int, peak_tflops: float | None
) -> dict[str, object]:
    """The ratios as the last line gives them; null where there is none."""
    result: dict[str, object] = {}
    for row, its in found.items():
        ours, product = its.median("tfbig"), its.median(ROOF)
        reached = None
        if ours is not None:
            reached = flops_a_second(its.facts["tfbig"]["multiply_adds"], batch_size=batch_size, step_s=ours)
        roof = None if product is None else 2 * roof_side**3 / product
        result[row] = {
            "vs_hf": _rounded(its.ratio("hf")),
            "vs_keras": _rounded(its.ratio("keras", "keras_xla")),
            "mfu": None if reached is None or peak_tflops is None else _rounded(reached / (1e12 * peak_tflops)),
            "roof_share": None if reached is None or roof is None else _rounded(reached / roof),
            "ms": {name: round(1e3 * time, 2) for name in TOOLS if (time := its.median(name)) is not None},
        }
    return result


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def table(result: Mapping[str, object], found: Mapping[str, Found]) -> str:
    """Lines of text, one a row and tool."""
    lines = [f"GPU: {result['gpu'] or 'none'}   peak: {result['peak_tflops']} TFLOP/s ({result['peak_source']})"]
    lines.append("{:<10}{:<11}{:>10}{:>12}{:>8}{:>8}".format("row", "tool", "ms", "over tfbig", "MFU", "roof"))
    for row, its in found.items():
        figures = result[row]
        for tool in TOOLS:
            median = its.median(tool)
            if median is None:
                if tool in its.absent:
                    lines.append(f"{row:<10}{tool:<11}{'-':>10}   {its.absent[tool]}")
                continue
            ratio = its.ratio(tool)
            shares = [figures["mfu"], figures["roof_share"]] if tool == "tfbig" else []
            cells = "".join(f"{'-' if share is None else format(share, '.2f'):>8}" for share in shares)
            lines.append(f"{row:<10}{tool:<11}{1e3 * median:10.1f}{ratio or 0.0:12.2f}" + cells)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
