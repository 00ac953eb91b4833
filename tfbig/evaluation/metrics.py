"""The figures a classifier is judged by, each with a bootstrap interval: numpy in, JSON-able out.

Each figure is written as a `Statistic` of the examples' weights (see bootstrap.py), which gives value and
interval alike. Letters in shapes: N examples, C classes, R resamples, K calibration bins.

What is one entry an example in (N, C) is kept sparse, so that ten thousand classes cost what they hold.

Source: expected calibration error, Guo et al. 2017 (arXiv 1706.04599). Used by evaluate.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from tfbig.evaluation.bootstrap import Statistic, mean_of_defined, number, ratio, with_intervals
from tfbig.evaluation.placements import Placements, macro_auroc, placements

NUM_BINS = 15
THRESHOLD = 0.5
MAX_MATRIX_CLASSES = 100
"""Above this many classes most cells of a confusion matrix are empty, and only the others are written."""
# What Keras and scikit-learn clip float32 probabilities at, so that one certain mistake is a finite loss.
_SMALLEST = float(np.finfo(np.float32).eps)


def classification_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    class_names: Sequence[str],
    multi_label: bool = False,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """All figures of a classifier on one split.

    Args:
        labels: (N,) integers in [0, C), or (N, C) zeros and ones for multi-label data.
        probabilities: (N, C) in [0, 1]; rows sum to 1 unless `multi_label`.
        class_names: C names.
        multi_label: Each class is decided on its own, at a probability of 0.5.
        num_bootstrap: R, at least 1.
        seed: Draws the resamples.

    Returns:
        `num_examples`, `metrics` (name -> `value`, `low`, `high`, and a `reason` where the value is None or a
        `note` where it needs one), `per_class`, `calibration`, `interval` (how the intervals were made) and,
        for one class an example, `confusion_matrix` (rows are the true classes), or above 100 classes
        `confusions`, its cells that are not 0 as [true, predicted, count]. No NaN anywhere.

        Macro figures average over the classes that define them. The AUROC is of class 1 for two classes and
        the macro average of one against the rest for more; it is resampled by its first-order expansion
        (DeLong's components), which needs no sorting a resample. How a resample becomes an interval:
        `bootstrap.with_intervals`.

    Raises:
        ValueError: Shapes or values that are not as above.
    """
    labels, probabilities = _checked(labels, probabilities, class_names, multi_label)
    targets = labels.astype(bool) if multi_label else _one_hot(labels, len(class_names))  # (N, C)
    decisions = _decisions(probabilities, multi_label)  # (N, C)
    placed = placements(targets, probabilities)
    statistics = (_multi_label_statistics if multi_label else _single_label_statistics)(
        labels, targets, decisions, probabilities, placed
    )
    metrics = with_intervals(statistics, len(labels), num_bootstrap=num_bootstrap, seed=seed)
    _explain(metrics, placed.aurocs, len(labels))
    report: dict[str, object] = {
        "num_examples": len(labels),
        "metrics": metrics,
        "per_class": _per_class(targets, decisions, placed.aurocs, class_names),
        "calibration": _calibration(*_confidence(targets, decisions, probabilities, multi_label)),
        "interval": {"level": 0.95, "method": "bootstrap", "resamples": num_bootstrap, "seed": seed},
    }
    if not multi_label:
        report |= _confusions(labels, probabilities.argmax(axis=1), len(class_names))
    return report


def example_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The loss of each example.

    Args:
        labels: (N,) integers, or (N, C) zeros and ones.
        probabilities: (N, C).

    Returns:
        (N,) float64: negative log-likelihood of the label in nats, or the mean binary cross-entropy over
        classes for (N, C) labels. Probabilities closer to 0 or 1 than 1.2e-7 count as that.
    """
    if labels.ndim == 1:
        probabilities = probabilities[np.arange(len(labels)), labels]  # (N,)
    p = np.clip(probabilities.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    if labels.ndim == 1:
        return -np.log(p)
    return -np.where(labels > 0, np.log(p), np.log1p(-p)).mean(axis=1)


def _checked(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], multi_label: bool
) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if probabilities.dtype not in (np.float32, np.float64):
        probabilities = probabilities.astype(np.float64)
    shape = (len(labels), len(class_names))
    if len(labels) == 0 or probabilities.shape != shape:
        raise ValueError(
            f"Expected probabilities of shape {shape} (examples, classes) with at least one example, "
            f"got {probabilities.shape}."
        )
    if labels.shape != (shape if multi_label else shape[:1]):
        raise ValueError(
            f"Expected labels of shape {shape if multi_label else shape[:1]}, got {labels.shape}; "
            f"multi_label is {multi_label}."
        )
    if not np.isfinite(probabilities).all() or probabilities.min() < 0 or probabilities.max() > 1.0001:
        raise ValueError("Expected probabilities between 0 and 1, got some outside or not finite.")
    top = 1 if multi_label else len(class_names) - 1
    if labels.min() < 0 or labels.max() > top:
        raise ValueError(f"Expected labels from 0 to {top}, got {labels.min()} to {labels.max()}.")
    return labels if multi_label else labels.astype(np.int64), probabilities


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return labels[:, None] == np.arange(num_classes)  # (N, C)


def _decisions(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    if multi_label:
        return probabilities > THRESHOLD
    return _one_hot(probabilities.argmax(axis=1), probabilities.shape[1])


def _single_label_statistics(
    labels: np.ndarray,
    targets: np.ndarray,
    decisions: np.ndarray,
    probabilities: np.ndarray,
    placed: Placements,
) -> dict[str, Statistic]:
    num_classes = targets.shape[1]
    statistics = {
        "accuracy": _mean((targets & decisions).any(axis=1)),
        "balanced_accuracy": _balanced_accuracy(targets, decisions),
        "macro_f1": _macro_f1(targets, decisions),
        "auroc": macro_auroc(placed, [1] if num_classes == 2 else range(num_classes)),
        "loss": _mean(example_losses(labels, probabilities)),
        "expected_calibration_error": _calibration_error(
            *_confidence(targets, decisions, probabilities, multi_label=False)
        ),
    }
    if num_classes > 5:
        statistics["top5_accuracy"] = _mean(_num_before(labels, probabilities) < 5)
    return statistics


def _num_before(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) classes that are more probable than the true one; of equal ones the first counts as more probable."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)  # (N, 1)
    tied = (probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None])
    return (probabilities > own).sum(axis=1) + tied.sum(axis=1)


def _multi_label_statistics(
    labels: np.ndarray,
    targets: np.ndarray,
    decisions: np.ndarray,
    probabilities: np.ndarray,
    placed: Placements,
) -> dict[str, Statistic]:
    return {
        "accuracy": _mean((targets == decisions).mean(axis=1)),
        "exact_match": _mean((targets == decisions).all(axis=1)),
        "micro_f1": _micro_f1(targets, decisions),
        "macro_f1": _macro_f1(targets, decisions),
        "auroc": macro_auroc(placed, range(targets.shape[1])),
        "loss": _mean(example_losses(labels, probabilities)),
        "expected_calibration_error": _calibration_error(
            *_confidence(targets, decisions, probabilities, multi_label=True)
        ),
    }


def _mean(values: np.ndarray) -> Statistic:
    values = values.astype(np.float64)
    return lambda weights: weights @ values / weights.sum(axis=1)


def _sparse(chosen: np.ndarray) -> csr_array:
    """(N, C) booleans as sparse float64."""
    return csr_array(chosen, dtype=np.float64)


def _balanced_accuracy(targets: np.ndarray, decisions: np.ndarray) -> Statistic:
    hits, support = _sparse(targets & decisions), _sparse(targets)  # (N, C)
    return lambda weights: mean_of_defined(ratio(weights @ hits, weights @ support))


def _macro_f1(targets: np.ndarray, decisions: np.ndarray) -> Statistic:
    hits, either = _sparse(targets & decisions), _sparse(targets) + _sparse(decisions)  # (N, C)
    return lambda weights: mean_of_defined(ratio(2 * (weights @ hits), weights @ either))


def _micro_f1(targets: np.ndarray, decisions: np.ndarray) -> Statistic:
    hits = (targets & decisions).sum(axis=1).astype(np.float64)  # (N,)
    either = (targets.sum(axis=1) + decisions.sum(axis=1)).astype(np.float64)  # (N,)
    return lambda weights: ratio(2 * (weights @ hits), weights @ either)


def _confidence(
    targets: np.ndarray, decisions: np.ndarray, probabilities: np.ndarray, multi_label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness of each decision: (N, 1), or (N, C) for multi-label data."""
    if multi_label:
        p = probabilities.astype(np.float64)
        return np.where(decisions, p, 1 - p), targets == decisions
    return probabilities.max(axis=1, keepdims=True).astype(np.float64), (targets & decisions).any(axis=1, keepdims=True)


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.clip((confidence * NUM_BINS).astype(int), 0, NUM_BINS - 1)


def _calibration_error(confidence: np.ndarray, correct: np.ndarray) -> Statistic:
    """Sum over bins of |sum of (correct - confidence)|: the mean of |accuracy - confidence|."""
    num_examples, num_decisions = confidence.shape
    gaps = np.zeros((num_examples, NUM_BINS))  # (N, K)
    rows = np.broadcast_to(np.arange(num_examples)[:, None], confidence.shape)
    np.add.at(gaps, (rows, _bins(confidence)), correct - confidence)
    return lambda weights: np.abs(weights @ gaps).sum(axis=1) / (weights.sum(axis=1) * num_decisions)


def _calibration(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float | int | None]]:
    bins = _bins(confidence)
    table: list[dict[str, float | int | None]] = []
    for k in range(NUM_BINS):
        inside = bins == k
        count = int(inside.sum())
        table.append({
            "low": k / NUM_BINS,
            "high": (k + 1) / NUM_BINS,
            "count": count,
            "confidence": float(confidence[inside].mean()) if count else None,
            "accuracy": float(correct[inside].mean()) if count else None,
        })
    return table


def _confusions(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> dict[str, object]:
    cells, counts = np.unique(labels * num_classes + predicted, return_counts=True)
    true, said = np.divmod(cells, num_classes)
    if num_classes > MAX_MATRIX_CLASSES:
        return {"confusions": np.stack([true, said, counts], axis=1).tolist()}
    matrix = np.zeros((num_classes, num_classes), np.int64)
    matrix[true, said] = counts
    return {"confusion_matrix": matrix.tolist()}


def _per_class(
    targets: np.ndarray, decisions: np.ndarray, aurocs: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, object]]:
    hits, support, predicted = (targets & decisions).sum(axis=0), targets.sum(axis=0), decisions.sum(axis=0)
    columns = {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, support + predicted),
        "auroc": aurocs,
    }
    return [
        {"name": str(name), "support": int(support[c])}
        | {column: number(values[c]) for column, values in columns.items()}
        for c, name in enumerate(class_names)
    ]


def _explain(metrics: dict[str, dict[str, object]], aurocs: np.ndarray, num_examples: int) -> None:
    """Add the reason to what is undefined, and a note to what is easily misread."""
    defined = int((~np.isnan(aurocs)).sum())
    for name, metric in metrics.items():
        if metric["value"] is None:
            metric["reason"] = (
                "no class is in some examples only" if name == "auroc" else "no label is set or predicted"
            )
        elif name == "auroc" and defined < len(aurocs):
            metric["note"] = f"over the {defined} of {len(aurocs)} classes that only some examples have"
        elif name in ("accuracy", "exact_match") and metric["low"] == metric["high"]:
            metric["note"] = (
                f"no spread among these examples; the true share may still differ by "
                f"{min(1.0, 3 / num_examples):.2g} (3/N)"
            )
