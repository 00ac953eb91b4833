"""Signals that ask a command to end: one ends it wherever it comes, and none changes an end that is decided.

Python runs the handler of a signal between any two instructions of the main thread: also in a destructor (`__del__`) or
in the callback of a weak reference, out of which nothing can be raised, and in code that takes any exception for one of
its own, as the destructor of TensorFlow's functions does. A request that is dropped there is made again.
Used by _main.py and by `python -m tfbig`; while a run trains, training/callbacks.py notes the first signal instead.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType

# Until a request that was dropped is made again: longer than most destructors take.
_AGAIN_S = 0.01


class Interruption(KeyboardInterrupt):
    """Raised where a signal comes. One that is freed before it has ended the command was dropped on its way.

    Made in one call of C, which another signal cannot leave half done.

    Args:
        number: The signal's.
        interrupts: What raised it.
    """

    def __str__(self) -> str:
        return ""

    def __del__(self) -> None:
        number, interrupts = self.args
        interrupts.repeat(number)


class Interrupts:
    """SIGINT and SIGTERM raise an `Interruption` inside the block, until its end is decided; nohup's stay ignored.

    Args:
        until_exit: The process ends with the block, so that what it frees last is not disturbed either. Otherwise the
            handlers of before are there again after the block.
    """

    def __init__(self, *, until_exit: bool) -> None:
        self._until_exit, self._is_decided = until_exit, False
        self._dropped: int = signal.SIGINT

    def __enter__(self) -> Interrupts:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._tell_unraisable
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {signal.SIGALRM: signal.signal(signal.SIGALRM, self._raise_dropped)}
        self._before |= {number: signal.signal(number, self._raise) for number in numbers}
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
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in self._before:
            # And not a handler of ours, which Python takes away before it has freed everything.
            signal.signal(number, signal.SIG_IGN)

    def repeat(self, number: int) -> None:
        """Makes a request again, a little later: the code that has dropped it may still be running.

        By a timer of the system, for a thread or a lock that is made here could be left half made by another signal.

        Args:
            number: The signal's.
        """
        if not self._is_decided:
            self._dropped = number
            # Until it is heard: a wait that begins just after a signal is not ended by that one.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)

    def _raise_dropped(self, alarm: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # While a run trains, not our own.
        handler = signal.getsignal(self._dropped)
        if callable(handler):
            handler(self._dropped, frame)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not Interrupts._tell_unraisable.__code__:
            frame = frame.f_back
        if frame is not None:
            # Out of there nothing can be raised either.
            self.repeat(number)
        elif not self._is_decided:
            raise Interruption(number, self)

    def _tell_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Interruption):
            self._hook(unraisable)
