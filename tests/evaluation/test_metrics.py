"""Figures equal their definitions, intervals behave as intervals, and nothing is ever NaN."""

import functools
import json
import time

import numpy as np
import pytest
from sklearn import metrics as reference

from tfbig.evaluation.metrics import classification_metrics, example_losses


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def random_case(num_examples, num_classes, *, seed=0, signal=1.5):
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=num_examples)
    logits = random.normal(size=(num_examples, num_classes))
    logits[np.arange(num_examples), labels] += signal
    return labels, softmax(logits)


def multi_label_case(num_examples, num_classes, *, seed=0):
    random = np.random.default_rng(seed)
    labels = (random.random((num_examples, num_classes)) < 0.3).astype(np.float32)
    return labels, np.clip(0.3 * labels + 0.7 * random.random(labels.shape), 0, 1)


def judged(labels, probabilities, **kwargs):
    names = [f"class {c}" for c in range(probabilities.shape[1])]
    return classification_metrics(labels, probabilities, class_names=names, **{"num_bootstrap": 200} | kwargs)


def values(report):
    return {name: metric["value"] for name, metric in report["metrics"].items()}


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_single_label_figures_equal_scikit_learn(num_classes):
    labels, probabilities = random_case(500, num_classes)
    predicted = probabilities.argmax(axis=1)
    if num_classes == 2:
        auroc = reference.roc_auc_score(labels, probabilities[:, 1])
    else:
        auroc = reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "macro_f1": reference.f1_score(labels, predicted, average="macro"),
        "auroc": auroc,
        "loss": reference.log_loss(labels, probabilities),
    }
    if num_classes > 5:
        expected["top5_accuracy"] = reference.top_k_accuracy_score(labels, probabilities, k=5)
    report = judged(labels, probabilities)
    found = values(report)
    assert set(found) == {*expected, "expected_calibration_error"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert report["confusion_matrix"] == reference.confusion_matrix(labels, predicted).tolist()


def test_per_class_table_equals_scikit_learn():
    labels, probabilities = random_case(300, 4)
    columns = reference.precision_recall_fscore_support(labels, probabilities.argmax(axis=1))
    for c, row in enumerate(judged(labels, probabilities)["per_class"]):
        found = [row[key] for key in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx([column[c] for column in columns])
        assert row["auroc"] == pytest.approx(reference.roc_auc_score(labels == c, probabilities[:, c]))


def test_multi_label_figures_equal_scikit_learn():
    labels, probabilities = multi_label_case(400, 5)
    decisions = probabilities >= 0.5
    expected = {
        "exact_match": reference.accuracy_score(labels, decisions),
        "accuracy": 1 - reference.hamming_loss(labels, decisions),
        "micro_f1": reference.f1_score(labels, decisions, average="micro"),
        "macro_f1": reference.f1_score(labels, decisions, average="macro"),
        "auroc": reference.roc_auc_score(labels, probabilities, average="macro"),
        "loss": np.mean([reference.log_loss(labels[:, c], probabilities[:, c]) for c in range(5)]),
    }
    report = judged(labels, probabilities, multi_label=True)
    for name, value in expected.items():
        assert values(report)[name] == pytest.approx(value, abs=1e-9), name
    assert "confusion_matrix" not in report


def test_calibration_error_of_a_known_case_is_exact():
    # Ten at 0.9 of which 6 are right, ten at 0.7 of which 8 are: (10 * 0.3 + 10 * 0.1) / 20.
    top = np.repeat([0.9, 0.7], 10)
    probabilities = np.stack([top, 1 - top], axis=1)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 8 + [1] * 2)
    report = judged(labels, probabilities)
    assert values(report)["expected_calibration_error"] == pytest.approx(0.2)
    filled = [row for row in report["calibration"] if row["count"]]
    assert [(row["count"], row["accuracy"]) for row in filled] == [(10, 0.8), (10, 0.6)]
    assert filled[0]["confidence"] == pytest.approx(0.7)


def test_labels_drawn_from_the_probabilities_are_calibrated():
    random = np.random.default_rng(1)
    probabilities = softmax(2 * random.normal(size=(50_000, 4)))
    labels = (probabilities.cumsum(axis=1) > random.random((50_000, 1))).argmax(axis=1)
    assert values(judged(labels, probabilities, num_bootstrap=20))["expected_calibration_error"] < 0.01
    overconfident = softmax(4 * np.log(probabilities))
    assert values(judged(labels, overconfident, num_bootstrap=20))["expected_calibration_error"] > 0.05


@pytest.mark.parametrize("multi_label", [False, True])
def test_intervals_hold_the_value_and_shrink_with_the_number_of_examples(multi_label):
    case = multi_label_case if multi_label else functools.partial(random_case, signal=0.3)
    few = judged(*case(200, 6), multi_label=multi_label)["metrics"]
    many = judged(*case(20_000, 6), multi_label=multi_label)["metrics"]
    for name in few:
        for metric in (few[name], many[name]):
            assert metric["low"] <= metric["value"] <= metric["high"]
        shrunk = (few[name]["high"] - few[name]["low"]) / (many[name]["high"] - many[name]["low"])
        # The law is a factor of 10, the square root of 100 times the examples.
        assert 5 < shrunk < 20, name


def test_intervals_equal_those_of_a_plain_bootstrap():
    labels, probabilities = random_case(300, 3)
    random = np.random.default_rng(5)
    drawn = [random.integers(300, size=300) for _ in range(400)]
    plain = {
        "accuracy": [reference.accuracy_score(labels[i], probabilities[i].argmax(axis=1)) for i in drawn],
        "macro_f1": [reference.f1_score(labels[i], probabilities[i].argmax(axis=1), average="macro") for i in drawn],
        "auroc": [reference.roc_auc_score(labels[i], probabilities[i], multi_class="ovr") for i in drawn],
    }
    metrics = judged(labels, probabilities, num_bootstrap=1000)["metrics"]
    for name, resampled in plain.items():
        low, high = np.percentile(resampled, [2.5, 97.5])
        tolerance = 0.2 * (high - low)
        assert metrics[name]["low"] == pytest.approx(low, abs=tolerance), name
        assert metrics[name]["high"] == pytest.approx(high, abs=tolerance), name


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    # 200 studies of 150 examples from a classifier that is right 80 % of the time.
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        right = random.random(150) < 0.8
        probabilities = np.where(right[:, None], [[0.7, 0.3]], [[0.3, 0.7]])
        accuracy = judged(np.zeros(150, int), probabilities)["metrics"]["accuracy"]
        covered += accuracy["low"] <= 0.8 <= accuracy["high"]
    assert 0.90 <= covered / 200 <= 0.99


def test_the_seed_decides_the_interval():
    case = random_case(100, 3)
    assert judged(*case, seed=1) == judged(*case, seed=1)
    assert judged(*case, seed=1)["metrics"]["loss"] != judged(*case, seed=2)["metrics"]["loss"]


@pytest.mark.parametrize("present", [[2], [0, 2]])
def test_what_is_not_defined_is_null_with_a_reason(present):
    labels = np.resize(present, 30)
    _, probabilities = random_case(30, 4)
    report = judged(labels, probabilities)
    json.dumps(report, allow_nan=False)
    auroc = report["metrics"]["auroc"]
    if len(present) == 1:
        assert auroc["value"] is None and auroc["low"] is None and auroc["reason"]
    else:
        assert 0 <= auroc["value"] <= 1 and "2 of 4 classes" in auroc["note"]
    assert report["per_class"][1]["recall"] is None and report["per_class"][1]["support"] == 0


def test_no_label_at_all_is_null_and_never_nan():
    report = judged(np.zeros((5, 2)), np.full((5, 2), 0.1), multi_label=True)
    json.dumps(report, allow_nan=False)
    assert report["metrics"]["macro_f1"] == {
        "value": None, "low": None, "high": None, "reason": "no label is set or predicted"
    }


def test_a_certain_mistake_has_a_finite_loss_and_one_example_is_enough():
    report = judged(np.array([1]), np.array([[1.0, 0.0]]))
    json.dumps(report, allow_nan=False)
    assert 15 < report["metrics"]["loss"]["value"] < 17


def test_a_perfect_score_says_what_resampling_cannot():
    report = judged(np.array([0, 1] * 50), np.eye(2)[[0, 1] * 50])
    assert report["metrics"]["accuracy"]["low"] == 1.0
    assert "0.03 (3/N)" in report["metrics"]["accuracy"]["note"]


def test_losses_average_to_the_loss():
    labels, probabilities = random_case(50, 3)
    assert example_losses(labels, probabilities).mean() == pytest.approx(values(judged(labels, probabilities))["loss"])


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.array([0, 1]), np.ones((2, 3)) / 3, "shape"),
        (np.zeros(0, int), np.ones((0, 2)), "at least one example"),
        (np.array([0, 2]), np.ones((2, 2)) / 2, "from 0 to 1"),
        (np.array([0, 1]), np.array([[0.5, np.nan], [0.5, 0.5]]), "not finite"),
        (np.zeros((2, 2)), np.ones((2, 2)) / 2, "multi_label is False"),
    ],
)
def test_wrong_input_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities, class_names=["a", "b"])


