"""Laws of the benchmark of private steps: what it times, what it calls memory, and that it makes nothing up."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "tools" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH / "private_step")
        patch.syspath_prepend(BENCH)
        yield importlib.import_module("private_step")


@pytest.fixture
def paired(bench: ModuleType) -> ModuleType:
    return importlib.import_module("paired")


@pytest.fixture
def environments(bench: ModuleType) -> ModuleType:
    return importlib.import_module("environments")


@pytest.fixture
def ours(bench: ModuleType) -> ModuleType:
    return importlib.import_module("ours")


def _busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / "private_step.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_ratio_is_of_cpu_time_and_waiting_does_not_count(paired):
    def private() -> None:
        _busy(0.02)

    def plain() -> None:
        time.sleep(0.03)
        _busy(0.01)

    found = paired.pairs(private, plain, seconds=0.3)
    assert found["ratio"] == pytest.approx(2.0, rel=0.15)
    assert found["ms"] == pytest.approx(20, rel=0.15) and found["plain_ms"] == pytest.approx(10, rel=0.15)


def test_steps_alternate_in_either_order_after_a_warm_up(paired):
    calls: list[str] = []
    found = paired.pairs(lambda: calls.append("private"), lambda: calls.append("plain"), seconds=1e-9)
    timed = calls[2 * paired.WARM_UP :]
    couples = list(zip(timed[::2], timed[1::2], strict=True))
    assert len(couples) == found["num_pairs"] == paired.MIN_PAIRS
    assert set(couples) == {("private", "plain"), ("plain", "private")}


def test_one_slow_spell_does_not_decide(paired):
    pause = iter([0.1, *[0.0] * 100])

    def private() -> None:
        _busy(0.01)

    def plain() -> None:
        _busy(0.01 + (next(pause) if len(warm) >= paired.WARM_UP else 0.0))
        warm.append(1)

    warm: list[int] = []
    assert paired.pairs(private, plain, seconds=0.2)["ratio"] == pytest.approx(1.0, rel=0.15)


def test_peak_memory_is_the_process_s_own(paired):
    program = f"import sys; sys.path.insert(0, {str(BENCH / 'private_step')!r})\nfrom paired import peak_megabytes\n"
    held = bytearray(os.urandom(1)) * (300 * 2**20)  # in the parent, which children are started from

    def peak(*lines: str) -> float:
        code = "\n".join([program, *lines, "print(peak_megabytes())"])
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    before = peak()
    after = peak("block = bytearray(b'1') * (200 * 2**20)", "del block")
    assert len(held) and before < 150
    assert after - before == pytest.approx(200, rel=0.1)


@pytest.mark.parametrize("row", ["cnn", "vit", "head", "lora"])
def test_ours_trains_what_the_row_says(ours, row):
    from rows import ROWS

    network = ours.network(ROWS[row])  # refuses another number of parameters
    names = {variable.path.rsplit("/", 1)[-1] for variable in network.trainable_variables}
    if row == "head":
        assert [v.path for v in network.trainable_variables] == [v.path for v in network.layers[-1].variables]
    if row == "lora":
        assert names == {"lora_kernel_a", "lora_kernel_b", "kernel", "bias"}
        assert len(network.trainable_variables) == 12 * 6 * 2 + 2
    network.layers[-1].trainable = False
    with pytest.raises(ValueError, match=rf"row {row} trains .* parameters"):
        ROWS[row].check(sum(v.numpy().size for v in network.trainable_variables))


def test_what_cannot_be_measured_is_null_and_the_table_says_why(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = _run("--json", "--only", "opacus_ghost,tf_privacy", "--rows", "cnn,lora", "--environments", str(blocked))
    assert done.returncode == 0, done.stderr
    nothing = {"cnn": None, "lora": None}
    expected = {"opacus_ghost": nothing, "tf_privacy": nothing, "versions": {}}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert str(blocked) in done.stderr and "--environments" in done.stderr and "no LoRA" in done.stderr


def test_a_row_that_a_tool_lacks_makes_no_environment(tmp_path):
    done = _run("--only", "tf_privacy", "--rows", "lora", "--environments", str(tmp_path / "envs"))
    assert done.returncode == 0 and "no LoRA" in done.stdout
    assert not (tmp_path / "envs").exists()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("raise MemoryError('4 GB')", "MemoryError: 4 GB"),
        ("print('no figures')", "JSON"),
        ("pass", "JSON"),
    ],
)
def test_a_process_that_fails_gives_a_reason_and_no_figure(bench, program, why):
    with pytest.raises(bench.Unavailable, match=why):
        bench.child([sys.executable, "-c", program], os.environ)


def test_our_own_failure_is_a_failure(bench, monkeypatch, capsys):
    monkeypatch.setitem(bench.TOOLS, "tfbig", bench.Tool("missing.py"))
    monkeypatch.setattr(sys, "argv", ["private_step.py", "--only", "tfbig", "--rows", "cnn", "--json"])
    assert bench.main() == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tfbig"] == {"cnn": None}


def test_the_last_line_has_the_three_figures_of_each_row(bench):
    cost = bench.Cost(ms=80.0, plain_ms=60.0, ratio=1.3, peak_mb=900.0, plain_peak_mb=750.0)
    found = {("tfbig", "cnn"): cost, ("opacus_hooks", "cnn"): bench.Cost(220.0, 70.0, 3.2, 600.0, 460.0)}
    tools = bench.summary(found, {"tfbig": {"keras": "3"}})
    assert tools["tfbig"]["cnn"] == {"ms": 80.0, "ratio": 1.3, "memory_ratio": 1.2}
    assert tools["versions"] == {"tfbig": {"keras": "3"}}
    lowest = [line for line in bench.table(found).splitlines() if "*" in line]
    assert len(lowest) == 1 and "tfbig" in lowest[0]


def test_a_half_made_environment_is_made_anew_and_a_whole_one_kept(environments, tmp_path, monkeypatch):
    installed = []

    def run(command: list[str]) -> None:
        if fails and "pip" in command:
            raise environments.Unavailable("no such package")
        installed.append(command[1:4])
        (tmp_path / "peer").mkdir(exist_ok=True)
        (tmp_path / "peer" / f"trace_{len(installed)}").touch()

    monkeypatch.setattr(environments, "_run", run)
    peer, fails = environments.Environment("peer", ("library==1.0",)), True
    with pytest.raises(environments.Unavailable, match="no such package"):
        environments.interpreter(peer, tmp_path)
    fails = False
    environments.interpreter(peer, tmp_path)
    assert not (tmp_path / "peer" / "trace_1").exists()
    assert len(installed) == 3
    assert environments.interpreter(peer, tmp_path) == tmp_path / "peer" / "bin" / "python"
    assert len(installed) == 3
    environments.interpreter(environments.Environment("peer", ("library==1.1",)), tmp_path)
    assert len(installed) == 5


@pytest.mark.parametrize(
    "arguments",
    [["--only", "opacus"], ["--rows", "cnn;vit"], ["--seconds", "0"], ["--seconds", "nan"], ["--seconds", "soon"]],
)
def test_bad_flags_are_refused(arguments):
    done = _run(*arguments)
    assert done.returncode == 2 and arguments[1] in done.stderr


@pytest.mark.slow
def test_our_row_is_measured():
    done = _run("--only", "tfbig", "--rows", "cnn", "--seconds", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1.0 < found["tfbig"]["cnn"]["ratio"] < 3.0
    assert 0.9 < found["tfbig"]["cnn"]["memory_ratio"] < 1.5
    assert found["versions"]["tfbig"]["keras"].startswith("3.")
