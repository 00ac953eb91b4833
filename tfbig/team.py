"""The workers of one run, over a connection of each to the chief: they decide alike, and notice a loss.

TensorFlow's collectives add gradients; but they begin only when all are there, without a bound, and say little about
who is not. So the workers meet before that (meeting.py), and keep the connections: a process that dies closes its own
at once, one that hangs stops sending, and the others know which it was. The chief also tells the others what only it
can know: the run's state, when to save, when to stop. Messages are lines of JSON. Nothing is encrypted or
authenticated, here or in TensorFlow's own connections: workers need a network of their own. In the tree: beside
runtime.py; alone, a process is a team of one. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from tfbig.cluster import Cluster
from tfbig.errors import TfbigError, WorkerLost

log = logging.getLogger(__name__)

Message: TypeAlias = dict[str, object]

_RETRY_S = 0.2
_BEAT_S = 2.0
# Nothing heard for so long: the process hangs, or its host is gone. Longer than TensorFlow holds Python's lock.
_LOST_AFTER_S = 60.0
# After so many beats without one, a worker is the one that TensorFlow complains of.
_SILENT_BEATS = 3
# What a loss interrupts has so long to end by itself.
_GRACE_S = 20.0
_AGAIN = "start all workers again with the same command, and they go on from the last checkpoint"


class Team:
    """A process that trains alone, and what all teams offer.

    Args:
        cluster: The workers; None for one process.
    """

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.index = 0 if cluster is None else cluster.index
        self.num_workers = 1 if cluster is None else cluster.num_workers
        self.on_loss: Callable[[str], None] = lambda reason: None

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether another worker has been asked to stop."""
        return False

    def decide(self, decision: Message) -> Message:
        """What the chief decided; every worker calls it at the same places.

        Args:
            decision: The chief's; the others' is not used.

        Raises:
            WorkerLost: Another worker is gone.
        """
        return decision

    def wait_for_all(self) -> None:
        """Returns once every worker is here.

        Raises:
            WorkerLost: Another worker is gone.
        """

    def ask_to_stop(self) -> None:
        """Tells the chief that this worker is to stop."""

    def loss(self, *, has_other_causes: bool = False) -> WorkerLost | None:
        """Which worker is gone, where an error of TensorFlow came from that; None where nobody is.

        Args:
            has_other_causes: Whether this machine alone may cause such an error too: then a worker that is silent is
                given the time to be heard again.
        """
        return None

    def release(self) -> None:
        """The other workers have done their part: losing one ends this one's only where it still waits for it."""

    def leave(self, error: BaseException | None) -> None:
        """Ends the connection.

        Args:
            error: What ended this worker's part; None where it is done.
        """


