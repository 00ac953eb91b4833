"""`python -m tfbig launch`: the workers of one run as processes of this machine, to try out what many machines do.

Each process gets the same command and its own TF_CONFIG, as any launcher of real hosts would give it
(docs/guides/many_machines.md). `run` starts and ends processes, whatever they are; `over_workers` says which ones
train together. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from tfbig.cluster import VARIABLE
from tfbig.pipelines._processes import signals_noted, started

_POLL_S = 0.1


@dataclass(frozen=True)
class Member:
    """One process.

    Args:
        name: Goes before each line that it prints.
        command: Program and arguments.
        environment: Variables beside this process's own.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


def over_workers(command: Sequence[str], devices: Sequence[Mapping[str, str]]) -> list[Member]:
    """Processes that train together, the chief first.

    Args:
        command: Each one's.
        devices: What each finds in its environment of the machine's devices.
    """
    cluster = {"worker": [f"localhost:{port}" for port in _free_ports(len(devices))]}
    members = []
    for index, own in enumerate(devices):
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        members.append(Member(str(index), command, {**own, VARIABLE: task}))
    return members


def run(members: Sequence[Member]) -> int:
    """Starts processes, shows what they print on stderr, and waits for all of them.

    SIGINT and SIGTERM are passed on, so each ends as it would alone; the end of the terminal counts as SIGTERM.

    Args:
        members: The first is the one that counts: the last line of its stdout is printed on ours.

    Returns:
        The first one's exit code; 128 and the signal where a signal ended it.
    """
    processes: list[subprocess.Popen[str]] = []
    printed = threading.Lock()
    last_lines: dict[str, str] = {}

    def show(member: Member, stream: IO[str], *, keeps_last: bool) -> None:
        for line in stream:
            before = last_lines.pop(member.name, None) if keeps_last else line
            if keeps_last:
                last_lines[member.name] = line
            if before is not None:
                # Read on where the terminal is closed: a process whose output nobody reads stands still.
                with printed, contextlib.suppress(OSError):
                    print(f"[{member.name}] {before.rstrip()}", file=sys.stderr, flush=True)

    readers = []
    with signals_noted() as received:
        try:
            for member in members:
                processes.append(started(member.command, member.environment, stdin=subprocess.DEVNULL))
            for member, process in zip(members, processes, strict=True):
                for stream in (process.stdout, process.stderr):
                    options = {"keeps_last": stream is process.stdout}
                    readers.append(threading.Thread(target=show, args=(member, stream), kwargs=options, daemon=True))
            for reader in readers:
                reader.start()
            _wait(processes, received)
        finally:
            for process in processes:
                process.kill()
        for reader in readers:
            reader.join()
        if members[0].name in last_lines:
            print(last_lines[members[0].name].rstrip(), flush=True)
    code = processes[0].returncode
    return code if code >= 0 else 128 - code


def _wait(processes: Sequence[subprocess.Popen[str]], received: Sequence[signal.Signals]) -> None:
    """Until all have ended; passes each signal on to all of them."""
    num_passed = 0
    while any([process.poll() is None for process in processes]):
        for number in received[num_passed:]:
            num_passed += 1
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
        time.sleep(_POLL_S)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses now; held together, so that none is given twice."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in held]
