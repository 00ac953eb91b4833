"""The processes that `python -m tfbig launch` starts: what they run, with which devices, and how.

Used by launch.py, whose processes train together, and by _search_workers.py, whose processes train apart. Imports no
TensorFlow.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """What each worker finds in its environment: a GPU of its own where there are some, else its share of the cores."""
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
