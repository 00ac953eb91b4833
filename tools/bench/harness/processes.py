"""Processes that measure a tool: one that answers once, and one that takes turns with others.

Each runs with one thread and without a GPU. Of a process that fails the last line of its stderr is told.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from environments import Unavailable
from turns import ANSWERS

TIMEOUT_S = 3600
VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONWARNINGS": "ignore",
}
HARNESS = Path(__file__).resolve().parent


def child(command: list[str], variables: Mapping[str, str]) -> dict:
    """What a process says in its last line.

    Raises:
        Unavailable: It failed, took too long, or said something else.
    """
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"no answer in {TIMEOUT_S} s from `{' '.join(command)}`") from error
    if done.returncode:
        raise Unavailable(_failure(command, done.returncode, done.stderr))
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise Unavailable(f"`{' '.join(command)}` did not end with a line of JSON") from error


class Worker:
    """A process whose training loop stands still until it is asked for steps; see turns.py.

    Args:
        command: Of a script that makes `Turns`.
        variables: Its environment.
        clock: What a turn's time is: cpu_s or wall_s.

    Raises:
        Unavailable: It cannot be started, failed, or does not answer.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], *, clock: str = "cpu_s") -> None:
        self._command, self._clock = list(command), clock
        self._log = tempfile.TemporaryFile("w+")
        listens, answers = os.pipe()
        self._answers = os.fdopen(listens)
        try:
            self._process = subprocess.Popen(
                self._command,
                env={**variables, ANSWERS: str(answers)},
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[answers],
                text=True,
            )
        except OSError as error:
            raise Unavailable(f"`{' '.join(self._command)}` cannot be started: {error}") from error
        finally:
            os.close(answers)
        self.facts = self._answer()

    def turn(self, num_steps: int) -> float:
        """Seconds a step, over a turn of `num_steps`, at least 1."""
        try:
            print(num_steps, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            # The answer that does not come says why.
            pass
        found = self._answer()
        return found[self._clock] / found["num_steps"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._log.close()

    def _answer(self) -> dict:
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            is_heard = selector.select(TIMEOUT_S)
        line = self._answers.readline() if is_heard else ""
        if line:
            return json.loads(line)
        if not is_heard:
            self._process.kill()
        code = self._process.wait()
        self._log.seek(0)
        raise Unavailable(_failure(self._command, code, self._log.read()))


def _failure(command: Sequence[str], code: int, log: str) -> str:
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
    last = (log.strip().splitlines() or ["no output"])[-1]
    return f"`{' '.join(command)}` ended with {ended}: {last}"
