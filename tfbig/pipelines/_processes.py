"""The processes that `python -m tfbig launch` starts: what they run, with which devices, and how.

Used by launch.py, whose processes train together, and by _search_workers.py, whose processes train apart. Imports no
TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from tfbig.errors import UsageError
from tfbig.suggest import nearest


def job_module(job: str) -> str:
    """The module of a job. One of the user's own lies in the folder that he is in, where `python -m` finds it.

    Args:
        job: Its name, or its module.

    Raises:
        UsageError: There is none.
    """
    if "." in job:
        return job
    jobs = [path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem != "job"]
    if job in jobs:
        return f"tfbig.pipelines.{job}"
    if Path(f"{job}.py").is_file():
        return job
    raise UsageError(f"launch needs one of the jobs {', '.join(jobs)}, or a module, got {job!r}.{nearest(job, jobs)}")


def devices_of_workers(num_workers: int) -> list[dict[str, str]]:
    """What each worker finds in its environment: a GPU of its own where there are some, else its share of the cores.

    Raises:
        UsageError: There are fewer GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    if visible is not None:
        gpus = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if gpus:
        if num_workers > len(gpus):
            raise UsageError(f"launch gives each worker a GPU, and there are {len(gpus)}; give --workers {len(gpus)}.")
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:num_workers]]
    threads = str(max(1, len(os.sched_getaffinity(0)) // num_workers))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return [{name: threads for name in names if name not in os.environ}] * num_workers


def started(command: Sequence[str], environment: Mapping[str, str], *, stdin: int) -> subprocess.Popen[str]:
    """A process whose output is read by its launcher.

    It has a session of its own: Ctrl-C reaches it once, passed on, and not twice, which means to stop at once.

    Args:
        command: Program and arguments.
        environment: Variables beside this process's own.
        stdin: subprocess.PIPE or subprocess.DEVNULL.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


@contextlib.contextmanager
def signals_noted() -> Iterator[list[signal.Signals]]:
    """The signals that ask to end, as they come inside the block, to be passed on to processes.

    Noted only, so that none is lost on a process that is being started. The end of the terminal is one of them, as
    SIGTERM, unless it is ignored (nohup): the processes have sessions of their own, and would go on unseen.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number))

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
