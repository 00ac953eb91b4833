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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

from tfbig.cluster import VARIABLE
from tfbig.pipelines._processes import started


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

    SIGINT and SIGTERM are passed on, so each ends as it would alone.

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
                with printed:
                    print(f"[{member.name}] {before.rstrip()}", file=sys.stderr, flush=True)

    with _passed_on(processes):
        for member in members:
            processes.append(started(member.command, member.environment, stdin=subprocess.DEVNULL))
        readers = []
        for member, process in zip(members, processes, strict=True):
            for stream in (process.stdout, process.stderr):
                options = {"keeps_last": stream is process.stdout}
                readers.append(threading.Thread(target=show, args=(member, stream), kwargs=options, daemon=True))
        for reader in readers:
            reader.start()
        codes = [process.wait() for process in processes]
        for reader in readers:
            reader.join()
    if members[0].name in last_lines:
        print(last_lines[members[0].name].rstrip(), flush=True)
    return codes[0] if codes[0] >= 0 else 128 - codes[0]


@contextlib.contextmanager
def _passed_on(processes: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Passes signals on inside the block, and leaves no process behind it."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses now; held together, so that none is given twice."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("", 0))
        return [int(one.getsockname()[1]) for one in held]
