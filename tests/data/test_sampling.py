"""Laws of Poisson sampling: every set of examples has its probability, nobody is dropped, nothing shows the seed."""

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from tfbig.data import index_plan
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import Plan, PoissonPlan, derived_key
from tfbig.data.splits import Batch, Split, array_split

SECRET = 0x5EC2E7_0123456789ABCDEF_76543210


def _drawn(plan: PoissonPlan, epoch: int, step: int) -> list[int]:
    indices, weight = plan.indices(epoch, step)
    return indices[weight == 1].tolist()


def _included(plan: PoissonPlan, num_steps: int) -> np.ndarray:
    """(num_steps, N) zeros and ones, over epochs of three steps and more."""
    included = np.zeros((num_steps, plan.num_examples))
    for t in range(num_steps):
        included[t, _drawn(plan, *divmod(t, plan.steps_per_epoch))] = 1
    return included


def test_every_set_of_examples_has_the_probability_of_independent_draws() -> None:
    plan, num_steps = PoissonPlan(6, 2, 1, SECRET), 6000
    seen = Counter(tuple(sorted(_drawn(plan, *divmod(t, 3)))) for t in range(num_steps))
    q, statistic = 1 / 3, 0.0
    for size in range(7):
        expected = num_steps * q**size * (1 - q) ** (6 - size)
        statistic += sum((seen[subset] - expected) ** 2 / expected for subset in itertools.combinations(range(6), size))
    # Chi-squared with 63 degrees of freedom: six standard deviations above its mean.
    assert statistic < 63 + 6 * np.sqrt(2 * 63)


def test_sizes_are_binomial_and_inclusions_uncorrelated() -> None:
    plan, num_steps = PoissonPlan(100, 15, 8, SECRET), 4000
    q, included = plan.sampling_probability, _included(plan, num_steps)
    sizes = included.sum(axis=1)
    assert q == 0.15
    assert sizes.mean() == pytest.approx(100 * q, abs=5 * np.sqrt(100 * q * (1 - q) / num_steps))
    assert sizes.var() == pytest.approx(100 * q * (1 - q), rel=5 * np.sqrt(2 / num_steps))
    assert np.abs(included.mean(axis=0) - q).max() < 5 * np.sqrt(q * (1 - q) / num_steps)
    between_examples = np.corrcoef(included.T)[np.triu_indices(100, 1)]
    assert np.abs(between_examples).max() < 5.5 / np.sqrt(num_steps)
    # 4950 pairs: draws of one fixed size would give -1/99 each.
    assert abs(between_examples.mean()) < 5 / np.sqrt(num_steps * 4950)
    # With itself one step, and one epoch, later.
    for later in (1, plan.steps_per_epoch):
        pair = np.corrcoef(included[:-later].ravel(), included[later:].ravel())[0, 1]
        assert abs(pair) < 5 / np.sqrt(included[later:].size)


