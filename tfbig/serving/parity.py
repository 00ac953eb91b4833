"""The fresh process of the parity gate: load an export, run it on real samples, compare.

Started by its path (see gate.py), with TensorFlow and without tfbig: what it can load, TF Serving can
load. It reads a request, prints one JSON object on stdout, and exits with 0 whatever the comparison says.

What counts as equal: numbers within TOLERANCE of the network's (for values above 1, of the largest of
them), labels exactly. In a near tie, where the two largest probabilities of an example are within twice the
tolerance or one of them is that close to a threshold of 0.5, rounding may decide the label: such an
example's label is not compared, its probabilities are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4


def differences(expected: Mapping[str, np.ndarray], served: Mapping[str, np.ndarray]) -> list[str]:
    """What an export gives otherwise than the network.

    Args:
        expected: Output name -> (B, ...) results of the network in memory.
        served: The same from the export.

    Returns:
        A phrase for each output that differs; empty when all agree.
    """
    if set(expected) != set(served):
        return [f"outputs {', '.join(sorted(served))} instead of {', '.join(sorted(expected))}"]
    tied = _near_ties(expected.get("probabilities"))
    found = []
    for name, value in expected.items():
        if value.shape != served[name].shape:
            found.append(f"{name} of shape {served[name].shape} instead of {value.shape}")
        elif value.dtype.kind in "OSUbiu":
            found += _unequal(name, value, served[name], tied)
        else:
            found += _apart(name, value.astype(np.float64), served[name].astype(np.float64))
    return found


def _near_ties(probabilities: np.ndarray | None) -> np.ndarray | None:
    """(B,) booleans for probabilities (B, C)."""
    if probabilities is None or probabilities.ndim != 2:
        return None
    ordered = np.sort(probabilities.astype(np.float64), axis=-1)  # (B, C)
    at_threshold = np.any(np.abs(ordered - 0.5) <= TOLERANCE, axis=-1)  # (B,)
    if ordered.shape[-1] == 1:
        return at_threshold
    return np.logical_or(at_threshold, ordered[:, -1] - ordered[:, -2] <= 2 * TOLERANCE)


def _unequal(name: str, value: np.ndarray, served: np.ndarray, tied: np.ndarray | None) -> list[str]:
    wrong = value != served
    rows = np.any(wrong.reshape(len(wrong), -1), axis=-1)  # (B,)
    if tied is not None and tied.shape == rows.shape:
        rows = rows & ~tied
    if not rows.any():
        return []
    row = int(np.argmax(rows))
    return [f"{name} {_shown(served[row])} instead of {_shown(value[row])} for sample {row} ({rows.sum()} differ)"]


def _apart(name: str, value: np.ndarray, served: np.ndarray) -> list[str]:
    if not (np.isfinite(value).all() and np.isfinite(served).all()):
        return [f"{name} has values that are no finite numbers"]
    gap = np.abs(value - served)
    limit = TOLERANCE * max(1.0, float(np.max(np.abs(value), initial=0.0)))
    if (gap <= limit).all():
        return []
    row = int(np.unravel_index(int(np.argmax(gap)), gap.shape)[0])
    return [f"{name} off by {gap.max():.2g} for sample {row}, {limit:.2g} is allowed"]


def _shown(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _compare(request: Path) -> dict[str, object]:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    def read(name: str) -> np.ndarray:
        return tf.make_ndarray(tensor_pb2.TensorProto.FromString((request.parent / name).read_bytes()))

    wanted = json.loads(request.read_text())
    loaded = tf.saved_model.load(wanted["export"])
    found: list[str] = []
    for name, files in wanted["signatures"].items():
        feed = {key: tf.constant(read(file)) for key, file in files["inputs"].items()}
        served = {key: value.numpy() for key, value in loaded.signatures[name](**feed).items()}
        expected = {key: read(file) for key, file in files["outputs"].items()}
        found += [f"signature {name} gave {phrase}" for phrase in differences(expected, served)]
    foreign = sorted(module for module in sys.modules if module.split(".")[0] == "tfbig")
    return {"differences": found, "foreign": foreign}


if __name__ == "__main__":
    print(json.dumps(_compare(Path(sys.argv[1]))))
