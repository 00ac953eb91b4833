"""What any library's error says that the machine has too little of, or of a file."""

import errno
import os
from pathlib import Path

import pytest
import tensorflow as tf

from tfbig.errors import DivergedError, EnvironmentFault, TfbigError, UsageError, of_exit_code, shortage, unreadable


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


def test_a_file_that_the_input_cannot_read_is_told_from_other_errors(tmp_path: Path) -> None:
    paths = tf.data.Dataset.from_tensors(str(tmp_path / "gone.jpg"))
    for parallel in (None, 2):
        pictures = paths.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path)), num_parallel_calls=parallel)
        with pytest.raises(tf.errors.NotFoundError) as raised:
            tf.function(lambda rows: next(rows))(iter(pictures))
        assert unreadable(raised.value) == f"{tmp_path / 'gone.jpg'}; No such file or directory"
    with pytest.raises(tf.errors.NotFoundError) as raised:
        tf.io.read_file(str(tmp_path / "gone.jpg"))
    assert unreadable(raised.value) is None and unreadable(ValueError("IteratorGetNext")) is None
