"""A signal ends a command wherever it comes, and changes nothing once the end is decided; in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfbig.__main__ import main as tfbig_main
from tfbig.pipelines import _main
from tfbig.pipelines._interrupts import Interrupts
from tfbig.pipelines.image_finetune import TASK
from tfbig.search.journal import NAME

# A job's command whose work, and not the way to it, is the test's. `Noisy` gets a signal while it is freed.
_COMMAND = """
import gc, os, signal, sys, time, weakref
from tfbig.errors import DataError, Interrupted
from tfbig.pipelines import _main
from tfbig.pipelines.image_finetune import TASK
from tfbig.startup import import_tensorflow

SIGNAL = int(sys.argv.pop(1))

def ask():
    os.kill(os.getpid(), SIGNAL)
    for _ in range(100):
        pass

class Noisy:
    def __del__(self):
        ask()

class Swallowing:
    def __del__(self):
        try:
            ask()
        except:
            pass

class Quiet:
    pass

class Slow(Interrupted):
    def __str__(self):
        ask()
        return "Stopped."

def work(task, config, team):
{work}

_main._run = work
_main.import_tensorflow = lambda: None
sys.exit(_main.main(TASK))
"""
_ON = "print('went on', file=sys.stderr)"
_INTERRUPTED = "Interrupted; the same command begins where the last checkpoint is.\n"
_DROPS = {
    "a destructor": ["Noisy()", "time.sleep(10)"],
    "a cycle that is collected": ["one = Noisy()", "one.itself = one", "del one", "gc.collect()", "time.sleep(10)"],
    "a destructor that catches all": ["Swallowing()", "time.sleep(10)"],
    "a weak reference's callback": [
        "one = Quiet()", "other = weakref.ref(one, lambda gone: ask())", "del one", "time.sleep(10)",
    ],
    "code that never waits": ["Noisy()", "ends = time.monotonic() + 10", "while time.monotonic() < ends: pass"],
    "destructors again and again": ["ends = time.monotonic() + 0.2", "while time.monotonic() < ends: Noisy()",
                                    "time.sleep(10)"],
    "the second one while training": [
        "import_tensorflow()", "from tfbig.training.callbacks import Signals",
        "with Signals().caught():",
        "    ask()",
        "    Noisy()",
        "    time.sleep(10)",
    ],
    "after the last step": [
        "import_tensorflow()", "from tfbig.training.callbacks import Signals",
        "with Signals().caught():",
        "    ask()",
        "time.sleep(10)",
    ],
}  # fmt: skip


def _ended(work: list[str], number: int, project_root: Path, before: str = "") -> tuple[int, str, str, float]:
    """The exit code, what was printed, and the seconds that the work took up to its end."""
    code = _COMMAND.format(work="\n".join(f"    {line}" for line in ["print(time.time())", *work]))
    done = subprocess.run(
        ["bash", "-c", before + 'exec "$@"', "bash", sys.executable, "-c", code, str(int(number))], cwd=project_root,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    began, _, out = done.stdout.partition("\n")
    return done.returncode, out, done.stderr, time.time() - float(began)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", _DROPS)
def test_a_signal_ends_a_command_also_where_its_exception_is_dropped(
    where: str, number: int, project_root: Path
) -> None:
    code, out, err, seconds = _ended([*_DROPS[where], _ON], number, project_root)
    err = "".join(line for line in err.splitlines(keepends=True) if "stopping after this step" not in line)
    assert (code, out, err) == (75, "", _INTERRUPTED)
    assert seconds < (60 if "import_tensorflow()" in _DROPS[where] else 5)


_ENDS = {
    "stopped": ("raise Interrupted('Stopped.')", 75, "Stopped.\n"),
    "stopped, a signal while it is told": ("raise Slow()", 75, "Stopped.\n"),
    "no data": ("raise DataError('There is none.')", 3, "error: There is none.\n"),
    "a bug": ("raise IndexError('bug')", 1,
              "unexpected error: IndexError: bug. --debug shows where it came from.\n"),
    "interrupted": ("ask()", 75, _INTERRUPTED),
    "interrupted, a signal while it is told": (
        "write = sys.stderr.write; sys.stderr.write = lambda text: (ask(), write(text)); ask()", 75, _INTERRUPTED,
    ),
    "done": ("return {'epsilon': None}, 0", 0, ""),
    "done, a signal while it is told": (
        "dumps, _main.json.dumps = _main.json.dumps, lambda *words, **options: (ask(), dumps(*words, **options))[1]; "
        "return {'epsilon': None}, 0", 0, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("end", _ENDS)
def test_no_signal_changes_an_end_that_is_decided(end: str, number: int, project_root: Path) -> None:
    """One comes while the frames of the work are freed, or where nothing was raised among the last that Python does."""
    statement, exit_code, expected = _ENDS[end]
    held = "_main.last = Noisy()" if exit_code == 0 else "held = Noisy()"
    code, out, err, _ = _ended([held, statement], number, project_root)
    assert (code, out, err) == (exit_code, '{"epsilon": null}\n' if exit_code == 0 else "", expected)


def test_a_signal_in_a_destructor_while_a_stop_unwinds_changes_no_exit_code(project_root: Path) -> None:
    work = ["try:", "    raise Interrupted('Stopped.')", "finally:", "    Noisy()", "    time.sleep(5)"]
    code, out, err, seconds = _ended(work, signal.SIGTERM, project_root)
    assert (code, out, err) == (75, "", _INTERRUPTED) and seconds < 4


def test_a_signal_that_was_ignored_from_the_beginning_stays_so(project_root: Path) -> None:
    code, out, err, _ = _ended(["ask()", "return {}, 0"], signal.SIGINT, project_root, before="trap '' INT; ")
    assert (code, out, err) == (0, "{}\n", "")


def test_another_error_in_a_destructor_is_told_as_ever(project_root: Path) -> None:
    work = ["class Wrong:", "    def __del__(self): raise IndexError('bug')", "Wrong()", "return {}, 0"]
    code, _, err, _ = _ended(work, signal.SIGTERM, project_root)
    assert code == 0 and "IndexError: bug" in err and "Exception ignored" in err


def test_a_command_in_a_process_that_goes_on_leaves_the_handlers_as_they_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook]

    def work(task: object, config: object) -> tuple[dict, int]:
        assert signal.getsignal(signal.SIGTERM) not in before
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr(_main, "run", work)
    assert _main.main(TASK, []) == 75 and capsys.readouterr().err == _INTERRUPTED
    assert _main.main(TASK, ["--train.epochs", "-1"]) == 2
    assert tfbig_main(["launch", "no_job"]) == 2
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook] == before


def test_a_request_that_is_still_to_be_repeated_ends_with_the_block() -> None:
    """It would end the process that goes on."""
    received: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGALRM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        with Interrupts(until_exit=False) as interrupts:
            interrupts.repeat(signal.SIGUSR1)
            time.sleep(0.1)
            interrupts.repeat(signal.SIGUSR1)
        interrupts.repeat(signal.SIGUSR1)
        time.sleep(0.1)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert received == [signal.SIGUSR1]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_destructor_ends_the_other_commands_too(
    number: int, exit_code: int, project_root: Path
) -> None:
    code = f"""
