"""The runtime: seed, precision, tf.distribute strategy and XLA, as one context manager.

Below `data`: everything that TensorFlow holds globally is set here and nowhere else, and put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfbig.heap import keep_heap


@contextlib.contextmanager
def runtime(
    *, strategy: str, precision: str, seed: int, exact_float32: bool = False
) -> Iterator[tf.distribute.Strategy]:
    """Seeds everything, sets the precision and gives the strategy to build and train under.

    Args:
        strategy: auto (all GPUs where there are several), none, or mirrored.
        precision: float32 or bfloat16. Under bfloat16 variables stay float32.
        seed: 0 to 2**31 - 1.
        exact_float32: Multiplies float32 matrices in float32 also where a GPU would take TF32, whose 10 bits are less
            than the rounding that the norms of private training allow for.
    """
    # Before TensorFlow starts its threads.
    keep_heap()
    keras.utils.set_random_seed(seed)
    before, tf32_before = keras.config.dtype_policy(), tf.config.experimental.tensor_float_32_execution_enabled()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    if exact_float32:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield _strategy(strategy)
    finally:
        keras.config.set_dtype_policy(before)
        tf.config.experimental.enable_tensor_float_32_execution(tf32_before)


def _strategy(name: str) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.get_strategy()
