"""Several replicas and several workers: each feeds its part, and the whole is what one device would have computed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfbig.config import RuntimeConfig
from tfbig.data.batches import Share, batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import PoissonPlan
from tfbig.data.splits import Batch, array_split
from tfbig.errors import EnvironmentFault, UsageError
from tfbig.runtime import runtime
from tfbig.training import distribution

NUM = 50
X = np.arange(NUM * 3, dtype="f4").reshape(NUM, 3)
SPLIT = array_split(X, np.arange(NUM))
FETCHED = array_split(X, np.arange(NUM))
PLANS = {
    "index": IndexPlan(NUM, 8, seed=3),
    "poisson": PoissonPlan(num_examples=NUM, batch_size=8, physical_batch_size=4, seed=2**60),
}


def _mixed(batch: Batch, seed: tf.Tensor) -> Batch:
    """What an example becomes depends on its place and its neighbours."""
    noise = tf.random.stateless_uniform(tf.shape(batch.x), seed)
    return Batch(batch.x + noise + tf.reverse(batch.x, [0]), batch.y, batch.weight)


def _rows(dataset: tf.data.Dataset) -> list[tuple[np.ndarray, ...]]:
    return [tuple(np.asarray(part) for part in batch) for batch in dataset]


@pytest.mark.parametrize(
    ("kind", "augment", "num_hosts", "num_local", "gathers"),
    [("index", None, 4, 1, True), ("index", _mixed, 2, 1, False), ("index", _mixed, 2, 2, True),
     ("poisson", None, 2, 2, True), ("poisson", None, 2, 1, False), ("poisson", _mixed, 2, 1, True)],
)  # fmt: skip
def test_the_hosts_shares_make_up_each_batch(
    kind: str, augment: Callable | None, num_hosts: int, num_local: int, gathers: bool
) -> None:
    plan = PLANS[kind]
    split = SPLIT if gathers else array_split(X, np.arange(NUM))
    if not gathers:
        split = type(split)(fetch=lambda i: tf.gather(X, i), labels=split.labels, names=split.names)
    whole = _rows(batches(split, plan, position=lambda: (1, 2), augment=augment))
    num_replicas = num_hosts * num_local
    parts = []
    for host in range(num_hosts):
        share = Share(host * num_local, num_local, num_replicas)
        parts.append(_rows(batches(split, plan, position=lambda: (1, 2), augment=augment, share=share)))
    assert all(len(part) == num_local * len(whole) for part in parts)
    for step, batch in enumerate(whole):
        slices = [part[step * num_local + local] for part in parts for local in range(num_local)]
        assert len({len(one[0]) for one in slices}) == 1
        for position, expected in enumerate(batch):
            np.testing.assert_array_equal(np.concatenate([one[position] for one in slices]), expected)


@pytest.mark.parametrize(("kind", "goes"), [("index", True), ("poisson", False)])
def test_a_batch_of_a_whole_private_step_stays_on_the_host(
    kind: str, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where there is a GPU that is what on_device does; tests have none.
    monkeypatch.setattr(distribution, "on_device", lambda dataset, strategy: [*dataset.take(1), "on the device"])
    found = distribution.fed(tf.distribute.get_strategy(), SPLIT, PLANS[kind])
    assert isinstance(found, list) == goes


def test_a_host_fetches_its_own_share_alone() -> None:
    fetched: list[int] = []

    def fetch(index: tf.Tensor) -> tf.Tensor:
        def note(value: np.ndarray) -> np.ndarray:
            fetched.append(int(value))
            return X[value]

        return tf.ensure_shape(tf.numpy_function(note, [index], tf.float32), [3])

    split = type(SPLIT)(fetch=fetch, labels=SPLIT.labels, names=SPLIT.names)
    plan = IndexPlan(NUM, 8, seed=3)
    share = Share(1, 1, 2)
    _rows(batches(split, plan, share=share))
    expected = [i for step in range(plan.steps_per_epoch) for i in plan.indices(0, step, replica=1, num_replicas=2)[0]]
    assert sorted(fetched) == sorted(expected)


_TWO_DEVICES = """
import sys, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import Split, array_split
from tfbig.gradients.rule import mean_gradient
from tfbig.objectives.supervised import classification
from tfbig.runtime import runtime
from tfbig.training.distribution import fed
from tfbig.training.learner import Learner
from tfbig.training.optimizers import WarmupCosine, make_optimizer

