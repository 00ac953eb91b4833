"""The runtime leaves TensorFlow as it found it, and keeps what the user set there."""

from __future__ import annotations

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from tfbig.runtime import runtime


def _rewrites() -> rewriter_config_pb2.RewriterConfig:
    serialized = context.context().function_call_options.config_proto_serialized
    return config_pb2.ConfigProto.FromString(serialized).graph_options.rewrite_options


def test_graphs_are_rewritten_once_and_the_users_own_settings_stay() -> None:
    tf.config.optimizer.set_experimental_options({"constant_folding": False})
    try:
        before = _rewrites()
        with pytest.raises(KeyError), runtime(strategy="none", precision="float32", seed=0):
            inside = _rewrites()
            raise KeyError("whatever ends a run")
        assert inside.meta_optimizer_iterations == rewriter_config_pb2.RewriterConfig.ONE
        assert inside.disable_tfg_optimizer and not before.disable_tfg_optimizer
        assert inside.constant_folding == before.constant_folding == rewriter_config_pb2.RewriterConfig.OFF
        assert _rewrites() == before != inside
    finally:
        tf.config.optimizer.set_experimental_options({"constant_folding": True})


def _complaint() -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tf.raw_ops.Reshape(tensor=tf.zeros([3]), shape=[2])
    return str(caught.value)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="on a GPU operations are called as ever")
def test_an_operation_calls_its_kernel_and_no_function_around_it() -> None:
    with pytest.raises(KeyError), runtime(strategy="none", precision="float32", seed=0):
        assert "__wrapped__" not in _complaint()
        raise KeyError("whatever ends a run")
    assert "__wrapped__Reshape" in _complaint()
