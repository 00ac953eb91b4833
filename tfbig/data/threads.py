"""How many threads the input has."""

from __future__ import annotations

import os

import tensorflow as tf

from tfbig.hardware import num_cores


def num_threads() -> int:
    """As many as TensorFlow has for operations: chosen by tf.config or TF_NUM_INTEROP_THREADS, otherwise one a core."""
    chosen = tf.config.threading.get_inter_op_parallelism_threads() or os.environ.get("TF_NUM_INTEROP_THREADS", "")
    number = int(chosen) if str(chosen).isdecimal() else 0
    return number or num_cores()
