"""The parity gate: an export leaves the run only if a fresh process gets the network's results from it.

The process (parity.py) is started by path and never imports tfbig, so what the export lacks, no code of
ours can make up for. Both sides compute on the CPU: the GPU's memory belongs to the run that waits here,
and a GPU's convolutions (TF32) differ from the CPU's by more than the tolerance.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfbig.errors import GateError

_logger = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]


def prepare(scratch: Path, version: Path, feeds: Mapping[str, Tensors], expected: Mapping[str, Tensors]) -> Path:
    """Write down what the fresh process is to feed and to find.

    Args:
        scratch: Folder for the request's files.
        version: Folder of the export.
        feeds: Signature -> input name -> (B, ...) samples.
        expected: Signature -> output name -> (B, ...) results of the network in memory.

    Returns:
        The request, for `check`.
    """
    signatures: dict[str, dict[str, dict[str, str]]] = {}
    for number, name in enumerate(feeds):
        files: dict[str, dict[str, str]] = {"inputs": {}, "outputs": {}}
        for kind, tensors in (("inputs", feeds[name]), ("outputs", expected[name])):
            for position, (key, value) in enumerate(tensors.items()):
                files[kind][key] = f"{number}-{kind}-{position}.pb"
                (scratch / files[kind][key]).write_bytes(tf.make_tensor_proto(value).SerializeToString())
        signatures[name] = files
    request = scratch / "request.json"
    request.write_text(json.dumps({"export": str(version.resolve()), "signatures": signatures}))
    return request


def check(request: Path) -> None:
    """Run a request in a fresh process.

    Raises:
        GateError: The export cannot be loaded or run there, or it gives other results.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # -P and not -I: the folder of the script must not shadow modules, but TensorFlow may lie in a user's
    # site folder or on PYTHONPATH.
    command = [sys.executable, "-P", str(Path(__file__).with_name("parity.py")), str(request)]
    done = subprocess.run(command, cwd=request.parent, env=environment, capture_output=True, text=True, check=False)
    _logger.debug("Parity gate: exit %d\n%s%s", done.returncode, done.stderr, done.stdout)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise GateError(
            f"The export must load and run in a fresh process without tfbig, but it failed there: {reason}. "
            f"Nothing was exported; --debug shows the whole log."
        )
    verdict = json.loads(done.stdout.strip().splitlines()[-1])
    if verdict["foreign"]:
        raise GateError(f"The gate's process must not import tfbig, but it has {', '.join(verdict['foreign'])}.")
    if verdict["differences"]:
        raise GateError(
            f"The export must give the network's results in a fresh process, but {'; '.join(verdict['differences'])}. "
            f"Nothing was exported; look for a layer that computes something else inside a traced graph "
            f"(Python state, randomness at inference), --debug shows the log."
        )
