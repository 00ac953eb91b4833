"""The threads of the compiled operations: one team for all that call, which the child of a fork has none of."""

import subprocess
import sys

import pytest

from tfbig.networks import compiled_batch_norm

pytestmark = pytest.mark.skipif(
    not compiled_batch_norm.is_compiled(), reason="no compiled operations here: no C compiler when tfbig was installed"
)
_BEGINNING = """
import os, signal, threading, time
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(8)
from tfbig.networks import compiled_batch_norm as norm
x = tf.random.stateless_normal([8, 64, 64, 32], (0, 1))
expected = [one.numpy() for one in norm.moments(x)]
"""
_TOGETHER = """
is_wrong = []
begun = threading.Barrier(8)
def call():
    begun.wait()
    for _ in range(20):
        is_wrong.append(any((one.numpy() != other).any() for one, other in zip(norm.moments(x), expected)))
def num_threads(): return len(os.listdir("/proc/self/task"))
before = num_threads()
callers = [threading.Thread(target=call) for _ in range(8)]
for caller in callers: caller.start()
for caller in callers: caller.join()
# The system's own thread ends a moment after Python's.
end = time.monotonic() + 10
while num_threads() > before and time.monotonic() < end: time.sleep(0.01)
print(before, num_threads(), any(is_wrong))
"""
_FORKED = """
child = os.fork()
if not child:
    signal.alarm(60)
    found = norm.moments(x)
    os._exit(any((one.numpy() != other).any() for one, other in zip(found, expected)))
print(os.waitpid(child, 0)[1])
"""


def _run(script: str) -> list[str]:
    command = [sys.executable, "-c", _BEGINNING + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_threads_that_call_together_share_one_team() -> None:
    before, after, is_wrong = _run(_TOGETHER)
    # The team is there since the first call.
    assert after == before
    assert is_wrong == "False"


def test_the_child_of_a_fork_computes_the_same() -> None:
    assert _run(_FORKED) == ["0"]