import os, sys, time
from tfbig import doctor
from tfbig.__main__ import main

class Noisy:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})

def examine():
    Noisy()
    time.sleep(10)

last = Noisy()
doctor.examine = examine
sys.argv[1:] = ["doctor"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", "")


def test_a_signal_while_the_end_of_a_launched_search_is_written_changes_nothing(
    tmp_path: Path, project_root: Path
) -> None:
    (tmp_path / "doomed.py").write_text(f"""
import pathlib, sys
from tfbig.pipelines.image_finetune import TASK
if __name__ == "__main__":
    journal = pathlib.Path("run/trials/{NAME}")
    journal.parent.mkdir()
    journal.write_text("begun")
    sys.exit(75)
""")
    code = """
import os, signal, sys
from tfbig.training.run_directory import RunDirectory
from tfbig.__main__ import main
update = RunDirectory.update_status

def asked(self, state, **more):
    if state == "interrupted":
        os.kill(os.getpid(), signal.SIGTERM)
    update(self, state, **more)

RunDirectory.update_status = asked
sys.argv[1:] = sys.argv[1].split()
sys.exit(main())
"""
    words = "launch --tune --workers 1 doomed --adapt.mode head --tune.max_trials 2 --run_dir run"
    space = " --tune.space.train.learning_rate.log [1e-3,1e-1]"
    done = subprocess.run(
        [sys.executable, "-c", code, words + space], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{project_root}{os.pathsep}{tmp_path}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "Stopped on request with everything saved; the same command goes on from here.\n"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
