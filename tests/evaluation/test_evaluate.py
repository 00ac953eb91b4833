"""Padding never counts, order is kept, and predictions.csv says what the network said."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbig.data.splits import DataSpec, array_split
from tfbig.errors import DivergedError, EnvironmentFault
from tfbig.evaluation.evaluate import Evaluation, evaluate, predict, write_predictions
from tfbig.evaluation.metrics import classification_metrics


def identity_network(num_classes):
    """Gives its input as logits."""
    inputs = keras.Input((num_classes,))
    return keras.Model(inputs, keras.layers.Activation("linear")(inputs))


def spec_of(num_classes, *, multi_label=False):
    names = tuple("abcdefgh"[:num_classes])
    return DataSpec(tf.TensorSpec([None, num_classes]), num_train=1, class_names=names, multi_label=multi_label)


def logits_and_split(num_examples, num_classes):
    random = np.random.default_rng(0)
    logits = random.normal(size=(num_examples, num_classes)).astype(np.float32)
    labels = random.integers(num_classes, size=num_examples)
    return logits, array_split(logits, labels)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_rows_that_fill_up_a_batch_are_never_counted(batch_size):
    logits, split = logits_and_split(10, 3)
    probabilities = predict(identity_network(3), split, batch_size=batch_size, spec=spec_of(3))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), rtol=1e-6)
    evaluation = evaluate(identity_network(3), split, spec_of(3), batch_size=batch_size)
    assert evaluation.report["num_examples"] == 10
    assert np.sum(evaluation.report["confusion_matrix"]) == 10
    assert sum(row["count"] for row in evaluation.report["calibration"]) == 10


def test_multi_label_probabilities_are_sigmoids():
    logits = np.array([[-2.0, 0.0, 3.0]], np.float32)
    # Exactly 0.5 is no label, as in the export and in the metrics while training.
    split = array_split(logits, np.array([[0.0, 0.0, 1.0]], np.float32))
    spec = spec_of(3, multi_label=True)
    evaluation = evaluate(identity_network(3), split, spec, batch_size=2)
    np.testing.assert_allclose(evaluation.probabilities, tf.sigmoid(logits), rtol=1e-6)
    assert evaluation.report["metrics"]["exact_match"]["value"] == 1.0


def test_evaluation_uses_inference_mode():
    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.Dropout(0.9)(inputs))
    logits, split = logits_and_split(20, 3)
    probabilities = predict(network, split, batch_size=8, spec=spec_of(3))
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), rtol=1e-6)


def test_bfloat16_logits_become_float32_probabilities():
    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.Activation("linear", dtype="bfloat16")(inputs))
    _, split = logits_and_split(5, 3)
    probabilities = predict(network, split, batch_size=8, spec=spec_of(3))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)


def test_values_that_are_not_finite_stop_the_evaluation_naming_the_example():
    logits = np.zeros((4, 2), np.float32)
    logits[2, 0] = np.nan
    split = array_split(logits, np.zeros(4, int), names=["w", "x", "y", "z"])
    with pytest.raises(DivergedError, match="1 of 4 examples, first for y"):
        predict(identity_network(2), split, batch_size=3, spec=spec_of(2))


def test_a_network_with_the_wrong_number_of_outputs_is_refused():
    _, split = logits_and_split(4, 3)
    with pytest.raises(ValueError, match="one column a class"):
        predict(identity_network(3), split, batch_size=2, spec=spec_of(2))


def evaluation_of(labels, probabilities, names, class_names, *, multi_label=False):
    report = classification_metrics(
        labels, probabilities, class_names=class_names, multi_label=multi_label, num_bootstrap=10
    )
    return Evaluation(labels, probabilities, names, report)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_hold_what_the_network_said(tmp_path):
    probabilities = np.array([[0.75, 0.25], [0.9, 0.1]], np.float32)
    names = ["猫, \"quoted\".png", "line\nbreak"]
    evaluation = evaluation_of(np.array([0, 1]), probabilities, names, ["猫", "狗"])
    write_predictions(tmp_path / "predictions.csv", evaluation, ["猫", "狗"])
    rows = read_csv(tmp_path / "predictions.csv")
    assert [row["name"] for row in rows] == names
    assert [(row["label"], row["predicted"], row["correct"]) for row in rows] == [
        ("猫", "猫", "1"), ("狗", "猫", "0")
    ]
    assert [float(row["p_狗"]) for row in rows] == pytest.approx([0.25, 0.1])
    assert float(rows[1]["loss"]) == pytest.approx(-np.log(0.1), rel=1e-5)


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1"])
def test_a_name_is_never_a_spreadsheet_formula(tmp_path, name):
    evaluation = evaluation_of(np.array([0]), np.array([[0.9, 0.1]]), [name], [name, "-1"])
    write_predictions(tmp_path / "predictions.csv", evaluation, [name, "-1"])
    row = read_csv(tmp_path / "predictions.csv")[0]
    assert row["name"] == row["label"] == row["predicted"] == f"'{name}"
    assert not any(column.startswith(("=", "+", "-", "@")) for column in row)


def test_a_negative_number_is_left_a_number(tmp_path):
    evaluation = evaluation_of(np.array([0]), np.array([[0.1, 0.9]]), ["-0.5"], ["+1", "-1"])
    write_predictions(tmp_path / "predictions.csv", evaluation, ["+1", "-1"])
    row = read_csv(tmp_path / "predictions.csv")[0]
    assert (row["name"], row["label"], row["predicted"]) == ("-0.5", "+1", "-1")


def test_multi_label_predictions_join_the_labels(tmp_path):
    labels = np.array([[1, 1, 0], [0, 0, 0]], np.float32)
    probabilities = np.array([[0.9, 0.8, 0.1], [0.2, 0.1, 0.7]], np.float32)
    evaluation = evaluation_of(labels, probabilities, ["x", "y"], ["a", "b", "c"], multi_label=True)
    write_predictions(tmp_path / "predictions.csv", evaluation, ["a", "b", "c"])
    rows = read_csv(tmp_path / "predictions.csv")
    assert [(row["label"], row["predicted"], row["correct"]) for row in rows] == [("a|b", "a|b", "1"), ("", "c", "0")]


def test_many_classes_have_no_probability_columns(tmp_path):
    names = [f"c{i}" for i in range(51)]
    evaluation = evaluation_of(np.array([3]), np.eye(51)[[3]], ["x"], names)
    write_predictions(tmp_path / "predictions.csv", evaluation, names)
    assert list(read_csv(tmp_path / "predictions.csv")[0]) == [
        "name", "label", "predicted", "probability", "correct", "loss"
    ]


def test_a_file_name_that_is_no_utf8_is_spelled_out(tmp_path):
    evaluation = evaluation_of(np.array([0]), np.array([[0.9, 0.1]]), ["caf\udce9.png"], ["a", "b"])
    write_predictions(tmp_path / "predictions.csv", evaluation, ["a", "b"])
    assert read_csv(tmp_path / "predictions.csv")[0]["name"] == "caf\\udce9.png"


def test_a_folder_that_is_missing_is_one_sentence(tmp_path):
    evaluation = evaluation_of(np.array([0]), np.array([[0.9, 0.1]]), ["x"], ["a", "b"])
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_predictions(tmp_path / "none" / "predictions.csv", evaluation, ["a", "b"])


def test_the_report_is_valid_json():
    _, split = logits_and_split(10, 3)
    evaluation = evaluate(identity_network(3), split, spec_of(3), batch_size=4)
    json.dumps(evaluation.report, allow_nan=False)
