"""Laws of the index plan: every example once an epoch, a pure function of its fields, slices that add up."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.splits import Split, array_split


@pytest.mark.parametrize("num_examples, batch_size", [(1, 1), (7, 3), (64, 64), (65, 64), (3, 8), (1000, 7)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_example_once(num_examples: int, batch_size: int, shuffle: bool) -> None:
    plan = IndexPlan(num_examples, batch_size, seed=3, shuffle=shuffle)
    steps = [plan.indices(2, step) for step in range(plan.steps_per_epoch)]
    indices = np.concatenate([step[0] for step in steps])
    weights = np.concatenate([step[1] for step in steps])
    assert all(len(i) == len(w) == batch_size for i, w in steps)
    assert sorted(indices[weights == 1]) == list(range(num_examples))
    assert ((indices >= 0) & (indices < num_examples)).all()
    assert set(weights) <= {0.0, 1.0}


def test_the_order_of_an_epoch_is_that_of_every_release() -> None:
    """A run that goes on has seen the examples of its epoch so far in this order."""
    found = [IndexPlan(1000, 1000, seed=seed).indices(epoch, 0)[0] for seed in (0, 7, 2**40) for epoch in (0, 3)]
    assert {one.dtype for one in found} == {np.dtype(np.int64)}
    expected = [np.random.default_rng([seed, epoch]).permutation(1000) for seed in (0, 7) for epoch in (0, 3)]
    np.testing.assert_array_equal(found[:4], expected)
    assert hashlib.md5(np.stack(found).astype("<i8").tobytes()).hexdigest() == "6911fd9d88f1af19a9c0e24ff271ef2c"


def test_equal_plans_agree_and_seeds_and_epochs_differ() -> None:
    plan = IndexPlan(500, 32, seed=7)
    same = IndexPlan(500, 32, seed=7)
    # Asked for in another order: no state is left between calls.
    backwards = [same.indices(1, step)[0] for step in reversed(range(plan.steps_per_epoch))][::-1]
    forwards = [plan.indices(1, step)[0] for step in range(plan.steps_per_epoch)]
    np.testing.assert_array_equal(forwards, backwards)
    assert (forwards[0] != plan.indices(2, 0)[0]).any()
    assert (forwards[0] != IndexPlan(500, 32, seed=8).indices(1, 0)[0]).any()


def test_replicas_share_the_batch() -> None:
    plan = IndexPlan(50, 12, seed=1)
    for step in range(plan.steps_per_epoch):
        whole = plan.indices(4, step)
        parts = [plan.indices(4, step, replica=r, num_replicas=3) for r in range(3)]
        for i in (0, 1):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    with pytest.raises(ValueError, match="not a multiple of 5 replicas"):
        plan.indices(0, 0, num_replicas=5)


def test_without_shuffling_the_stored_order_stays() -> None:
    plan = IndexPlan(10, 4, seed=9, shuffle=False)
    assert [plan.indices(5, step)[0].tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]


@pytest.mark.parametrize("num_examples, batch_size", [(0, 1), (1, 0)])
def test_an_empty_plan_is_refused(num_examples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        IndexPlan(num_examples, batch_size)


def test_a_subset_of_a_subset_keeps_everything_together() -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    whole = array_split(x, np.arange(10), names=[f"row {i}" for i in range(10)])
    whole = Split(whole.fetch, whole.labels, whole.names, payload=lambda i: bytes([i]))
    part = whole.subset(np.array([9, 4, 7, 1])).subset(np.array([2, 0]))
    assert part.labels.tolist() == [7, 9]
    assert list(part.names) == ["row 7", "row 9"]
    assert [part.payload(i) for i in range(2)] == [b"\x07", b"\x09"]
    fetched = list(tf.data.Dataset.range(2).map(part.fetch))
    np.testing.assert_array_equal(fetched, x[[7, 9]])


@pytest.mark.parametrize("num_examples, batch_size, multiple", [(20, 6, 4), (20, 6, 16), (5, 8, 3), (24, 8, 4)])
@pytest.mark.parametrize("seed", [3, 2**127 + 5])
def test_physical_batches_pad_each_batch_and_leave_its_examples(
    num_examples: int, batch_size: int, multiple: int, seed: int
) -> None:
    plain = IndexPlan(num_examples, batch_size, seed=seed)
    padded = IndexPlan(num_examples, batch_size, seed=seed, multiple=multiple)
    assert padded.steps_per_epoch == plain.steps_per_epoch
    assert padded.batch_length % multiple == 0 and 0 <= padded.batch_length - batch_size < multiple
    for step in range(plain.steps_per_epoch):
        indices, weight = padded.indices(1, step)
        wanted, wanted_weight = plain.indices(1, step)
        assert len(indices) == len(weight) == padded.batch_length
        np.testing.assert_array_equal(indices[:batch_size], wanted)
        np.testing.assert_array_equal(weight[:batch_size], wanted_weight)
        assert (weight[batch_size:] == 0).all() and ((indices >= 0) & (indices < num_examples)).all()
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        IndexPlan(20, 6, multiple=0)


def test_each_bit_of_a_long_seed_counts() -> None:
    seeds = [2**127 + 5] + [(2**127 + 5) ^ (1 << bit) for bit in (0, 31, 32, 63, 64, 126)]
    orders = {tuple(IndexPlan(100, 100, seed=seed).indices(0, 0)[0]) for seed in seeds}
    assert len(orders) == len(seeds)


def test_the_augmentation_seed_of_a_short_seed_is_that_of_earlier_runs() -> None:
    plan = IndexPlan(50, 8, seed=2**31 - 1)  # 7 steps an epoch
    assert plan.augmentation_seed(3, 2).tolist() == [2**31 - 1, 23]
    assert plan.augmentation_seed(0, 0).dtype == np.int32
    assert IndexPlan(50, 8, seed=2**31).augmentation_seed(0, 2).tolist() != [2**31, 2]


def test_batches_of_a_padded_plan_have_one_size_and_its_examples() -> None:
    plan = IndexPlan(20, 6, seed=2, multiple=4)
    rows = array_split(np.arange(20, dtype=np.float32)[:, None], np.arange(20))
    for split in (rows, Split(rows.fetch, rows.labels, rows.names)):
        dataset = batches(split, plan)
        assert [spec.shape[0] for spec in dataset.element_spec] == [8, 8, 8]
        seen = [np.asarray(y)[np.asarray(weight) == 1] for _, y, weight in dataset]
        assert [len(step) for step in seen] == [6, 6, 6, 2]
        assert sorted(np.concatenate(seen)) == list(range(20))


def test_the_indices_of_a_subset_are_no_part_of_the_graph() -> None:
    part = array_split(np.arange(100_000), np.zeros(100_000, int)).subset(np.arange(99_999))
    traced = tf.function(lambda i: part.gather(i), input_signature=[tf.TensorSpec([2], tf.int64)])
    graph = traced.get_concrete_function().graph.as_graph_def()
    assert graph.ByteSize() < 10_000
    assert traced(tf.constant([3, 5], tf.int64)).numpy().tolist() == [3, 5]


def test_each_iteration_goes_on_from_the_step_it_is_told() -> None:
    # More steps than Python is asked for at once, from within such a block.
    plan, begin = IndexPlan(150, 2, seed=4), [1, 37]
    asked = []

    def position() -> tuple[int, int]:
        asked.append(tuple(begin))
        return begin[0], begin[1]

    dataset = batches(array_split(np.arange(150)[:, None], np.arange(150)), plan, position=position)
    for begin[0] in (1, 2):
        asked.clear()
        seen = [(x[:, 0].numpy(), weight.numpy()) for x, _, weight in dataset]
        assert asked == [(begin[0], 37)]
        wanted = [plan.indices(begin[0], step) for step in range(37, 75)]
        np.testing.assert_array_equal(seen, wanted)


def test_no_dataset_has_glibc_give_freed_memory_back() -> None:
    # TensorFlow's GeneratorDataset calls mallopt, which undoes heap.py.
    dataset = batches(array_split(np.zeros((4, 1)), np.zeros(4, int)), IndexPlan(4, 2))
    graph = tf.raw_ops.DatasetToGraphV2(input_dataset=dataset._variant_tensor, external_state_policy=1).numpy()
    assert b"MapDataset" in graph and b"GeneratorDataset" not in graph
