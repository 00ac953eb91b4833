"""Environments of the peers: a venv each, made once and kept in a cache folder.

Each peer needs libraries that exclude those of tfbig or of another peer, so none is installed beside it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

PYTHON = (3, 11)
TIMEOUT_S = 3600


class Unavailable(Exception):
    """Something cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Environment:
    """What to install.

    Args:
        name: Of its folder.
        requirements: As pip takes them; the libraries that are measured have their version pinned.
    """

    name: str
    requirements: tuple[str, ...]


# This release of torch has a build without CUDA; what Opacus itself asks for would bring the newest one.
OPACUS = Environment("opacus", ("torch==2.13.0", "opacus==1.6.0"))
# tensorflow-privacy 0.9 needs Keras 2, which TensorFlow 2.15 is the last to bring; that one needs NumPy 1.
TF_PRIVACY = Environment("tf_privacy", ("tensorflow==2.15.1", "tensorflow-privacy==0.9.0", "numpy<2"))
# Its own newest torch would bring CUDA.
HF_TRAINER = Environment(
    "hf_trainer", ("torch==2.13.0", "transformers==5.23.0", "accelerate==1.15.0", "pillow==13.0.0")
)

# `image_classification` of both libraries' documentation: Pillow and torchvision's transforms.
TORCH_INPUT = Environment(
    "torch_input", ("torch==2.13.0", "torchvision==0.28.0", "datasets==5.2.0", "pillow==13.0.0")
)


def interpreter(environment: Environment, folder: Path) -> Path:
    """The environment's Python, made first where it does not exist, or is of other requirements or half-made.

    Args:
        environment: What it holds.
        folder: Where environments are kept; another process that makes the same one is waited for.

    Raises:
        Unavailable: It cannot be made.
    """
    place, requirements = folder / environment.name, "\n".join(environment.requirements) + "\n"
    python, ready = place / "bin" / "python", place / "installed.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{environment.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Written last, so that a folder without it was left by an attempt that did not end.
            if not ready.exists() or ready.read_text() != requirements:
                shutil.rmtree(place, ignore_errors=True)
                logger.info("making the environment %s: %s", place, ", ".join(environment.requirements))
                _run([base_python(), "-m", "venv", str(place)])
                if environment.requirements:
                    _run([str(python), "-m", "pip", "install", "--quiet", *environment.requirements])
                ready.write_text(requirements)
    except OSError as error:
        raise Unavailable(
            f"the environment {place} cannot be made ({error}); choose a writable folder with --environments."
        ) from error
    return python


def base_python() -> str:
    """An interpreter of the version that all peers exist for.

    Raises:
        Unavailable: There is none.
    """
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    name = ".".join(["python" + str(PYTHON[0]), str(PYTHON[1])])
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"it needs {name}, which is not on PATH; install it, or run this script with it.")
    return found


def clean_variables() -> dict[str, str]:
    """Environment variables of this process without those that let packages from elsewhere in.

    Nor the one that forbids to keep bytecode: pip compiled every peer's packages, and this checkout, which nobody
    installed, would be compiled anew by each process.
    """
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "PYTHONNOUSERSITE": "1"}


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=clean_variables())
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"`{' '.join(command)}` took over {TIMEOUT_S} s; is a package index reachable?") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise Unavailable(f"`{' '.join(command)}` ended with {done.returncode}: {reason}")
