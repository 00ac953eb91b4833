"""The host is never waited for within a step, and the step's batch is where the step is.

What is counted here holds on any device; the tests marked `gpu` look at a real one.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfbig.config import DataConfig, RunConfig, RuntimeConfig, TrainConfig
from tfbig.data.splits import DataSpec, Splits, array_split
from tfbig.objectives.supervised import classification
from tfbig.runtime import runtime
from tfbig.training import fit
from tfbig.training.assembly import assemble
from tfbig.training.callback_list import StepCallbacks
from tfbig.training.run_directory import open_run
from tfbig.training.task import Task

GPUS = tf.config.list_physical_devices("GPU")


@dataclasses.dataclass(frozen=True)
class _NoOptions:
    """None."""


def _splits(config: RunConfig) -> Splits:
    rng = np.random.default_rng(0)
    num_examples = config.data.limit or 2
    split = array_split(rng.normal(size=(num_examples, 8, 8, 3)).astype("f4"), rng.integers(0, 2, num_examples))
    spec = DataSpec(tf.TensorSpec([None, 8, 8, 3]), len(split), ("a", "b"))
    return Splits(split, None, array_split(np.zeros((2, 8, 8, 3), "f4"), np.zeros(2, np.int64)), spec)


def _network(config: RunConfig, spec: DataSpec) -> keras.Model:
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 1, strides=2, use_bias=False),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2, dtype="float32"),
        ]
    )


TASK = Task(
    name="waits", options=_NoOptions, load=_splits, build=_network,
    objective=lambda config, splits: classification(2), signatures=lambda network, spec: {},
)  # fmt: skip


WAITING = frozenset({"convert_to_numpy", "numpy", "_numpy", "__array__", "__float__", "__int__", "__bool__"})
"""Of an eager tensor, and of Keras's backend."""


@contextmanager
def _reads() -> Iterator[list[str]]:
    """Notes each call, in this thread, of what makes numbers of the host from tensors."""
    found: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name in WAITING and "tensorflow" in code.co_filename:
            found.append(code.co_name)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def _num_reads(num_steps: int, folder: Path) -> int:
    config = RunConfig(
        data=DataConfig(batch_size=2, limit=2 * num_steps),
        train=TrainConfig(epochs=1, keep="last", ema_decay=0.9, checkpoint_every_s=3600),
        options=_NoOptions(),
    )
    with open_run(folder) as run, runtime(strategy="none", precision="float32", seed=0) as strategy:
        assembly = assemble(TASK, config, _splits(config), strategy)
        with _reads() as reads:
            ledger = fit.fit(assembly, config, run)
    assert ledger.global_step == num_steps
    return len(reads)


def test_more_steps_wait_no_more_for_the_host(tmp_path: Path) -> None:
    few = _num_reads(4, tmp_path / "few")
    # At least the figures of the epoch.
    assert few >= 2
    assert _num_reads(28, tmp_path / "many") == few


def test_a_callback_that_wants_a_number_gets_it() -> None:
    seen = []
    network = keras.Sequential([layers.Input((2,)), layers.Dense(1)])
    network.compile("sgd", "mse", jit_compile=False)
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(logs["loss"]))
    data = tf.data.Dataset.from_tensors((tf.ones([3, 2]), tf.ones([3, 1]))).repeat(3)
    history = network.fit(data, epochs=2, callbacks=StepCallbacks([callback], network), shuffle=False, verbose=0)
    assert len(seen) == 6 and all(tf.is_tensor(loss) for loss in seen)
    assert history.history["loss"] == pytest.approx([float(seen[2]), float(seen[5])])


# A processor split in two stands for the GPU: what is checked is where batches are, and that fit knows their number.
OTHER_DEVICE = """
import warnings, keras, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tfbig.training.device import _can_hold, copied
warnings.simplefilter("error")
data = tf.data.Dataset.range(3).map(lambda i: (tf.fill([2, 1], i), tf.ones([2])))
data = data.apply(tf.data.experimental.assert_cardinality(3))
there = copied(data, "/CPU:1")
assert [x.device[-5:] for x, _ in there] == ["CPU:1"] * 3
assert [int(x[0, 0]) for x, _ in there] == [0, 1, 2]
assert _can_hold("/CPU:1", data.element_spec)
assert not _can_hold("/CPU:1", (tf.TensorSpec([2], tf.string),))
network = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
network.compile("sgd", "mse", jit_compile=False)
network.fit(there, epochs=2, shuffle=False, verbose=0)
assert int(network.optimizer.iterations) == 6
"""


@pytest.mark.slow
def test_batches_wait_on_the_device_of_the_step() -> None:
    done = subprocess.run([sys.executable, "-c", OTHER_DEVICE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_step_compiled_by_xla_gives_the_step_without(tmp_path: Path) -> None:
    found = {}
    for jit_compile in (False, True):
        config = RunConfig(
            data=DataConfig(batch_size=4, limit=8), train=TrainConfig(epochs=1, keep="last"),
            runtime=RuntimeConfig(jit_compile=jit_compile), options=_NoOptions(),
        )  # fmt: skip
        with open_run(tmp_path / str(jit_compile)) as run, runtime(strategy="none", precision="float32", seed=0) as s:
            assembly = assemble(TASK, config, _splits(config), s)
            fit.fit(assembly, config, run)
            found[jit_compile] = np.concatenate([np.ravel(v) for v in assembly.network.variables])
    np.testing.assert_allclose(found[True], found[False], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="no GPU on this machine")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_run_on_a_gpu_keeps_its_variables_and_batches_there(
    tmp_path: Path, precision: str, jit_compile: bool
) -> None:
    config = RunConfig(
        data=DataConfig(batch_size=4, limit=16), train=TrainConfig(epochs=2, keep="last"),
        runtime=RuntimeConfig(jit_compile=jit_compile), options=_NoOptions(),
    )  # fmt: skip
    with open_run(tmp_path / "run") as run, runtime(strategy="none", precision=precision, seed=0) as strategy:
        assembly = assemble(TASK, config, _splits(config), strategy)
        batch = next(iter(fit.fed(strategy, assembly.train, assembly.plan)))
        ledger = fit.fit(assembly, config, run)
    assert all("GPU" in part.device for part in batch)
    assert all("GPU" in variable.value.device for variable in assembly.network.trainable_variables)
    assert np.isfinite(ledger.history[-1]["loss"])
