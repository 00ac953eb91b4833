"""One exception for each exit code that a user's mistake, or the machine's state, can cause.

The message of each is one sentence that says what was expected, what came and what to do; the command
line prints it without a traceback and exits with `exit_code`.
"""

import re
import sys
import traceback
from typing import Literal

# What the system says where a disk, a user's share of it, or a file may not grow: ENOSPC, EDQUOT, EFBIG.
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")
# TensorFlow's types of an error, by name, that a file can be the cause of.
_UNREADABLE = ("NotFoundError", "InvalidArgumentError", "DataLossError", "PermissionDeniedError", "OutOfRangeError")


def shortage(error: BaseException) -> Literal["disk", "memory"] | None:
    """What any library's error says that the machine has too little of; None where it says nothing of that.

    The disk first: TensorFlow's error of a full disk has the type that it has for too small a memory.
    """
    if any(words in str(error) for words in _FULL):
        return "disk"
    # By name, for TensorFlow may not be loaded.
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
    return "memory" if is_memory else None


def unreadable(error: BaseException) -> str | None:
    """Why an example could not be read while the input was running, as TensorFlow's error says it; otherwise None."""
    if type(error).__name__ not in _UNREADABLE or "IteratorGetNext" not in str(error):
        return None
    # Before it stands the way to the operation, behind it that to the step.
    return re.sub(r"^.*Iterator::\S+: ", "", str(error).strip().splitlines()[0])


class TfbigError(Exception):
    """An error whose message is meant for the user."""

    exit_code = 1


class UsageError(TfbigError, ValueError):
    """A flag, a recipe or a combination of them that cannot work."""

    exit_code = 2


class DataError(TfbigError):
    """Data that is missing, unreadable, or not what the job needs."""

    exit_code = 3


class EnvironmentFault(TfbigError):
    """A missing package, a hub module that cannot be had, a folder that cannot be written."""

    exit_code = 4


class DivergedError(TfbigError):
    """A loss that is no longer finite."""

    exit_code = 5


class GateError(TfbigError):
    """A check that guards what leaves the run: export parity, a privacy budget."""

    exit_code = 6


class Interrupted(TfbigError):
    """Stopped early on SIGINT or SIGTERM with everything saved; the same command goes on from there."""

    exit_code = 75


def of_exit_code(code: int) -> type[TfbigError]:
    """The error that another process of ours ended with; for 75 and what nobody expected, their common base."""
    kinds = (UsageError, DataError, EnvironmentFault, DivergedError, GateError)
    return next((kind for kind in kinds if kind.exit_code == code), TfbigError)


class WorkerLost(Interrupted):
    """Another worker of the same run is gone, so this one stopped; all of them started again go on.

    Args:
        message: Says which worker, and what to do.
        exit_code: That of the other worker, where it failed with a reason.
    """

    def __init__(self, message: str, exit_code: int = Interrupted.exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def report(error: Exception, *, debug: bool) -> int:
    """Says on stderr what ended a command, and gives its exit code.

    Args:
        error: From tfbig, any library, or a bug.
        debug: Whether to show where it came from.
    """
    if debug:
        traceback.print_exc()
    if isinstance(error, Interrupted):
        print(error, file=sys.stderr)
    elif isinstance(error, TfbigError):
        print(f"error: {error}", file=sys.stderr)
    else:
        print(f"unexpected error: {type(error).__name__}: {error}. --debug shows where it came from.", file=sys.stderr)
    return error.exit_code if isinstance(error, TfbigError) else 1
