"""How many threads TensorFlow has, for code of our own that works beside its operations or inside one."""

from __future__ import annotations

import os

import tensorflow as tf

from tfbig.hardware import num_cores


def num_threads() -> int:
    """For operations beside each other: chosen by tf.config or TF_NUM_INTEROP_THREADS, otherwise one a core."""
    return _chosen(tf.config.threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS")


def num_threads_of_operation() -> int:
    """Within one operation: chosen by tf.config or TF_NUM_INTRAOP_THREADS, otherwise one a core."""
    return _chosen(tf.config.threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS")


def _chosen(configured: int, variable: str) -> int:
    chosen = str(configured or os.environ.get(variable, ""))
    return (int(chosen) if chosen.isdecimal() else 0) or num_cores()
