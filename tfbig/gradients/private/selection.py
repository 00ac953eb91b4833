"""What a search over private runs costs: the best of a random number of trials, or all of them.

Random search whose number of trials is drawn from a geometric distribution, and of which the best trial alone is
released, costs two to three times one trial, however many there are (Liu and Talwar 2019; Papernot and Steinke 2022,
arXiv 2110.03620; dp-accounting's RepeatAndSelectDpEvent, shape 1). Geometric, and not Poisson, because there is always
a trial and the bound is smaller; the price is that one search in twenty runs three times the mean. The theorem needs
trials that do not look at each other, so what Hyperband and Bayesian search do is composed in full.
In the tree: above accounting.py; used by search/privacy.py. Imports no TensorFlow.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from tfbig.errors import UsageError
from tfbig.gradients.private.accounting import accountant_for, composed_epsilon, least_sigma
from tfbig.gradients.private.mechanism import Accountant, Mechanism, dp_accounting

_GEOMETRIC = 1.0
_LEAST_SHARE = 0.995


@dataclass(frozen=True)
class Selection:
    """A search over private runs, as an accountant sees it.

    Args:
        mechanism: Of each trial's runs.
        num_steps: Of one trial, all its runs together.
        mean_trials: Mean of the geometric distribution that the number of trials was drawn from, at least 1; None
            where all trials are counted.
        num_trials: Trials that are counted where `mean_trials` is None.
    """

    mechanism: Mechanism
    num_steps: int
    mean_trials: float | None
    num_trials: int = 0

    @property
    def event(self) -> dp_accounting.DpEvent:
        """In dp-accounting's terms."""
        trial = self.mechanism.event(self.num_steps)
        if self.mean_trials is None:
            return dp_accounting.SelfComposedDpEvent(trial, self.num_trials)
        return dp_accounting.dp_event.RepeatAndSelectDpEvent(trial, self.mean_trials, _GEOMETRIC)

    @property
    def accountant(self) -> Accountant:
        """The tightest that knows it: `rdp` where a number of trials was drawn."""
        return accountant_for([self.event])

    def epsilon(self, delta: float) -> float:
        """The epsilon of the search as a whole, at `delta`, in the relation that all mechanisms share."""
        return composed_epsilon([self.event], delta=delta, accountant=self.accountant)


def calibrated(selection: Selection, *, target_epsilon: float, delta: float) -> Selection:
    """The same with the least noise that keeps the search as a whole within a target.

    Args:
        selection: Its noise multiplier does not matter.
        target_epsilon: Above 0.
        delta: Above 0 and below 1.

    Raises:
        UsageError: No noise multiplier up to 1e6 reaches it.
    """

    def with_noise(sigma: float) -> Selection:
        return replace(selection, mechanism=replace(selection.mechanism, noise_multiplier=sigma))

    def spent(sigma: float) -> float:
        return with_noise(sigma).epsilon(delta)

    found = least_sigma(spent, target_epsilon, guess=2.0, least_share=_LEAST_SHARE)
    if found is None:
        raise UsageError(
            f"No noise keeps this search within epsilon {target_epsilon:g} at delta {delta:g}; raise the target, or "
            "give fewer --tune.max_trials."
        )
    return with_noise(found)


def draw_num_trials(mean: float) -> int:
    """A number of trials, at least 1, geometric with this mean, from the operating system's randomness."""
    source, number = secrets.SystemRandom(), 1
    while source.random() >= 1 / mean:
        number += 1
    return number
