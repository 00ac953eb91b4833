"""Laws of the benchmark for GPUs: it makes nothing up where there is none, and its share of the peak is a share."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in (BENCH, BENCH / "harness", BENCH / "training_step"):
            patch.syspath_prepend(folder)
        yield importlib.import_module("gpu")


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(BENCH / "gpu.py"), *arguments], capture_output=True, text=True)


def test_without_a_gpu_it_says_so_in_one_sentence(bench: ModuleType) -> None:
    if bench.found_gpu() is not None:
        pytest.skip("there is a GPU")
    done = _run("--json")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: TensorFlow finds no GPU") and done.stderr.count("\n") == 1
    assert "--allow_cpu" in done.stderr


def test_the_share_of_the_peak_is_work_over_time_over_peak(bench: ModuleType) -> None:
    found = bench.Found(
        seconds={"tfbig": [0.5, 0.5], "keras": [0.75], "keras_xla": [1.0], bench.ROOF: [2.0]},
        facts={"tfbig": {"multiply_adds": 10**12}},
    )
    # 6 operations for each of 10**12 multiply-adds, of 8 images in half a second: 96 * 10**12 a second.
    row = bench.summary({"x": found}, batch_size=8, roof_side=40_000, peak_tflops=192.0)["x"]
    assert row["mfu"] == 0.5
    assert row["roof_share"] == 1.5
    assert (row["vs_keras"], row["vs_hf"]) == (1.5, None)
    assert bench.summary({"x": found}, batch_size=8, roof_side=40_000, peak_tflops=None)["x"]["mfu"] is None


def test_a_peak_is_known_or_given_or_not_there(bench: ModuleType) -> None:
    assert bench.peak_of("NVIDIA H100 PCIe", None) == (756.0, "data sheet")
    assert bench.peak_of("NVIDIA L40S", None)[0] == 362.0
    assert bench.peak_of("NVIDIA A10G", None)[0] == 70.0
    assert bench.peak_of("NVIDIA A100-SXM4-40GB", None)[0] == 312.0
    # No L4, whose name it begins with.
    assert bench.peak_of("NVIDIA L40", None)[0] is None
    assert bench.peak_of("NVIDIA A100-SXM4-40GB", 300.0) == (300.0, "--peak_tflops")
    assert bench.peak_of("another", None)[0] is None
    assert bench.peak_of(None, None)[0] is None


@pytest.mark.slow
def test_it_can_be_tried_on_a_processor() -> None:
    small = ["--only", "tfbig,hf", "--rows", "vit_tiny", "--turns", "1", "--steps", "1", "--batch_size", "1"]
    done = _run("--json", "--allow_cpu", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["vit_tiny"]["ms"]["tfbig"] > 0 and result["vit_tiny"]["vs_hf"] is None
    assert "--hf_python" in done.stderr
    if result["gpu"] is None:
        assert "no GPU was found" in done.stderr and result["vit_tiny"]["mfu"] is None
