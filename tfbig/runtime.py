"""The runtime: seed, precision, tf.distribute strategy and XLA, as one context manager.

Below `data`: everything that TensorFlow holds globally is set here and nowhere else, and put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context

from tfbig.errors import EnvironmentFault
from tfbig.heap import keep_heap
from tfbig.team import Team


@contextlib.contextmanager
def runtime(
    *, strategy: str, precision: str, seed: int, exact_float32: bool = False, team: Team | None = None
) -> Iterator[tf.distribute.Strategy]:
    """Seeds everything, sets the precision and gives the strategy to build and train under.

    Args:
        strategy: auto (all workers, else all GPUs where there are several), none, mirrored, multiworker or tpu.
        precision: float32 or bfloat16. Under bfloat16 variables stay float32.
        seed: 0 to 2**31 - 1.
        exact_float32: Multiplies float32 matrices in float32 also where a GPU would take TF32, whose 10 bits are less
            than the rounding that the norms of private training allow for.
        team: The processes that train together; by default this one alone.

    Raises:
        EnvironmentFault: There is no TPU.
        WorkerLost: Another worker is gone.
    """
    # Before TensorFlow starts its threads.
    keep_heap()
    # Before anything else touches TensorFlow: several workers must be connected when its first device is made.
    distribution = _over_workers(team) if team is not None and team.num_workers > 1 else None
    keras.utils.set_random_seed(seed)
    before, tf32_before = keras.config.dtype_policy(), tf.config.experimental.tensor_float_32_execution_enabled()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    if exact_float32:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    is_local = distribution is None and strategy != "tpu" and not tf.config.list_physical_devices("GPU")
    try:
        with _graphs_rewritten_once(), _kernels_called_directly() if is_local else contextlib.nullcontext():
            yield distribution or _strategy(strategy)
    finally:
        keras.config.set_dtype_policy(before)
        tf.config.experimental.enable_tensor_float_32_execution(tf32_before)


@contextlib.contextmanager
def _graphs_rewritten_once() -> Iterator[None]:
    """The graph optimizer goes once, not twice, over each function that this thread runs first inside the block.

    The second time it finds next to nothing. Nor does it turn graphs into MLIR and back, to move operations into the
    branches that alone need them: a training step has no branches, and input functions are not run by this thread.
    Where there is no GPU it does not look for other layouts of pictures, and for what to keep on the host where the
    device's memory is too small.
    """
    ours = context.context()
    before = ours.function_call_options
    # With the user's own settings.
    config = config_pb2.ConfigProto.FromString(before.config_proto_serialized)
    rewrites = config.graph_options.rewrite_options
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    rewrites.disable_tfg_optimizer = True
    if not tf.config.list_physical_devices("GPU"):
        rewrites.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
        rewrites.layout_optimizer = rewriter_config_pb2.RewriterConfig.OFF
    ours.function_call_options = context.FunctionCallOptions(executor_type=before.executor_type, config_proto=config)
    try:
        yield
    finally:
        ours.function_call_options = before


@contextlib.contextmanager
def _kernels_called_directly() -> Iterator[None]:
    """An eager operation calls its kernel inside the block, and not a function made around it.

    TensorFlow makes such a function for each new kind of operation, which takes 0.4 ms where the kernel takes 0.02, and
    each variable's name makes another kind. Only for one process on processors: nowhere else has it been tried.
    """
    ours = context.context()
    ours.ensure_initialized()
    pywrap_tfe.TFE_ContextSetRunEagerOpAsFunction(ours._handle, False)
    try:
        yield
    finally:
        pywrap_tfe.TFE_ContextSetRunEagerOpAsFunction(ours._handle, True)


def _strategy(name: str) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
        return tf.distribute.MirroredStrategy(devices)
    return _tpu() if name == "tpu" else tf.distribute.get_strategy()


def _over_workers(team: Team) -> tf.distribute.Strategy:
    """The strategy over all workers of TF_CONFIG, and the end of its waiting where one of them is lost."""
    team.wait_for_all()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def abort(reason: str) -> None:
        # A worker that hangs keeps its connections open, so the collectives of the others would wait for ever.
        context.context().abort_collective_ops(tf.errors.UNAVAILABLE, reason)

    team.on_loss = abort
    return strategy


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, KeyError, tf.errors.OpError) as error:
        raise EnvironmentFault(
            "--runtime.strategy tpu found no TPU on this machine; give auto, or name the TPU in TPU_NAME "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})."
        ) from error
    return tf.distribute.TPUStrategy(resolver)
