"""Placements, AUROC and its resampling equal their dense definitions, and cost what many classes hold."""

import json
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.metrics import top_k_accuracy_score as top_k_accuracy

from tfbig.evaluation import charts, metrics
from tfbig.evaluation.metrics import classification_metrics
from tfbig.evaluation.placements import macro_auroc, placements


def tied_case(num_examples, num_classes, *, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_examples)
    scores = rng.integers(1, 6, size=(num_examples, num_classes)).astype(np.float64)  # many ties
    scores[np.arange(num_examples), labels] += 1
    return labels, scores / scores.sum(axis=1, keepdims=True)


def dense_resampled(targets, scores, weights):
    """The first-order expansion, class by class and pair by pair."""
    values = []
    for c in range(targets.shape[1]):
        positive = targets[:, c]
        if positive.all() or not positive.any():
            continue
        right = (scores[:, c][:, None] > scores[:, c][None]) + 0.5 * (scores[:, c][:, None] == scores[:, c][None])
        right = right[positive][:, ~positive]  # (P, N - P)
        auroc, ours, theirs = right.mean(), weights[positive], weights[~positive]
        if ours.sum() and theirs.sum():
            value = ours @ right.mean(axis=1) / ours.sum() + theirs @ right.mean(axis=0) / theirs.sum() - auroc
            values.append(np.clip(value, 0, 1))
    return np.mean(values)


@pytest.mark.parametrize("multi_label", [False, True])
def test_resampled_auroc_equals_its_definition(multi_label):
    labels, scores = tied_case(60, 70)  # more than a block of classes, some of them without examples
    targets = labels[:, None] == np.arange(70)
    if multi_label:
        targets |= np.random.default_rng(1).random(targets.shape) < 0.3
    weights = np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60), size=5).astype(np.float64)
    found = macro_auroc(placements(targets, scores), range(70))(weights)
    assert found == pytest.approx([dense_resampled(targets, scores, row) for row in weights], abs=1e-9)


def test_auroc_of_each_class_equals_scikit_learn():
    labels, scores = tied_case(200, 90)
    targets = labels[:, None] == np.arange(90)
    for c, found in enumerate(placements(targets, scores).aurocs):
        if 0 < targets[:, c].sum() < 200:
            assert found == pytest.approx(roc_auc_score(targets[:, c], scores[:, c]), abs=1e-12)
        else:
            assert np.isnan(found)


def test_of_equal_probabilities_the_first_class_is_the_more_probable():
    labels, scores = tied_case(300, 12)
    best_five = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    found = metrics._num_before(labels, scores) < 5
    assert (found == (best_five == labels[:, None]).any(axis=1)).all()
    untied = np.random.default_rng(0).dirichlet(np.ones(12), size=300)
    assert (metrics._num_before(labels, untied) < 5).mean() == top_k_accuracy(labels, untied, k=5)


def test_confusions_of_many_classes_are_the_cells_of_the_matrix_that_are_not_empty(monkeypatch):
    labels, scores = tied_case(300, 8)
    names = list("abcdefgh")
    matrix = np.array(classification_metrics(labels, scores, class_names=names, num_bootstrap=2)["confusion_matrix"])
    monkeypatch.setattr(metrics, "MAX_MATRIX_CLASSES", 7)
    report = classification_metrics(labels, scores, class_names=names, num_bootstrap=2)
    assert "confusion_matrix" not in report
    rebuilt = np.zeros_like(matrix)
    for true, said, count in report["confusions"]:
        assert count > 0
        rebuilt[true, said] = count
    assert (rebuilt == matrix).all()
    drawn = charts.drawn_confusions(report)
    assert drawn is not None and (drawn == matrix).all()


def test_confusions_of_a_thousand_classes_take_less_than_a_byte_a_cell_and_are_drawn():
    labels = np.resize(np.arange(1000), 2000)
    probabilities = np.random.default_rng(0).random((2000, 1000), np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    report = classification_metrics(labels, probabilities, class_names=[str(c) for c in range(1000)], num_bootstrap=2)
    assert len(json.dumps(report, indent=2)) < 1e6
    drawn = charts.drawn_confusions(report)
    assert drawn is not None and drawn.sum() == 2000 and drawn.shape == (1000, 1000)
    np.testing.assert_array_equal(drawn.sum(axis=1), 2)


def test_more_classes_than_pixels_are_not_drawn():
    assert charts.drawn_confusions({"per_class": [{}] * 1001, "confusions": [[0, 1, 2]]}) is None
    assert charts.drawn_confusions({"per_class": [{}] * 3}) is None


def test_memory_of_many_classes_is_a_few_tables_of_bytes():
    labels = np.resize(np.arange(1500), 3000)
    probabilities = np.random.default_rng(0).random((3000, 1500), np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    tracemalloc.start()
    classification_metrics(labels, probabilities, class_names=[str(c) for c in range(1500)], num_bootstrap=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A table of float64 is 8 bytes a cell, and there were ten of them.
    assert peak / probabilities.size < 10