class Workers(Team):
    """One of several processes.

    Args:
        cluster: All of them.
        peers: Open connections: the chief's to each other worker, another worker's to the chief, by index.
        lost_after_s: A worker that was not heard for so long is lost.
    """

    def __init__(
        self, cluster: Cluster, peers: Mapping[int, socket.socket], *, lost_after_s: float = _LOST_AFTER_S
    ) -> None:
        super().__init__(cluster)
        self._cluster, self._peers = cluster, dict(peers)
        self._decisions: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._arrivals = dict.fromkeys(self._peers, 0)
        self._num_waits = 0
        self._asked, self._is_released, self._has_left = False, False, False
        self._loss: WorkerLost | None = None
        # Of whom nothing more is to be expected; later their connections end.
        self._gone: dict[int, WorkerLost] = {}
        self._closed: set[int] = set()
        self._heard = dict.fromkeys(self._peers, time.monotonic())
        self._sending = threading.Lock()
        for index, peer in self._peers.items():
            peer.settimeout(lost_after_s)
            threading.Thread(target=self._listen, args=(index, peer), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether another worker has been asked to stop."""
        return self._asked

    def decide(self, decision: Message) -> Message:
        """See `Team.decide`."""
        if self.is_chief:
            self._raise_loss([] if self._is_released else list(self._gone))
            self._send({"decision": decision})
            return decision
        while True:
            # Before the look at the queue: what the chief said before it went is in it then.
            gone = list(self._gone)
            try:
                return self._decisions.get(timeout=_RETRY_S)
            except queue.Empty:
                self._raise_loss(gone)

    def wait_for_all(self) -> None:
        """See `Team.wait_for_all`."""
        self._num_waits += 1
        if not self.is_chief:
            self._send({"arrived": self._num_waits})
        else:
            with self._changed:
                self._changed.wait_for(lambda: self._loss or not self._late() or self._late() & set(self._gone))
            self._raise_loss(sorted(self._late()))
        self.decide({})

    def _late(self) -> set[int]:
        return {index for index, number in self._arrivals.items() if number < self._num_waits}

    def ask_to_stop(self) -> None:
        """See `Team.ask_to_stop`."""
        if not self.is_chief and not self._asked:
            self._asked = True
            self._send({"stop": True})

    def loss(self, *, has_other_causes: bool = False) -> WorkerLost | None:
        """See `Team.loss`."""
        with self._changed:
            if self._is_released:
                return None
            # TensorFlow may notice it first; and the chief of several may have to tell the others.
            self._changed.wait_for(lambda: self._loss is not None, timeout=(2 if self.is_chief else 4) * _BEAT_S)
        while has_other_causes and self._loss is None and self._silent():
            # Until it is heard, or its listener gives it up.
            time.sleep(_BEAT_S / 2)
        if self._loss is None and (silent := self._silent()):
            self._note(WorkerLost(_sentence(self._cluster.name(silent[0]), "stopped answering", WorkerLost.exit_code)))
        return self._loss

    def _silent(self) -> list[int]:
        """Who sends nothing, and is not done."""
        now = time.monotonic()
        since = {index: heard for index, heard in self._heard.items() if index not in self._gone}
        return [index for index, heard in since.items() if now - heard > _SILENT_BEATS * _BEAT_S]

    def release(self) -> None:
        """See `Team.release`."""
        with self._changed:
            self._is_released, self._loss = True, None

    def leave(self, error: BaseException | None) -> None:
        """See `Team.leave`."""
        self._has_left = True
        farewell: Message = {"done": True}
        if error is not None and self._loss is not None:
            farewell = {"lost": str(self._loss), "exit_code": self._loss.exit_code}
        elif error is not None:
            code = error.exit_code if isinstance(error, TfbigError) else 75 if _is_interrupt(error) else 1
            reason = str(error).strip().splitlines() or [type(error).__name__]
            farewell = {"failed": reason[0][:500], "exit_code": code}
        self._send(farewell)
        if self.is_chief and (error is None or self._is_released):
            # TensorFlow's coordinator lives in the chief, and takes its end for a fault of those who are still there.
            with self._changed:
                self._changed.wait_for(lambda: self._closed == set(self._peers), timeout=_GRACE_S)

    def _send(self, message: Message) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            for index, peer in self._peers.items():
                if index not in self._gone:
                    # Whoever is gone, its listener notices.
                    with contextlib.suppress(OSError):
                        peer.sendall(line)

    def _beat(self) -> None:
        while not self._has_left:
            self._send({})
            time.sleep(_BEAT_S)

    def _listen(self, index: int, peer: socket.socket) -> None:
        reason = "stopped answering"
        try:
            with peer.makefile(encoding="utf-8") as lines:
                for line in lines:
                    self._heard[index] = time.monotonic()
                    message = json.loads(line)
                    if not isinstance(message, dict):
                        raise ValueError(f"a worker sends objects, got {line!r}")
                    self._take(index, message)
        except TimeoutError:
            reason = f"has not been heard of for {peer.gettimeout():.0f} s"
        except (OSError, ValueError):
            log.debug("worker %d", index, exc_info=True)
        if index not in self._gone:
            self._lose(self._note_end(index, reason))
        with self._changed:
            self._closed.add(index)
            self._changed.notify_all()

    def _take(self, index: int, message: Message) -> None:
        code = int(str(message.get("exit_code", WorkerLost.exit_code)))
        if "decision" in message:
            self._decisions.put(message["decision"])  # type: ignore[arg-type]
        elif "done" in message:
            self._note_end(index, "ended before the others")
        elif "failed" in message:
            self._lose(self._note_end(index, f"failed: {message['failed']}", code))
        elif "lost" in message:
            self._lose(WorkerLost(str(message["lost"]), code))
        with self._changed:
            self._arrivals[index] = int(str(message.get("arrived", self._arrivals[index])))
            self._asked = self._asked or "stop" in message
            self._changed.notify_all()

    def _note_end(self, index: int, reason: str, code: int = WorkerLost.exit_code) -> WorkerLost:
        """Notes that no more is to be expected of a worker; gives what to say where it is still needed."""
        end = WorkerLost(_sentence(self._cluster.name(index), reason, code), code)
        with self._changed:
            self._gone[index] = end
            self._changed.notify_all()
        return end

    def _lose(self, lost: WorkerLost) -> None:
        """Notes the first loss, and sees to it that what waits for the lost one ends."""
        if not self._has_left and self._note(lost):
            threading.Thread(target=self._end_waiting, args=(lost,), daemon=True).start()

    def _end_waiting(self, lost: WorkerLost) -> None:
        # Whoever waits in a collective fails with TensorFlow's own error meanwhile, as a rule.
        time.sleep(_BEAT_S)
        if self._has_left or self._is_released:
            return
        self.on_loss(str(lost))
        time.sleep(_GRACE_S)
        with self._changed:
            if not self._has_left and not self._is_released:
                print(lost, file=sys.stderr, flush=True)
                os._exit(lost.exit_code)

    def _note(self, lost: WorkerLost) -> bool:
        """Notes a loss and tells the others; gives whether it is the first that matters."""
        with self._changed:
            if self._loss is not None or self._is_released:
                return False
            self._loss = lost
            self._changed.notify_all()
        if self.is_chief:
            self._send({"lost": str(lost), "exit_code": lost.exit_code})
        return True

    def _raise_loss(self, needed: Sequence[int]) -> None:
        """Raises the loss of whoever, or the end of one of those that are needed."""
        if self._loss is not None:
            raise self._loss
        for index in needed:
            if index in self._gone:
                raise self._gone[index]


def _sentence(name: str, reason: str, code: int) -> str:
    who = name[0].upper() + name[1:]
    return f"{who} {reason.rstrip('.')}; {_AGAIN if code == 75 else 'mend that, and ' + _AGAIN}."


def _is_interrupt(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt)
