"""Laws of the benchmark of head-only training: what its ratios mean, and that it makes nothing up."""

import importlib
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
        for folder in (BENCH, BENCH / "harness", BENCH / "head", BENCH / "input"):
            patch.syspath_prepend(folder)
        yield importlib.import_module("head")


def test_a_peer_costs_its_first_epoch_and_the_others_by_the_second(bench):
    ours = [{"total_s": total, "features_s": 8.0} for total in (10.0, 90.0, 4.0)]
    peers = {"hf": [{"first_s": 50.0, "next_s": 10.0}], "keras": [{"first_s": 5.0, "next_s": 5.0}]}
    found = bench.Found({"tfbig": ours, **peers})
    result = bench.summary(found)
    assert bench.NUM_EPOCHS == 20
    assert (result["vs_hf"], result["vs_keras"], result["over_features"]) == (24.0, 10.0, 1.25)
    assert result["seconds"] == {"tfbig": 10.0, "hf": 240.0, "keras": 100.0}
    assert "extrapolated: 50.0 s + 19 epochs of 10.0 s" in bench.table(found)


def test_what_cannot_be_measured_is_null_and_said(bench, monkeypatch):
    monkeypatch.setattr(bench, "TOOLS", {"tfbig": bench.Tool("no_such_script.py")})
    args = bench.parser().parse_args([])
    args.only, args.images = ["tfbig"], 10
    found = bench.measure(args)
    result = bench.summary(found)
    assert result["vs_hf"] is None and result["over_features"] is None and result["seconds"] == {}
    assert "no_such_script.py" in bench.table(found)


@pytest.mark.parametrize("arguments", [["--only", "jax"], ["--images", "0"], ["--rounds", "many"]])
def test_bad_flags_are_refused(arguments):
    command = [sys.executable, str(BENCH / "head.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and arguments[1] in done.stderr


@pytest.mark.slow
def test_our_head_is_seen():
    command = [sys.executable, str(BENCH / "head.py"), "--only", "tfbig", "--images", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "features" in done.stdout, done.stderr
