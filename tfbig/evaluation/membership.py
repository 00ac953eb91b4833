"""Membership inference: how well an example's loss gives away that the network was trained on it.

The attack by a threshold on the loss (Yeom et al. 2018, arXiv 1709.01604), judged as Carlini et al. 2022
(arXiv 2112.03570) ask for: not on average alone, but also where false alarms are rare. Letters in shapes: N examples,
those of both sides, R resamples. Numpy in, JSON-able out; used by pipelines/_audit.py and audit_report.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tfbig.evaluation.bootstrap import Statistic, with_intervals

FALSE_ALARMS = 0.01
_MAX_POINTS = 200
# Of Kolmogorov's distribution: what chance alone exceeds once in twenty times.
_CHANCE_QUANTILE = 1.358

Point = tuple[float, float]
# (R, K) false and true positive rates -> (R,) values.
Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]


def membership_figures(
    members: np.ndarray, others: np.ndarray, *, num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, object]:
    """How well a threshold on the loss tells members from others.

    Args:
        members: (N1,) losses of examples that were trained on.
        others: (N2,) losses of examples that were not.
        num_bootstrap: R.
        seed: Draws the resamples.

    Returns:
        `auc` (0.5 is guessing), `advantage` (the largest true less false positive rate, 0 to 1) and `tpr_at_1_fpr`
        (the true positive rate with at most 1 % false alarms), each with `value`, `low`, `high`;
        `advantage_by_chance`, which a network that remembers nothing exceeds once in twenty times; `num_members`,
        `num_others`, and the means of the losses.

    Raises:
        ValueError: A side is empty, or a loss is not finite.
    """
    losses, is_member = _joined(members, others)
    statistics = {
        "auc": _statistic(losses, is_member, _area),
        "advantage": _statistic(losses, is_member, lambda false, true: (true - false).max(axis=1)),
        "tpr_at_1_fpr": _statistic(
            losses, is_member, lambda false, true: np.where(false <= FALSE_ALARMS, true, 0).max(axis=1)
        ),
    }
    figures: dict[str, object] = dict(
        with_intervals(statistics, len(losses), num_bootstrap=num_bootstrap, seed=seed)
    )
    by_chance = _CHANCE_QUANTILE * math.sqrt((len(members) + len(others)) / (len(members) * len(others)))
    return figures | {
        "advantage_by_chance": min(1.0, by_chance),
        "num_members": len(members),
        "num_others": len(others),
        "mean_loss_of_members": float(np.mean(members)),
        "mean_loss_of_others": float(np.mean(others)),
    }


def roc_points(members: np.ndarray, others: np.ndarray) -> list[Point]:
    """The attack's (false, true) positive rates from (0, 0) to (1, 1), thinned out to some hundred points.

    Args:
        members: (N1,) losses of examples that were trained on.
        others: (N2,) losses of examples that were not.
    """
    losses, is_member = _joined(members, others)
    false, true = (rates[0] for rates in _rates(np.ones((1, len(losses))), losses, is_member))
    kept = np.unique(np.linspace(0, len(false) - 1, _MAX_POINTS).round().astype(int))
    return [(float(false[i]), float(true[i])) for i in kept]


def _joined(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    losses = np.concatenate([members, others]).astype(np.float64)
    if not len(members) or not len(others) or not np.isfinite(losses).all():
        raise ValueError(
            f"Expected finite losses of at least one example a side, got {len(members)} members, {len(others)} others "
            f"and {int((~np.isfinite(losses)).sum())} losses that are not finite."
        )
    return losses, np.arange(len(losses)) < len(members)


def _rates(weights: np.ndarray, losses: np.ndarray, is_member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) false and true positive rates, the threshold rising over the K - 1 distinct losses; NaN for no side."""
    order = np.argsort(losses, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(losses[order])), len(losses) - 1)
    rates = []
    for side in (~is_member, is_member):
        taken = np.cumsum(weights[:, order] * side[order], axis=1)[:, ends]  # (R, K - 1)
        with np.errstate(invalid="ignore"):
            rates.append(np.pad(taken / taken[:, -1:], [(0, 0), (1, 0)]))
    return rates[0], rates[1]


def _area(false: np.ndarray, true: np.ndarray) -> np.ndarray:
    return (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1)


def _statistic(losses: np.ndarray, is_member: np.ndarray, figure: Curve) -> Statistic:
    return lambda weights: figure(*_rates(weights, losses, is_member))
