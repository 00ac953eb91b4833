"""The roof of the core: a product of two bfloat16 matrices of 2048 by 2048, as TensorFlow computes it."""

from __future__ import annotations

import tensorflow as tf
from turns import Turns
from work import ROOF_SIDE, WARM_UP_STEPS


def main() -> None:
    generator = tf.random.Generator.from_seed(0)
    left, right = (tf.cast(generator.normal((ROOF_SIDE, ROOF_SIDE)), tf.bfloat16) for _ in range(2))
    product = tf.function(tf.linalg.matmul)
    turns = Turns(warm_up_steps=WARM_UP_STEPS, facts={})
    while True:
        product(left, right).numpy()
        turns.step_done()


if __name__ == "__main__":
    main()
