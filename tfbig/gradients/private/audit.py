"""A lower bound on epsilon from one run: guesses who took part, and what so many right ones prove.

m canaries take part or not by a fair coin each. Whoever sees only what the mechanism gives out guesses some of the
coins and abstains from the others; were the mechanism (epsilon, delta)-DP, too many right guesses would be unlikely
(Steinke, Nasr and Jagielski 2023, Privacy Auditing with One (1) Training Run, arXiv 2305.08846, theorem 5.2). Beside
canaries.py, which runs them; used by pipelines/_audit.py. Imports no TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from tfbig.gradients.private.accounting import epsilon as claimed_after
from tfbig.gradients.private.mechanism import Mechanism

CONFIDENCE = 0.95
# Shares of the canaries that are guessed to be in and out. The first pays where noise hides much, the second where
# hardly any does, or where canaries that take part may never have been drawn. Fixed before any run is seen.
_GUESS_SHARES = ((0.1, 0.1), (0.4, 0.0))
_MAX_EPSILON = 50.0


@dataclass(frozen=True)
class Check:
    """One count of guesses, beside what was claimed.

    Args:
        canaries: Which kind.
        num_canaries: m, of this kind.
        steps: Steps that were looked at.
        num_guesses: r; from the other canaries the auditor abstains.
        num_correct: v.
        epsilon_lower_bound: With the confidence that this check needs for all of them to hold together.
        largest_provable: What the bound would be were every guess right.
        claimed_epsilon: For these steps.
    """

    canaries: str
    num_canaries: int
    steps: int
    num_guesses: int
    num_correct: int
    epsilon_lower_bound: float
    largest_provable: float
    claimed_epsilon: float

    @property
    def is_violated(self) -> bool:
        """Whether the bound is above the claim."""
        return self.epsilon_lower_bound > self.claimed_epsilon

    def as_json(self) -> dict[str, object]:
        """For audit.json; an infinite claim is the text "inf"."""
        claim = self.claimed_epsilon if math.isfinite(self.claimed_epsilon) else "inf"
        return {**asdict(self), "claimed_epsilon": claim}


def p_value(*, num_canaries: int, num_guesses: int, num_correct: int, epsilon: float, delta: float) -> float:
    """A bound on the probability of at least so many right guesses under (epsilon, delta)-DP.

    Under pure epsilon-DP each guess is right with a probability of at most q = e^epsilon / (1 + e^epsilon), whatever
    the others are, so the right ones are stochastically at most W ~ Binomial(r, q). delta adds F >= 0 right ones,
    with E[F] <= 2 m delta; of all such F, P[W + F >= v] is at most
    P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i.

    Args:
        num_canaries: m, each of which took part with probability 1/2.
        num_guesses: r, at most m; fixed without regard to the coins.
        num_correct: v, at most r.
        epsilon: At least 0.
        delta: 0 to below 1.

    Raises:
        ValueError: A value out of its range.
    """
    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise ValueError(
            f"Expected 0 <= right guesses <= guesses <= canaries, got {num_correct}, {num_guesses} and {num_canaries}."
        )
    if not (epsilon >= 0 and 0 <= delta < 1):
        raise ValueError(f"epsilon must be >= 0 and delta from 0 to below 1, got {epsilon} and {delta}.")
    accuracy = 1 / (1 + math.exp(-epsilon))
    # P[W >= k] for k = 0 ... v.
    tails = stats.binom.sf(np.arange(-1, num_correct), num_guesses, accuracy)
    least = float(tails[-1])
    if num_correct == 0 or delta == 0:
        return min(1.0, least)
    # i = 1 ... v; above v the numerator stays and the denominator grows.
    excess = (tails[-2::-1] - least) / np.arange(1, num_correct + 1)
    return min(1.0, least + 2 * num_canaries * delta * float(excess.max()))


def epsilon_lower_bound(
    *, num_canaries: int, num_guesses: int, num_correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that so many right guesses rule out, at least 0.

    Guarantees: for a mechanism that is (epsilon, delta)-DP the result is above epsilon with a probability of at most
    1 - confidence, over the canaries' coins and the mechanism's. For delta = 0 it is Clopper and Pearson's lower
    bound on a guess's accuracy, turned into epsilon.

    Args:
        num_canaries: As for `p_value`, like the next three.
        num_guesses: r.
        num_correct: v.
        delta: Of the claim.
        confidence: Above 0 and below 1.
    """

    def is_ruled_out(epsilon: float) -> bool:
        found = p_value(
            num_canaries=num_canaries, num_guesses=num_guesses, num_correct=num_correct, epsilon=epsilon, delta=delta
        )
        return found < 1 - confidence

    # Whatever is ruled out is a bound, since a smaller epsilon promises more; so it need not be the first crossing.
    low, high = 0.0, _MAX_EPSILON
    if not is_ruled_out(low):
        return 0.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_ruled_out(middle) else (low, middle)
    return low


