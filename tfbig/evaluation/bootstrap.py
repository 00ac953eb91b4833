"""Figures as functions of the examples' weights, and their intervals by resampling.

With all weights 1 a statistic is the figure itself; with weights that say how often each example was
drawn it is the figure on a bootstrap resample. One definition serves both, and a thousand resamples are
a few matrix products. Letters in shapes: N examples, R resamples.

Source: the percentile bootstrap, Efron and Tibshirani 1993, chapter 13. Used by metrics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

# (R, N) weights -> (R,) values, NaN where the resample does not define the figure.
Statistic = Callable[[np.ndarray], np.ndarray]

# 32 MB of float64 weights at a time.
_CHUNK_ELEMENTS = 4_000_000


def number(value: float) -> float | None:
    """A float for JSON, which has no NaN: None instead."""
    return None if np.isnan(value) else float(value)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """(R, C) -> (R,), over the entries that are not NaN."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


def with_intervals(
    statistics: Mapping[str, Statistic], num_examples: int, *, num_bootstrap: int, seed: int
) -> dict[str, dict[str, object]]:
    """The value of each figure and its 95 % interval over resamples of the examples.

    An interval is the 2.5th to 97.5th percentile. Resampling inflates a calibration error, whose terms
    are absolute values, so its interval is moved back by the bootstrap's estimate of that bias. An interval
    that would miss its own value is widened to it.

    Args:
        statistics: Name -> figure.
        num_examples: N, at least 1.
        num_bootstrap: R, at least 1.
        seed: Draws the resamples.

    Returns:
        Name -> `value`, `low`, `high`, each None where the examples do not define it.
    """
    everyone = np.ones((1, num_examples))
    resampled = _resamples(statistics, num_examples, num_bootstrap, seed)
    metrics: dict[str, dict[str, object]] = {}
    for (name, statistic), column in zip(statistics.items(), resampled.T, strict=True):
        value = number(statistic(everyone)[0])
        defined = column[~np.isnan(column)]
        if value is None or not len(defined):
            metrics[name] = {"value": value, "low": None, "high": None}
            continue
        low, high = np.percentile(defined, [2.5, 97.5])
        if name == "expected_calibration_error":
            bias = defined.mean() - value
            low, high = max(0.0, low - bias), high - bias
        metrics[name] = {"value": value, "low": min(float(low), value), "high": max(float(high), value)}
    return metrics


def _resamples(
    statistics: Mapping[str, Statistic], num_examples: int, num_bootstrap: int, seed: int
) -> np.ndarray:
    """(R, number of statistics) values over resamples of the examples."""
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_ELEMENTS // num_examples)
    values = []
    for start in range(0, num_bootstrap, chunk):
        rows = min(chunk, num_bootstrap - start)
        drawn = random.integers(num_examples, size=(rows, num_examples))
        drawn += np.arange(rows)[:, None] * num_examples
        counts = np.bincount(drawn.ravel(), minlength=rows * num_examples)
        weights = counts.reshape(rows, num_examples).astype(np.float64)  # (R, N)
        values.append(np.stack([statistic(weights) for statistic in statistics.values()], axis=1))
    return np.concatenate(values)
