"""Stratified draws: disjoint, in proportion, blind to order, never parting equal contents."""

import time

import numpy as np
import pytest

from tfbig.data import strata


def _examples(seed: int, num_examples: int = 300) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels of five unequal classes, numbers of contents of which a fifth come twice or more, and names."""
    rng = np.random.default_rng(seed)
    contents = rng.integers(0, num_examples * 4 // 5, num_examples)
    labels = np.minimum(contents % 12, 4).astype(np.int32)
    return labels, contents, [f"{i:05d}" for i in range(num_examples)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.6])
def test_classes_give_their_share_and_equal_contents_stay_together(seed: int, fraction: float) -> None:
    labels, contents, names = _examples(seed)
    leaves = strata.draw(labels, contents, names, fraction=fraction, seed=(seed, 1))
    assert not set(contents[leaves]) & set(contents[~leaves])
    for label in range(5):
        mine = labels == label
        largest = np.unique(contents[mine], return_counts=True)[1].max()
        assert 1 <= leaves[mine].sum() < mine.sum()
        assert abs(leaves[mine].sum() - fraction * mine.sum()) <= max(largest, 1)


def test_the_order_of_the_examples_changes_nothing() -> None:
    labels, contents, names = _examples(0)
    leaves = strata.draw(labels, contents, names, fraction=0.25, seed=(5,))
    shuffled = np.random.default_rng(1).permutation(len(labels))
    again = strata.draw(labels[shuffled], contents[shuffled], [names[i] for i in shuffled], fraction=0.25, seed=(5,))
    np.testing.assert_array_equal(again, leaves[shuffled])
    other = strata.draw(labels, contents, names, fraction=0.25, seed=(6,))
    assert (other != leaves).any()


def test_one_huge_group_of_equal_contents_does_not_empty_a_class() -> None:
    labels = np.zeros(12, np.int32)
    contents = np.array([3] * 9 + [0, 1, 2])
    leaves = strata.draw(labels, contents, [str(i) for i in range(12)], fraction=0.2, seed=(0,))
    assert leaves[:9].sum() == 0 and leaves[9:].sum() in (1, 2)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_small_class_gives_one_and_keeps_one(fraction: float) -> None:
    labels = np.array([0, 0, 0, 1, 1], np.int32)
    contents = np.arange(5)
    leaves = strata.draw(labels, contents, list("vwxyz"), fraction=fraction, seed=(0,))
    assert {bool(x) for x in leaves[:3]} == {bool(x) for x in leaves[3:]} == {False, True}


def test_a_class_with_one_content_stays() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    contents = np.array([0, 1, 2, 3, 3, 4])
    leaves = strata.draw(labels, contents, list("uvwxyz"), fraction=0.5, seed=(0,))
    assert not leaves[3:].any() and leaves[:3].any()
    assert strata.too_few(labels, contents) == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_keep_their_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((400, 5)) < [0.5, 0.3, 0.1, 0.05, 0.02]).astype(np.float32)
    contents = rng.integers(0, 330, 400)
    labels = labels[np.unique(contents, return_index=True)[1][np.unique(contents, return_inverse=True)[1]]]
    leaves = strata.draw(labels, contents, [f"{i:04d}" for i in range(400)], fraction=0.25, seed=(seed,))
    assert not set(contents[leaves]) & set(contents[~leaves])
    assert abs(leaves.sum() - 100) <= 8
    for column in range(5):
        assert abs(labels[leaves, column].sum() - 0.25 * labels[:, column].sum()) <= 4
    unlabelled = ~labels.any(1)
    assert abs(leaves[unlabelled].sum() - 0.25 * unlabelled.sum()) <= 4


@pytest.mark.parametrize("limit", [5, 7, 50, 299, 300, 1000])
def test_a_limit_is_exact_and_in_proportion(limit: int) -> None:
    labels, _, names = _examples(3)
    kept = strata.sample(labels, names, limit=limit, seed=(0,))
    assert len(kept) == len(set(kept.tolist())) == min(limit, 300)
    counts, kept_counts = np.bincount(labels), np.bincount(labels[kept], minlength=5)
    assert (kept_counts >= 1).all()
    if limit >= 50:  # below it, one for each class is more than its share
        assert (abs(kept_counts - np.minimum(limit, 300) * counts / 300) <= 2).all()
    shuffled = np.random.default_rng(2).permutation(300)
    again = strata.sample(labels[shuffled], [names[i] for i in shuffled], limit=limit, seed=(0,))
    assert {names[i] for i in kept} == {names[shuffled[i]] for i in again}


def test_a_limit_below_the_number_of_classes_and_on_several_labels_is_exact() -> None:
    labels, _, names = _examples(1)
    assert len(strata.sample(labels, names, limit=3, seed=(0,))) == 3
    several = np.eye(5, dtype=np.float32)[labels] + np.eye(5, dtype=np.float32)[(labels + 1) % 5]
    for limit in (1, 40, 299):
        kept = strata.sample(several, names, limit=limit, seed=(0,))
        assert len(set(kept.tolist())) == limit


def test_grouping_by_class_takes_one_sort_however_many_classes_there_are() -> None:
    labels = np.random.default_rng(0).integers(5, 40, 300)
    found = strata._by_class(labels)
    expected = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    num_examples = 60_000
    names = [f"{i:06d}" for i in range(num_examples)]
    contents = np.arange(num_examples)

    def seconds(num_classes: int) -> float:
        labels = np.resize(np.arange(num_classes), num_examples)
        began = time.process_time()
        strata.too_few(labels, contents)
        strata.draw(labels, contents, names, fraction=0.1, seed=(0,))
        strata.sample(labels, names, limit=num_examples // 2, seed=(0,))
        return time.process_time() - began

    # A pass over all examples a class would take 3,000 passes.
    assert seconds(6000) < 20 * seconds(2)