def test_ten_thousand_examples_take_seconds():
    case = random_case(10_000, 10)
    start = time.perf_counter()
    judged(*case, num_bootstrap=1000)
    assert time.perf_counter() - start < 10


def test_equal_scores_count_half_in_the_auroc():
    labels, probabilities = random_case(300, 2)
    probabilities = np.round(probabilities, 1)
    expected = reference.roc_auc_score(labels, probabilities[:, 1])
    assert values(judged(labels, probabilities))["auroc"] == pytest.approx(expected, abs=1e-9)


def test_few_negatives_make_the_auroc_uncertain():
    _, probabilities = random_case(400, 2, seed=3, signal=0.0)
    labels = (np.arange(400) >= 8).astype(int)
    random = np.random.default_rng(6)
    drawn = [random.integers(400, size=400) for _ in range(400)]
    plain = [reference.roc_auc_score(labels[i], probabilities[i, 1]) for i in drawn if labels[i].min() == 0]
    low, high = np.percentile(plain, [2.5, 97.5])
    auroc = judged(labels, probabilities, num_bootstrap=1000)["metrics"]["auroc"]
    assert auroc["high"] - auroc["low"] == pytest.approx(high - low, rel=0.2)


def test_each_calibration_bin_holds_its_own_confidences():
    bins = judged(*random_case(2000, 3))["calibration"]
    assert len(bins) == 15 and sum(row["count"] for row in bins) == 2000
    for row in bins:
        assert row["count"] == 0 or row["low"] <= row["confidence"] <= row["high"]


def test_the_interval_of_a_calibration_error_is_not_inflated():
    # Of a calibrated classifier, a plain percentile interval would begin at the value or above it.
    random = np.random.default_rng(1)
    top = 0.5 + 0.5 * random.random(500)
    labels = (random.random(500) > top).astype(int)
    error = judged(labels, np.stack([top, 1 - top], axis=1))["metrics"]["expected_calibration_error"]
    below, above = error["value"] - error["low"], error["high"] - error["value"]
    assert 0.4 < below / above < 2.5
