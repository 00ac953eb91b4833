"""Python's end waits for the calls that tf.data still makes, and for nothing else."""

import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

from tfbig.data.python_calls import _QUIET_S, _Calls, python_call

_PROGRAM = """
import sys, time
import numpy as np
import tensorflow as tf
from tfbig.data.python_calls import python_call

def slow(number):
    time.sleep(0.3)
    return number

numbers = tf.data.Dataset.range(1000).map(lambda i: python_call(slow, [i], tf.int64), num_parallel_calls=2).prefetch(2)
rows = iter(numbers)
assert next(rows) == 0
if sys.argv[1] == "only in a frame":
    def fail(rows):
        held = rows
        raise ValueError("this is all that went wrong")
    try:
        fail(rows)
    except ValueError as error:
        # A circle, so that only a collection of garbage frees the frame.
        error.itself = error
    del rows
print("said", flush=True)
"""


def test_python_ends_where_calls_are_on_their_way() -> None:
    for case in ("alive", "only in a frame"):
        done = subprocess.run([sys.executable, "-c", _PROGRAM, case], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr[-2000:]


def test_calls_give_what_functions_give() -> None:
    twice, less = tf.function(
        lambda x: python_call(lambda a: (a * 2, a - np.float32(1)), [x], [tf.float32, tf.float32])
    )(tf.constant([1.0, 5.0]))
    assert twice.numpy().tolist() == [2, 10] and less.numpy().tolist() == [0, 4]


def test_nothing_is_waited_for_where_nothing_was_called_lately() -> None:
    calls = _Calls()
    begun = time.monotonic()
    calls.end()
    assert time.monotonic() - begun < _QUIET_S / 2
    assert calls.counted(lambda a: a + 1)(1) == 2
    begun = time.monotonic()
    calls.end()
    assert _QUIET_S / 2 < time.monotonic() - begun < _QUIET_S + 5
