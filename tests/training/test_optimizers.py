"""Laws of the optimizers that update a variable by one operation: they are Keras's, and they are small."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.training.optimizers import FusedAdamW, FusedSGD, WarmupCosine, make_optimizer, without_decay

SHAPES = ((3, 3, 4, 8), (8,), (16, 5), (5,))


def _variables() -> list[keras.Variable]:
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape).astype("f4")) for shape in SHAPES]


def _schedule() -> WarmupCosine:
    return WarmupCosine(0.05, num_steps=20, warmup_steps=3, falls=True)


def _trained(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    optimizer.build(variables)
    apply = tf.function(lambda gradients: optimizer.apply(gradients, variables), autograph=False)
    for _ in range(10):
        apply([tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES])
    return [np.asarray(variable) for variable in [*variables, *optimizer.variables]]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.0}])
def test_weights_and_memory_are_those_of_keras(settings: dict[str, float], decay: float) -> None:
    ours, theirs = _variables(), _variables()
    base = keras.optimizers.SGD if settings else keras.optimizers.AdamW
    expected = base(_schedule(), weight_decay=decay, **settings)
    if decay:
        expected.exclude_from_weight_decay(var_list=without_decay(theirs))
    made = make_optimizer(
        "sgd" if settings else "adamw",
        learning_rate=_schedule(), weight_decay=decay, undecayed=without_decay(ours), **settings,
    )  # fmt: skip
    for one, other in zip(_trained(made, ours), _trained(expected, theirs), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_rows_of_a_table_that_occur_twice_count_twice() -> None:
    def moved(gradient: tf.Tensor | tf.IndexedSlices) -> np.ndarray:
        table = keras.Variable(np.ones((4, 2), "f4"))
        make_optimizer("adamw", learning_rate=_schedule()).apply([gradient], [table])
        return np.asarray(table)

    rows = tf.IndexedSlices(tf.ones((3, 2)), tf.constant([1, 1, 2]), tf.constant([4, 2]))
    np.testing.assert_array_equal(moved(rows), moved(tf.convert_to_tensor(rows)))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_variable_more_is_a_few_operations_more(name: str) -> None:
    def num_operations(num_variables: int) -> int:
        variables = [keras.Variable(np.ones((2, 2), "f4")) for _ in range(num_variables)]
        optimizer = make_optimizer(name, learning_rate=_schedule(), weight_decay=0.1)
        optimizer.build(variables)
        function = tf.function(lambda: optimizer.apply([tf.ones((2, 2))] * num_variables, variables), autograph=False)
        return len(function.get_concrete_function().graph.get_operations())

    assert (num_operations(5) - num_operations(2)) / 3 <= 12


_TWO_DEVICES = """
import numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tfbig.runtime import runtime
from tfbig.training.optimizers import FusedAdamW, FusedSGD, WarmupCosine, make_optimizer, without_decay

def moved(strategy_name):
    with runtime(strategy=strategy_name, precision="float32", seed=0) as strategy, strategy.scope():
        variables = [keras.Variable(np.ones(shape, "f4")) for shape in ((4, 3), (3,), (3, 2))]
        schedule = WarmupCosine(0.05, num_steps=20, warmup_steps=3, falls=True)
        optimizer = make_optimizer("adamw", learning_rate=schedule, weight_decay=0.1,
                                   undecayed=without_decay(variables), slow=variables[:1], slow_scale=0.5)
        optimizer.build(variables)
        share = 1.0 / strategy.num_replicas_in_sync

        @tf.function
        def step(gradients):
            strategy.run(lambda: optimizer.apply([gradient * share for gradient in gradients], variables))

        rng = np.random.default_rng(1)
        for _ in range(5):
            step([tf.constant(rng.normal(size=variable.shape), tf.float32) for variable in variables])
        return [np.asarray(variable) for variable in [*variables, *optimizer.variables]]

print(max(np.abs(one - two).max() for one, two in zip(moved("none"), moved("mirrored"))))
"""


@pytest.mark.slow
def test_two_devices_move_as_one() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO_DEVICES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 1e-6


@pytest.mark.parametrize(("optimizer", "setting"), [(FusedAdamW, "amsgrad"), (FusedSGD, "nesterov")])
def test_what_the_one_operation_does_not_know_is_refused(
    optimizer: type[keras.optimizers.Optimizer], setting: str
) -> None:
    plain = {"undecayed": (), "slow": (), "slow_scale": 1.0, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=setting):
        optimizer(**plain, **{setting: True})
    made = optimizer(**plain, **{setting: False})
    with pytest.raises(ValueError, match="undecayed"):
        made.exclude_from_weight_decay(var_names=["bias"])
