"""What is made once a graph is had in that graph alone."""

import tensorflow as tf

from tfbig.networks.tracing import constant


def test_what_a_branch_makes_stays_in_it() -> None:
    @tf.function(autograph=False)
    def compute(x: tf.Tensor) -> tf.Tensor:
        scaled = x * constant(3.0)
        return tf.cond(x > 0.0, lambda: scaled * constant(2.0), lambda: x) * constant(2.0)

    assert float(compute(tf.constant(1.0))) == 12.0


def test_a_function_traced_within_another_can_be_called_by_itself() -> None:
    inner = tf.function(lambda x: x * constant(2.0), autograph=False)
    outer = tf.function(lambda x: constant(2.0) + inner(x), autograph=False)
    assert float(outer(tf.constant(1.0))) == 4.0
    assert float(inner(tf.constant(1.0))) == 2.0


def test_it_is_made_once() -> None:
    @tf.function(autograph=False)
    def compute(x: tf.Tensor) -> tf.Tensor:
        assert constant(2.0) is constant(2.0)
        assert constant(2.0) is not constant(2.0, tf.float16)
        return x

    compute(tf.constant(1.0))
