"""Laws of the index plan: every example once an epoch, a pure function of its fields, slices that add up."""

import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.splits import IndexPlan, Split, array_split


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