def count_correct(scores: np.ndarray, included: np.ndarray, *, num_in: int, num_out: int) -> int:
    """How many guesses are right: the highest scores are guessed to be in, the lowest to be out.

    Args:
        scores: (m,); larger where the canary seems to have taken part.
        included: (m,) booleans: whether it did.
        num_in: Guesses at the top.
        num_out: Guesses at the bottom.
    """
    if num_in + num_out > len(scores):
        raise ValueError(f"Expected at most {len(scores)} guesses, one a canary, got {num_in} + {num_out}.")
    order = np.argsort(scores, kind="stable")
    return int(included[order[len(order) - num_in :]].sum() + (~included[order[:num_out]]).sum())


def check_claims(
    scores: Mapping[str, Mapping[int, np.ndarray]],
    included: Mapping[str, np.ndarray],
    *,
    claims: Mapping[int, float],
    delta: float,
) -> list[Check]:
    """All checks of one run.

    Guarantees: for a mechanism that keeps its claims, the probability that any check is violated is at most
    1 - CONFIDENCE: each check is held to its share of that (Bonferroni), and all are fixed in advance.

    Args:
        scores: Kind of canaries -> number of steps -> (m,) scores.
        included: Kind -> (m,) booleans.
        claims: Number of steps -> the epsilon that is claimed for so many.
        delta: Of the claims.
    """
    plans = [
        (kind, steps, num_in, num_out)
        for kind, by_steps in scores.items()
        for steps in by_steps
        for num_in, num_out in _num_guesses(len(included[kind]))
    ]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(plans))
    checks = []
    for kind, steps, num_in, num_out in plans:
        num_correct = count_correct(scores[kind][steps], included[kind], num_in=num_in, num_out=num_out)
        num_canaries, num_guesses = len(included[kind]), num_in + num_out
        shown, most = (
            epsilon_lower_bound(
                num_canaries=num_canaries, num_guesses=num_guesses, num_correct=v, delta=delta, confidence=confidence
            )
            for v in (num_correct, num_guesses)
        )
        checks.append(Check(kind, num_canaries, steps, num_guesses, num_correct, shown, most, claims[steps]))
    return checks


def telling_steps(mechanism: Mechanism, num_steps: int, *, num_canaries: int, delta: float) -> int:
    """After how many steps a run without its noise would be shown most clearly.

    A few guesses cannot prove a large epsilon, but a promise holds after every step, and after few steps it claims
    little. Depends on the mechanism alone, so it is fixed before the run is seen; all steps where so many canaries
    could show nothing after any.

    Args:
        mechanism: The run.
        num_steps: All of its steps.
        num_canaries: m, of one kind.
        delta: Of the claim.
    """
    candidates = sorted({round(num_steps * 2 ** (-k / 2)) for k in range(24)} - {0})

    def provable(steps: int, *, all_right: bool) -> float:
        bounds = []
        for num_in, num_out in _num_guesses(num_canaries):
            right = _expected_correct(mechanism, steps, num_canaries, num_in, num_out)
            bounds.append(epsilon_lower_bound(
                num_canaries=num_canaries, num_guesses=num_in + num_out, delta=delta, confidence=0.99,
                num_correct=num_in + num_out if all_right else right,
            ))  # fmt: skip
        return max(bounds)

    def margin(steps: int) -> float:
        # The faster accountant; its larger epsilon hardly changes which number of steps is best.
        claim = claimed_after(mechanism, steps, delta=delta, accountant="rdp")
        return provable(steps, all_right=False) - claim

    best = max(candidates, key=margin)
    claim = claimed_after(mechanism, best, delta=delta, accountant=mechanism.accountants[0])
    return best if provable(best, all_right=True) > claim else num_steps


def _expected_correct(mechanism: Mechanism, steps: int, num_canaries: int, num_in: int, num_out: int) -> int:
    """Right guesses without any noise: whoever takes part is known as soon as it is drawn."""
    seen = min(1.0, steps / mechanism.steps_per_epoch)
    if mechanism.sampling == "poisson":
        seen = 1 - (1 - mechanism.sampling_probability) ** steps
    # Two standard deviations below the mean, for the coins and the draws may fall badly.
    known = max(0.0, num_canaries * seen / 2 - 2 * math.sqrt(num_canaries * seen / 2 * (1 - seen / 2)))
    right_in = min(num_in, known) + max(0, num_in - known) / 2
    return math.floor(right_in + num_out / (2 - seen))


def _num_guesses(num_canaries: int) -> Sequence[tuple[int, int]]:
    return [(math.ceil(top * num_canaries), math.ceil(bottom * num_canaries)) for top, bottom in _GUESS_SHARES]
