"""`python -m tfbig launch --tune --workers N JOB ...`: a search in N processes of this machine.

The launcher starts the job's own command N times and holds the search's folder. The workers divide the trials among
them (search/trials.py); the first one concludes the search. A worker that is killed is started again, and whoever is
first runs its trial again from its last checkpoint. Workers end when the launcher does, however it does.
Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tfbig.errors import EnvironmentFault, Interrupted, TfbigError, UsageError, of_exit_code
from tfbig.pipelines._processes import devices_of_workers, job_module, signals_noted, started
from tfbig.search.journal import NAME as JOURNAL
from tfbig.training.run_directory import RunDirectory
from tfbig.training.task import Task

log = logging.getLogger(__name__)

_WORKER = "TFBIG_SEARCH_WORKER"
_POLL_S = 0.1
# That a worker may take to save its trial; a second signal ends it sooner.
_SAVING_S = 600
# Deaths in a row without a line in the journal, after which starting workers again is given up.
_MAX_IDLE_DEATHS = 3


def worker_number() -> int | None:
    """Which worker of a search this process is; None where it is none."""
    number = os.environ.get(_WORKER)
    return int(number) if number else None


def end_with_launcher() -> None:
    """Stops this worker, as SIGTERM does, when the launcher is gone: its end of our standard input closes."""

    def watch() -> None:
        # Not through Python's own file, whose lock this thread would hold when the process ends.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def launch_search(job: str, words: Sequence[str], num_workers: int) -> str:
    """Runs a search in several processes.

    Args:
        job: A job's name, or a module that defines one.
        words: The job's command line.
        num_workers: N, at least 1.

    Returns:
        What the search's command prints last.

    Raises:
        TfbigError: What ended the search.
    """
    from tfbig.pipelines._command_line import parse, to_yaml
    from tfbig.pipelines._main import held
    from tfbig.pipelines._search import begun
    from tfbig.pipelines._search_space import check_search
    from tfbig.training.conflicts import check_conflicts

    module = job_module(job)
    task = _task(module)
    options = [word for word in words if word in ("--debug", "--print_config")]
    words = [word for word in words if word not in options]
    config = parse(task, words)
    check_conflicts(config)
    check_search(task, config)
    if "--print_config" in options:
        return to_yaml(task, config).rstrip()
    if not config.tune.is_search or config.dry_run:
        raise UsageError(
            "launch --tune starts a search; give --tune.max_trials 20 and a space with it, or a recipe such as "
            "--config digits_search, and no --dry_run."
        )
    devices = devices_of_workers(num_workers)
    # Up to the end of what is written about it: a signal then changes nothing any more.
    with signals_noted() as asked, held(task, config) as (run_directory, finished):
        if finished is not None:
            return json.dumps(finished[0])
        command = [sys.executable, "-m", module, *words, *options, f"--run_dir={run_directory.path}"]
        workers = [_Worker(number, command, devices[number]) for number in range(num_workers)]
        with begun(task, config, run_directory):
            return _supervised(workers, run_directory, asked, starts_anew=config.resume == "never")


def _task(module: str) -> Task:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        task = getattr(importlib.import_module(module), "TASK", None)
    except ImportError as error:
        raise UsageError(f"launch cannot import the job {module} ({error}).") from error
    if not isinstance(task, Task):
        raise UsageError(f"The module {module} must define TASK, a Task, but does not.")
    return task


class _Worker:
    """One process, started again where it is killed; its lines on stderr are passed on under its name.

    Args:
        number: From 0.
        command: What it runs.
        devices: What it finds in its environment beside the launcher's own.
    """

    def __init__(self, number: int, command: Sequence[str], devices: dict[str, str]) -> None:
        self.number = number
        self._command, self._environment = command, {**devices, _WORKER: str(number)}
        self.last_error, self.last_line = "", ""
        self.process: subprocess.Popen | None = None

    def start(self, *, starts_anew: bool = False) -> None:
        """Starts the process, out of reach of the terminal's own signals: the launcher passes them on.

        Args:
            starts_anew: Whether it puts a new search in the place of the one in the folder.
        """
        command = [*self._command, "--resume=never" if starts_anew else "--resume=auto"]
        # It ends when its standard input does, see `end_with_launcher`.
        self.process = started(command, self._environment, stdin=subprocess.PIPE)
        self._readers = [
            threading.Thread(target=read, args=(self.process,), daemon=True)
            for read in (self._read_errors, self._read_output)
        ]
        for reader in self._readers:
            reader.start()

    def ended(self) -> int | None:
        """The exit code once all that the process wrote is read; negative for a signal, None while it runs."""
        code = None if self.process is None else self.process.poll()
        if code is not None:
            for reader in self._readers:
                reader.join(timeout=5)
        return code

    def _read_errors(self, process: subprocess.Popen) -> None:
        for line in process.stderr or ():
            if line.startswith(("error: ", "unexpected error: ")):
                self.last_error = line.strip()
            else:
                # Read on where the terminal is closed: a process whose output nobody reads stands still.
                with contextlib.suppress(OSError):
                    print(f"[{self.number}] {line}", end="", file=sys.stderr, flush=True)

    def _read_output(self, process: subprocess.Popen) -> None:
        for line in process.stdout or ():
            self.last_line = line.rstrip("\n") or self.last_line


def _supervised(
    workers: Sequence[_Worker], run: RunDirectory, asked: Sequence[signal.Signals], *, starts_anew: bool
) -> str:
    """Starts the workers and waits for all of them; see `launch_search`."""
    journal = run.path / "trials" / JOURNAL
    try:
        if starts_anew:
            # By itself until the old search has made room for the new one, in which the others then take part.
            old = run.read_json("status.json")
            workers[0].start(starts_anew=True)
            _wait(workers[:1], journal, asked, until=lambda: run.read_json("status.json") not in ({}, old))
        for worker in workers[starts_anew:]:
            worker.start()
        _wait(workers, journal, asked)
    except Interrupted as error:
        if _stop(workers, asked):
            raise Interrupted(
                "Stopped; a worker did not end by itself and was killed, so what it did since its last checkpoint "
                "is lost. The same command goes on from there."
            ) from error
        raise
    finally:
        _stop(workers, asked)
    return workers[0].last_line


def _wait(
    workers: Sequence[_Worker], journal: Path, asked: Sequence[int], until: Callable[[], bool] | None = None
) -> None:
    """Until all have ended, each started again where it was killed, or until something has happened."""
    running, idle_deaths, size = list(workers), 0, -1
    while running:
        time.sleep(_POLL_S)
        for worker in list(running):
            code = worker.ended()
            if asked or code == Interrupted.exit_code:
                raise Interrupted("Stopped on request with everything saved; the same command goes on from here.")
            if until is not None and until():
                return
            if code == 0:
                running.remove(worker)
            elif code is not None and code < 0:
                log.warning("worker %d was killed by %s; starting it again", worker.number, signal.Signals(-code).name)
                now = journal.stat().st_size if journal.exists() else 0
                idle_deaths, size = (idle_deaths + 1 if now == size else 1), now
                if idle_deaths >= _MAX_IDLE_DEATHS:
                    raise EnvironmentFault(
                        f"Workers were killed {idle_deaths} times in a row before they could begin a trial, as where "
                        "the memory is too small; give fewer --workers."
                    )
                worker.start(starts_anew=until is not None)
            elif code is not None:
                raise _error(worker, code)


def _error(worker: _Worker, code: int) -> TfbigError:
    reason = worker.last_error.removeprefix("error: ")
    return of_exit_code(code)(reason or f"worker {worker.number} ended with exit code {code}.")


def _stop(workers: Sequence[_Worker], asked: Sequence[int]) -> int:
    """Ends the workers that still run, gently so that they save, and at another signal or after minutes for certain.

    Returns:
        How many had to be killed.
    """
    running = [worker for worker in workers if worker.process is not None and worker.ended() is None]
    processes = [worker.process for worker in running if worker.process is not None]
    for process in processes:
        process.terminate()
    num_asked, deadline = max(1, len(asked)), time.monotonic() + _SAVING_S
    while any(process.poll() is None for process in processes):
        if len(asked) > num_asked or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    late = [process for process in processes if process.poll() is None]
    for process in late:
        process.kill()
        process.wait()
    for worker in running:
        worker.ended()
    return len(late)
