"""How much each setting of a search decided, and how much of that chance alone would give.

The share is that of the variance of the scores' ranks which the setting alone explains: by a parabola over the ranks of
its values where they are a range, by the means of its values where they are a choice. Ranks, so that one trial that
went badly does not decide it all; a parabola, since most settings have a best value in the middle. Interactions of
settings are not seen. With few trials any setting explains something: `chance` is what a setting without influence
stays below in 19 of 20 searches, found by shuffling the scores. With 20 trials that is about 0.3.
In the tree: below search_report.py. Letters in shapes: N trials, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

_NUM_PERMUTATIONS = 4000
_CONFIDENCE = 0.95
_MIN_TRIALS = 5


@dataclass(frozen=True)
class Importance:
    """What one setting explains of a search's scores.

    Args:
        share: Of the variance of the scores' ranks, 0 to 1; None where there are too few trials to say.
        chance: What a setting without influence stays below in 19 of 20 searches.
    """

    share: float | None
    chance: float | None

    @property
    def is_above_chance(self) -> bool:
        """Whether it is more than chance gives."""
        return self.share is not None and self.chance is not None and self.share > self.chance


def importance(values: Sequence[object], scores: Sequence[float], *, is_range: bool, seed: int = 0) -> Importance:
    """The influence of one setting.

    Args:
        values: N values of it.
        scores: N scores, finite.
        is_range: Whether the values are numbers of a range, and not one of some.
        seed: Of the permutations.
    """
    if len(scores) < _MIN_TRIALS or len(set(values)) < 2 or len(set(scores)) < 2:
        return Importance(None, None)
    basis = _basis(values, is_range)  # (N, K)
    ranks = rankdata(scores)  # (N,)
    ranks -= ranks.mean()
    shuffled = np.random.default_rng(seed).permuted(np.tile(ranks, (_NUM_PERMUTATIONS, 1)), axis=1)  # (P, N)
    by_chance = np.square(shuffled @ basis).sum(axis=1) / np.square(ranks).sum()  # (P,)
    share = float(np.square(ranks @ basis).sum() / np.square(ranks).sum())
    return Importance(min(share, 1.0), float(np.quantile(by_chance, _CONFIDENCE)))


def _basis(values: Sequence[object], is_range: bool) -> np.ndarray:
    """(N, K): orthonormal columns, each of mean 0, that span what the setting can explain."""
    if is_range:
        place = rankdata(np.asarray(values, float))  # (N,)
        place = (place - place.mean()) / place.std()
        design = np.stack([place, place**2], axis=1)
    else:
        kinds = sorted({repr(value) for value in values})
        design = np.array([[repr(value) == kind for kind in kinds[1:]] for value in values], float)
    directions, sizes, _ = np.linalg.svd(design - design.mean(axis=0), full_matrices=False)
    return directions[:, sizes > 1e-9 * sizes.max()]