rng = np.random.default_rng(0)
x, y = rng.normal(size=(13, 4)).astype("f4"), rng.integers(0, 3, 13)

class Lengths(keras.layers.Layer):
    def call(self, texts):
        return tf.cast(tf.strings.length(texts), tf.float32)[:, None] * tf.ones([1, 4])
    def compute_output_spec(self, texts):
        return keras.KerasTensor((None, 4))

def trained(strategy_name, kind, size, precision="float32", num=13):
    with runtime(strategy=strategy_name, precision=precision, seed=0) as strategy, strategy.scope():
        if kind == "strings":
            inputs = keras.Input((), dtype="string")
            hidden = Lengths()(inputs)
            texts = tf.constant([b"a" * (i % 5) for i in range(num)])
            split = Split(fetch=lambda i: tf.gather(texts, i), labels=y[:num], names=[str(i) for i in range(num)])
        else:
            inputs = hidden = keras.Input((4,))
            split = array_split(x[:num], y[:num])
        hidden = keras.layers.Dense(8, activation="tanh")(hidden)
        network = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(hidden))
        learner = Learner(network, classification(3), mean_gradient)
        schedule = WarmupCosine(0.05, num_steps=50, warmup_steps=0, falls=False)
        optimizer = make_optimizer("sgd", learning_rate=schedule, momentum=0.9)
        learner.compile(optimizer=optimizer, jit_compile=False)
        plan = IndexPlan(num, size, seed=1)
        assert strategy.num_replicas_in_sync == (2 if strategy_name == "mirrored" else 1)
        whole = IndexPlan(num, size, shuffle=False)
        first = learner.evaluate(fed(strategy, split, whole), verbose=0, return_dict=True)
        history = learner.fit(fed(strategy, split, plan), epochs=-(-50 // plan.steps_per_epoch), verbose=0).history
        weights = np.concatenate([np.ravel(v) for v in network.trainable_variables])
        return weights, [*first.values(), *(value for values in history.values() for value in values)]

for kind, size, precision, num in (
    ("strings", 4, "float32", 13),      # strings cannot be averaged
    ("plain", 8, "float32", 13),        # the last batch is padded
    ("plain", 4, "float32", 1),         # one example for two replicas
    ("plain", 4, "bfloat16", 13),
):
    (one, figures), (two, figures_two) = (trained(s, kind, size, precision, num) for s in ("none", "mirrored"))
    assert np.isfinite(one).all() and np.isfinite(two).all()
    print(kind, precision, num, np.abs(one - two).max(), np.abs(np.subtract(figures, figures_two)).max())
"""


@pytest.mark.slow
def test_two_devices_equal_one_also_where_keras_alone_fails() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO_DEVICES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == 4
    for _, precision, _, weights, figures in found:
        # bfloat16 has three digits.
        assert float(weights) < (1e-5 if precision == "float32" else 2e-2)
        assert float(figures) < (1e-4 if precision == "float32" else 5e-2)


def test_float16_is_refused_on_any_number_of_devices() -> None:
    from tfbig.pipelines._command_line import parse
    from tfbig.pipelines.image_finetune import TASK

    with pytest.raises(UsageError, match="bfloat16"):
        parse(TASK, ["--runtime.precision", "float16", "--runtime.strategy", "mirrored"])


def test_a_tpu_that_is_not_there_is_named() -> None:
    with pytest.raises(EnvironmentFault, match="no TPU"), runtime(strategy="tpu", precision="float32", seed=0):
        pass


def test_the_wait_at_the_start_is_bounded() -> None:
    assert RuntimeConfig().start_timeout_s == 300
    with pytest.raises(ValueError, match="start_timeout_s"):
        RuntimeConfig(start_timeout_s=0)


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path: Path) -> None:
    from tfbig.training.run_directory import UnwrittenRun

    run = UnwrittenRun(tmp_path / "run")
    run.write_json("a.json", {})
    run.write_history([{"epoch": 1}])
    run.update_status("running")
    run.clear()
    assert run.read_json("status.json") == {} and not run.path.exists()