@pytest.mark.parametrize("batch_size", [200, 15_000])
def test_many_examples_are_drawn_evenly_from_one_end_to_the_other(batch_size: int) -> None:
    plan = PoissonPlan(60_000, batch_size, 32, SECRET)  # NumPy draws small and large shares by different methods
    steps = [_drawn(plan, 0, step) for step in range(30)]
    assert all(len(set(step)) == len(step) for step in steps)
    per_block = np.histogram(np.concatenate(steps), bins=20, range=(0, 60_000))[0]
    expected = 30 * batch_size / 20
    assert np.abs(per_block - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    "num_examples, batch_size, physical", [(1, 1, 1), (50, 7, 4), (50, 7, 64), (50, 50, 8), (9, 100, 2), (300, 1, 4)]
)
def test_each_drawn_example_is_named_once_and_the_rest_is_padding(
    num_examples: int, batch_size: int, physical: int
) -> None:
    plan = PoissonPlan(num_examples, batch_size, physical, SECRET)
    assert plan.steps_per_epoch == -(-num_examples // batch_size)
    for step in range(40):
        indices, weight = plan.indices(1, step)
        num_drawn = int(weight.sum())
        assert indices.dtype == np.int64 and weight.dtype == np.float32
        assert weight.tolist() == [1.0] * num_drawn + [0.0] * (len(weight) - num_drawn)
        assert len(indices) == len(weight) == max(1, -(-num_drawn // physical)) * physical
        assert len(set(indices[:num_drawn])) == num_drawn and (indices[num_drawn:] == 0).all()
        assert ((indices >= 0) & (indices < num_examples)).all()


def test_a_batch_as_large_as_the_data_draws_everybody_each_step() -> None:
    for batch_size in (20, 21, 1000):
        plan = PoissonPlan(20, batch_size, 8, SECRET)
        assert plan.sampling_probability == 1.0 and plan.steps_per_epoch == 1
        assert all(sorted(_drawn(plan, epoch, 0)) == list(range(20)) for epoch in range(5))


def test_empty_draws_happen_and_are_padded() -> None:
    plan = PoissonPlan(100, 1, 6, SECRET)
    empty = [plan.indices(0, step) for step in range(100) if not _drawn(plan, 0, step)]
    assert 0.2 < len(empty) / 100 < 0.55  # exp(-1) is 0.37
    assert all(indices.tolist() == [0] * 6 and weight.tolist() == [0.0] * 6 for indices, weight in empty)


def test_a_step_depends_on_seed_epoch_and_step_alone() -> None:
    positions = [(epoch, step) for epoch in range(3) for step in range(5)]
    plan, same = PoissonPlan(1000, 200, 8, SECRET), PoissonPlan(1000, 200, 8, SECRET)
    assert plan == same
    forwards = [plan.indices(*position)[0].tolist() for position in positions]
    # Asked for in another order: no state is left between calls.
    assert forwards == [same.indices(*position)[0].tolist() for position in reversed(positions)][::-1]
    # Each bit of the seed counts, also those that do not fit into 32 or 64.
    seeds = [SECRET ^ (1 << bit) for bit in (0, 31, 32, 63, 64, 127)]
    others = [PoissonPlan(1000, 200, 8, seed).indices(0, 0)[0].tolist() for seed in seeds]
    assert len({tuple(drawn) for drawn in forwards + others}) == len(positions) + len(seeds)


def test_the_physical_batch_has_no_say_in_who_is_drawn() -> None:
    drawn = [[_drawn(PoissonPlan(500, 60, physical, SECRET), 0, s) for s in range(8)] for physical in (1, 16, 512)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_ten_million_examples_are_drawn_fast() -> None:
    plan = PoissonPlan(10_000_000, 1000, 64, SECRET)
    began = time.process_time()
    for step in range(20):
        plan.indices(0, step)
    assert time.process_time() - began < 0.4  # about 0.01 s; anything in proportion to N takes over 1 s


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"physical_batch_size": -2}, "physical_batch_size must be at least 1, got -2"),
        ({"seed": -1}, "below 2\\*\\*128"),
        ({"seed": 2**128}, "below 2\\*\\*128"),
        ({"seed": 1.5}, "type float"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        PoissonPlan(**{"num_examples": 10, "batch_size": 2, "physical_batch_size": 2, "seed": SECRET, **fields})
    assert str(fields.get("seed", SECRET)) not in str(refusal.value)


@pytest.mark.parametrize("plan", [PoissonPlan(100, 10, 4, SECRET), IndexPlan(100, 10, seed=SECRET)])
def test_the_augmentation_seed_shows_nothing_of_a_secret_seed(plan: Plan) -> None:
    seeds = [plan.augmentation_seed(epoch, step) for epoch in range(5) for step in range(10)]
    assert all(seed.dtype == np.int32 and seed.shape == (2,) for seed in seeds)
    words = {int(word) for seed in seeds for word in seed.view(np.uint32)}
    assert len(words) == 100
    assert not words & {(SECRET >> shift) % 2**32 for shift in range(128)}
    for secret in (str(SECRET), f"{SECRET:x}"):
        assert secret not in repr(plan)
    # One bit of the seed moves about half of the 64 bits: no word of it is a shifted or added part of the secret.
    changed = np.array(
        [type(plan)(**{**vars(plan), "seed": SECRET ^ (1 << bit)}).augmentation_seed(0, 0) for bit in range(120)]
    )
    moved = np.unpackbits((changed ^ plan.augmentation_seed(0, 0)).view(np.uint8), axis=1).sum(axis=1)
    assert 29 < moved.mean() < 35 and moved.min() > 8


@pytest.mark.parametrize("plan", [PoissonPlan(100, 10, 4, SECRET), IndexPlan(100, 10, seed=SECRET)])
def test_the_generators_of_a_secret_plan_never_see_the_secret(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, words = [], {(SECRET >> shift) % 2**bits for shift in range(128) for bits in (32, 64, 128)}

    def noting(original: Callable) -> Callable:
        return lambda seed=None, **more: seeds.append(more.get("key", seed)) or original(seed, **more)

    for name in ("default_rng", "Philox"):
        monkeypatch.setattr(np.random, name, noting(getattr(np.random, name)))
    index_plan._order.cache_clear()
    drawn = {tuple(plan.indices(epoch, 0)[0]) for epoch in range(3)}
    assert len(drawn) == len({str(seed) for seed in seeds}) == 3
    assert not any({seed} & words if isinstance(seed, int) else set(seed) & words for seed in seeds)


def test_each_use_of_a_secret_has_a_key_of_its_own() -> None:
    uses = [("draw", 0, 0), ("draw", 0, 1), ("draw", 1, 0), ("draw", 1, 11), ("draw", 11, 1), ("order", 0),
            ("augment", 0, 0), ("noise",)]  # fmt: skip
    secrets = [SECRET, SECRET ^ 1, SECRET ^ 1 << 127]
    assert len({derived_key(secret, *use) for secret in secrets for use in uses}) == len(secrets) * len(uses)


def _split(num_examples: int, *, in_memory: bool) -> Split:
    """Example i has features (i, 2 i) and label 3 i."""
    numbers = np.arange(num_examples)
    split = array_split(np.stack([numbers, 2 * numbers], axis=1).astype("f4"), 3 * numbers)
    return split if in_memory else Split(lambda i: split.fetch(i), split.labels, split.names)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    "plan",
    [
        PoissonPlan(200, 20, 8, SECRET),
        PoissonPlan(60, 1, 4, SECRET),  # many empty steps
        PoissonPlan(30, 100, 8, SECRET),  # everybody
        PoissonPlan(200, 20, 1, SECRET),
    ],
)
def test_batches_are_the_whole_steps_of_the_plan(plan: PoissonPlan, in_memory: bool) -> None:
    dataset = batches(_split(plan.num_examples, in_memory=in_memory), plan, position=lambda: (2, 0))
    assert [spec.shape[0] for spec in dataset.element_spec] == [None] * 3
    assert dataset.cardinality() == plan.steps_per_epoch
    steps = list(dataset)
    assert len(steps) == plan.steps_per_epoch
    for step, (x, y, weight) in enumerate(steps):
        indices, expected_weight = plan.indices(2, step)
        np.testing.assert_array_equal(x, np.stack([indices, 2 * indices], axis=1))
        np.testing.assert_array_equal(y, 3 * indices)
        np.testing.assert_array_equal(weight, expected_weight)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("plan", [PoissonPlan(100, 9, 4, SECRET), IndexPlan(100, 9, seed=SECRET, multiple=4)])
def test_a_position_leaves_out_the_steps_before_it(plan: Plan, in_memory: bool) -> None:
    def augment(batch: Batch, seed: tf.Tensor) -> Batch:
        return batch._replace(x=batch.x + tf.cast(seed[0] % 1000, tf.float32))

    split, at = _split(100, in_memory=in_memory), (3, 5)
    whole = list(batches(split, plan, position=lambda: (3, 0), augment=augment))
    rest = batches(split, plan, position=lambda: at, augment=augment)
    assert rest.cardinality() == plan.steps_per_epoch - 5
    for ours, theirs in zip(rest, whole[5:], strict=True):
        for part, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("in_memory", [True, False])
def test_augmentation_sees_the_whole_step_and_its_seed(in_memory: bool) -> None:
    plan = PoissonPlan(64, 16, 4, SECRET)

    def note(batch: Batch, seed: tf.Tensor) -> Batch:
        size = tf.fill(tf.shape(batch.weight), tf.size(batch.weight))
        return batch._replace(y=tf.stack([size, tf.fill(tf.shape(size), seed[0]), tf.fill(tf.shape(size), seed[1])], 1))

    dataset = batches(_split(64, in_memory=in_memory), plan, position=lambda: (1, 0), augment=note)
    for step, (_, noted, weight) in enumerate(dataset):
        np.testing.assert_array_equal(noted, [[len(weight), *plan.augmentation_seed(1, step)]] * len(weight))


def test_features_may_be_a_dictionary() -> None:
    plan = PoissonPlan(50, 5, 4, SECRET)
    split = Split(lambda i: {"a": i, "b": tf.stack([i, i])}, np.arange(50), [str(i) for i in range(50)])
    for step, (x, _, _) in enumerate(batches(split, plan)):
        indices, _ = plan.indices(0, step)
        np.testing.assert_array_equal(x["a"], indices)
        np.testing.assert_array_equal(x["b"], np.stack([indices] * 2, axis=1))


def test_little_is_fetched_ahead_and_padding_once() -> None:
    plan = PoissonPlan(6400, 64, 512, SECRET)
    rows = _split(6400, in_memory=True)
    fetched: list[int] = []

    def fetch(index: tf.Tensor) -> tf.Tensor:
        return rows.fetch(tf.numpy_function(lambda i: fetched.append(int(i)) or i, [index], tf.int64))

    steps = iter(batches(Split(fetch, rows.labels, rows.names), plan))
    next(steps)
    time.sleep(1.0)  # long enough to fetch all 100 steps, were they asked for
    assert len(fetched) < 8 * 64
    assert 64 < sum(1 for _ in steps) < 100
    needed = sum(len(_drawn(plan, 0, step)) + 1 for step in range(plan.steps_per_epoch))
    assert len(fetched) == needed


_REPLICAS = """
import numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tfbig.data.sampling import PoissonPlan
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import Split, array_split
from tfbig.gradients.rule import mean_gradient
from tfbig.objectives.supervised import classification
from tfbig.runtime import runtime
from tfbig.training.learner import Learner

x = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")
x[:, 0] = np.arange(60)
memory = array_split(x, np.arange(60) % 3)
fetching = Split(lambda i: memory.fetch(i), memory.labels, memory.names)

def check(strategy_name, split, plan):
    seen, traces = {0: [], 1: []}, []

    def rule(losses, network, batch):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        traces.append(replica)
        note = lambda r, rows, weight: seen[int(r)].append((rows, weight)) or np.int32(0)
        with tf.control_dependencies([tf.numpy_function(note, [replica, batch.x[:, 0], batch.weight], tf.int32)]):
            return mean_gradient(losses, network, batch._replace(x=tf.identity(batch.x) / 60))

    with runtime(strategy=strategy_name, precision="float32", seed=0) as strategy, strategy.scope():
        inputs = keras.Input((4,))
        network = keras.Model(inputs, keras.layers.Dense(3)(inputs))
        learner = Learner(network, classification(3), rule)
        learner.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
        num_replicas, epoch = strategy.num_replicas_in_sync, [0]
        assert num_replicas == (2 if strategy_name == "mirrored" else 1)
        history = keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, logs: epoch.__setitem__(0, number))
        learner.fit(batches(split, plan, position=lambda: (epoch[0], 0)), epochs=3, callbacks=[history], verbose=0)
        assert len(traces) == num_replicas, traces
        wanted = [plan.indices(e, s) for e in range(3) for s in range(plan.steps_per_epoch)]
        for r in range(num_replicas):
            assert len(seen[r]) == len(wanted), (len(seen[r]), len(wanted))
            for (rows, weight), (indices, wanted_weight) in zip(seen[r], wanted):
                size = len(indices) // num_replicas
                np.testing.assert_array_equal(rows, indices[r * size : (r + 1) * size])
                np.testing.assert_array_equal(weight, wanted_weight[r * size : (r + 1) * size])
        sizes = {len(indices) for indices, _ in wanted}
        assert len(sizes) > 1 or plan.batch_length, sizes
        return [v.numpy() for v in network.variables]

poisson = PoissonPlan(60, 12, 4, 2**100 + 7)
for split, plan in ((memory, poisson), (fetching, poisson), (fetching, IndexPlan(60, 9, seed=2**100, multiple=4))):
    one, two = (check(name, split, plan) for name in ("none", "mirrored"))
    assert max(np.abs(a - b).max() for a, b in zip(one, two)) < 1e-5
print("done")
"""


@pytest.mark.slow
def test_fit_gives_each_replica_its_share_of_each_step_in_one_trace() -> None:
    done = subprocess.run([sys.executable, "-c", _REPLICAS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.split()[-1:] == ["done"], done.stderr[-3000:]
