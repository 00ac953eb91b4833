"""The roof of the device: a product of two bfloat16 matrices, 2048 by 2048, as TensorFlow computes it."""

from __future__ import annotations

import tensorflow as tf
from turns import Turns
from work import ROOF_SIDE, WARM_UP_STEPS


def main() -> None:
    generator = tf.random.Generator.from_seed(0)
    left, right = (tf.cast(generator.normal((ROOF_SIDE, ROOF_SIDE)), tf.bfloat16) for _ in range(2))
    # One number of it, so that a device need not hand over the rest.
    product = tf.function(lambda one, other: tf.linalg.matmul(one, other)[0, 0])
    turns = Turns(warm_up_steps=WARM_UP_STEPS, facts={})
    while True:
        product(left, right).numpy()
        turns.step_done()


if __name__ == "__main__":
    main()
