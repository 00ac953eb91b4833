"""What any library's error says that the machine has too little of."""

import errno
import os

import pytest

from tfbig.errors import DivergedError, EnvironmentFault, TfbigError, UsageError, of_exit_code, shortage


class ResourceExhaustedError(Exception):
    """Named as TensorFlow's, which has this type for a full disk too."""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_takes_no_more_is_full(number: int) -> None:
    assert shortage(OSError(number, os.strerror(number))) == "disk"
    assert shortage(ResourceExhaustedError(f"runs/x; {os.strerror(number)}")) == "disk"


def test_an_exit_code_names_its_error() -> None:
    assert [of_exit_code(code) for code in (2, 4, 5)] == [UsageError, EnvironmentFault, DivergedError]
    assert of_exit_code(75) is of_exit_code(1) is TfbigError


def test_memory_and_other_errors() -> None:
    assert shortage(MemoryError()) == shortage(ResourceExhaustedError("OOM when allocating")) == "memory"
    assert shortage(OSError(errno.EACCES, os.strerror(errno.EACCES))) is None
