"""How examples are ordered against those of other classes: AUROC a class, and its resampling, for many classes.

An example's placement is the share of the other side of a class that it is rightly ordered against. For the positives
of all classes these are as many numbers as there are labels, kept sparse; for the negatives they are (C, N), kept as
the smallest whole numbers that hold them. Letters in shapes: N examples, C classes, R resamples.

Source: structural components of the AUROC, DeLong et al. 1988. Used by metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

from tfbig.evaluation.bootstrap import Statistic, mean_of_defined, ratio

# Classes at a time: their columns are read together, and a block of them is made floating point.
_BLOCK = 64
# Up to here float32 holds every whole number.
_EXACT = 2**24


@dataclass(frozen=True)
class Placements:
    """How each example is ordered against the other side of each class.

    Args:
        aurocs: (C,) area under the ROC curve of each class against the rest, NaN for a class that all examples have,
            or none.
        of_positives: (N, C) sparse, the share of negatives below each positive; ties count half.
        positives: (N, C) sparse ones where an example has the class.
        counts: (C, N) whole numbers: for a negative twice the number of positives below it, ties counting 1;
            0 for positives.
        num_positives: (C,).
    """

    aurocs: np.ndarray
    of_positives: csr_array
    positives: csr_array
    counts: np.ndarray
    num_positives: np.ndarray


def placements(targets: np.ndarray, probabilities: np.ndarray) -> Placements:
    """Orders all examples in each class.

    Args:
        targets: (N, C) booleans.
        probabilities: (N, C) scores.
    """
    num_examples, num_classes = targets.shape
    num_positives = targets.sum(axis=0)
    counts = np.zeros((num_classes, num_examples), np.min_scalar_type(2 * int(num_positives.max(initial=0))))
    aurocs = np.full(num_classes, np.nan)
    rows, columns, shares = [], [], []
    for first in range(0, num_classes, _BLOCK):
        scores = np.ascontiguousarray(probabilities[:, first : first + _BLOCK].T)  # (block, N)
        for c, score in enumerate(scores, first):
            positive = targets[:, c]
            if not 0 < num_positives[c] < num_examples:
                continue
            ones = np.flatnonzero(positive)
            share = _twice_below(np.sort(score[~positive]), score[ones]) / (2 * (num_examples - len(ones)))
            counts[c] = _twice_below(np.sort(score[ones]), score)
            counts[c, ones] = 0
            aurocs[c] = share.mean()
            rows.append(ones)
            columns.append(np.full(len(ones), c))
            shares.append(share)
    of_positives = _sparse(rows, columns, shares, targets.shape)
    ones_of = _sparse(rows, columns, [np.ones(len(share)) for share in shares], targets.shape)
    return Placements(aurocs, of_positives, ones_of, counts, num_positives)


def macro_auroc(placed: Placements, classes: Sequence[int]) -> Statistic:
    """The mean AUROC of classes as a function of the examples' weights, by its first-order expansion.

    Args:
        placed: Of all classes.
        classes: Those that count; whichever of them is not defined is left out.
    """
    chosen = np.array([c for c in classes if not np.isnan(placed.aurocs[c])], int)
    positives, of_positives = placed.positives[:, chosen], placed.of_positives[:, chosen]
    aurocs, num_positives = placed.aurocs[chosen], placed.num_positives[chosen]
    num_examples = placed.counts.shape[1]
    # Weights are whole numbers that add up to N, so these sums are too: half the bytes, and nothing is rounded.
    exact = 2 * num_examples * int(num_positives.max(initial=0)) < _EXACT
    kind = np.float32 if exact else np.float64

    def below(weights: np.ndarray) -> np.ndarray:
        """(R, C) twice the positives below the negatives, by weight."""
        found, narrow = np.empty((len(weights), len(chosen))), weights.astype(kind)
        for first in range(0, len(chosen), _BLOCK):
            block = placed.counts[chosen[first : first + _BLOCK]].astype(kind)  # (block, N)
            found[:, first : first + _BLOCK] = narrow @ block.T
        return found

    def statistic(weights: np.ndarray) -> np.ndarray:
        of_class = weights @ positives  # (R, C)
        of_others = weights.sum(axis=1, keepdims=True) - of_class
        among_positives = ratio(weights @ of_positives, of_class)
        among_negatives = 1.0 - ratio(below(weights), 2 * num_positives * of_others)
        return mean_of_defined(np.clip(among_positives + among_negatives - aurocs, 0.0, 1.0))

    return statistic


def _twice_below(ordered: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Twice the number of ordered scores below each score, ties counting 1."""
    return np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")


def _sparse(rows: list, columns: list, values: list, shape: tuple[int, int]) -> csr_array:
    if not rows:
        return csr_array(shape)
    parts = [np.concatenate(part) for part in (values, rows, columns)]
    return coo_array((parts[0], (parts[1], parts[2])), shape=shape).tocsr()
