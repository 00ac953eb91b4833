#!/usr/bin/env python3
"""What several hosts exchange, keep and read, by arithmetic; and what two processes of this machine really take.

    tools/bench/scaling.py                  the tables of docs/scaling.md; imports nothing heavy
    tools/bench/scaling.py --measure        beside them: all-reduces and checkpoints of two processes here

The arithmetic: a ring all-reduce of S bytes over N hosts sends 2 S (N - 1) / N bytes from each host (Patarasuk and
Yuan 2009), over a network of so many bytes a second; a checkpoint has the weights and the optimizer's moments, of what
is trained, in float32; a host reads its share of the batch, each example once a step.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HOSTS = (2, 8, 32, 128, 256)
# 25 Gbit/s, a common network of rented machines, of which a stream gets about nine tenths.
NETWORK_BYTES_PER_S = 25e9 / 8 * 0.9
# Sequential writing of a network disk; one of the host itself is several times faster.
DISK_BYTES_PER_S = 500e6


@dataclass(frozen=True)
class Job:
    """One network in training.

    Args:
        name: What it is.
        parameters: All of them.
        trained: Those that have gradients.
        example_bytes: What a host reads of the disk for one example.
        batch_per_host: Examples a host computes a step.
        step_s: Seconds of computing of a step: an assumption, of one 8-GPU host; measure yours.
    """

    name: str
    parameters: float
    trained: float
    example_bytes: float
    batch_per_host: int
    step_s: float


def lora_parameters(*, width: int, layers: int, rank: int, matrices: int) -> int:
    """Parameters of low-rank updates to square matrices: two factors of (width, rank) each."""
    return layers * matrices * 2 * width * rank


# ImageNet's JPEGs have 110 kB on average; a text of 2,048 tokens of four bytes.
JOBS = (
    Job("ResNet-50, 224 pixels", 25.6e6, 25.6e6, 110e3, 1024, 0.40),
    Job("ViT-B/16, 224 pixels", 86.6e6, 86.6e6, 110e3, 1024, 0.75),
    Job("7B, LoRA rank 8 (q, v)", 6.74e9, lora_parameters(width=4096, layers=32, rank=8, matrices=2), 8192, 16, 2.0),
)


def all_reduced_bytes(job: Job, num_hosts: int) -> float:
    """Bytes that each host sends a step, for gradients in float32."""
    return 2 * 4 * job.trained * (num_hosts - 1) / num_hosts


def all_reduce_s(job: Job, num_hosts: int) -> float:
    """Seconds of it, were nothing of it hidden behind the computing."""
    return all_reduced_bytes(job, num_hosts) / NETWORK_BYTES_PER_S


def checkpoint_bytes(job: Job, *, moments: int = 2) -> float:
    """Bytes of a checkpoint of ours: all weights, and the optimizer's moments of what is trained (2 for AdamW)."""
    return 4 * (job.parameters + moments * job.trained)


def input_bytes_per_s(job: Job, num_hosts: int) -> float:
    """Bytes a second that a host reads; the same for any number of hosts, for each reads its share alone."""
    return job.batch_per_host * job.example_bytes / (job.step_s + all_reduce_s(job, num_hosts))


def _print_tables() -> None:
    print("| hosts | " + " | ".join(job.name for job in JOBS) + " |")
    print("|---|" + "---|" * len(JOBS))
    for count in HOSTS:
        cells = [
            f"{all_reduced_bytes(job, count) / 1e6:.4g} MB, {all_reduce_s(job, count) * 1e3:.3g} ms, "
            f"{job.step_s / (job.step_s + all_reduce_s(job, count)):.0%}"
            for job in JOBS
        ]
        print(f"| {count} | " + " | ".join(cells) + " |")
    print("\n| | " + " | ".join(job.name for job in JOBS) + " |")
    print("|---|" + "---|" * len(JOBS))
    rows = {
        "trained parameters": [f"{job.trained / 1e6:.4g} M" for job in JOBS],
        "checkpoint": [f"{checkpoint_bytes(job) / 1e9:.3g} GB" for job in JOBS],
        "its writing": [f"{checkpoint_bytes(job) / DISK_BYTES_PER_S:.3g} s" for job in JOBS],
        "its way to 256 hosts": [f"{2 * checkpoint_bytes(job) / NETWORK_BYTES_PER_S:.3g} s" for job in JOBS],
        "input a host": [f"{input_bytes_per_s(job, 256) / 1e6:.3g} MB/s" for job in JOBS],
    }
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(values) + " |")


def _measure() -> None:
    """Two processes of this machine: what an all-reduce and a checkpoint take, beside one process's checkpoint."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("", 0))
        two.bind(("", 0))
        workers = [f"localhost:{held.getsockname()[1]}" for held in (one, two)]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, __file__, "--worker"]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("A worker failed.")
    print(outputs[0], end="")


def _work() -> None:
    import numpy as np
    import tensorflow as tf

    from tfbig.cluster import from_environment
    from tfbig.runtime import runtime
    from tfbig.team import meet
    from tfbig.training.checkpoints import Checkpoint, write

    team = meet(from_environment(), {}, timeout_s=120)
    with runtime(strategy="multiworker", precision="float32", seed=0, team=team) as strategy:

        @tf.function(reduce_retracing=True)
        def total(values: tf.Tensor) -> tf.Tensor:
            def replica(values: tf.Tensor) -> tf.Tensor:
                return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(values))

            return strategy.run(replica, args=(values,))

        for num_floats in (1, 290_000, 1_000_000, 25_600_000):
            values = tf.ones([num_floats])
            seconds = _median(lambda values=values: total(values), 3 if num_floats > 10**7 else 20)
            rate = 4 * num_floats / seconds / 1e6
            if team.is_chief:
                print(f"all-reduce of {4 * num_floats / 1e6:.4g} MB: {seconds * 1e3:.3g} ms, {rate:.3g} MB/s")
        decide = _median(lambda: team.decide({"save": False, "stop": False}), 200)
        if team.is_chief:
            print(f"agreeing on whether to save: {decide * 1e3:.2g} ms")
            with tempfile.TemporaryDirectory() as folder:
                arrays = [np.ones(25_600_000, "f4")] * 3
                path = Path(folder) / "step.npz"
                seconds = _median(lambda: write(path, Checkpoint({"all": arrays}, {})), 3)
                print(f"checkpoint of {path.stat().st_size / 1e6:.4g} MB: {seconds:.3g} s")
        team.release()
        team.decide({})
    team.leave(None)


def _median(call: object, times: int) -> float:
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call()  # type: ignore[operator]
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def main() -> None:
    """Prints the tables, or measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="two processes here, about a minute")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work()
        return
    _print_tables()
    if options.measure:
        print()
        sys.stdout.flush()
        _measure()


if __name__ == "__main__":
    main()
