"""Laws of the benchmark of training steps: whose turn it is, what the ratios mean, and that it makes nothing up."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "tools" / "bench"

# Waits half as long as it computes, and prefetches while others have their turn.
PROGRAM = """
import threading, time
from turns import Turns

def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

print("a library's own line")
turns = Turns(warm_up_steps=2, facts={"name": "x"})
for step in range(10**6):
    threading.Thread(target=busy, args=(0.03,)).start()
    busy(0.03)
    time.sleep(0.03)
    turns.step_done()
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in (BENCH, BENCH / "harness", BENCH / "training_step"):
            patch.syspath_prepend(folder)
        yield importlib.import_module("training_step")


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "training_step.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _worker(bench: ModuleType, program: str) -> object:
    return bench.Worker([sys.executable, "-c", program], {"PYTHONPATH": str(BENCH / "harness")})


def test_a_turn_is_cpu_time_of_all_threads_a_step_and_waiting_does_not_count(bench):
    worker = _worker(bench, PROGRAM)
    try:
        assert worker.facts["num_steps"] == 2 and worker.facts["name"] == "x"
        assert worker.turn(5) == pytest.approx(0.06, rel=0.25)
    finally:
        worker.close()


def test_a_worker_that_fails_says_why(bench):
    with pytest.raises(bench.Unavailable, match="MemoryError: 4 GB"):
        _worker(bench, "raise MemoryError('4 GB')")
    worker = _worker(bench, PROGRAM.replace("10**6", "3"))
    with pytest.raises(bench.Unavailable, match="code 0"):
        worker.turn(5)
    worker.close()


class Fake:
    """A worker that notes its turns, and fails at one of them."""

    def __init__(self, bench: ModuleType, name: str, calls: list[str], fails_at: int | None = None) -> None:
        self._unavailable, self._name, self._calls, self._fails_at = bench.Unavailable, name, calls, fails_at

    def turn(self, num_steps: int) -> float:
        self._calls.append(self._name)
        if self._calls.count(self._name) == self._fails_at:
            raise self._unavailable("it died")
        return 1.0


def test_tools_alternate_in_either_order_and_one_that_dies_has_no_figure(bench):
    calls: list[str] = []
    workers = {name: Fake(bench, name, calls, 3 if name == "hf" else None) for name in ("tfbig", "hf", "roof")}
    found = bench.Found()
    found.take_turns(workers, num_turns=4, num_steps=dict.fromkeys(workers, 2))
    assert calls == ["tfbig", "hf", "roof", "roof", "hf", "tfbig", "tfbig", "hf", "roof", "roof", "tfbig"]
    assert found.median("hf") is None and found.ratio("hf") is None and found.absent == {"hf": "it died"}
    assert found.median("tfbig") == 1.0


def test_ratios_are_of_medians_against_the_faster_keras_and_the_roof_is_of_operations(bench):
    product = 1e-3  # seconds: 2 * 2048^3 operations each
    seconds = {"tfbig": [2.0, 9.0, 1.9], "hf": [3.0], "keras": [4.0], "keras_xla": [2.5], "roof": [product]}
    half = 0.5 * 2.0 * (2 * 2048**3 / product) / (3 * 2 * 16)
    found = bench.Found(seconds, {name: {"versions": {"library": "1"}, "multiply_adds": half} for name in seconds})
    result = bench.summary({"resnet50": found}, seed=3)
    row = result["resnet50"]
    assert (row["vs_hf"], row["vs_keras"], row["roof_share"]) == (1.5, 1.25, 0.5)
    assert result["seed"] == 3 and "roof" not in result["versions"] and row["ms"]["tfbig"] == 2000.0


def test_what_cannot_be_measured_is_null_and_the_table_says_why(bench):
    found = bench.Found({"tfbig": [1.0]}, {"tfbig": {"versions": {}, "multiply_adds": 1}}, {"hf": "no index"})
    row = bench.summary({"vit_tiny": found}, seed=0)["vit_tiny"]
    assert row["vs_hf"] is None and row["vs_keras"] is None and row["roof_share"] is None
    json.dumps(row)
    assert "no index" in bench.table({"vit_tiny": found})


def test_multiply_adds_are_those_of_the_definitions(bench):
    import keras

    count = importlib.import_module("networks").multiply_adds
    layers = keras.layers
    images = layers.Input((8, 8, 3))
    inner = keras.Model(images, layers.Conv2D(6, 3, 2, padding="same")(images))
    tokens = layers.Reshape((16, 6))(inner(images))
    tokens = layers.MultiHeadAttention(2, 3)(tokens, tokens)
    network = keras.Model(images, layers.Dense(5)(layers.LayerNormalization()(tokens)))
    convolution, attention, dense = 16 * 27 * 6, 4 * 16 * 6 * 6 + 2 * 16 * 16 * 6, 16 * 6 * 5
    assert count(network) == convolution + attention + dense


def test_each_row_refuses_another_architecture(bench):
    for row in bench.ROWS.values():
        row.check(row.num_parameters)
        with pytest.raises(ValueError, match=rf"row {row.name} trains"):
            row.check(row.num_parameters + 1)


def test_only_our_own_process_can_import_our_package(bench):
    args = bench.parser().parse_args(["--transform", "module:function"])
    command, variables = bench.started("tfbig", "vit_tiny", args)
    assert str(bench.ROOT) in variables["PYTHONPATH"].split(":") and "module:function" in command
    command, variables = bench.started("keras", "vit_tiny", args)
    assert str(bench.ROOT) not in variables["PYTHONPATH"].split(":") and "module:function" not in command


@pytest.mark.parametrize(
    "arguments", [["--only", "torch"], ["--rows", "resnet50;vit_tiny"], ["--turns", "0"], ["--steps", "many"]]
)
def test_bad_flags_are_refused(arguments):
    done = _run(*arguments)
    assert done.returncode == 2 and arguments[1] in done.stderr


@pytest.mark.slow
def test_our_row_is_measured():
    done = _run("--only", "tfbig", "--rows", "vit_tiny", "--turns", "1", "--steps", "1", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])["vit_tiny"]
    assert row["vs_hf"] is None and 0.05 < row["roof_share"] < 1.0 and row["ms"]["tfbig"] > 0
