"""Laws of the benchmark of our fit against Keras's: what its ratio means, and that it makes nothing up."""

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
        for folder in (BENCH, BENCH / "harness"):
            patch.syspath_prepend(folder)
        yield importlib.import_module("fit_overhead")


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "fit_overhead.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_round_compares_its_own_processes_and_above_one_ours_costs_more(bench):
    found = bench.Found()
    # The second round's machine was twice as slow; medians of all seconds would say something else.
    for slowness, ours in ((1.0, [0.0102, 9.0, 0.0101]), (2.0, [0.0098] * 3), (2.0, [0.0104] * 3)):
        seconds = {"tfbig": [slowness * each for each in ours], "keras": [slowness * 0.010] * 3}
        found.add(bench.Timed(seconds, {"keras": {"versions": {"keras": "3"}}}))
    row = bench.summary({"small_cnn": found}, seed=2)["small_cnn"]
    assert (row["ratio"], row["ratios"]) == (1.02, [1.02, 0.98, 1.04])
    assert row["ms"] == {"tfbig": 19.6, "keras": 20.0}
    assert "1.020 (0.980 to 1.040)" in bench.table({"small_cnn": found})


def test_a_side_that_fails_leaves_no_ratio_and_says_why(bench, monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such network')")
    monkeypatch.setattr(bench, "SIDES", dict.fromkeys(bench.SIDES, str(script)))
    found = bench.measure("convnet", bench.parser().parse_args(["--turns", "1"]))
    assert found.ratio() is None and "no such network" in bench.table({"convnet": found})
    assert bench.summary({"convnet": found}, seed=0)["convnet"] == {"ratio": None, "ratios": [], "ms": {}}


@pytest.mark.parametrize("arguments", [["--rows", "vgg"], ["--turns", "0"], ["--steps", "many"]])
def test_bad_flags_are_refused(arguments):
    done = _run(*arguments)
    assert done.returncode == 2 and arguments[1] in done.stderr


@pytest.mark.slow
def test_both_sides_take_turns():
    done = _run("--json", "--rows", "small_cnn", "--rounds", "2", "--turns", "2", "--steps", "2")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])["small_cnn"]
    assert 0.3 < row["ratio"] < 3 and len(row["ratios"]) == 2 and min(row["ms"].values()) > 0
