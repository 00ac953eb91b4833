"""Signals that ask a command to end: one ends it wherever it comes, and none changes an end that is decided.

Python runs the handler of a signal between any two instructions of the main thread: also in a destructor (`__del__`) or
in the callback of a weak reference, out of which nothing can be raised, and in code that takes any exception for one of
its own, as the destructor of TensorFlow's functions does. A request that is dropped there is made again.
Used by _main.py and by `python -m tfbig`; while a run trains, training/callbacks.py notes the first signal instead.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

# Until a request that was dropped is made again: longer than most destructors take.
_AGAIN_S = 0.01


class Interruption(KeyboardInterrupt):
    """Raised where a signal comes. One that is freed before it has ended the command was dropped on its way.

    Args:
        number: The signal's.
        interrupts: What raised it.
    """

    def __init__(self, number: int, interrupts: Interrupts) -> None:
        super().__init__()
        self.number, self._interrupts = number, interrupts

    def __del__(self) -> None:
        self._interrupts.repeat(self.number)


class Interrupts:
    """SIGINT and SIGTERM raise an `Interruption` inside the block, until its end is decided; nohup's stay ignored.

    Args:
        until_exit: The process ends with the block, so that what it frees last is not disturbed either. Otherwise the
            handlers of before are there again after the block.
    """

    def __init__(self, *, until_exit: bool) -> None:
        self._until_exit, self._is_decided = until_exit, False

    def __enter__(self) -> Interrupts:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._tell_unraisable
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._raise) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ignore()
        if not self._until_exit:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        sys.unraisablehook = self._hook

    def ignore(self) -> None:
        """How the command ends is decided: from here on no signal changes anything."""
        # First, for the calls below still run the handler of a signal that has just come.
        self._is_decided = True
        for number in self._before:
            # And not a handler of ours, which Python takes away before it has freed everything.
            signal.signal(number, signal.SIG_IGN)

    def repeat(self, number: int) -> None:
        """Makes a request again, a little later: the code that has dropped it may still be running.

        Args:
            number: The signal's.
        """
        if not self._is_decided:
            timer = threading.Timer(_AGAIN_S, self._send, (number,))
            timer.daemon = True
            timer.start()

    def _send(self, number: int) -> None:
        if not self._is_decided:
            os.kill(os.getpid(), number)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self._is_decided:
            raise Interruption(number, self)

    def _tell_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Interruption):
            self._hook(unraisable)
