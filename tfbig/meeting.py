"""How the workers of a run meet: each connects to the chief, on its port before TensorFlow takes it.

They are told to go once all are there, or who is missing, or whose settings differ. The connections then belong to
team.py. In the tree: above team.py and cluster.py, called once by pipelines/_main.py. Imports no TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from types import MappingProxyType

from tfbig.cluster import Cluster
from tfbig.errors import EnvironmentFault, TfbigError, UsageError, WorkerLost, of_exit_code
from tfbig.team import Message, Team, Workers

_RETRY_S = 0.2
# The chief gives up first, and says who is missing.
_LONGER_THAN_CHIEF_S = 20.0
# For a worker to say who it is. A stranger that says nothing, or little by little, holds the others up no longer.
_GREETING_S = 10.0


def meet(
    cluster: Cluster | None,
    settings: Mapping[str, object],
    *,
    timeout_s: float,
    versions: Mapping[str, object] = MappingProxyType({}),
) -> Team:
    """Waits until all workers are there.

    Args:
        cluster: All of them; None for a process alone, which waits for nobody.
        settings: Must be the same for all.
        timeout_s: Seconds to wait.
        versions: Of the software, which must be the same for all too.

    Raises:
        WorkerLost: Some did not come in time.
        UsageError: They were started with different settings.
        EnvironmentFault: They have different versions, or this worker's port is taken.
    """
    if cluster is None:
        return Team()
    deadline = time.monotonic() + timeout_s
    ours = {"settings": dict(settings), "versions": dict(versions)}
    own_port = int(cluster.addresses[cluster.index].rpartition(":")[2])
    with _listening(own_port) as listener:
        # The others only try their port, which TensorFlow will take.
        if cluster.is_chief:
            return Workers(cluster, _gathered(cluster, listener, ours, deadline, timeout_s))
    return Workers(cluster, {0: _joined(cluster, ours, deadline, timeout_s)})


def _listening(port: int) -> socket.socket:
    try:
        # On all addresses of the machine, of IPv6 too where it has that, whatever its name stands for elsewhere.
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise EnvironmentFault(
            f"Port {port}, which TF_CONFIG gives this worker, cannot be used ({error.strerror or error}); end the "
            "process that has it, or give all workers another one."
        ) from error


def _gathered(
    cluster: Cluster, listener: socket.socket, ours: Mapping[str, dict], deadline: float, timeout_s: float
) -> dict[int, socket.socket]:
    """The chief's part: a connection from each other worker, all told to go or why not."""
    peers: dict[int, socket.socket] = {}
    refusal: TfbigError | None = None
    wanted = set(range(1, cluster.num_workers))
    while refusal is None and set(peers) != wanted:
        listener.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            peer = listener.accept()[0]
        except TimeoutError:
            refusal = _missing(cluster, sorted(wanted - set(peers)), timeout_s)
            break
        greeting = _greeting(peer, min(deadline, time.monotonic() + _GREETING_S))
        index = greeting.get("worker")
        if type(index) is not int or index not in wanted:
            peer.close()
            continue
        if index in peers:
            # A worker that was started twice within the wait is the later one.
            peers[index].close()
        peers[index] = peer
        refusal = _differing(cluster, index, ours, greeting)
    answer = {"go": True} if refusal is None else {"refused": str(refusal), "exit_code": refusal.exit_code}
    for peer in peers.values():
        with contextlib.suppress(OSError):
            peer.sendall(json.dumps(answer).encode() + b"\n")
        if refusal is not None:
            peer.close()
    if refusal is not None:
        raise refusal
    return peers


def _greeting(peer: socket.socket, deadline: float) -> Message:
    """The first line of a connection; empty where it is not from a worker."""
    try:
        return _read_line(peer, deadline)
    except (OSError, ValueError):
        return {}


def _read_line(peer: socket.socket, deadline: float) -> Message:
    """One message, and not a byte of what follows it, by a time of the monotonic clock."""
    line = bytearray()
    while not line.endswith(b"\n"):
        peer.settimeout(max(deadline - time.monotonic(), 0.001))
        byte = peer.recv(1)
        if not byte or len(line) > 2**20:
            raise OSError("the connection ended")
        line += byte
    content = json.loads(line)
    return content if isinstance(content, dict) else {}


def _joined(cluster: Cluster, ours: Mapping[str, dict], deadline: float, timeout_s: float) -> socket.socket:
    """Another worker's part: the connection to the chief, once all are there."""
    host, _, port = cluster.addresses[0].rpartition(":")
    greeting = json.dumps({"worker": cluster.index, **ours}).encode() + b"\n"
    while time.monotonic() < deadline:
        with contextlib.ExitStack() as held:
            try:
                address = (host.strip("[]"), int(port))
                peer = held.enter_context(socket.create_connection(address, timeout=_RETRY_S * 5))
                peer.sendall(greeting)
                answer = _read_line(peer, deadline + _LONGER_THAN_CHIEF_S)
            except (OSError, ValueError):
                # Not there yet, or TensorFlow's server of an earlier run.
                time.sleep(_RETRY_S)
                continue
            if "refused" in answer:
                code = int(str(answer["exit_code"]))
                refusal = str(answer["refused"])
                kind = of_exit_code(code)
                raise WorkerLost(refusal, code) if kind is TfbigError else kind(refusal)
            if "go" in answer:
                held.pop_all()
                return peer
    raise _missing(cluster, [0], timeout_s)


def _missing(cluster: Cluster, indices: list[int], timeout_s: float) -> WorkerLost:
    names = ", ".join(cluster.name(index) for index in indices)
    return WorkerLost(
        f"Waited {timeout_s:g} s for all {cluster.num_workers} workers, but {names} did not come; start all workers "
        "with the same command and the same cluster in TF_CONFIG, or wait longer with --runtime.start_timeout_s."
    )


def _differing(
    cluster: Cluster, index: int, ours: Mapping[str, dict], theirs: Mapping[str, object]
) -> UsageError | EnvironmentFault | None:
    for kind, error in (("versions", EnvironmentFault), ("settings", UsageError)):
        here, told = ours[kind], theirs.get(kind)
        there = told if isinstance(told, dict) else {}
        names = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
        if names:
            shown = ", ".join(f"{name} ({there.get(name)} there, {here.get(name)} on the chief)" for name in names[:3])
            return error(f"All workers need the same {kind}, but {cluster.name(index)} has others: {shown}.")
    return None
