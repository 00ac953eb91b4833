"""Which processes train together: TF_CONFIG, read and checked before TensorFlow is loaded.

The form is TensorFlow's own, which Ray Train, Kubeflow's TFJob and others set:
{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}. A "chief" counts as
worker 0, before the others. meeting.py connects them. Imports no TensorFlow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from tfbig.errors import UsageError

VARIABLE = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, and which of them this process is.

    Args:
        addresses: host:port of each worker, an IPv6 address in brackets; the first is the chief, which writes the
            run's files.
        index: This process's place among them.
    """

    addresses: tuple[str, ...]
    index: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0

    @property
    def num_workers(self) -> int:
        """How many processes train together."""
        return len(self.addresses)

    def name(self, index: int) -> str:
        """A worker in a message."""
        return f"worker {index} ({self.addresses[index]}{', the chief' if index == 0 else ''})"


def from_environment() -> Cluster | None:
    """The cluster that TF_CONFIG describes; None where it is not set, or is of one process.

    Raises:
        UsageError: It is no JSON, names no workers, or another place than theirs.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{VARIABLE} must be JSON such as {_EXAMPLE}, got {text[:60]!r} ({error}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"{VARIABLE} must be an object such as {_EXAMPLE}, got {text[:60]!r}.")
    spec = content.get("cluster")
    if not spec:
        return None
    addresses, num_chiefs = _addresses(spec)
    index = _index(content.get("task"), addresses, num_chiefs)
    return Cluster(addresses, index) if len(addresses) > 1 else None


def _addresses(spec: object) -> tuple[tuple[str, ...], int]:
    if not isinstance(spec, Mapping) or not set(spec) <= {"chief", "worker"}:
        kinds = ", ".join(sorted(map(str, spec))) if isinstance(spec, Mapping) else repr(spec)
        raise UsageError(
            f"{VARIABLE}'s cluster must name workers, and a chief at most, got {kinds}; parameter servers and "
            f"evaluators are not used. Such as {_EXAMPLE}."
        )
    chiefs, workers = spec.get("chief", []), spec.get("worker", [])
    if not isinstance(chiefs, list) or not isinstance(workers, list) or len(chiefs) > 1:
        raise UsageError(f"{VARIABLE}'s cluster must hold lists of host:port, and one chief at most, as in {_EXAMPLE}.")
    addresses = [*chiefs, *workers]
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        is_bare_ipv6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
        if not host or is_bare_ipv6 or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(
                f"{VARIABLE}'s workers must be host:port, such as host0:2222 or [fd00::1]:2222, got {address!r}."
            )
    repeated = {address for address in addresses if addresses.count(address) > 1}
    if repeated:
        raise UsageError(f"{VARIABLE} names {sorted(repeated)[0]} twice; each worker needs a port of its own.")
    return tuple(addresses), len(chiefs)


def _index(task: object, addresses: tuple[str, ...], num_chiefs: int) -> int:
    kind = task.get("type") if isinstance(task, Mapping) else None
    index = task.get("index") if isinstance(task, Mapping) else None
    if kind not in ("worker", "chief") or type(index) is not int:
        raise UsageError(
            f'{VARIABLE}\'s task must be like {{"type": "worker", "index": 0}}, got {json.dumps(task)[:80]}; each '
            "process has its own."
        )
    size = num_chiefs if kind == "chief" else len(addresses) - num_chiefs
    if not 0 <= index < size:
        valid = f"0 to {size - 1}" if size else "none, for it names no such task"
        raise UsageError(f"{VARIABLE}'s task is {kind} {index}, but its cluster has {size} of them: {valid}.")
    return index if kind == "chief" else index + num_chiefs
