"""Parts of pictures: functions of their keys alone, spread as they are said to be, and what `batches` cuts out."""

from __future__ import annotations

import os

import numpy as np
import pytest
import tensorflow as tf

from tfbig.data import parts
from tfbig.data.augment import augmentation
from tfbig.data.batches import batches
from tfbig.data.index_plan import IndexPlan
from tfbig.data.sampling import Plan, PoissonPlan
from tfbig.data.splits import Split
from tfbig.errors import UsageError

_SEED = np.array([3, 12], np.int32)


def test_draws_are_functions_of_their_keys_alone() -> None:
    keys = parts.keys(_SEED, np.arange(100))
    whole = parts.draws(keys)
    np.testing.assert_array_equal(parts.draws(keys[::-1])[::-1], whole)
    np.testing.assert_array_equal(parts.draws(keys[40:41])[0], whole[40])
    for other in (parts.keys(_SEED[::-1], np.arange(100)), parts.keys(_SEED + [0, 1], np.arange(100))):
        assert (parts.draws(other) != whole).all()


@pytest.mark.parametrize("what", ["examples of a step", "steps of an example", "seeds"])
def test_draws_of_neighbours_are_uniform_and_independent(what: str) -> None:
    numbers, count = np.arange(20_000), 20_000
    keys = {
        "examples of a step": parts.keys(_SEED, numbers),
        "steps of an example": np.concatenate([parts.keys(np.array([3, i]), np.array([7])) for i in numbers]),
        "seeds": np.concatenate([parts.keys(np.array([i, 12]), np.array([7])) for i in numbers]),
    }[what]
    draws = parts.draws(keys)
    assert draws.dtype == np.float32 and draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        # Kolmogorov and Smirnov's distance; of a uniform sample it is above this once in 30,000.
        assert np.abs(np.sort(column) - (np.arange(count) + 0.5) / count).max() < 2.3 / np.sqrt(count)
    # No draw says anything about another of the example, nor about one of the next example.
    side_by_side = np.concatenate([draws[:-1], draws[1:]], axis=1)
    correlation = np.corrcoef(side_by_side.T) - np.eye(10)
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def test_parts_have_the_shares_and_shapes_that_are_said() -> None:
    height, width, top, left, mirrored = parts.parts(parts.draws(parts.keys(_SEED, np.arange(20_000)))).T
    share, shape = height * width, width / height
    assert share.min() == pytest.approx(0.08, abs=1e-3) and share.max() == pytest.approx(1, abs=1e-3)
    assert np.abs(np.quantile(share, [0.25, 0.5, 0.75]) - [0.31, 0.54, 0.77]).max() < 0.02
    assert shape.min() == pytest.approx(3 / 4, abs=1e-3) and shape.max() == pytest.approx(4 / 3, abs=1e-3)
    assert (shape > 1).mean() == pytest.approx(0.5, abs=0.02)
    assert 0 <= min(top.min(), left.min()) and max(top.max(), left.max()) < 1
    assert set(mirrored) == {0, 1} and mirrored.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "plan",
    [IndexPlan(7, 3, seed=5), IndexPlan(70, 20, seed=5), PoissonPlan(7, 3, 2, seed=5)],
    ids=["index", "large", "poisson"],
)
@pytest.mark.parametrize("names", [["resized_crop", "flip"], ["resized_crop"]], ids=["flip", "no flip"])
def test_batches_fetch_the_part_of_step_and_example(plan: Plan, names: list[str]) -> None:
    split = Split(
        fetch=lambda i: tf.cast(i, tf.float32)[None],
        labels=np.arange(70),
        names=[str(number) for number in range(70)],
        fetch_parts=lambda i, parts: tf.concat([tf.cast(i, tf.float32)[:, None], parts], axis=1),
    )
    augment = augmentation(names, num_classes=70, multi_label=False)
    mirrored = set()
    for epoch in (0, 4):
        rows = batches(split, plan, position=lambda: (epoch, 1), augment=augment)  # noqa: B023
        for step, (x, _, weight) in enumerate(rows, 1):
            indices, _ = plan.indices(epoch, step)
            drawn = parts.draws(parts.keys(plan.augmentation_seed(epoch, step), indices))
            expected = parts.parts(drawn, flips="flip" in names)
            real = weight.numpy() > 0
            np.testing.assert_array_equal(x[real][:, 0], indices[real])
            np.testing.assert_array_equal(x[real][:, 1:], expected[real])
            mirrored |= set(expected[real][:, 4])
    assert mirrored == ({0, 1} if "flip" in names else {0})


def test_examples_without_parts_are_refused_before_any_is_read() -> None:
    split = Split(lambda i: tf.cast(i, tf.float32)[None], np.arange(7), list("abcdefg"))
    augment = augmentation(["resized_crop"], num_classes=7, multi_label=False)
    with pytest.raises(UsageError, match="leave resized_crop out"):
        batches(split, IndexPlan(7, 3), augment=augment)


def test_the_input_has_as_many_threads_as_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(lambda i: tf.cast(i, tf.float32)[None], np.arange(7), list("abcdefg"))
    for given, expected in (("3", 3), ("", len(os.sched_getaffinity(0)))):
        monkeypatch.setenv("TF_NUM_INTEROP_THREADS", given)
        assert batches(split, IndexPlan(7, 3)).options().threading.private_threadpool_size == expected
