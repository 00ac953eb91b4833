"""`launch` passes signals on to all its processes, whenever they come, and leaves none behind; in real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfbig import launch
from tfbig.launch import Member

# Ends as a job does that was asked to stop; else by itself, so that no failing test leaves it behind.
_CHILD = """
import pathlib, signal, sys, time

def stop(number, frame):
    for _ in range(20_000):
        print("saving, and saying so at length", file=sys.stderr)
    print(signal.Signals(number).name)
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path(sys.argv[1]).touch()
time.sleep(15)
"""
_LAUNCHER = """
import signal, sys
# The tests may be run by nohup, whose children ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from tfbig.launch import Member, run
sys.exit(run([Member(name, [sys.executable, "-c", sys.argv[1], name], {}) for name in ("a", "b")]))
"""


def _wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_processes_also_where_the_terminal_is_closed(
    tmp_path: Path, project_root: Path, number: signal.Signals
) -> None:
    started = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, _CHILD], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if number == signal.SIGHUP else subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(project_root)},
    )  # fmt: skip
    _wait_for(tmp_path / "a", tmp_path / "b")
    if started.stderr is not None:
        started.stderr.close()
        started.stderr = None
    started.send_signal(number)
    began = time.monotonic()
    try:
        out, _ = started.communicate(timeout=20)
    finally:
        started.kill()
    assert started.returncode == 75 and time.monotonic() - began < 10
    assert out == ("SIGTERM\n" if number == signal.SIGHUP else f"{number.name}\n")


class Asked(list):
    """Members, between whose starts this process is asked to end."""

    is_asked = False

    def __iter__(self) -> Iterator[Member]:
        for index, member in enumerate(super().__iter__()):
            if index and not self.is_asked:
                self.is_asked = True
                os.kill(os.getpid(), signal.SIGTERM)
            yield member


def test_a_signal_reaches_also_who_is_started_after_it(tmp_path: Path) -> None:
    began = time.monotonic()
    names = [str(tmp_path / name) for name in ("a", "b")]
    # Default action: a child may have set no handler yet.
    code = launch.run(Asked(Member(name, [sys.executable, "-c", _CHILD, name], {}) for name in names))
    assert code in (75, 128 + signal.SIGTERM) and time.monotonic() - began < 10


def test_a_signal_changes_nothing_while_the_last_line_is_printed(project_root: Path) -> None:
    code = """
import os, signal, sys
from tfbig import launch

def asking(*words, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    print(*words, **options)

launch.print = asking
sys.exit(launch.run([launch.Member("a", [sys.executable, "-c", "print('the result')"], {})]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the result\n")
