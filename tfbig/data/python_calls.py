"""Calls of Python from graphs, and their end before Python's own.

tf.data makes such calls from threads of its own, ahead of what anybody asks for. When Python (3.11 to 3.13) ends, it
ends a thread that asks for its lock, within that call; the iterator, which is freed last of all, then waits for the
call for ever. So Python waits at its exit until the calls have come to rest: those of iterators that nobody uses any
more end with them, and the others stop when as much is fetched ahead as fits.
"""

from __future__ import annotations

import atexit
import functools
import gc
import threading
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

# No call for so long: there will be none.
_QUIET_S = 0.2
# Calls that end later than this are not waited for.
_PATIENCE_S = 30.0


def python_call(
    function: Callable, inputs: Sequence[tf.Tensor], types: object, *, stateful: bool = False
) -> tf.Tensor | tuple[tf.Tensor, ...]:
    """`tf.numpy_function` that may be used in what tf.data fetches.

    Args:
        function: Arrays to arrays.
        inputs: Its arguments.
        types: Type of its result, or a list of those of its results.
        stateful: Whether the same arguments may give something else another time.
    """
    return tf.numpy_function(_CALLS.counted(function), inputs, types, stateful=stateful)


class _Calls:
    """Those that run, and when the last one ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_running, self._last_s = 0, -float("inf")

    def counted(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*arguments: object) -> object:
            with self._lock:
                self._num_running += 1
            try:
                return function(*arguments)
            finally:
                with self._lock:
                    self._num_running -= 1
                    self._last_s = time.monotonic()

        return call

    def _are_at_rest(self) -> bool:
        return not self._num_running and time.monotonic() - self._last_s > _QUIET_S

    def end(self) -> None:
        """Waits until they have come to rest."""
        if self._are_at_rest():
            return
        # Frees the iterators that only an error's frames still hold.
        gc.collect()
        until = time.monotonic() + _PATIENCE_S
        while not self._are_at_rest() and time.monotonic() < until:
            time.sleep(_QUIET_S / 10)


_CALLS = _Calls()
# Later than what TensorFlow and the threads of Python's executors have registered, and so before it.
atexit.register(_CALLS.end)
