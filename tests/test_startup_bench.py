"""Laws of the benchmark of start-up: what its ratios mean, and that it makes nothing up."""

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
        for folder in (BENCH, BENCH / "harness", BENCH / "startup"):
            patch.syspath_prepend(folder)
        yield importlib.import_module("startup")


def test_ratios_are_of_medians_and_below_one_where_tfbig_is_earlier(bench):
    cpu_s = {"tfbig": [5.0, 90.0, 4.0], "hf": [10.0], "keras": [20.0]}
    wall_s = {"tfbig": [6.0], "hf": [3.0], "keras": [12.0]}
    result = bench.summary(bench.Found(cpu_s, wall_s), seed=4)
    assert (result["vs_hf"], result["vs_keras"]) == (0.5, 0.25)
    assert (result["wall_vs_hf"], result["wall_vs_keras"]) == (2.0, 0.5)
    assert result["cpu_s"]["tfbig"] == 5.0 and result["seed"] == 4


def test_the_first_round_is_left_out_and_the_order_alternates(bench, monkeypatch):
    calls: list[str] = []

    def first_step(name: str, folder: Path, args: object) -> tuple[float, float, dict[str, str]]:
        assert len(list(folder.glob("*/*.jpg"))) == 2 * bench.NUM_CLASSES
        calls.append(name)
        if name == "hf" and calls.count("hf") == 2:
            raise bench.Unavailable("it died")
        return 9.0, float(len(calls)), {"library": "1"}

    monkeypatch.setattr(bench, "first_step", first_step)
    monkeypatch.setattr(bench, "IMAGES_A_CLASS", 2)
    found = bench.measure(bench.parser().parse_args(["--only", "tfbig,hf", "--rounds", "2"]))
    assert calls == ["tfbig", "hf", "hf", "tfbig", "tfbig"]
    assert found.cpu_s == {"tfbig": [4.0, 5.0]} and found.absent == {"hf": "it died"}
    result = bench.summary(found, seed=0)
    assert result["vs_hf"] is None and result["vs_keras"] is None and "it died" in bench.table(found)


def test_a_process_that_ends_before_its_first_step_has_no_figure(bench, monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such network')")
    monkeypatch.setitem(bench.TOOLS, "keras", bench.Tool(str(script)))
    with pytest.raises(bench.Unavailable, match="no such network"):
        bench.first_step("keras", tmp_path, bench.parser().parse_args([]))


@pytest.mark.parametrize("arguments", [["--only", "torch"], ["--rounds", "0"], ["--rounds", "many"]])
def test_bad_flags_are_refused(arguments):
    command = [sys.executable, str(BENCH / "startup.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and arguments[1] in done.stderr


@pytest.mark.slow
def test_our_first_step_is_seen():
    command = [sys.executable, str(BENCH / "startup.py"), "--only", "tfbig", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "tfbig" in done.stdout, done.stderr
